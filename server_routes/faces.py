"""POST /guarded/face-check: ask before you take a credit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aiohttp import web

from ..guard.bounds import COMMAND, read_json, read_model
from ..guard.errors import (
    ArtifactGoneError,
    BadImageError,
    GuardError,
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
)
from ..guard.faces.check import FaceRules, Faces, FacesBody
from ..guard.faces.gate import AskedRules
from ..guard.files.names import split_annotation, use_owner_names
from ..guard.job import ROOTS
from ..guard.quotas.threads import work
from ..guard.urls import is_source
from .about import FACES, FILE, READ, About
from .asked import read_body
from .form import receive_form
from .shapes import Binary, PictureForm, StoredPicture
from .table import Call, Route, refuse_size, respond

#: What names a stored picture, and the rules.
_WORDS_BYTES = 2**16


async def post_face_check(call: Call) -> web.StreamResponse:
    """The faces in a picture, or the typed error.

    The picture is the body itself, the `image` part of a multipart form, or a file that the server has:
    `{"image": "photo.png", "type": "input", "subfolder": ""}`. `image` may also be an `https` address or a `data:` URL.
    Give the rules as further JSON fields, form fields or
    query parameters.
    """
    request = call.request
    kind, owner = request.content_type, call.client.owner
    if kind == "multipart/form-data":
        data, given = await _read_form(call)
        faces = await call.services.faces.check_bytes(data, _read_rules(given), owner)
    elif (data := await read_body(call, call.services.uploads.settings.max_file_bytes))[:1024].lstrip()[:1] == b"{":
        faces = await _check_stored(call, data)  # whatever the content type says: no picture begins like that
    elif not data:
        raise InvalidRequestError("The body holds no picture.")
    else:
        faces = await call.services.faces.check_bytes(data, _read_rules(dict(request.query)), owner)
    return respond(faces.body())


async def _check_stored(call: Call, raw: bytes) -> Faces:
    policy = call.services.settings.policy
    if len(raw) > policy.max_body_bytes:
        raise refuse_size(policy.max_body_bytes)
    given = await work(len(raw), read_json, raw, replace(COMMAND, picture=policy.max_picture_chars))
    if not isinstance(given, dict) or not isinstance(given.get("image"), str) or not given["image"]:
        raise InvalidRequestError("image must name a file.", extra_info={"field": "image"})
    if is_source(given["image"]):
        name = given.pop("image")
        data = await call.services.fetcher.read(name, call.client)
        return await call.services.faces.check_bytes(data, _read_rules(given), call.client.owner)
    name, folder, kind = given.pop("image"), given.pop("subfolder", ""), given.pop("type", "input")
    if kind not in ROOTS or not isinstance(folder, str):
        raise InvalidRequestError("type must be input, output or temp, and subfolder a string.")
    rules = _read_rules(given)
    annotation, name = split_annotation(name)
    kind = annotation if annotation != "input" else kind
    image = f"{folder}/{name}" if folder else name
    try:
        file = await call.services.files.find(call.client, kind, image)
        await call.services.files.check_unchanged(call.client, file)
    except (NotFoundError, ArtifactGoneError):
        raise BadImageError(f"The image {image[:200]} is not there.", extra_info={"image": image[:200]}) from None
    try:
        return await call.services.faces.check_file(file.name, rules, call.client.owner)
    except GuardError as error:
        use_owner_names(error, call.client.owner)
        raise


async def _read_form(call: Call) -> tuple[bytes, dict[str, Any]]:
    """The picture of a form, and the rules beside it."""
    largest = call.services.uploads.settings.max_file_bytes
    async with receive_form(call, None, largest) as form:
        data = form.fields.pop("image", b"")
        if sum(len(value) for value in form.fields.values()) > _WORDS_BYTES:
            raise refuse_size(_WORDS_BYTES)
        given: dict[str, Any] = {name: value.decode("utf-8", "replace") for name, value in form.fields.items()}
    if not data:
        raise InvalidRequestError("The form has no part `image`.", extra_info={"field": "image"})
    return data, given


def _read_rules(given: dict[str, Any]) -> FaceRules:
    """The rules that the fields name. Numbers may come as text: forms and queries have nothing else.

    Raises:
        InvalidRequestError
    """
    asked: AskedRules = read_model(AskedRules, given, strict=False)
    return asked.rules()


ROUTES = [
    Route(
        "POST",
        "/face-check",
        post_face_check,
        about=About(
            {200: FacesBody},
            query=AskedRules,
            body={"application/json": StoredPicture, FILE: Binary, "multipart/form-data": PictureForm},
            refusals=(*FACES, PayloadTooLargeError, *READ),
        ),
    )
]
