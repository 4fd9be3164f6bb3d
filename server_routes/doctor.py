"""/guarded/doctor: what is set, missing or unsafe, and how to mend it. For operators."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..guard.doctor import DoctorBody
from .about import About
from .table import Call, Route, respond


async def get_doctor(call: Call) -> web.StreamResponse:
    """A line for each check; takes as long as the disks and onnxruntime's import."""
    return respond(await asyncio.to_thread(call.services.doctor.body))


ROUTES = [Route("GET", "/doctor", get_doctor, operate=True, about=About({200: DoctorBody}))]
