"""/view and /upload: the caller's own files, as ComfyUI's clients ask for them and send them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from typing_extensions import TypedDict

from ...guard.bounds import COMMAND, read_json
from ...guard.errors import (
    ArtifactGoneError,
    BadImageError,
    FileInUseError,
    ForbiddenError,
    GuardError,
    InvalidRequestError,
    NotFoundError,
)
from ...guard.files import view
from ...guard.files.files import OwnFile
from ...guard.files.names import is_plain, split_annotation
from ...guard.files.uploads import UploadedFile, translate_disk_errors
from ...guard.job import ROOTS
from ...guard.quotas import Kind, measure_places
from ...guard.quotas.threads import decode_beside, run_beside, search_beside
from ..about import FILES, READ, UPLOAD, About
from ..form import is_form, receive_form
from ..sending import OpenFile, answer_unchanged, has_the_end, make_headers, send
from ..shapes import MaskForm, UploadForm
from ..table import Call, Route, respond

#: The fields of an upload that are no files, and how large they may be together.
_WORDS = ("type", "subfolder", "overwrite", "original_ref")
_WORDS_BYTES = 1 << 16


class UploadedBody(TypedDict):
    """The name of an upload: use it in prompts and in `/view`."""

    name: str
    subfolder: str
    type: str


async def get_view(call: Call) -> web.StreamResponse:
    """A file by the name that ComfyUI gave it; `preview` and `channel` convert pictures."""
    query = call.request.query
    source = await _find(call, query.get("filename", ""), query.get("type", "output"), query.get("subfolder", ""))
    file = await _open(call, source)
    try:
        if "preview" in query or query.get("channel") in ("rgb", "a"):
            await call.turn.take(Kind.LARGE)
            return await _convert(call, file)
        await call.turn.take(Kind.SEND)
        response = await send(call.request, file, call.services.settings.limits.body_timeout_s)
    finally:
        file.handle.close()
    if source.job is not None and source.artifact is not None and has_the_end(call.request, response, file):
        await call.services.jobs.mark_fetched(source.job, source.artifact, call.client)
    return response


async def post_image(call: Call) -> web.StreamResponse:
    """A multipart form: `image`, and `type`, `subfolder`, `overwrite`. The answer says what it is called now."""
    async with _receive_upload(call) as upload:
        return await _keep(call, upload)


async def post_mask(call: Call) -> web.StreamResponse:
    """The same with a mask: keeps the picture that `original_ref` names, with the opacity of the one that was sent."""
    async with _receive_upload(call) as upload:
        try:
            named = read_json(upload.original.encode(), COMMAND)
            names = [named["filename"], named.get("type", "output"), named.get("subfolder", "")]
        except (KeyError, TypeError, AttributeError, GuardError):
            names = []
        if not names or not all(isinstance(name, str) for name in names):
            raise InvalidRequestError("original_ref must name a picture.", extra_info={"field": "original_ref"})
        original, mask = await _find(call, *names), upload.file.path
        await call.services.files.check_unchanged(call.client, original)

        def put_on() -> None:
            with translate_disk_errors():
                mask.write_bytes(view.apply_mask(original.path, mask))

        await call.turn.take(Kind.LARGE)
        await decode_beside(put_on)
        return await _keep(call, upload)


# Out. --------------------------------------------------------------------------------------------------------


async def _find(call: Call, filename: str, kind: str, subfolder: str) -> OwnFile:
    """The file behind ComfyUI's three names. Raises NotFoundError, InvalidRequestError, ForbiddenError."""
    if not filename:
        raise NotFoundError("filename is missing.", extra_info={"field": "filename"})
    shown_as, name = split_annotation(filename)
    if name != filename:
        kind = shown_as
    if not is_plain(name):
        raise InvalidRequestError("filename must lie below the folder of its type.", extra_info={"field": "filename"})
    if kind not in ROOTS:
        raise InvalidRequestError(f"type must be one of {', '.join(ROOTS)}.", extra_info={"field": "type"})
    if subfolder and not is_plain(subfolder):
        raise ForbiddenError("subfolder must lie below the folder of its type.", extra_info={"field": "subfolder"})
    # As ComfyUI has it: a folder in the file name does not count.
    name = os.path.basename(name)
    return await call.services.files.find(call.client, kind, f"{subfolder}/{name}" if subfolder else name)


async def _open(call: Call, source: OwnFile) -> OpenFile:
    """Open the file. Raises ArtifactGoneError if it is no longer what the caller's job made."""
    if source.job is not None and source.artifact is not None:
        artifact = source.artifact
        opened = await call.services.jobs.open_artifact(source.job, artifact)
        if opened is not None:
            return OpenFile(opened.handle, artifact.filename, artifact.bytes, artifact.sha256, opened.modified_s)
        if not call.client.operator:
            raise ArtifactGoneError(f"{artifact.filename} is no longer what the job made.")
    try:
        handle = await run_beside(open, source.path, "rb")
    except OSError:
        raise NotFoundError(f"There is no file {source.path.name}.") from None
    status = os.fstat(handle.fileno())
    etag = f"{status.st_mtime_ns:x}-{status.st_size:x}"
    return OpenFile(handle, source.path.name, status.st_size, etag, status.st_mtime)


async def _convert(call: Call, file: OpenFile) -> web.StreamResponse:
    query = call.request.query
    asked, channel = query.get("preview"), query.get("channel", "")
    etag = f"{file.etag}-{(asked or '').encode().hex()[:40]}-{channel.encode().hex()[:8]}"
    headers = make_headers(call.request, file.filename, etag, file.modified_s)
    if (answer := answer_unchanged(call.request, etag, headers)) is not None:
        return answer

    def convert() -> tuple[bytes, str]:
        if asked is not None:
            return view.encode_preview(file.handle, asked, channel)
        return view.extract_channel(file.handle, channel)

    body, media_type = await decode_beside(convert)
    return web.Response(body=body, content_type=media_type, headers=headers)


# In. ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Upload:
    """A picture that was sent, and what the form says of it."""

    file: UploadedFile
    type: str
    subfolder: str
    overwrite: bool
    original: str


@asynccontextmanager
async def _receive_upload(call: Call) -> AsyncIterator[_Upload]:
    """Receive the form; its file is on disk until the end of the block or until it is kept.

    Raises:
        InvalidRequestError, PayloadTooLargeError, QuotaExceededError, DiskFullError
    """
    call.services.health.check_disk()
    if not is_form(call.request):
        raise InvalidRequestError("The body must be a multipart form.")
    async with receive_form(call, _WORDS, _WORDS_BYTES) as form:
        file = next((file for file in form.files if file.field == "image"), None)
        if file is None:
            raise InvalidRequestError("The form has no file `image`.", extra_info={"field": "image"})
        if file.is_empty:
            raise BadImageError("The file image is empty.", extra_info={"field": "image"})
        call.services.limits.take_upload(call.client, form.bytes)
        words = {name: value.decode("utf-8", "replace") for name, value in form.fields.items()}
        places = measure_places(words.get("subfolder", ""))
        give_back = call.services.quotas.take_files(call.client, form.bytes + places)
        try:
            yield _Upload(
                file,
                words.get("type") or "input",
                words.get("subfolder", ""),
                words.get("overwrite") in ("true", "1"),
                words.get("original_ref", ""),
            )
        except BaseException:
            give_back()
            raise


async def _keep(call: Call, upload: _Upload) -> web.StreamResponse:
    keep, file = call.services.files.save, upload.file
    # It is checked as well.
    save = run_beside if file.is_media else search_beside
    name = await save(keep, call.client, file.path, file.filename, upload.type, upload.subfolder, upload.overwrite)
    await call.services.files.keep(call.client, upload.type, "/".join(filter(None, (upload.subfolder, name))))
    body: UploadedBody = {"name": name, "subfolder": upload.subfolder, "type": upload.type}
    return respond(body)


ROUTES = [
    Route(
        "GET",
        "/view",
        get_view,
        about=About(
            FILES,
            query={
                "filename": {"type": "string"},
                "subfolder": {"type": "string"},
                "type": {"type": "string", "enum": list(ROOTS)},
                "preview": {"type": "string"},
                "channel": {"type": "string", "enum": ["rgba", "rgb", "a"]},
            },
            refusals=(ForbiddenError, NotFoundError, ArtifactGoneError, BadImageError, *READ),
        ),
    ),
    Route(
        "POST",
        "/upload/image",
        post_image,
        about=About(
            {200: UploadedBody},
            body={"multipart/form-data": UploadForm},
            refusals=(*UPLOAD, BadImageError, FileInUseError),
        ),
    ),
    Route(
        "POST",
        "/upload/mask",
        post_mask,
        about=About(
            {200: UploadedBody},
            body={"multipart/form-data": MaskForm},
            refusals=(*UPLOAD, ForbiddenError, NotFoundError, ArtifactGoneError, BadImageError, FileInUseError),
        ),
    ),
]
