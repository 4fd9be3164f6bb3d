"""From a free slot to an ended run: leases, dispatch, and what the worker reports."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import TypeVar

from ..errors import CancelledError, GuardError, InternalError, OutOfMemoryError, WorkerDiedError
from ..events.stream import Events
from ..host import Host, Outcome, Progress
from ..host_words import GPU_FAULT, contains, explain_failure
from ..job import SUCCESS, Job, Result, Verdict
from ..results import checks, quarantine
from ..settings import Settings
from ..store import Store
from .settle import Settler
from .watchdog import Watchdog

log = logging.getLogger("guarded.queue")

T = TypeVar("T")


#: How long the worker waits for the disk before it goes on all the same.
STORE_WAIT_S = 10.0


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
            self._watchdog.expect_stop(job_id)
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
            return self._settler.unwritten_verdict(job_id) or verdict
        return settled.job.verdict or verdict if settled is not None else verdict

    def released(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)
        self._watchdog.forget(job_id)
        self._settler.release(job_id)

    def progressed(self, job_id: str, progress: Progress) -> None:
        self._watchdog.note_progress(job_id)
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
            error = explain_failure(outcome)
            # In this order: "CUDA error: out of memory" leaves the GPU as usable as it was.
            if isinstance(error, OutOfMemoryError):
                if self._settings.watchdog.free_memory:
                    self._host.free_memory()
            elif contains(outcome.exception_message, GPU_FAULT):
                self._watchdog.handle_gpu_fault()
            return Verdict.of(error), Result()
        results = self._settings.results
        try:
            found = checks.run_within(results.check_timeout_s, lambda: checks.check(outcome, results))
        except Exception as error:
            if not isinstance(error, GuardError):
                log.exception("job %s: the checks failed", job_id, extra={"job_id": job_id})
                error = InternalError("The result could not be checked.", details=f"{type(error).__name__}: {error}")
            quarantine.set_aside(checks.own_files(outcome), self._quarantine / job_id, results)
            return Verdict.of(error), Result()
        return SUCCESS, Result(checks.own_outputs(outcome), found)


def _waited(future: Future[T]) -> T:
    """The store's answer, for a thread that can wait a while.

    Raises:
        GuardError: the store refused, or did not answer in time.
    """
    try:
        return future.result(STORE_WAIT_S)
    except FutureTimeoutError:
        raise InternalError(f"The job store did not answer within {STORE_WAIT_S:g} s.") from None
