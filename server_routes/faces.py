"""POST /guarded/face-check: ask before a credit is taken."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import ValidationError

from ..guard.errors import (
    ArtifactGoneError,
    BadImageError,
    GuardError,
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    refuse_field,
)
from ..guard.faces.check import Faces
from ..guard.faces.gate import AskedRules
from ..guard.files.names import split_annotation, use_owner_names
from ..guard.job import ROOTS
from .about import FACES, About
from .table import Call, Route, answered, read_body

_RULES = {"min_faces": "integer", "max_faces": "integer", "min_confidence": "number", "min_face_fraction": "number"}


async def post_face_check(call: Call) -> web.StreamResponse:
    """The faces in a picture, or the typed error.

    The picture is the body itself, the `image` part of a multipart form, or a file that the host has:
    `{"image": "photo.png", "type": "input", "subfolder": ""}`. Rules come beside it: in the JSON, as further form
    fields, or in the query.
    """
    request = call.request
    kind = request.content_type
    if kind == "multipart/form-data":
        try:
            data, given = await _form(request, call.services.uploads.settings.max_file_bytes)
        except (
            ValueError,
            AssertionError,
            AttributeError,
            HttpProcessingError,
        ) as error:  # no boundary, cut off, a form in a form
            raise InvalidRequestError("The form cannot be read.", details=str(error)) from None
        faces = await call.services.faces.check_bytes(data, _rules(given).rules())
    elif (data := await read_body(request, call.services.uploads.settings.max_file_bytes)).lstrip().startswith(b"{"):
        faces = await _stored(call, data)  # whatever the type says: no picture begins like that
    elif not data:
        raise InvalidRequestError("The body holds no picture.")
    else:
        faces = await call.services.faces.check_bytes(data, _rules(dict(request.query)).rules())
    return answered(faces.body())


async def _stored(call: Call, raw: bytes) -> Faces:
    try:
        given = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidRequestError("The body begins like JSON and is none.") from None
    if not isinstance(given, dict) or not isinstance(given.get("image"), str) or not given["image"]:
        raise InvalidRequestError("image must name a file.", extra_info={"field": "image"})
    name, folder, kind = given.pop("image"), given.pop("subfolder", ""), given.pop("type", "input")
    if kind not in ROOTS or not isinstance(folder, str):
        raise InvalidRequestError("type must be input, output or temp, and subfolder a string.")
    rules = _rules(given).rules()
    annotation, name = split_annotation(name)
    kind = annotation if annotation != "input" else kind
    image = f"{folder}/{name}" if folder else name
    try:
        found = await call.services.files.find(call.client, kind, image)
        await call.services.files.check_unchanged(call.client, found)
    except (NotFoundError, ArtifactGoneError):
        raise BadImageError(f"The image {image[:200]} is not there.", extra_info={"image": image[:200]}) from None
    try:
        return await call.services.faces.check_file(found.name, rules)
    except GuardError as error:
        use_owner_names(error, call.client.owner)
        raise


async def _form(request: web.Request, max_bytes: int) -> tuple[bytes, dict[str, Any]]:
    data, given = b"", {}
    size = 0
    async for part in await request.multipart():
        name = getattr(part, "name", None)
        value = bytearray()
        while chunk := await part.read_chunk():  # type: ignore[union-attr]
            size += len(chunk)
            if size > max_bytes:
                raise PayloadTooLargeError(
                    f"The form is over {max_bytes} bytes.", extra_info={"max_body_bytes": max_bytes}
                )
            value += chunk
        if name == "image":
            data = bytes(value)
        elif name is not None:
            given[name] = value.decode("utf-8", "replace")
    if not data:
        raise InvalidRequestError("The form has no part `image`.", extra_info={"field": "image"})
    return data, given


def _rules(given: dict[str, Any]) -> AskedRules:
    """Numbers may come as text: forms and queries have nothing else."""
    try:
        return AskedRules.model_validate(given, strict=False)
    except ValidationError as error:
        raise refuse_field(error) from None


ROUTES = [
    Route(
        "POST",
        "/face-check",
        post_face_check,
        about=About(
            {200: "Faces"},
            query={name: {"type": kind} for name, kind in _RULES.items()},
            body={
                "application/json": "StoredImage",
                "image/*": {"type": "string", "contentMediaType": "application/octet-stream"},
                "multipart/form-data": "PictureForm",
            },
            refusals=(*FACES, PayloadTooLargeError),
        ),
    )
]
