"""Repeat a job: make a request of what it was submitted with, as its owner would send it again."""

from __future__ import annotations

import json
from concurrent.futures import Future
from typing import Any, Protocol

from ..client import Client
from ..errors import ConflictError, PromptGoneError
from ..files.names import owner_folder, strip_owner_folder
from ..job import Job
from ..owners import renew
from ..quotas.threads import work
from ..store import Submitted
from ..wake import wrap_future
from .admission import Admission
from .request import Submission

#: What the first request chose for itself, and the repetition does not.
_OF_THE_FIRST = ("guard", "prompt_id", "number", "front")


class Records(Protocol):
    """What a retry asks of the job store: see :class:`guard.store.Store`."""

    def find_retry(self, job_id: str) -> Future[Job | None]: ...
    def find_body(self, job_id: str) -> Future[tuple[bytes | None, int | None]]: ...


class Retries:
    """Makes jobs of what ended ones were submitted with. Event loop."""

    def __init__(self, store: Records, admission: Admission) -> None:
        self._store = store
        self._admission = admission

    async def repeat(self, job: Job, client: Client, *, by_operator: bool) -> Submitted:
        """Make a job like this one of the same owner, or find the one that was made before.

        It is let in like any other request of `client`, its owner, but `by_operator` counts against nobody's limits.

        Raises:
            ConflictError: the job has not ended.
            PromptGoneError: what it was submitted with is no longer kept.
            GuardError: as for any request.
        """
        if (earlier := await wrap_future(self._store.find_retry(job.job_id))) is not None:
            return Submitted(earlier, None, replayed=True)
        body = check_repeatable(job, *await wrap_future(self._store.find_body(job.job_id)))
        raw = await work(len(body), make_body, job, body)
        return await self._admission.admit(
            Submission(raw, client, template=job.template, repeats=job, by_operator=by_operator)
        )


def check_repeatable(job: Job, body: bytes | None, gone_at_ms: int | None) -> bytes:
    """The body, if the job can be repeated.

    Raises:
        ConflictError: it has not ended.
        PromptGoneError: its body is no longer kept, or lacks the credentials that were in memory only.
    """
    if not job.state.settled:
        raise ConflictError("The job has not ended yet.", extra_info={"job_id": job.job_id})
    facts = {"job_id": job.job_id, "gone_at_ms": gone_at_ms}
    if body is None:
        raise PromptGoneError(f"The prompt of job {job.job_id} is no longer kept.", extra_info=facts)
    if job.has_secrets:
        raise PromptGoneError("The API credentials of the job were in memory only.", extra_info=facts)
    return body


def make_body(job: Job, body: bytes) -> bytes:
    """The request's body: files under their owner's names, and the options that were in force. Costs its size."""
    body = renew(body)
    stored: dict[str, Any] = json.loads(body)
    if owner_folder(job.owner) and owner_folder(job.owner).encode() in body:
        stored = strip_owner_folder(stored, job.owner)
    face_check = (stored.get("guard") or {}).get("face_check")
    options: dict[str, Any] = {
        "timeout_s": job.timeout_s,
        "priority": job.priority,
        "locale": job.locale,
        "metadata": job.metadata,
        **({"user": job.user} if job.user else {}),
        **({"webhook": {"url": job.webhook.url, "events": list(job.webhook.events)}} if job.webhook else {}),
        # Addresses are for one job, and are not kept.
        "results": {**job.results.body(), "format": job.results.format or "original"},
        **({"face_check": face_check} if face_check is not None else {}),
    }
    kept = {name: value for name, value in stored.items() if name not in _OF_THE_FIRST}
    return json.dumps({**kept, "guard": options}).encode()
