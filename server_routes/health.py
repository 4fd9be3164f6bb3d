"""/guarded/health and /guarded/ready, the only routes that answer without a key; /guarded/drain."""

from __future__ import annotations

from aiohttp import web

from .about import FLAG, About
from .table import Call, Route, answered


async def get_health(call: Call) -> web.StreamResponse:
    """The process is alive and its loop turns; more for an operator."""
    facts = {}
    if call.client.operator:
        facts = {**call.services.health.facts(), "faces": await call.services.faces.facts()}
    return answered({"status": "ok", **facts})


async def get_ready(call: Call) -> web.StreamResponse:
    """503 while no job can be taken."""
    problems = call.services.health.refusals()
    if not problems:
        return answered({"status": "ready"})
    body = {"status": "not ready", **({"problems": problems} if call.client.operator else {})}
    return answered(body, {"Retry-After": "10"}, status=503)


async def post_drain(call: Call) -> web.StreamResponse:
    """Take no new job from now on; `?off=1` takes them again."""
    if call.request.query.get("off") in ("1", "true"):
        call.services.drain.end()
    else:
        call.services.drain.begin()
    return answered({"draining": call.services.health.draining})


ROUTES = [
    Route("GET", "/health", get_health, open=True, about=About({200: "Status"})),
    Route("GET", "/ready", get_ready, open=True, about=About({200: "Status", 503: "Status"})),
    Route("POST", "/drain", post_drain, operate=True, about=About({200: "Draining"}, query={"off": FLAG})),
]
