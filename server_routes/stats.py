"""/guarded/stats: figures, of the caller's own jobs or, for an operator, of everything."""

from __future__ import annotations

from aiohttp import web

from .table import Call, Route, answered


async def get_stats(call: Call) -> web.StreamResponse:
    """Computed at most every few seconds, however many ask."""
    return answered(await call.services.stats.body(call.client))


ROUTES = [Route("GET", "/stats", get_stats)]
