"""From a free slot to an ended run: leases, dispatch, and what the worker reports."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from asyncio import wrap_future
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, TypeVar

from . import artifacts
from .admission import host_body, refused
from .client_ids import ClientIds
from .clock import Clock
from .errors import (
    BY_NAME,
    GPU_FAULT,
    NO_SPACE,
    CancelledError,
    DiskFullError,
    GenerationFailedError,
    GuardError,
    InternalError,
    JobInterruptedError,
    OutOfMemoryError,
    WorkerDiedError,
)
from .events import Events
from .health import Health
from .host import Host, Outcome, Progress
from .job import SUCCESS, Job, Result, Verdict
from .secrets import Secrets
from .settings import Settings
from .settle import Settler
from .store import Claimed, Store
from .watchdog import Watchdog

log = logging.getLogger("guarded.queue")

T = TypeVar("T")

#: "CUDA out of memory. Tried …", "CUDA error: out of memory", "HIP out of memory", "MPS backend out of memory (…)".
_OUT_OF_MEMORY = re.compile(r"\b(CUDA|HIP|XPU|MPS)\b[^\n]{0,20}out of memory|Allocation on device")

#: How long the worker waits for the disk before it goes on all the same.
STORE_WAIT_S = 10.0
#: A lease outlives its job's own limits by this much; only a server that shares its queue ever looks at it.
LEASE_SLACK_S = 300.0


class Dispatcher:
    """Gives free slots to waiting jobs. One task on the event loop."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        host: Host,
        health: Health,
        settler: Settler,
        runs: Runs,
        secrets: Secrets,
        client_ids: ClientIds,
        holder: str,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._store = store
        self._host = host
        self._health = health
        self._settler = settler
        self._runs = runs
        self._secrets = secrets
        self._client_ids = client_ids
        self._holder = holder
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._awake: asyncio.Event
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Event loop, once every custom node is loaded."""
        self._loop = asyncio.get_running_loop()
        self._awake = asyncio.Event()
        self._task = self._loop.create_task(self._run(), name="guarded-dispatcher")

    def wake(self) -> None:
        """A job has come in, a slot is free, or the worker is back. Any thread.

        Without a free slot nobody is woken: the slot that becomes free will do it.
        """
        if self._store.leased >= self._settings.queue.max_jobs:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._awake.set)

    async def _run(self) -> None:
        while True:
            try:
                while await self.turn():
                    pass
            except Exception as error:
                # The store cannot be used, or a fault of ours: either way the queue goes on when it is over.
                log.error("dispatch is held up: %s", error, exc_info=not isinstance(error, GuardError))
                await asyncio.sleep(1)
                continue
            await self._awake.wait()
            self._awake.clear()

    async def turn(self) -> bool:
        """Dispatch one job. False: there is no slot, no job or no worker; nothing to do until woken."""
        settings = self._settings
        if not self._store.queued or self._store.leased >= settings.queue.max_jobs or self._health.problems():
            return False
        lease_s = settings.queue.timeout_s + settings.watchdog.job_timeout_s + LEASE_SLACK_S
        deadline_ms = self._clock.now_ms() + int(lease_s * 1000)
        claimed = await wrap_future(self._store.claim(self._holder, settings.queue.max_jobs, deadline_ms))
        if claimed is None:
            return False
        try:
            await self._dispatch(claimed)
        except Exception as error:
            if not isinstance(error, GuardError):
                log.exception(
                    "job %s could not be handed to the host",
                    claimed.job.job_id,
                    extra={"job_id": claimed.job.job_id, "quotes_prompt": True},
                )
                error = InternalError("The host did not take the job.", details=f"{type(error).__name__}: {error}")
            self._settler.end(claimed.job, error)
            self._runs.released(claimed.job.job_id)
        return True

    async def _dispatch(self, claimed: Claimed) -> None:
        job = claimed.job
        self._runs.expect(job)
        body: dict[str, Any] = host_body(json.loads(claimed.body), job.job_id)
        client_id = self._client_ids.of_job(job.job_id, job.owner, job.client_id)
        body["client_id"] = client_id
        body["extra_data"] = {**body.get("extra_data", {}), **(self._secrets.of(job.job_id) if job.has_secrets else {})}
        refusal = await self._host.dispatch(job.job_id, client_id, body)
        if refusal is not None:
            raise refused(refusal, body["prompt"], self._host)


class Runs:
    """The jobs that the host has: what it tells of them, turned into states and verdicts.

    The callbacks come on the worker's thread, which may be held up for a moment: nothing else could run meanwhile.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        host: Host,
        settler: Settler,
        watchdog: Watchdog,
        events: Events,
        quarantine: Path,
    ) -> None:
        self._settings = settings
        self._store = store
        self._host = host
        self._settler = settler
        self._watchdog = watchdog
        self._events = events
        self._quarantine = quarantine
        self._jobs: dict[str, Job] = {}

    def expect(self, job: Job) -> None:
        """The job is about to be handed to the host."""
        self._jobs[job.job_id] = job

    def started(self, job_id: str) -> bool:
        job = self._jobs[job_id]
        self._watchdog.watch(job)
        try:
            started = _waited(self._store.start(job_id))
        except GuardError:
            started = job  # the disk is in trouble; the job need not be
        if started is None:
            self._watchdog.stopping(job_id)
            return False
        log.info("job %s started", job_id, extra={"job_id": job_id})
        return True

    def finished(self, job_id: str, outcome: Outcome) -> Verdict:
        job = self._jobs[job_id]
        self._watchdog.forget(job_id)
        if outcome.success:
            self._store.validate(job_id)
        verdict, result = self._judged(job_id, outcome)
        try:
            settled = _waited(self._settler.settle(job, verdict, result))
        except GuardError:
            # The settler goes on trying; an earlier verdict that it could not write holds against this one.
            return self._settler.unwritten(job_id) or verdict
        return settled.job.verdict or verdict if settled is not None else verdict

    def released(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)
        self._watchdog.forget(job_id)
        self._settler.release(job_id)

    def progressed(self, job_id: str, progress: Progress) -> None:
        self._watchdog.moved(job_id)
        self._events.progressed(job_id, progress)

    def previewed(self, job_id: str, mime: str, encode: Callable[[], bytes]) -> None:
        self._events.previewed(job_id, mime, encode)

    def dropped(self, job_id: str) -> None:
        job = self._jobs[job_id]
        self._settler.end(job, CancelledError("The job was taken out of ComfyUI's queue."))

    def lost(self, job_id: str) -> None:
        self._settler.end(self._jobs[job_id], WorkerDiedError("ComfyUI's queue could not hand the job out."))

    def unreadable(self, job_id: str) -> None:
        self._settler.end(self._jobs[job_id], InternalError("The host's report of the run could not be read."))

    def native_started(self, prompt_id: str) -> None:
        self._watchdog.watch_native(prompt_id)

    def native_finished(self, prompt_id: str) -> None:
        self._watchdog.forget(prompt_id)

    def _judged(self, job_id: str, outcome: Outcome) -> tuple[Verdict, Result]:
        if not outcome.success:
            error = failure(outcome)
            # In this order: "CUDA error: out of memory" leaves the GPU as usable as it was.
            if isinstance(error, OutOfMemoryError):
                if self._settings.watchdog.free_memory:
                    self._host.free_memory()
            elif _contains(outcome.exception_message, GPU_FAULT):
                self._watchdog.gpu_fault()
            return Verdict.of(error), Result()
        results = self._settings.results
        try:
            found = artifacts.within(results.check_timeout_s, lambda: artifacts.check(outcome, results))
        except Exception as error:
            if not isinstance(error, GuardError):
                log.exception("job %s: the checks failed", job_id, extra={"job_id": job_id})
                error = InternalError("The result could not be checked.", details=f"{type(error).__name__}: {error}")
            artifacts.quarantine(artifacts.own_files(outcome), self._quarantine / job_id, results)
            return Verdict.of(error), Result()
        return SUCCESS, Result(artifacts.own_outputs(outcome), found)


def failure(outcome: Outcome) -> GuardError:
    """The error of a run that the host calls failed, by what it says of the exception."""
    if outcome.interrupted:
        return JobInterruptedError("The job was interrupted in ComfyUI.")
    message = outcome.exception_message.strip().split("\n\nTIPS:")[0].strip()
    facts = {
        "node_id": outcome.node_id,
        "node_type": outcome.node_type,
        "exception_type": outcome.exception_type,
        "exception_message": message[:2000],
    }
    if outcome.exception_type in BY_NAME:
        return BY_NAME[outcome.exception_type](message, extra_info=facts)
    if _is_out_of_memory(outcome):
        return OutOfMemoryError("The GPU ran out of memory.", extra_info=facts)
    if _contains(message, NO_SPACE):
        return DiskFullError("The disk is full.", details=message[:300], extra_info=facts)
    return GenerationFailedError(
        f"{outcome.node_type or 'A node'} failed: {message[:300] or outcome.exception_type}", extra_info=facts
    )


def _is_out_of_memory(outcome: Outcome) -> bool:
    """torch names the class in several places, and some allocators only say it in words."""
    name = outcome.exception_type.rpartition(".")[2]
    return name in ("OutOfMemoryError", "MemoryError") or _OUT_OF_MEMORY.search(outcome.exception_message) is not None


def _contains(text: str, marks: tuple[str, ...]) -> bool:
    return any(mark in text for mark in marks)


def _waited(future: Future[T]) -> T:
    """The store's answer, for a thread that can wait a while.

    Raises:
        GuardError: the store refused, or did not answer in time.
    """
    try:
        return future.result(STORE_WAIT_S)
    except FutureTimeoutError:
        raise InternalError(f"The job store did not answer within {STORE_WAIT_S:g} s.") from None
