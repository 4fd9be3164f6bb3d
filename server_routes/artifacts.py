"""/guarded/jobs/{id}/artifacts/{n}: the files that passed, whole, in ranges, or as a small preview."""

from __future__ import annotations

import asyncio
import os
from email.utils import formatdate, parsedate_to_datetime
from typing import IO
from urllib.parse import quote

from aiohttp import hdrs, web

from ..guard import previews
from ..guard.containers import sniff
from ..guard.errors import ArtifactGoneError, NotFoundError
from ..guard.job import Artifact
from .table import Call, Route

_CHUNK = 1 << 18


async def get_artifact(call: Call) -> web.StreamResponse:
    """The very bytes that passed the checks, or 410."""
    jobs = call.services.jobs
    job = await jobs.get(call.request.match_info["job_id"], call.client)
    raw = call.request.match_info["index"]
    index = int(raw) if raw.isascii() and raw.isdigit() and len(raw) < 6 else -1
    if not 0 <= index < len(job.result.artifacts):
        raise NotFoundError(f"Job {job.job_id} has no artifact {raw[:20]}.")
    artifact = job.result.artifacts[index]
    wanted = previews.parsed(call.request.query["preview"]) if "preview" in call.request.query else None
    path = call.services.host.file(artifact.type, artifact.subfolder, artifact.filename)
    handle = await jobs.open_artifact(artifact, path) if path is not None else None
    if handle is None:
        raise ArtifactGoneError(f"{artifact.filename} is no longer what the job made.", extra_info={"index": index})
    try:
        if wanted is not None:
            return await _preview(call, artifact, handle, wanted)
        response = await _file(call.request, artifact, handle)
    finally:
        handle.close()
    if _has_the_end(call.request, response, artifact):
        await jobs.fetched(job, artifact, call.client)
    return response


def _has_the_end(request: web.Request, response: web.StreamResponse, artifact: Artifact) -> bool:
    """Whether the caller has the file's last byte now, or had it already: in ranges, that one comes last."""
    if request.method == hdrs.METH_HEAD:
        return False
    last = response.headers.get(hdrs.CONTENT_RANGE, "").partition("/")[0].rpartition("-")[2]
    return response.status in (200, 304) or (response.status == 206 and last == str(artifact.bytes - 1))


async def _preview(call: Call, artifact: Artifact, handle: IO[bytes], wanted: previews.Preview) -> web.StreamResponse:
    etag = f"{artifact.sha256}-{wanted.name}"
    headers = _headers(call.request, f"{artifact.filename}.{wanted.format}", etag, handle)
    if (answer := _unchanged(call.request, etag, headers)) is not None:
        return answer
    body = await call.services.jobs.preview(handle, wanted)
    return web.Response(body=body, content_type=wanted.mime, headers=headers)


async def _file(request: web.Request, artifact: Artifact, handle: IO[bytes]) -> web.StreamResponse:
    headers = {**_headers(request, artifact.filename, artifact.sha256, handle), hdrs.ACCEPT_RANGES: "bytes"}
    if (answer := _unchanged(request, artifact.sha256, headers)) is not None:
        return answer
    begin, end = 0, artifact.bytes
    status = 200
    if (wanted := _range(request, artifact, headers[hdrs.LAST_MODIFIED])) is not None:
        begin, end = wanted
        if begin >= end:
            headers[hdrs.CONTENT_RANGE] = f"bytes */{artifact.bytes}"
            return web.Response(status=416, headers=headers)
        status = 206
        headers[hdrs.CONTENT_RANGE] = f"bytes {begin}-{end - 1}/{artifact.bytes}"
    response = web.StreamResponse(status=status, headers=headers)
    response.content_type = await asyncio.to_thread(_type_of, handle)
    response.content_length = end - begin
    await response.prepare(request)
    if request.method != hdrs.METH_HEAD:
        await asyncio.to_thread(handle.seek, begin)
        while begin < end:
            chunk = await asyncio.to_thread(handle.read, min(_CHUNK, end - begin))
            if not chunk:
                raise ConnectionResetError("the file was cut short while it was sent")
            begin += len(chunk)
            await response.write(chunk)
    await response.write_eof()
    return response


def _headers(request: web.Request, filename: str, etag: str, handle: IO[bytes]) -> dict[str, str]:
    how = "attachment" if request.query.get("download") else "inline"
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in filename)
    quoted = quote(filename.encode("utf-8", "replace"), safe="")
    return {
        # Twice: what an old client understands, and the name itself.
        hdrs.CONTENT_DISPOSITION: f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quoted}",
        hdrs.ETAG: f'"{etag}"',
        hdrs.LAST_MODIFIED: formatdate(int(os.fstat(handle.fileno()).st_mtime), usegmt=True),
        # The bytes of one address never change, but they may go.
        hdrs.CACHE_CONTROL: "private, no-cache",
        "X-Content-Type-Options": "nosniff",
    }


def _unchanged(request: web.Request, etag: str, headers: dict[str, str]) -> web.Response | None:
    """304 for a client that has it already, 412 for one that insists on something else."""
    match, none_match = request.if_match, request.if_none_match
    if match is not None and not any(tag.value in ("*", etag) for tag in match):
        return web.Response(status=412, headers=headers)
    if none_match is not None:
        unchanged = any(tag.value in ("*", etag) for tag in none_match)
    else:  # a date counts only where there is no tag to go by
        since = request.if_modified_since
        unchanged = since is not None and parsedate_to_datetime(headers[hdrs.LAST_MODIFIED]) <= since
    return web.Response(status=304, headers=headers) if unchanged else None


def _range(request: web.Request, artifact: Artifact, modified: str) -> tuple[int, int] | None:
    """(begin, end) of the range asked for, empty where there is none such; None where the whole file is to be sent:
    several ranges at once, or an If-Range for another file."""
    asked = request.headers.get(hdrs.RANGE)
    condition = request.headers.get(hdrs.IF_RANGE)
    if asked is None or "," in asked or condition not in (None, f'"{artifact.sha256}"', modified):
        return None
    try:
        return request.http_range.indices(artifact.bytes)[:2]
    except ValueError:
        return 0, 0


def _type_of(handle: IO[bytes]) -> str:
    """By content. What we do not know is nothing that a browser would run in our origin."""
    kind = sniff(handle.read(64))
    return kind.mime if kind is not None else "application/octet-stream"


# aiohttp answers HEAD by the same handler.
ROUTES = [Route("GET", "/jobs/{job_id}/artifacts/{index}", get_artifact)]
