"""POST /guarded/mcp: the same server for agents, by the Model Context Protocol."""

from __future__ import annotations

from dataclasses import replace

from aiohttp import web

from ..agents.bridge import MissingPackageError
from ..guard.bounds import LARGE_BYTES, read_json
from ..guard.errors import NotFoundError, PayloadTooLargeError
from ..guard.quotas import Kind
from ..guard.quotas.threads import work
from .about import STREAM, About
from .asked import read_body
from .table import Call, Route

#: The package's models go through a message with Python's lock held. A graph of 400 nodes has half as many.
MESSAGE_VALUES = 15_000


async def post_mcp(call: Call) -> web.StreamResponse:
    """A message of an agent's. What its tools ask of the server, they ask as this caller.

    What is no message of the protocol is answered with 400 and an error of JSON-RPC. A call counts as a stream as long
    as it is answered. 404 where the package `mcp` is not installed.
    """
    policy = call.services.settings.policy
    with call.services.quotas.stream(call.client):
        raw = await read_body(call, policy.max_body_bytes, Kind.AGENT)
        bounds = replace(policy.bounds(), values=min(policy.max_values, MESSAGE_VALUES))
        message = await work(len(raw), read_json, raw, bounds)  # before a parser in C gets it
        if len(raw) <= LARGE_BYTES:
            call.turn.rest()  # each tool's requests take their own turns
        try:
            return await call.services.agents.answer(call.request, raw, message)
        except MissingPackageError as error:
            raise NotFoundError(str(error)) from None


ROUTES = [
    Route(
        "POST",
        "/mcp",
        post_mcp,
        own_protocol=True,
        about=About({200: STREAM}, refusals=(NotFoundError, PayloadTooLargeError)),
    )
]
