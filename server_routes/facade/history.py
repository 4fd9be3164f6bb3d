"""/history: the caller's settled jobs, also those that ComfyUI never ran, also after a restart."""

from __future__ import annotations

from aiohttp import web

from ...guard.callers.bodies import HistoryEntry
from ...guard.quotas import Kind
from ..about import COMMAND, READ, About
from ..asked import read_command, read_ids, read_whole_number
from ..shapes import QueueCommand
from ..table import Call, Route, respond, respond_at_length

#: ComfyUI keeps 10,000 in memory and sends them all.
_AT_MOST = 1000


async def get_history(call: Call) -> web.StreamResponse:
    """The caller's settled jobs, first settled first: the last ones, or with `offset` those from there on."""
    limit, offset = read_whole_number(call, "max_items"), read_whole_number(call, "offset")
    if offset is not None and offset < 0:
        offset = None  # which is how ComfyUI says "the last ones"
    if limit is not None and limit <= 0:
        return respond({})
    await call.turn.take(Kind.LARGE)
    entries = await call.services.jobs.list_history(call.client, min(limit or _AT_MOST, _AT_MOST), offset)
    return await respond_at_length(entries)


async def get_history_of(call: Call) -> web.StreamResponse:
    """One settled job; empty until it has settled, and for jobs that are not the caller's."""
    await call.turn.take(Kind.LARGE)
    return respond(await call.services.jobs.find_history_entry(call.request.match_info["prompt_id"], call.client))


async def post_history(call: Call) -> web.StreamResponse:
    """`{"clear": true}`, `{"delete": [ids]}`: hide settled jobs from ComfyUI's view; /guarded/jobs keeps them."""
    body = await read_command(call)
    job_ids = read_ids(body, "delete")
    if body.get("clear"):
        await call.services.jobs.hide(call.client, None)
    if job_ids:
        await call.services.jobs.hide(call.client, job_ids)
    return web.Response()


ROUTES = [
    Route(
        "GET",
        "/history",
        get_history,
        about=About(
            {200: dict[str, HistoryEntry]},
            query={"max_items": {"type": "integer"}, "offset": {"type": "integer"}},
            refusals=READ,
        ),
    ),
    Route(
        "POST",
        "/history",
        post_history,
        about=About({200: None}, body={"application/json": QueueCommand}, refusals=COMMAND),
    ),
    Route("GET", "/history/{prompt_id}", get_history_of, about=About({200: dict[str, HistoryEntry]}, refusals=READ)),
]
