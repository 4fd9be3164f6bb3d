"""/guarded/stats, figures as JSON, of the caller's own jobs or, for an operator, of everything; /guarded/machine,
/guarded/metrics."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..guard.operators.bodies import StatsBody
from ..guard.operators.machine import MachineBody
from ..guard.operators.metrics import CONTENT_TYPE
from .about import READ, About
from .asked import read_whole_number
from .table import Call, Route, respond


async def get_stats(call: Call) -> web.StreamResponse:
    """The figures, computed at most every few seconds, however many ask."""
    return respond(await call.services.stats.body(call.client))


async def get_metrics(call: Call) -> web.StreamResponse:
    """The metrics, for Prometheus."""
    text = await asyncio.to_thread(call.services.exposition.text)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


async def get_machine(call: Call) -> web.StreamResponse:
    """How busy the machine was over the last hour, every five seconds; `after_ms` leaves out what was before that."""
    return respond(call.services.machine.body(read_whole_number(call, "after_ms") or 0))


ROUTES = [
    Route(
        "GET",
        "/machine",
        get_machine,
        operate=True,
        about=About({200: MachineBody}, query={"after_ms": {"type": "integer"}}),
    ),
    Route("GET", "/stats", get_stats, about=About({200: StatsBody}, refusals=READ)),
    Route(
        "GET",
        "/metrics",
        get_metrics,
        operate=True,
        about=About({200: "text/plain"}, refusals=READ),
    ),
]
