"""/guarded/stats, figures as JSON, of the caller's own jobs or, for an operator, of everything; /guarded/metrics."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..guard.operators.bodies import StatsBody
from ..guard.operators.metrics import CONTENT_TYPE
from .about import READ, About
from .table import Call, Route, respond


async def get_stats(call: Call) -> web.StreamResponse:
    """The figures, computed at most every few seconds, however many ask."""
    return respond(await call.services.stats.body(call.client))


async def get_metrics(call: Call) -> web.StreamResponse:
    """The metrics, for Prometheus."""
    text = await asyncio.to_thread(call.services.exposition.text)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


ROUTES = [
    Route("GET", "/stats", get_stats, about=About({200: StatsBody}, refusals=READ)),
    Route(
        "GET",
        "/metrics",
        get_metrics,
        operate=True,
        about=About({200: "text/plain"}, refusals=READ),
    ),
]
