"""/guarded/health and /guarded/ready, the only routes that answer without a key."""

from __future__ import annotations

from aiohttp import web

from .table import Call, Route, answered


async def get_health(call: Call) -> web.StreamResponse:
    """The process is alive and its loop turns; more for an operator."""
    facts = call.services.health.facts() if call.client.operator else {}
    return answered({"status": "ok", **facts})


async def get_ready(call: Call) -> web.StreamResponse:
    """503 while no job can be taken."""
    problems = call.services.health.refusals()
    if not problems:
        return answered({"status": "ready"})
    body = {"status": "not ready", **({"problems": problems} if call.client.operator else {})}
    return answered(body, {"Retry-After": "10"}, status=503)


ROUTES = [Route("GET", "/health", get_health, open=True), Route("GET", "/ready", get_ready, open=True)]
