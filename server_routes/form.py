"""Read multipart/form-data as it comes in: words to memory, files to the disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from aiohttp import BodyPartReader, MultipartReader, StreamReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from ..guard.bounds import LARGE_BYTES
from ..guard.errors import InvalidRequestError, PayloadTooLargeError
from ..guard.files.uploads import Incoming, UploadedFile, Uploads, finish
from ..guard.quotas import Kind, Parcel
from ..guard.quotas.threads import run_beside
from .asked import YIELD_BYTES
from .table import Call

#: Write so much at once: a photo takes a few trips to another thread, and a request little memory.
_BLOCK_BYTES = 2**20
#: So many fields may a form have, far more than any route knows.
_MAX_WORDS = 64
#: Boundary, headers and the lines around them.
_LINES_OF_A_PART = 16


class _Counted:
    """A request's content for aiohttp's reader of forms, which goes through any number of lines without a pause."""

    def __init__(self, content: StreamReader, max_lines: int) -> None:
        self._content = content
        self._lines_left = max_lines
        self._shown_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def readline(self, *args: Any, **kwargs: Any) -> bytes:
        self._lines_left -= 1
        if self._lines_left < 0:
            raise InvalidRequestError("The form has too many parts, or lines around them.")
        return await self._content.readline(*args, **kwargs)

    async def read(self, n: int = -1) -> bytes:
        if self._content.total_bytes - self._shown_bytes >= YIELD_BYTES:
            self._shown_bytes = self._content.total_bytes
            await asyncio.sleep(0)
        return await self._content.read(n)


@dataclass
class Form:
    """A form, received whole. `files` are on the disk until the block that received them ends, `bytes` in all."""

    fields: dict[str, bytes] = field(default_factory=dict)
    files: tuple[UploadedFile, ...] = ()
    bytes: int = 0


def is_form(request: web.Request) -> bool:
    """Whether the body is multipart/form-data that can be taken apart. JSON comes under any type."""
    return request.content_type == "multipart/form-data" and "boundary=" in request.headers[hdrs.CONTENT_TYPE].lower()


@asynccontextmanager
async def receive_form(call: Call, words: Collection[str] | None, max_words_bytes: int) -> AsyncIterator[Form]:
    """Receive the request's form; the end of the block deletes the files that nobody has taken.

    Args:
        words: fields that are kept in memory, even with a file name; None: all, so that no file goes to the disk.
        max_words_bytes: how large they may be together, with all other parts that have no file name.

    Raises:
        InvalidRequestError, PayloadTooLargeError, QuotaExceededError, DiskFullError, ServerUnavailableError
    """
    incoming: list[Incoming] = []
    declared = call.request.content_length or 0
    parcel = call.services.quotas.open_parcel(call.client, 0 if words is None else declared)
    try:
        try:
            with call.services.quotas.counting():
                form = await _read(call, words, max_words_bytes, incoming, parcel)
        except (
            ValueError,
            AssertionError,
            AttributeError,
            HttpProcessingError,
        ) as error:  # aiohttp's: it depends on what is wrong
            raise InvalidRequestError("The form cannot be read.", details=str(error)) from None
        yield form
    finally:
        if incoming:
            await asyncio.shield(run_beside(_discard, incoming))
        parcel.close()


async def _read(
    call: Call, words: Collection[str] | None, max_words_bytes: int, incoming: list[Incoming], parcel: Parcel
) -> Form:
    request, uploads, form = call.request, call.services.uploads, Form()
    if words is None and (request.content_length or 0) > LARGE_BYTES:
        await call.turn.take(Kind.LARGE)
    files: list[UploadedFile] = []
    words_left, bytes_left = max_words_bytes, uploads.settings.max_request_bytes
    lines = _LINES_OF_A_PART * (_MAX_WORDS + uploads.settings.max_files)
    parts = MultipartReader(request.headers, cast(StreamReader, _Counted(request.content, lines)))
    while (part := await parts.next()) is not None:
        if not isinstance(part, BodyPartReader) or not part.name:
            raise InvalidRequestError("Each part of the form must have a name and be no form itself.")
        for header in (hdrs.CONTENT_ENCODING, hdrs.CONTENT_TRANSFER_ENCODING):
            if part.headers.get(header, "binary").lower() not in ("binary", "8bit", "7bit", "identity"):
                raise InvalidRequestError(f"A part must come as it is, without {header}.")
        if words is None or part.name in words or part.filename is None:
            if part.name in form.fields or len(form.fields) >= _MAX_WORDS:
                raise InvalidRequestError(f"The field {part.name[:100]!r} stands twice, or there are too many.")
            value = bytearray()
            while chunk := await part.read_chunk():
                words_left -= len(chunk)
                if words_left < 0:
                    raise PayloadTooLargeError(
                        f"The form's fields are over {max_words_bytes} bytes.",
                        extra_info={"max_body_bytes": max_words_bytes},
                    )
                value += chunk
                if max_words_bytes - words_left > LARGE_BYTES:
                    await call.turn.take(Kind.LARGE)
            form.fields[part.name] = bytes(value)
        else:
            if len(files) >= uploads.settings.max_files:
                raise PayloadTooLargeError(
                    f"The form has more than {uploads.settings.max_files} files.",
                    extra_info={"max_files": uploads.settings.max_files},
                )
            file, size = await _write_file(part, uploads, incoming, parcel, bytes_left)
            bytes_left -= size
            files.append(file)
    form.files, form.bytes = tuple(files), uploads.settings.max_request_bytes - bytes_left
    return form


async def _write_file(
    part: BodyPartReader, uploads: Uploads, incoming: list[Incoming], parcel: Parcel, bytes_left: int
) -> tuple[UploadedFile, int]:
    """Write one part to the disk. Returns the file and its size in bytes."""
    file = await run_beside(uploads.start_file, part.name or "", part.filename or "", parcel)
    incoming.append(file)
    size, block, done = 0, bytearray(), False
    while not done:
        chunk = await part.read_chunk(2**16)
        done = not chunk
        block += chunk
        size += len(chunk)
        if size > bytes_left:
            limit = uploads.settings.max_request_bytes
            raise PayloadTooLargeError(
                f"The files together are over {limit} bytes.", extra_info={"max_request_bytes": limit}
            )
        if block and (done or len(block) >= _BLOCK_BYTES):
            await run_beside(file.write, bytes(block))
            block.clear()
    return await finish(file), size


def _discard(incoming: list[Incoming]) -> None:
    for file in incoming:
        file.discard()
