"""/guarded/jobs/{id}/artifacts/{n}: the files that passed the checks, whole, in ranges, or as a small preview."""

from __future__ import annotations

from aiohttp import hdrs, web

from ..guard.errors import ArtifactGoneError, NotFoundError
from ..guard.job import Artifact
from ..guard.outgoing import MIMES
from ..guard.quotas import Kind
from ..guard.results import previews
from .about import FILES, FLAG, READ, About
from .sending import OpenFile, answer_unchanged, has_the_end, make_headers, send
from .table import Call, Route


async def get_artifact(call: Call) -> web.StreamResponse:
    """The very bytes that passed the checks, or 410."""
    jobs = call.services.jobs
    job = await jobs.get(call.request.match_info["job_id"], call.client)
    raw = call.request.match_info["index"]
    index = int(raw) if raw.isascii() and raw.isdigit() and len(raw) < 6 else -1
    if not 0 <= index < len(job.result.artifacts):
        raise NotFoundError(f"Job {job.job_id} has no artifact {raw[:20]}.")
    original = job.result.artifacts[index]
    artifact = _choose(original, call.request.query.get("as"), job.job_id)
    made = original.converted if artifact is not original else None
    wanted = previews.parse(call.request.query["preview"]) if "preview" in call.request.query else None
    if wanted is None and call.services.settings.files.redirect and not call.request.query.get("download"):
        elsewhere = await jobs.sign_artifact(artifact)
        if elsewhere is not None:
            # Whether that was fetched is not known here. The address is good for a minute: nobody may keep it.
            headers = {hdrs.LOCATION: elsewhere, hdrs.CACHE_CONTROL: "private, no-store"}
            return web.Response(status=302, headers=headers)
    opened = await jobs.open_artifact(job, artifact)
    if opened is None:
        raise ArtifactGoneError(f"{artifact.filename} is no longer what the job made.", extra_info={"index": index})
    handle = opened.handle
    mime = made.mime if made is not None else None
    file = OpenFile(handle, artifact.filename, artifact.bytes, artifact.sha256, opened.modified_s, mime)
    try:
        if wanted is not None:
            return await _send_preview(call, file, wanted)
        await call.turn.take(Kind.SEND)
        response = await send(call.request, file, call.services.settings.limits.body_timeout_s)
    finally:
        handle.close()
    if has_the_end(call.request, response, file):
        await jobs.mark_fetched(job, artifact, call.client)
    return response


def _choose(artifact: Artifact, wanted: str | None, job_id: str) -> Artifact:
    """The file in the format that is asked for. Raises NotFoundError where there is none."""
    if wanted in (None, "original"):
        return artifact
    if artifact.copy is not None and artifact.converted is not None and artifact.converted.format == wanted:
        return artifact.copy
    raise NotFoundError(f"Artifact {artifact.index} of job {job_id} has no copy as {(wanted or '')[:20]}.")


async def _send_preview(call: Call, file: OpenFile, wanted: previews.Preview) -> web.StreamResponse:
    etag = f"{file.etag}-{wanted.name}"
    headers = make_headers(call.request, f"{file.filename}.{wanted.format}", etag, file.modified_s)
    if (answer := answer_unchanged(call.request, etag, headers)) is not None:
        return answer
    body = await call.services.jobs.make_preview(file.handle, wanted)
    return web.Response(body=body, content_type=wanted.mime, headers=headers)


_AS = {"type": "string", "enum": ["original", *MIMES]}

# aiohttp answers HEAD by the same handler.
ROUTES = [
    Route(
        "GET",
        "/jobs/{job_id}/artifacts/{index}",
        get_artifact,
        about=About(
            {**FILES, 302: None},
            query={"preview": {"type": "string"}, "download": FLAG, "as": _AS},
            headers={"Range": "One range of bytes.", "If-None-Match": "The ETag of what the client has."},
            refusals=(NotFoundError, ArtifactGoneError, *READ),
        ),
    )
]
