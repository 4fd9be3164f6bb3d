"""Ways in for those that can send no header: POST /guarded/tokens, and the link that signs a browser in."""

from __future__ import annotations

import logging
from typing import Annotated
from urllib.parse import urlsplit

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from ..guard.access.access import SESSION
from ..guard.bounds import COMMAND, read_model
from ..guard.errors import PayloadTooLargeError, UnauthorizedError
from ..guard.quotas.threads import run_beside
from .about import About
from .asked import read_given
from .table import Call, Route, respond, strip_mirror

log = logging.getLogger("guarded.http")

_MAX_BYTES = 2**16
#: Neither caches nor the next page get to know a link.
_QUIET = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


class TokenRequest(BaseModel):
    """`path` may have a query; the token is for the path alone."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^/[!-~]*$")]
    ttl_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 300


class TokenBody(TypedDict):
    """A token, and the path with it."""

    token: str
    url: str
    expires_in_s: float


async def post_token(call: Call) -> web.StreamResponse:
    """A token with which anybody may GET one path as the caller would, for a while."""
    wanted: TokenRequest = read_model(TokenRequest, await read_given(call, _MAX_BYTES, COMMAND))
    parts = urlsplit(wanted.path)
    ttl_s = min(wanted.ttl_s, call.services.settings.access.max_token_s)
    token = call.services.access.sign(call.client, strip_mirror(parts.path), ttl_s)
    query = f"{parts.query}&token={token}" if parts.query else f"token={token}"
    body: TokenBody = {"token": token, "url": f"{parts.path}?{query}", "expires_in_s": ttl_s}
    return respond(body)


async def get_open(call: Call) -> web.StreamResponse:
    """Signs this browser in as the operator, by the link that `python <folder> open` prints, and shows the page."""
    request = call.request
    once = request.query.get("once", "")
    session, ttl_s = await run_beside(call.services.access.sign_in, once)
    answer = web.Response(status=303, headers={"Location": "./", **_QUIET})
    by_tls = request.secure or request.headers.get("X-Forwarded-Proto", "").startswith("https")
    answer.set_cookie(
        SESSION, session, max_age=int(ttl_s), path="/", httponly=True, samesite="Strict", secure=by_tls or None
    )
    log.info("a browser has signed in from %s", call.services.access.find_address(request.remote, request.headers))
    return answer


ROUTES = [
    Route(
        "GET",
        "/open",
        get_open,
        open=True,
        about=About({303: None}, query={"once": {"type": "string"}}, refusals=(UnauthorizedError,)),
    ),
    Route(
        "POST",
        "/tokens",
        post_token,
        about=About({200: TokenBody}, body={"application/json": TokenRequest}, refusals=(PayloadTooLargeError,)),
    ),
]
