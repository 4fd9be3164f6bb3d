"""GET /prompt, /queue and /interrupt: what waits and runs of the caller's."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ...guard.errors import InvalidRequestError
from ..about import COMMAND, About
from ..asked import command, ids
from ..table import Call, Route, answered


async def get_prompt(call: Call) -> web.StreamResponse:
    """How many of the caller's jobs have not ended."""
    return answered({"exec_info": {"queue_remaining": call.services.jobs.remaining(call.client)}})


async def get_queue(call: Call) -> web.StreamResponse:
    """From the 200 until it is in the history, a job is in here."""
    queue = await call.services.jobs.queue(call.client)
    return await asyncio.to_thread(answered, queue)


async def post_queue(call: Call) -> web.StreamResponse:
    """`{"clear": true}` cancels all of the caller's own jobs that wait, `{"delete": [ids]}` those that are named."""
    body = await command(call)
    named = ids(body, "delete")
    if body.get("clear"):
        await call.services.jobs.take_out(call.client, None)
    if named:
        await call.services.jobs.take_out(call.client, named)
    return web.Response()


async def post_interrupt(call: Call) -> web.StreamResponse:
    """Cancels the job that `prompt_id` names, if it runs; without one, whatever of the caller's own runs."""
    prompt_id = (await command(call)).get("prompt_id")
    if prompt_id and not isinstance(prompt_id, str):
        raise InvalidRequestError("prompt_id must be a string.", extra_info={"field": "prompt_id"})
    await call.services.jobs.interrupt(call.client, prompt_id or None)
    return web.Response()


ROUTES = [
    Route("GET", "/prompt", get_prompt, about=About({200: "Remaining"})),
    Route("GET", "/queue", get_queue, about=About({200: "Queue"})),
    Route(
        "POST", "/queue", post_queue, about=About({200: None}, body={"application/json": "Command"}, refusals=COMMAND)
    ),
    Route(
        "POST",
        "/interrupt",
        post_interrupt,
        about=About({200: None}, body={"application/json": "Interrupt"}, refusals=COMMAND),
    ),
]
