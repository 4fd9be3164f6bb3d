"""GET /prompt, /queue and /interrupt: the caller's jobs that wait and run."""

from __future__ import annotations

from aiohttp import web
from typing_extensions import TypedDict

from ...guard.callers.bodies import QueueBody
from ...guard.errors import InvalidRequestError
from ...guard.quotas import Kind
from ..about import COMMAND, READ, About
from ..asked import read_command, read_ids
from ..shapes import InterruptRequest, QueueCommand
from ..table import Call, Route, respond, respond_at_length


class ExecInfo(TypedDict):
    """How many of the caller's jobs have not ended."""

    queue_remaining: int


class RemainingBody(TypedDict):
    """ComfyUI's answer to GET /prompt."""

    exec_info: ExecInfo


async def get_prompt(call: Call) -> web.StreamResponse:
    """How many of the caller's jobs have not ended."""
    body: RemainingBody = {"exec_info": {"queue_remaining": call.services.jobs.count_open(call.client)}}
    return respond(body)


async def get_queue(call: Call) -> web.StreamResponse:
    """The caller's open jobs. A job is in here from the 200 until it is in the history."""
    await call.turn.take(Kind.LARGE)
    return await respond_at_length(await call.services.jobs.list_queue(call.client))


async def post_queue(call: Call) -> web.StreamResponse:
    """`{"clear": true}` cancels all of the caller's own jobs that wait, `{"delete": [ids]}` those that are named."""
    body = await read_command(call)
    job_ids = read_ids(body, "delete")
    if body.get("clear"):
        await call.services.jobs.take_out(call.client, None)
    if job_ids:
        await call.services.jobs.take_out(call.client, job_ids)
    return web.Response()


async def post_interrupt(call: Call) -> web.StreamResponse:
    """Cancels the job that `prompt_id` names, if it runs; without one, whatever of the caller's own runs."""
    prompt_id = (await read_command(call)).get("prompt_id")
    if prompt_id and not isinstance(prompt_id, str):
        raise InvalidRequestError("prompt_id must be a string.", extra_info={"field": "prompt_id"})
    await call.services.jobs.interrupt(call.client, prompt_id or None)
    return web.Response()


ROUTES = [
    Route("GET", "/prompt", get_prompt, about=About({200: RemainingBody})),
    Route("GET", "/queue", get_queue, about=About({200: QueueBody}, refusals=READ)),
    Route(
        "POST",
        "/queue",
        post_queue,
        about=About({200: None}, body={"application/json": QueueCommand}, refusals=COMMAND),
    ),
    Route(
        "POST",
        "/interrupt",
        post_interrupt,
        about=About({200: None}, body={"application/json": InterruptRequest}, refusals=COMMAND),
    ),
]
