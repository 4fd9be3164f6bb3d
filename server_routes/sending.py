"""Send files over HTTP: whole or in ranges, with validators, and nothing that a browser would run in our origin."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from typing import IO
from urllib.parse import quote

from aiohttp import hdrs, web

from ..guard.quotas.threads import run_beside
from ..guard.results.containers import sniff
from .pace import Going

#: From a byte to a byte, or the last so many.
_RANGE = re.compile(r"\s*([0-9]{0,40})-([0-9]{0,40})\s*")


@dataclass(frozen=True)
class OpenFile:
    """A file to send. Its bytes come from `handle`, whatever happens to the name meanwhile, as they were when it was
    last changed at `modified_s`; without `mime`, they tell their type."""

    handle: IO[bytes]
    filename: str
    bytes: int
    etag: str
    modified_s: float
    mime: str | None = None


async def leave_out_server(_request: web.Request, response: web.StreamResponse) -> None:
    """Send no `Server` header, which names aiohttp and Python with their versions: for `on_response_prepare`."""
    response.headers.popall(hdrs.SERVER, None)


async def send(request: web.Request, file: OpenFile, stalled_s: float) -> web.StreamResponse:
    """Answer with the file: 200, 206, 304, 412 or 416.

    Raises:
        ConnectionError: the client took hardly anything for `stalled_s`, or the file was cut short or overwritten.
    """
    headers = {**make_headers(request, file.filename, file.etag, file.modified_s), hdrs.ACCEPT_RANGES: "bytes"}
    if (answer := answer_unchanged(request, file.etag, headers)) is not None:
        return answer
    begin, end = 0, file.bytes
    status = 200
    if (wanted := _read_range(request, file, headers[hdrs.LAST_MODIFIED])) is not None:
        begin, end = wanted
        if begin >= end:
            headers[hdrs.CONTENT_RANGE] = f"bytes */{file.bytes}"
            return web.Response(status=416, headers=headers)
        status = 206
        headers[hdrs.CONTENT_RANGE] = f"bytes {begin}-{end - 1}/{file.bytes}"
    response = web.StreamResponse(status=status, headers=headers)
    sniffed = await run_beside(_sniff_type, file.handle)
    response.content_type = sniffed if file.mime is None else file.mime
    response.content_length = end - begin
    await response.prepare(request)
    if request.method != hdrs.METH_HEAD:
        await run_beside(file.handle.seek, begin)
        with Going(request, stalled_s) as going:
            while begin < end:
                chunk = await run_beside(_read, file, min(going.choose_piece(), end - begin))
                if not chunk:
                    raise ConnectionResetError("the file was cut short while it was sent")
                begin += len(chunk)
                await going.write(response, chunk)
                del chunk  # the transport has what the client does not take yet
                await going.let_out()
    await response.write_eof()
    return response


def _read(file: OpenFile, count: int) -> bytes:
    """The next bytes. Raises ConnectionResetError where the file has been overwritten by now."""
    chunk = file.handle.read(count)
    try:
        modified_s = os.fstat(file.handle.fileno()).st_mtime
    except OSError:  # it is no file of this machine, and cannot be overwritten
        return chunk
    if modified_s != file.modified_s:
        raise ConnectionResetError("the file was overwritten while it was sent")
    return chunk


def has_the_end(request: web.Request, response: web.StreamResponse, file: OpenFile) -> bool:
    """Whether the caller has the file's last byte now, or had it already. In ranges, that byte comes last."""
    if request.method == hdrs.METH_HEAD:
        return False
    last = response.headers.get(hdrs.CONTENT_RANGE, "").partition("/")[0].rpartition("-")[2]
    return response.status in (200, 304) or (response.status == 206 and last == str(file.bytes - 1))


def make_headers(request: web.Request, filename: str, etag: str, modified_s: float) -> dict[str, str]:
    """The headers of an answer with the file or a version of it."""
    how = "attachment" if request.query.get("download") else "inline"
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in filename)
    quoted = quote(filename.encode("utf-8", "replace"), safe="")
    return {
        # Twice: in a form that old clients understand, and the name itself.
        hdrs.CONTENT_DISPOSITION: f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quoted}",
        hdrs.ETAG: f'"{etag}"',
        hdrs.LAST_MODIFIED: formatdate(int(modified_s), usegmt=True),
        # The bytes of one address never change, but they may go.
        hdrs.CACHE_CONTROL: "private, no-cache",
        "X-Content-Type-Options": "nosniff",
    }


def answer_unchanged(request: web.Request, etag: str, headers: dict[str, str]) -> web.Response | None:
    """304 for a client that has the file already, 412 for one that insists on another; None: send it."""
    match, none_match = request.if_match, request.if_none_match
    modified = parsedate_to_datetime(headers[hdrs.LAST_MODIFIED])
    if match is not None:  # by strong comparison
        is_other = not any(tag.value == "*" or (tag.value == etag and not tag.is_weak) for tag in match)
    else:
        before = request.if_unmodified_since
        is_other = before is not None and modified > before
    if is_other:
        return web.Response(status=412, headers=headers)
    if none_match is not None:
        is_there = any(tag.value in ("*", etag) for tag in none_match)
    else:  # a date counts only where there is no tag to go by
        since = request.if_modified_since
        is_there = since is not None and modified <= since
    return web.Response(status=304, headers=headers) if is_there else None


def _read_range(request: web.Request, file: OpenFile, modified: str) -> tuple[int, int] | None:
    """The range (begin, end) that is asked for, empty if the file has none such. None if the whole file must be sent:
    for several ranges at once, another unit than bytes, or an If-Range for another file."""
    asked = request.headers.get(hdrs.RANGE)
    condition = request.headers.get(hdrs.IF_RANGE)
    if asked is None or "," in asked or condition not in (None, f'"{file.etag}"', modified):
        return None
    unit, _equals, spec = asked.partition("=")
    if unit.strip().lower() != "bytes":
        return None
    found = _RANGE.fullmatch(spec)
    if found is None:
        return 0, 0
    first, last = found.groups()
    if not first:
        return max(file.bytes - int(last or 0), 0), file.bytes
    return int(first), min(int(last) + 1, file.bytes) if last else file.bytes


def _sniff_type(handle: IO[bytes]) -> str:
    """The media type, by content; for an unknown one, a type that a browser does not run in our origin."""
    handle.seek(0)
    kind = sniff(handle.read(64))
    return kind.mime if kind is not None else "application/octet-stream"
