"""/guarded/models: what this server's templates lack, and its download. For operators."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web
from typing_extensions import TypedDict

from ..guard.errors import ConflictError, DiskFullError, InvalidRequestError, NotFoundError
from ..guard.models.downloads import ModelsBody
from .about import COMMAND, About
from .asked import read_fields
from .table import Call, Route, respond


class ModelCommand(TypedDict):
    """A model file, as GET names it."""

    folder: str
    file: str


async def get_models(call: Call) -> web.StreamResponse:
    """The model files that templates need and this server lacks, and how far their downloads are."""
    return respond(await asyncio.to_thread(call.services.downloads.body))


async def post_fetch(call: Call) -> web.StreamResponse:
    """Download a model that a template's manifest names, or go on where an earlier try has ended."""
    return await _command(call, call.services.downloads.start)


async def post_stop(call: Call) -> web.StreamResponse:
    """Stop a download; what has come stays."""
    return await _command(call, call.services.downloads.stop)


async def _command(call: Call, act: Callable[[str, str], None]) -> web.StreamResponse:
    asked = await read_fields(call, "folder", "file")
    for name in ("folder", "file"):
        if not isinstance(asked.get(name), str):
            raise InvalidRequestError(f"{name} must be a text.", extra_info={"field": name})
    await asyncio.to_thread(act, asked["folder"], asked["file"])
    return respond(await asyncio.to_thread(call.services.downloads.body))


ROUTES = [
    Route("GET", "/models", get_models, operate=True, about=About({200: ModelsBody})),
    Route(
        "POST",
        "/models/fetch",
        post_fetch,
        operate=True,
        about=About(
            {200: ModelsBody},
            body={"application/json": ModelCommand},
            refusals=(*COMMAND, NotFoundError, ConflictError, DiskFullError),
        ),
    ),
    Route(
        "POST",
        "/models/stop",
        post_stop,
        operate=True,
        about=About({200: ModelsBody}, body={"application/json": ModelCommand}, refusals=(*COMMAND, NotFoundError)),
    ),
]
