"""What callers see of jobs, and how they cancel them: each caller its own, an operator everybody's."""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import wrap_future
from pathlib import Path
from typing import IO, Any

from typing_extensions import NotRequired, TypedDict

from ..client import Client
from ..errors import CancelledError, GuardError, NotFoundError
from ..events.stream import Events
from ..job import OPEN, WAITING, Artifact, Job, JobBody, JobState
from ..life.settle import Settler
from ..results import previews
from ..results.opener import ArtifactOpener
from ..results.previews import Preview
from ..settings import Settings
from ..store import Entry, Listing, Store, Waiting
from . import as_comfyui
from .estimate import Estimates
from .positions import notice

log = logging.getLogger("guarded.jobs")

_PREVIEWS_AT_ONCE = 2


class SubmittedGuard(TypedDict):
    """Where a new job stands. `job` is there with `?wait`, `template` and `parameters` where a template made it."""

    state: JobState
    position: int | None
    eta_s: float | None
    running: int | None
    max_jobs: int
    user_message: str | None
    job: NotRequired[JobBody]
    template: NotRequired[str]
    parameters: NotRequired[dict[str, Any]]


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
        self._opener = ArtifactOpener()
        self._previews = asyncio.Semaphore(_PREVIEWS_AT_ONCE)

    async def get(self, job_id: str, client: Client) -> Job:
        """Raises NotFoundError where there is none, or none that the client may see."""
        job = await wrap_future(self._store.get(job_id))
        if job is None or not client.may_see(job.owner):
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
        return await wrap_future(self._store.list_jobs(client.sees_only, states, limit, before))

    async def cancel(self, job: Job) -> Job:
        """Cancel it, unless it has ended; done once that is durable."""
        settled = await wrap_future(self._settler.end(job, CancelledError("The job was cancelled.")))
        return settled.job if settled is not None else job

    async def mark_fetched(self, job: Job, artifact: Artifact, client: Client) -> None:
        """The client has got that file. Where it is the job's owner, the janitor need not keep it any longer."""
        if client.owner == job.owner:
            try:
                await wrap_future(self._store.mark_fetched(job.job_id, artifact.index))
            except GuardError as error:
                log.warning(
                    "job %s: that artifact %d was fetched is not on disk: %s", job.job_id, artifact.index, error
                )

    async def open_artifact(self, artifact: Artifact, path: Path) -> IO[bytes] | None:
        """The file, if it is still the one that passed: ComfyUI gives a deleted picture's name to the next one."""
        return await asyncio.to_thread(self._opener.open, artifact, path)

    async def preview(self, handle: IO[bytes], wanted: Preview) -> bytes:
        """A small picture of a file that passed. Few at a time: each may hold a large one in memory."""
        async with self._previews:
            return await asyncio.to_thread(previews.render, handle, wanted)

    async def body(self, job: Job, locale: str | None = None) -> JobBody:
        """The job as JSON; a waiting one with its position."""
        waiting = await wrap_future(self._store.locate(job.job_id)) if job.state is JobState.QUEUED else None
        return self.describe(job, waiting, locale)

    def describe(self, job: Job, waiting: Waiting | None, locale: str | None = None) -> JobBody:
        # An ending can be read a moment before its listeners have heard of it.
        running = job.state in (JobState.RUNNING, JobState.VALIDATING)
        progress = self._events.progress(job.job_id) if running else None
        return job.body(
            position=waiting.position if waiting else None,
            eta_s=self._estimates.starts_in_s(waiting) if waiting else None,
            progress=progress.body() if progress else None,
            locale=locale,
        )

    def describe_position(self, job: Job, waiting: Waiting | None, locale: str) -> SubmittedGuard:
        """The `guard` part of a submit answer: where the job stands, and what to tell the user meanwhile."""
        max_jobs = self._settings.queue.max_jobs
        must_wait = waiting is not None and waiting.position + waiting.running > max_jobs
        eta_s = self._estimates.starts_in_s(waiting) if waiting and must_wait else None
        return {
            "state": job.state,
            "position": waiting.position if waiting else None,
            "eta_s": eta_s,
            "running": waiting.running if waiting else None,
            "max_jobs": max_jobs,
            "user_message": (
                notice(waiting.position, waiting.running, max_jobs, eta_s, locale) if waiting and must_wait else None
            ),
        }

    # As ComfyUI shows them. Long lists are made on another thread. --------------------------------------------

    def remaining(self, client: Client) -> int:
        """How many of the caller's jobs have not settled."""
        return self._store.count_open(client.sees_only)

    async def queue(self, client: Client) -> as_comfyui.QueueBody:
        """The caller's open jobs as ComfyUI's `/queue`, first come first."""
        entries = await wrap_future(self._store.list_queue(client.sees_only))
        return await asyncio.to_thread(as_comfyui.queue, entries)

    async def history(self, client: Client, limit: int, offset: int | None) -> dict[str, as_comfyui.HistoryEntry]:
        """The caller's settled jobs as ComfyUI's `/history`: from `offset` on, first settled first, or the last."""
        entries = await wrap_future(self._store.list_history(client.sees_only, limit, offset))
        return await asyncio.to_thread(lambda: {entry.job.job_id: self._history_entry(entry) for entry in entries})

    async def history_of(self, job_id: str, client: Client) -> dict[str, as_comfyui.HistoryEntry]:
        """The one job, as ComfyUI's `/history/{id}`: empty until it has settled, and where it is not the caller's."""
        entry = await self._entry(job_id, client)
        return {job_id: self._history_entry(entry)} if entry is not None and entry.job.state.settled else {}

    async def listing(self, client: Client, asked: Listing) -> tuple[list[as_comfyui.ListedJob], int]:
        """The caller's jobs as ComfyUI's `/api/jobs`, and how many there are in all."""
        page = await wrap_future(self._store.find_page(client.sees_only, asked))
        return await asyncio.to_thread(lambda: [as_comfyui.item(*found) for found in page.jobs]), page.total

    async def listing_of(self, job_id: str, client: Client) -> as_comfyui.ListedJobInFull:
        """The one job, as ComfyUI's `/api/jobs/{id}`. Raises NotFoundError."""
        entry = await self._entry(job_id, client)
        if entry is None:
            raise NotFoundError(f"There is no job {job_id[:64]}.")
        return as_comfyui.item_in_full(entry)

    async def hide(self, client: Client, job_ids: list[str] | None) -> None:
        """Take settled jobs out of what ComfyUI's clients see of them; None: all of the caller's own."""
        owner = client.owner if job_ids is None else client.sees_only
        await wrap_future(self._store.hide(owner, job_ids))

    async def take_out(self, client: Client, job_ids: list[str] | None) -> None:
        """Cancel those of the jobs that still wait; None: all of the caller's own."""
        waiting = [job for job in await self._open(client, job_ids) if job.state in WAITING]
        error = CancelledError("The job was taken out of the queue.")
        await asyncio.gather(*(wrap_future(self._settler.end_waiting(job, error)) for job in waiting))

    async def interrupt(self, client: Client, job_id: str | None) -> None:
        """Cancel that job if it runs; None: whatever of the caller's own runs."""
        for job in await self._open(client, None if job_id is None else [job_id]):
            if job.state in as_comfyui.RUNNING:
                await self.cancel(job)

    async def _open(self, client: Client, job_ids: list[str] | None) -> list[Job]:
        """The caller's jobs that have not settled; all of them only of its own, also for an operator."""
        if job_ids is None:
            return await wrap_future(self._store.list_jobs(client.owner, OPEN, self._at_most_open))
        found = [await wrap_future(self._store.get(job_id)) for job_id in job_ids]
        return [job for job in found if job is not None and client.may_see(job.owner) and not job.state.settled]

    @property
    def _at_most_open(self) -> int:
        return self._settings.queue.max_queued + self._settings.queue.max_jobs

    async def _entry(self, job_id: str, client: Client) -> Entry | None:
        entry = await wrap_future(self._store.find_entry(job_id))
        return entry if entry is not None and client.may_see(entry.job.owner) else None

    def _history_entry(self, entry: Entry) -> as_comfyui.HistoryEntry:
        return as_comfyui.history_entry(entry, self.describe(entry.job, None))
