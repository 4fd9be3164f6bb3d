"""/guarded/janitor: what the janitor did, and telling it to sweep. For operators."""

from __future__ import annotations

import asyncio
from typing import Literal

from aiohttp import web
from typing_extensions import TypedDict

from ..guard.errors import InvalidRequestError
from ..guard.janitor.bodies import JanitorBody, SweepBody
from .about import COMMAND, WAIT, WRITE, About
from .asked import read_fields, read_number
from .table import Call, Route, respond

#: How long an answer waits for its sweep if the caller does not say. Proxies give up after a minute.
_WAIT_S = 50
_FLAGS = {"": True, "1": True, "true": True, "0": False, "false": False}


class NativeCommand(TypedDict):
    """Whether sweeps take what no job has made."""

    sweep: bool


class SweepingBody(TypedDict):
    """The sweep goes on."""

    state: Literal["sweeping"]


async def get_janitor(call: Call) -> web.StreamResponse:
    """The last sweeps, the disks, and when the next sweep is due."""
    return respond(call.services.janitor.body())


async def post_sweep(call: Call) -> web.StreamResponse:
    """Sweep now: 200 with the report, or 202 where that takes longer than `wait`; GET has it later."""
    # A mistyped `dry_run` must not sweep for real.
    if unknown := sorted(set(call.request.query) - {"dry_run", "wait"}):
        raise InvalidRequestError(f"There is no parameter {unknown[0][:64]}.", extra_info={"field": unknown[0]})
    raw = call.request.query.get("dry_run", "0").lower()
    if raw not in _FLAGS:
        raise InvalidRequestError("dry_run must be 0 or 1.", extra_info={"field": "dry_run"})
    wait_s = read_number(call, "wait", _WAIT_S, 0, 86400)
    asked = asyncio.wrap_future(call.services.janitor.ask(_FLAGS[raw]))
    try:
        report = await asyncio.wait_for(asyncio.shield(asked), wait_s)
    except asyncio.TimeoutError:
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody waits any more
        body: SweepingBody = {"state": "sweeping"}
        return respond(body, status=202)
    return respond(report.body())


async def post_adopt(call: Call) -> web.StreamResponse:
    """From now on, what was there before the first start is swept like everything else."""
    await asyncio.to_thread(call.services.janitor.adopt)
    return respond(call.services.janitor.body())


async def post_native(call: Call) -> web.StreamResponse:
    """Say whether sweeps take what no job has made, where `janitor.sweep_native` is `ask`: `{"sweep": true}`."""
    asked = await read_fields(call, "sweep")
    if not isinstance(asked.get("sweep"), bool):
        raise InvalidRequestError("sweep must be true or false.", extra_info={"field": "sweep"})
    await asyncio.to_thread(call.services.janitor.decide, asked["sweep"])
    return respond(call.services.janitor.body())


ROUTES = [
    Route("GET", "/janitor", get_janitor, operate=True, about=About({200: JanitorBody})),
    Route(
        "POST",
        "/janitor/sweep",
        post_sweep,
        operate=True,
        about=About(
            {200: SweepBody, 202: SweepingBody},
            query={"dry_run": {"type": "string", "enum": sorted(_FLAGS)}, "wait": WAIT},
            refusals=WRITE,
        ),
    ),
    Route(
        "POST",
        "/janitor/native",
        post_native,
        operate=True,
        about=About({200: JanitorBody}, body={"application/json": NativeCommand}, refusals=COMMAND),
    ),
    Route("POST", "/janitor/adopt", post_adopt, operate=True, about=About({200: JanitorBody})),
]
