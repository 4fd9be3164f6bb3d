"""POST /guarded/tokens: for image tags and browsers' websockets, which can send no header."""

from __future__ import annotations

import json
from typing import Annotated
from urllib.parse import urlsplit

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import TypedDict

from ..guard.errors import InvalidRequestError, PayloadTooLargeError, refuse_field
from .about import About
from .asked import read_body
from .table import Call, Route, respond, strip_mirror

_MAX_BYTES = 2**16


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
    try:
        wanted = TokenRequest.model_validate(json.loads(await read_body(call.request, _MAX_BYTES)))
    except ValidationError as error:
        raise refuse_field(error) from None
    except (ValueError, RecursionError):
        raise InvalidRequestError("The body must be JSON: an object with `path`.") from None
    parts = urlsplit(wanted.path)
    ttl_s = min(wanted.ttl_s, call.services.settings.access.max_token_s)
    token = call.services.access.sign(call.client, strip_mirror(parts.path), ttl_s)
    query = f"{parts.query}&token={token}" if parts.query else f"token={token}"
    body: TokenBody = {"token": token, "url": f"{parts.path}?{query}", "expires_in_s": ttl_s}
    return respond(body)


ROUTES = [
    Route(
        "POST",
        "/tokens",
        post_token,
        about=About({200: TokenBody}, body={"application/json": TokenRequest}, refusals=(PayloadTooLargeError,)),
    )
]
