"""/history: the caller's settled jobs, also those that ComfyUI never ran, also after a restart."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..about import COMMAND, About
from ..asked import command, ids, whole
from ..table import Call, Route, answered

#: ComfyUI keeps 10,000 in memory and sends them all.
_AT_MOST = 1000


async def get_history(call: Call) -> web.StreamResponse:
    """First settled first; the last ones, or with `offset` those from there on."""
    limit, offset = whole(call, "max_items"), whole(call, "offset")
    if offset is not None and offset < 0:
        offset = None  # which is how ComfyUI says "the last ones"
    if limit is not None and limit <= 0:
        return answered({})
    found = await call.services.jobs.history(call.client, min(limit or _AT_MOST, _AT_MOST), offset)
    return await asyncio.to_thread(answered, found)


async def get_history_of(call: Call) -> web.StreamResponse:
    """Empty until the job has settled, and for jobs that are not the caller's."""
    return answered(await call.services.jobs.history_of(call.request.match_info["prompt_id"], call.client))


async def post_history(call: Call) -> web.StreamResponse:
    """`{"clear": true}`, `{"delete": [ids]}`: out of ComfyUI's view. /guarded/jobs still has them."""
    body = await command(call)
    named = ids(body, "delete")
    if body.get("clear"):
        await call.services.jobs.hide(call.client, None)
    if named:
        await call.services.jobs.hide(call.client, named)
    return web.Response()


ROUTES = [
    Route(
        "GET",
        "/history",
        get_history,
        about=About({200: "History"}, query={"max_items": {"type": "integer"}, "offset": {"type": "integer"}}),
    ),
    Route(
        "POST",
        "/history",
        post_history,
        about=About({200: None}, body={"application/json": "Command"}, refusals=COMMAND),
    ),
    Route("GET", "/history/{prompt_id}", get_history_of, about=About({200: "History"})),
]
