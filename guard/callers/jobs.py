"""Show callers their jobs, and cancel them: a caller sees its own jobs, an operator everybody's."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import IO, Any

from typing_extensions import NotRequired, TypedDict

from ..client import Client
from ..depot.results import Opened, Results
from ..errors import CancelledError, GuardError, NotFoundError, PromptGoneError, ServerUnavailableError
from ..events.stream import Events
from ..job import OPEN, WAITING, Artifact, Job, JobBody, JobState
from ..life.settle import Settler
from ..owners import hide_in
from ..quotas.threads import Shares, decode_beside, find_whose, run_beside
from ..results import previews
from ..results.previews import Preview
from ..settings import QueueSettings
from ..store import Entry, Found, Listing, Settled, Store, Waiting, Wanted
from ..store.outbox import Delivery
from ..wake import wrap_future
from ..weight import VramBody
from . import as_comfyui
from .bodies import HistoryEntry, ListedJob, ListedJobInFull
from .estimate import Estimates
from .places import Places
from .polls import SETTLES_S, Polls
from .positions import notice

log = logging.getLogger("guarded.jobs")

#: Whoever ends a job waits so long until that is on disk, then is answered that it is not. The ending is handed in to
#: the store until it is, so that the answer only means "not yet".
ENDING_WITHIN_S = 5.0
#: So many waiting jobs are ended in one commit, for which any other write waits: with all who hear of it, that takes
#: some 10 ms, and the next commit may be handed in before the other write is.
ENDED_AT_ONCE = 20
#: More than a job has, unless it went back to the queue again and again.
DELIVERIES_OF_JOB = 50
#: More jobs than ever run at once.
RUNNING_AT_MOST = 1000


class SubmittedGuard(TypedDict):
    """Where a new job stands.

    `job` is there with `?wait`, `template` and `parameters` where a template made it, `vram` where the host knows what
    the prompt's models are.
    """

    state: JobState
    position: int | None
    eta_s: float | None
    running: int | None
    max_jobs: int
    user_message: str | None
    job: NotRequired[JobBody]
    template: NotRequired[str]
    parameters: NotRequired[dict[str, Any]]
    vram: NotRequired[VramBody]


class Jobs:
    """Looks jobs up for callers. Event loop; what memory lacks, the store's reader thread reads."""

    def __init__(
        self,
        settings: QueueSettings,
        store: Store,
        settler: Settler,
        events: Events,
        estimates: Estimates,
        results: Results,
    ) -> None:
        self._settings = settings
        self._store = store
        self._settler = settler
        self._events = events
        self._estimates = estimates
        self._places = Places(store)
        self._polls = Polls()
        self._results = results
        #: The store has one thread for lists, and one may take a tenth of a second.
        self._lists = Shares(2, 1)

    def follow(self, job: Job) -> None:
        """A new state is durable. The store's thread."""
        self._places.follow(job)

    async def get(self, job_id: str, client: Client) -> Job:
        """Raises NotFoundError where there is none, or none that the client may see."""
        job = await self._find(job_id)
        if job is None or not client.may_see(job.owner):
            raise NotFoundError(f"There is no job {job_id[:64]}.")
        return job

    async def hold(self, job: Job, client: Client) -> Job:
        """Hold a caller that asks again and again for a moment, where the job is still as it knows it."""
        if hold_s := self._polls.hold_s(job, client):
            known, job = job.state, await self.wait(job, hold_s, known=job.state)
            if job.state is not known:
                job = await self.wait(job, max(self._polls.hold_s(job, client), SETTLES_S), known=None)
        self._polls.note(job, client)
        return job

    def note_told(self, job: Job, client: Client) -> None:
        """The caller is being told of the job by the answer to its submit, which is as good as a poll's."""
        self._polls.note(job, client)

    async def wait(self, job: Job, timeout_s: float, known: JobState | None) -> Job:
        """Wait until the job is in another state than `known` (None: has settled), for `timeout_s` at most.

        Returns the job as it is then. `queue.max_wait_s` bounds the time.
        """
        ends_s = time.monotonic() + min(timeout_s, self._settings.max_wait_s)
        with self._events.subscribe(job_id=job.job_id, wants_end=known is None) as reader:
            seen = await self._find(job.job_id) or job
            while not (seen.state.settled or (known is not None and seen.state is not known)):
                rest_s = ends_s - time.monotonic()
                if rest_s <= 0 or not (events := await reader.next(rest_s)):
                    break
                states = [event.job for event in events if isinstance(event.job, Job)]
                seen = max([seen, *states], key=lambda job: job.event_id)
        return seen

    async def search(self, client: Client, owner: str | None, wanted: Wanted, limit: int, before: int | None) -> Found:
        """Those of the client's jobs that match, newest first; `before` is the `next` of the page before.

        `owner`: only the jobs of this one, of all that the client may see.
        """
        if owner is not None and not client.may_see(owner):
            return Found((), None)
        async with self._lists.of(client.owner):
            return await wrap_future(self._store.search(owner or client.sees_only, wanted, limit, before))

    async def cancel(self, job: Job) -> Job:
        """Cancel the job, unless it has ended. Returns it once that is durable.

        Raises ServerUnavailableError where that takes too long; the job is stopped all the same.
        """
        settled = await _wait_for(self._settler.end(job, CancelledError("The job was cancelled.")))
        return settled.job if settled is not None else job

    async def cancel_many(self, client: Client, job_ids: Sequence[str]) -> int:
        """Cancel those of the jobs that have not ended. Returns how many; raises as `cancel` does."""
        count = 0
        for first in range(0, len(job_ids), ENDED_AT_ONCE):
            some = list(dict.fromkeys(job_ids[first : first + ENDED_AT_ONCE]))
            count += await self._cancel_some(await self._open_jobs(client, some))
        return count

    async def cancel_all_of(self, client: Client, owner: str) -> int:
        """Cancel all of the owner's jobs that have not ended, but none that comes in meanwhile. Returns how many."""
        count, before = 0, None
        while client.may_see(owner) and (
            jobs := await wrap_future(self._store.list_jobs(owner, OPEN, ENDED_AT_ONCE, before))
        ):
            count += await self._cancel_some(jobs)
            before = jobs[-1].number
        return count

    async def _cancel_some(self, jobs: Sequence[Job]) -> int:
        ended = await asyncio.gather(*map(self.cancel, jobs))
        return sum(job.verdict is not None and job.verdict.code == CancelledError.code for job in ended)

    async def mark_fetched(self, job: Job, artifact: Artifact, client: Client) -> None:
        """The client has received the file. If it owns the job, the janitor need not keep the file any longer."""
        if client.owner == job.owner:
            try:
                await wrap_future(self._store.mark_fetched(job.job_id, artifact.index))
            except GuardError as error:
                log.warning(
                    "job %s: that artifact %d was fetched cannot be written: %s", job.job_id, artifact.index, error
                )

    async def open_artifact(self, job: Job, artifact: Artifact) -> Opened | None:
        """Open the file if it is still the one that was checked: ComfyUI gives a deleted file's name to the next.

        Raises ServerUnavailableError where it may be in a depot, or on another box, that is away.
        """
        return await self._results.threads.run(find_whose(), self._results.open, job, artifact)

    async def find_file(self, job_id: str, index: int, *, is_copy: bool) -> Artifact | None:
        """Find a file of anybody's job, for another box."""
        job = await self._find(job_id)
        artifacts = job.result.artifacts if job is not None else ()
        original = artifacts[index] if index < len(artifacts) else None
        return original.copy if original is not None and is_copy else original

    def read_here(self, file: Artifact, begin: int, length: int) -> tuple[bytes, float] | None:
        """A part of a file that is on this box, and when that was last changed. Any thread but the event loop's."""
        return self._results.read_here(file, begin, length)

    async def sign_artifact(self, artifact: Artifact) -> str | None:
        """An address at which the depot serves the file, if it does."""
        return await self._results.threads.run(find_whose(), self._results.sign, artifact)

    async def make_preview(self, handle: IO[bytes], wanted: Preview) -> bytes:
        """Make a small picture of a checked file."""
        return await decode_beside(previews.render, handle, wanted)

    async def body(self, job: Job, locale: str | None = None) -> JobBody:
        """The job as JSON; a waiting one with its position."""
        waiting = await self._places.find(job.job_id) if job.state is JobState.QUEUED else None
        return self.describe(job, waiting, locale)

    async def describe_all(self, jobs: Sequence[Job], locale: str | None = None) -> Iterator[JobBody]:
        """The same for many, made one by one as they are taken, on any thread."""
        waiting = {job.job_id: await self._places.find(job.job_id) for job in jobs if job.state is JobState.QUEUED}
        return (self.describe(job, waiting.get(job.job_id), locale) for job in jobs)

    def describe(self, job: Job, waiting: Waiting | None, locale: str | None = None) -> JobBody:
        """The job as JSON, with its progress if it runs. Any thread."""
        # Ask for the state: a reader can see the end of a job before `events` hears of it.
        running = job.state in (JobState.RUNNING, JobState.VALIDATING)
        progress = self._events.progress(job.job_id) if running else None
        return job.body(
            position=waiting.position if waiting else None,
            eta_s=self._estimates.starts_in_s(waiting) if waiting else None,
            progress=progress.body() if progress else None,
            locale=locale,
        )

    def describe_position(self, job: Job, waiting: Waiting | None, locale: str) -> SubmittedGuard:
        """The `guard` part of the answer to a submit: the job's position, and what to tell the user meanwhile."""
        self._places.note(job, waiting)  # most ask again at once
        max_jobs = self._settings.max_jobs
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

    # As ComfyUI shows them. Long lists come as iterators, for another thread to write them item by item. -------

    def count_open(self, client: Client) -> int:
        """How many of the caller's jobs have not settled."""
        return self._store.count_open(client.sees_only)

    async def list_queue(self, client: Client) -> Iterable[tuple[str, Iterator[list[Any]]]]:
        """The members of ComfyUI's `/queue`, of the caller's open jobs, oldest first."""
        async with self._lists.of(client.owner):
            return as_comfyui.queue(await wrap_future(self._store.list_queue(client.sees_only)))

    async def list_history(self, client: Client, limit: int, offset: int | None) -> Iterable[tuple[str, HistoryEntry]]:
        """The members of ComfyUI's `/history`, of the caller's settled jobs: from `offset` on, or the last."""
        async with self._lists.of(client.owner):
            entries = await wrap_future(self._store.list_history(client.sees_only, limit, offset))
        return ((entry.job.job_id, self._make_history_entry(entry, client)) for entry in entries)

    async def find_history_entry(self, job_id: str, client: Client) -> dict[str, HistoryEntry]:
        """The job as ComfyUI's `/history/{id}`: empty unless it has settled and is the caller's."""
        known = self._store.recall(job_id)
        if known is not None and not known.state.settled:
            return {}  # who polls this need not wait for the disk each time
        entry = await self._find_entry(job_id, client)
        return (
            {job_id: self._make_history_entry(entry, client)} if entry is not None and entry.job.state.settled else {}
        )

    async def list_page(self, client: Client, asked: Listing) -> tuple[Iterator[ListedJob], int, int]:
        """The caller's jobs as ComfyUI's `/api/jobs`, their number, and how many there are in all."""
        async with self._lists.of(client.owner):
            page = await wrap_future(self._store.find_page(client.sees_only, asked))
        jobs = (as_comfyui.item(_as_seen(job, client), workflow_id) for job, workflow_id in page.jobs)
        return jobs, len(page.jobs), page.total

    async def find_listed_job(self, job_id: str, client: Client) -> ListedJobInFull:
        """The job as ComfyUI's `/api/jobs/{id}`. Raises NotFoundError."""
        entry = await self._find_entry(job_id, client)
        if entry is None:
            raise NotFoundError(f"There is no job {job_id[:64]}.")
        return as_comfyui.item_in_full(replace(entry, job=_as_seen(entry.job, client)))

    async def find_prompt(self, job_id: str, client: Client) -> dict[str, Any]:
        """The job's prompt as it was admitted. Raises NotFoundError, or PromptGoneError where it is no longer kept."""
        job = await self.get(job_id, client)
        body, gone_at_ms = await wrap_future(self._store.find_body(job_id))
        if body is None:
            facts = {"job_id": job_id, "gone_at_ms": gone_at_ms}
            raise PromptGoneError(f"The prompt of job {job_id} is no longer kept.", extra_info=facts)
        return await run_beside(lambda: as_comfyui.row(Entry(job, body))[2])

    async def find_way(self, job: Job) -> tuple[list[tuple[JobState, int]], list[Delivery], Job | None]:
        """The states that the job has been in, with their times, its webhooks, and the job that repeats it."""
        states = wrap_future(self._store.list_states(job.job_id))
        deliveries = wrap_future(self._store.list_deliveries_of(job.job_id, DELIVERIES_OF_JOB))
        return await states, await deliveries, await wrap_future(self._store.find_retry(job.job_id))

    async def hide(self, client: Client, job_ids: list[str] | None) -> None:
        """Hide settled jobs from history and listings; None: all of the caller's own."""
        if job_ids is None:
            await wrap_future(self._store.clear_history(client.owner))
        else:
            await wrap_future(self._store.hide(client.sees_only, job_ids))

    async def take_out(self, client: Client, job_ids: list[str] | None) -> None:
        """Cancel those of the jobs that wait; None: all of the caller's own that wait."""
        if job_ids is not None:
            await self._end_waiting(await self._open_jobs(client, job_ids))
            return
        ran = {job.job_id for job in await self._list_running(client)}
        # A part at a time, as whatever is handed in meanwhile waits for it. Going back from the newest one spares those
        # that come in meanwhile.
        newest = 0
        coming = self._store.list_jobs(client.owner, WAITING, ENDED_AT_ONCE)
        while jobs := await wrap_future(coming):
            newest = max(newest, jobs[0].number)
            coming = self._store.list_jobs(client.owner, WAITING, ENDED_AT_ONCE, jobs[-1].number)
            await self._end_waiting(jobs)
        began = [job for job in await self._list_running(client) if job.number <= newest and job.job_id not in ran]
        await asyncio.gather(*map(self.cancel, began))

    async def _list_running(self, client: Client) -> list[Job]:
        return await wrap_future(self._store.list_jobs(client.owner, as_comfyui.RUNNING, RUNNING_AT_MOST))

    async def _end_waiting(self, jobs: list[Job]) -> None:
        error = CancelledError("The job was taken out of the queue.")
        endings = [self._settler.end_waiting(job.job_id, error) for job in jobs if job.state in WAITING]
        await asyncio.gather(*map(_wait_for, endings))

    async def interrupt(self, client: Client, job_id: str | None) -> None:
        """Cancel the job if it runs; None: all of the caller's own that run.

        Without an id, jobs whose results are checked are spared while others run, as ComfyUI spares what has run.
        """
        if job_id is None:
            running = await self._list_running(client)
        else:
            running = [job for job in await self._open_jobs(client, [job_id]) if job.state in as_comfyui.RUNNING]
        if job_id is None:
            running = [job for job in running if job.state is not JobState.VALIDATING] or running
        await asyncio.gather(*(self.cancel(job) for job in running))

    async def _open_jobs(self, client: Client, job_ids: list[str]) -> list[Job]:
        """Those of the jobs that have not settled."""
        jobs = [await self._find(job_id) for job_id in job_ids]
        return [job for job in jobs if job is not None and client.may_see(job.owner) and not job.state.settled]

    async def _find(self, job_id: str) -> Job | None:
        return self._store.recall(job_id) or await wrap_future(self._store.get(job_id))

    async def _find_entry(self, job_id: str, client: Client) -> Entry | None:
        entry = await wrap_future(self._store.find_entry(job_id))
        return entry if entry is not None and client.may_see(entry.job.owner) else None

    def _make_history_entry(self, entry: Entry, client: Client) -> HistoryEntry:
        seen = replace(entry, job=_as_seen(entry.job, client))
        return as_comfyui.history_entry(seen, self.describe(entry.job, None))


def _as_seen(job: Job, client: Client) -> Job:
    """The job with its files under the names by which the caller asks ComfyUI's `/view` for them.

    An operator's are those below ComfyUI's roots.
    """
    return job if client.operator else job.evolve(result=replace(job.result, outputs=hide_in(job.result.outputs)))


async def _wait_for(ending: Future[Settled | None]) -> Settled | None:
    """Wait until an ending is on disk. Raises ServerUnavailableError where that takes too long."""
    try:
        return await asyncio.wait_for(wrap_future(ending), ENDING_WITHIN_S)
    except asyncio.TimeoutError:
        raise ServerUnavailableError(
            "The job's end cannot be written now. It counts once it is: ask for the job later.", retry_after_s=10
        ) from None
