"""/guarded/health and /guarded/ready, the only routes that answer without a key; /guarded/drain."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from aiohttp import web
from typing_extensions import NotRequired, TypedDict

from ..guard.errors import InvalidRequestError, PayloadTooLargeError
from ..guard.faces.chooser import FaceFacts
from .about import FLAG, About
from .asked import read_fields, read_flag
from .shapes import DrainCommand
from .table import Call, Route, respond


class HealthBody(TypedDict):
    """The process is alive; everything but `status` is for operators."""

    status: Literal["ok"]
    host: NotRequired[dict[str, Any]]
    problems: NotRequired[list[str]]
    queued: NotRequired[int]
    hung_workers: NotRequired[int]
    faces: NotRequired[FaceFacts]


class ReadyBody(TypedDict):
    """Whether the server can take a job; `problems` say to operators why it cannot."""

    status: Literal["ready", "not ready"]
    problems: NotRequired[list[str]]


class DrainingBody(TypedDict):
    """Whether the server drains."""

    draining: bool


async def get_health(call: Call) -> web.StreamResponse:
    """The process is alive and its loop turns; more for an operator."""
    body: HealthBody = {"status": "ok"}
    if call.client.operator:
        body = {"status": "ok", **call.services.health.facts(), "faces": await call.services.faces.facts()}
    return respond(body)


async def get_ready(call: Call) -> web.StreamResponse:
    """503 while no job can be taken, and until the server is warm (`warmup.runs`)."""
    problems = call.services.health.unready()
    body: ReadyBody = {"status": "not ready" if problems else "ready"}
    if not problems:
        return respond(body)
    if call.client.operator:
        body["problems"] = problems
    return respond(body, {"Retry-After": "10"}, status=503)


async def post_drain(call: Call) -> web.StreamResponse:
    """Take no new job from now on, also after a restart; `{"draining": false}` or `?off=1` takes them again."""
    asked = await read_fields(call, "draining")
    wanted = asked.get("draining", not read_flag(call, "off"))
    if not isinstance(wanted, bool):
        raise InvalidRequestError("draining must be true or false.", extra_info={"field": "draining"})
    await asyncio.to_thread(call.services.drain.begin if wanted else call.services.drain.end)
    body: DrainingBody = {"draining": call.services.health.draining}
    return respond(body)


ROUTES = [
    Route("GET", "/health", get_health, open=True, about=About({200: HealthBody})),
    Route("GET", "/ready", get_ready, open=True, about=About({200: ReadyBody, 503: ReadyBody})),
    Route(
        "POST",
        "/drain",
        post_drain,
        operate=True,
        about=About(
            {200: DrainingBody},
            query={"off": FLAG},
            body={"application/json": DrainCommand},
            refusals=(PayloadTooLargeError,),
        ),
    ),
]
