"""/guarded/keys: make, limit and revoke keys. For operators; a secret is told once, in the answer that makes it."""

from __future__ import annotations

import asyncio

from aiohttp import web
from typing_extensions import TypedDict

from ..guard.access.limit_fields import Kind, list_limits
from ..guard.access.manage import AskedKey, AskedLimits, KeyBody, MadeKeyBody
from ..guard.bounds import COMMAND as SMALL
from ..guard.bounds import read_model
from ..guard.errors import NotFoundError
from .about import COMMAND, READ, About
from .asked import read_given
from .table import Call, Route, respond

_MAX_BYTES = 2**18
#: No cache gets to know a secret.
_QUIET = {"Cache-Control": "no-store"}


class KeysBody(TypedDict):
    """All keys, the newest first, and what each limit takes."""

    keys: list[KeyBody]
    limits: dict[str, Kind]


async def list_keys(call: Call) -> web.StreamResponse:
    """Every key without its secret, the revoked ones too."""
    found = await asyncio.to_thread(call.services.key_ring.list_all)
    body: KeysBody = {"keys": found, "limits": {one.name: one.kind for one in list_limits()}}
    return respond(body, _QUIET)


async def post_key(call: Call) -> web.StreamResponse:
    """Make a key. The answer has its secret, and nothing ever has it again."""
    asked: AskedKey = read_model(AskedKey, await read_given(call, _MAX_BYTES, SMALL))
    made: MadeKeyBody = await asyncio.to_thread(call.services.key_ring.create, asked, call.client.owner)
    return respond(made, _QUIET)


async def post_limits(call: Call) -> web.StreamResponse:
    """Give a key these limits in place of all that it had; they count at once."""
    asked: AskedLimits = read_model(AskedLimits, await read_given(call, _MAX_BYTES, SMALL))
    key_id = call.request.match_info["key_id"]
    return respond(await asyncio.to_thread(call.services.key_ring.limit, key_id, asked, call.client.owner), _QUIET)


async def delete_key(call: Call) -> web.StreamResponse:
    """Revoke a key for good. Its jobs go on; open streams end within a second."""
    key_id = call.request.match_info["key_id"]
    return respond(await asyncio.to_thread(call.services.key_ring.revoke, key_id, call.client.owner), _QUIET)


ROUTES = [
    Route("GET", "/keys", list_keys, operate=True, about=About({200: KeysBody}, refusals=READ)),
    Route(
        "POST",
        "/keys",
        post_key,
        operate=True,
        about=About({200: MadeKeyBody}, body={"application/json": AskedKey}, refusals=COMMAND),
    ),
    Route(
        "POST",
        "/keys/{key_id}/limits",
        post_limits,
        operate=True,
        about=About({200: KeyBody}, body={"application/json": AskedLimits}, refusals=(NotFoundError, *COMMAND)),
    ),
    Route(
        "DELETE",
        "/keys/{key_id}",
        delete_key,
        operate=True,
        about=About({200: KeyBody}, refusals=(NotFoundError, *READ)),
    ),
]
