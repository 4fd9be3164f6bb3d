"""/guarded/janitor: what the janitor did, and telling it to sweep. For operators."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..guard.errors import InvalidRequestError
from .about import WAIT, About
from .asked import number
from .table import Call, Route, answered

#: How long an answer waits for its sweep, where the caller does not say. Proxies give up after a minute.
_WAIT_S = 50
_FLAGS = {"": True, "1": True, "true": True, "0": False, "false": False}


async def get_janitor(call: Call) -> web.StreamResponse:
    """The last sweeps, the disks, and when the next sweep is due."""
    return answered(call.services.janitor.body())


async def post_sweep(call: Call) -> web.StreamResponse:
    """Sweep now: 200 with the report, or 202 where that takes longer than `wait`; GET has it later."""
    # A mistyped `dry_run` must not sweep for real.
    if unknown := sorted(set(call.request.query) - {"dry_run", "wait"}):
        raise InvalidRequestError(f"There is no parameter {unknown[0][:64]}.", extra_info={"field": unknown[0]})
    raw = call.request.query.get("dry_run", "0").lower()
    if raw not in _FLAGS:
        raise InvalidRequestError("dry_run must be 0 or 1.", extra_info={"field": "dry_run"})
    wait_s = number(call, "wait", _WAIT_S, 0, 86400)
    asked = asyncio.wrap_future(call.services.janitor.ask(_FLAGS[raw]))
    try:
        report = await asyncio.wait_for(asyncio.shield(asked), wait_s)
    except asyncio.TimeoutError:
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody waits for it any more
        return answered({"state": "sweeping"}, status=202)
    return answered(report.body())


async def post_adopt(call: Call) -> web.StreamResponse:
    """From now on, what was there before the first start is swept like everything else."""
    await asyncio.to_thread(call.services.janitor.adopt)
    return answered(call.services.janitor.body())


ROUTES = [
    Route("GET", "/janitor", get_janitor, operate=True, about=About({200: "Janitor"})),
    Route(
        "POST",
        "/janitor/sweep",
        post_sweep,
        operate=True,
        about=About(
            {200: "Object", 202: "Object"},
            query={"dry_run": {"type": "string", "enum": sorted(_FLAGS)}, "wait": WAIT},
        ),
    ),
    Route("POST", "/janitor/adopt", post_adopt, operate=True, about=About({200: "Janitor"})),
]
