"""What callers see of jobs, and how they cancel them: each caller its own, an operator everybody's."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from asyncio import wrap_future
from pathlib import Path
from typing import IO, Any

from . import artifacts, previews
from .access import Client
from .errors import CancelledError, GuardError, NotFoundError, type_name
from .estimate import Estimates
from .events import Events
from .job import OPEN, Artifact, Job, JobState
from .places import notice
from .previews import Preview
from .settings import Settings
from .settle import Settler
from .store import Store, Waiting

log = logging.getLogger("guarded.jobs")

_PREVIEWS_AT_ONCE = 2


class Jobs:
    """The reading side. Event loop; the store's reader thread does the looking."""

    def __init__(
        self, settings: Settings, store: Store, settler: Settler, events: Events, estimates: Estimates
    ) -> None:
        self._settings = settings
        self._store = store
        self._settler = settler
        self._events = events
        self._estimates = estimates
        self._verified = artifacts.Verified()
        self._previews = asyncio.Semaphore(_PREVIEWS_AT_ONCE)

    async def get(self, job_id: str, client: Client) -> Job:
        """Raises NotFoundError where there is none, or none that the client may see."""
        job = await wrap_future(self._store.get(job_id))
        if job is None or not (client.operator or job.owner == client.owner):
            raise NotFoundError(f"There is no job {job_id[:64]}.")
        return job

    async def wait(self, job: Job, timeout_s: float, known: JobState | None) -> Job:
        """The job once it is in another state than `known` (None: once it has settled), or as it is after a time."""
        ends_s = time.monotonic() + min(timeout_s, self._settings.queue.max_wait_s)
        with self._events.subscribe(job_id=job.job_id) as reader:
            seen = await wrap_future(self._store.get(job.job_id)) or job
            while not (seen.state.settled or (known is not None and seen.state is not known)):
                rest_s = ends_s - time.monotonic()
                if rest_s <= 0 or not (told := await reader.next(rest_s)):
                    break
                states = [event.job for event in told if isinstance(event.job, Job)]
                seen = max([seen, *states], key=lambda job: job.event_id)
        return seen

    async def page(
        self, client: Client, states: frozenset[JobState] | None, limit: int, before: int | None
    ) -> list[Job]:
        owner = None if client.operator else client.owner
        return await wrap_future(self._store.jobs(owner, states, limit, before))

    async def cancel(self, job: Job) -> Job:
        """Cancel it, unless it has ended; done once that is durable."""
        settled = await wrap_future(self._settler.end(job, CancelledError("The job was cancelled.")))
        return settled.job if settled is not None else job

    async def fetched(self, job: Job, artifact: Artifact, client: Client) -> None:
        """The client has got that file. Where it is the job's owner, the janitor need not keep it any longer."""
        if client.owner == job.owner:
            try:
                await wrap_future(self._store.fetched(job.job_id, artifact.index))
            except GuardError as error:
                log.warning(
                    "job %s: that artifact %d was fetched is not on disk: %s", job.job_id, artifact.index, error
                )

    async def open_artifact(self, artifact: Artifact, path: Path) -> IO[bytes] | None:
        """The file, if it is still the one that passed: ComfyUI gives a deleted picture's name to the next one."""
        return await asyncio.to_thread(self._verified.open, artifact, path)

    async def preview(self, handle: IO[bytes], wanted: Preview) -> bytes:
        """A small picture of a file that passed. Few at a time: each may hold a large one in memory."""
        async with self._previews:
            return await asyncio.to_thread(previews.of, handle, wanted)

    async def body(self, job: Job, locale: str | None = None) -> dict[str, Any]:
        """The job as JSON; a waiting one with its position."""
        waiting = await wrap_future(self._store.waiting(job.job_id)) if job.state is JobState.QUEUED else None
        return self.shown(job, waiting, locale)

    def shown(self, job: Job, waiting: Waiting | None, locale: str | None = None) -> dict[str, Any]:
        # An ending can be read a moment before its listeners have heard of it.
        running = job.state in (JobState.RUNNING, JobState.VALIDATING)
        progress = self._events.progress(job.job_id) if running else None
        return job.body(
            position=waiting.position if waiting else None,
            eta_s=self._estimates.starts_in_s(waiting) if waiting else None,
            progress=progress.body() if progress else None,
            locale=locale,
        )

    def place(self, job: Job, waiting: Waiting | None, locale: str) -> dict[str, Any]:
        """The `guard` part of a submit answer: where the job stands, and what to tell the user meanwhile."""
        max_jobs = self._settings.queue.max_jobs
        must_wait = waiting is not None and waiting.position + waiting.running > max_jobs
        eta_s = self._estimates.starts_in_s(waiting) if waiting and must_wait else None
        return {
            "state": job.state.value,
            "position": waiting.position if waiting else None,
            "eta_s": eta_s,
            "running": waiting.running if waiting else None,
            "max_jobs": max_jobs,
            "user_message": (
                notice(waiting.position, waiting.running, max_jobs, eta_s, locale) if waiting and must_wait else None
            ),
        }

    async def history_entry(self, job: Job) -> dict[str, Any]:
        """A settled job as an entry of ComfyUI's history, also where ComfyUI never ran it."""
        return {
            "prompt": await self._row(job),
            "outputs": job.result.outputs,
            "status": {
                "status_str": "success" if job.state is JobState.SUCCEEDED else "error",
                "completed": job.state is JobState.SUCCEEDED,
                "messages": status_messages(job),
            },
            "meta": {},
            "guard": self.shown(job, None),
        }

    async def queue_rows(self, client: Client) -> dict[str, Any]:
        """The caller's open jobs in the shape of ComfyUI's `/queue`, next one first."""
        jobs = await self.page(client, OPEN, self._settings.queue.max_queued + self._settings.queue.max_jobs, None)
        rows: dict[str, Any] = {"queue_running": [], "queue_pending": []}
        for job in reversed(jobs):
            running = job.state in (JobState.RUNNING, JobState.VALIDATING)
            rows["queue_running" if running else "queue_pending"].append(await self._row(job))
        return rows

    async def _row(self, job: Job) -> list[Any]:
        """`[number, prompt_id, prompt, extra_data, outputs_to_execute]`"""
        body = await wrap_future(self._store.body(job.job_id))
        stored = json.loads(body or b"{}")
        extra_data = {**(stored.get("extra_data") or {}), "create_time": job.created_at_ms}
        if job.client_id is not None:
            extra_data["client_id"] = job.client_id
        return [job.number, job.job_id, stored.get("prompt", {}), extra_data, list(job.outputs_to_execute)]


def status_messages(job: Job) -> list[list[Any]]:
    """ComfyUI's status messages for a settled job: pairs of event and data."""
    told: list[list[Any]] = []
    if job.started_at_ms is not None:
        told.append(["execution_start", {"prompt_id": job.job_id, "timestamp": job.started_at_ms}])
    end = {"prompt_id": job.job_id, "timestamp": job.settled_at_ms}
    if job.verdict is None or job.verdict.code is None:
        told.append(["execution_success", end])
    else:
        details = job.verdict.details
        told.append(
            [
                "execution_error",
                {
                    **end,
                    "node_id": details.get("node_id"),
                    "node_type": details.get("node_type"),
                    "executed": [],
                    "exception_message": job.verdict.message,
                    "exception_type": details.get("exception_type") or type_name(job.verdict.code),
                    "traceback": [],
                    "current_inputs": {},
                    "current_outputs": [],
                },
            ]
        )
    return told
