"""/guarded/doctor: what is set, there, missing and unsafe, with the mend. For operators."""

from __future__ import annotations

import asyncio

from aiohttp import web

from .about import About
from .table import Call, Route, answered


async def get_doctor(call: Call) -> web.StreamResponse:
    """A line for each thing that was looked at; takes as long as the disks and onnxruntime's import."""
    return answered(await asyncio.to_thread(call.services.doctor.body))


ROUTES = [Route("GET", "/doctor", get_doctor, operate=True, about=About({200: "Doctor"}))]
