"""Bring a job's files within an answer about it, or a webhook: read and encoded when that is sent, never stored."""

from __future__ import annotations

import base64
import json
from concurrent.futures import Future
from typing import Any, Protocol

from ..client import Client
from ..job import Artifact, ArtifactBody, Job, JobBody
from ..outgoing import InlineBody
from ..quotas.threads import SharedThreads
from ..wake import wrap_future
from .served import Opener

#: Answers that are put together at once: each holds its files twice for a moment.
_AT_ONCE = 4
#: In the webhook of a job whose files it is to bring, and hardly in any other.
_MARK = '"inline": true'


class Records(Protocol):
    """What this asks of the job store: see :class:`guard.store.Store`."""

    def get(self, job_id: str) -> Future[Job | None]: ...


def measure(body: JobBody) -> int:
    """How many characters of Base64 are in it: whoever writes or sends it takes as long."""
    return sum(len(artifact["inline"]["base64"] or "") for artifact in body["artifacts"] if "inline" in artifact)


class Inline:
    """Event loop; another thread reads the files."""

    def __init__(self, max_bytes: int, store: Records, opener: Opener) -> None:
        """`max_bytes`: what the files of one answer may have together."""
        self._max_bytes = max_bytes
        self._store = store
        self._opener = opener
        self._threads = SharedThreads(_AT_ONCE, "guarded-inline")

    async def add(self, body: JobBody, job: Job, client: Client) -> JobBody:
        """Put the job's files into what its owner is answered about it, where that was asked for."""
        if job.results.inline and job.result.artifacts and client.owner == job.owner:
            await self._fill(body["artifacts"], job)
        return body

    async def complete(self, payload: str, job_id: str) -> str:
        """Put the job's files into the payload of its webhook, where that was asked for."""
        if _MARK not in payload:
            return payload
        job = await wrap_future(self._store.get(job_id))
        if job is None or not job.results.inline or not job.result.artifacts:
            return payload
        told: dict[str, Any] = json.loads(payload)
        await self._fill(told["data"]["artifacts"], job)
        return await self._threads.run(job.owner, json.dumps, told)

    async def _fill(self, bodies: list[ArtifactBody], job: Job) -> None:
        await self._threads.run(job.owner, self._read_all, bodies, job)

    def _read_all(self, bodies: list[ArtifactBody], job: Job) -> None:
        left = self._max_bytes
        for body, artifact in zip(bodies, job.result.artifacts, strict=False):
            body["inline"] = inline = self._read(job, artifact, left)
            left -= inline["bytes"] if inline["base64"] is not None else 0

    def _read(self, job: Job, artifact: Artifact, left: int) -> InlineBody:
        file = artifact.copy or artifact
        body: InlineBody = {
            "converted": file is not artifact,
            "mime": "application/octet-stream",
            "bytes": file.bytes,
            "base64": None,
            "error": None,
        }
        served = self._opener.open(job, artifact)
        if served is None:
            return {**body, "error": "gone"}
        with served.handle as handle:
            body["mime"] = served.mime
            if file.bytes > left:
                return {**body, "error": "too_large"}
            return {**body, "base64": base64.b64encode(handle.read()).decode()}
