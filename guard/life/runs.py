"""Turn what the worker reports of a run into states and verdicts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Protocol

from ..errors import CancelledError, GuardError, InternalError, OutOfMemoryError, WorkerDiedError
from ..events.stream import Events
from ..host import Host, Outcome, Progress
from ..host_words import GPU_FAULT, contains, explain_failure
from ..job import SUCCESS, Artifact, Job, Result, Verdict
from ..results import checks, quarantine
from ..settings import Settings
from ..store import Settled
from .settle import Settler
from .watchdog import Watchdog

log = logging.getLogger("guarded.queue")

#: The worker waits this long until a start is on disk, then begins without: the job's clock runs, and native prompts
#: wait behind it. No ending is told before it is on disk.
START_WAIT_S = 10.0


class Steps(Protocol):
    """What a run asks of the job store: see :class:`guard.store.Store`."""

    def start(self, job_id: str) -> Future[Job | None]: ...
    def validate(self, job_id: str) -> Future[Job | None]: ...


class Runs:
    """Listens to the host (see :class:`guard.host.HostListener`) and writes down what happens to its jobs.

    The host calls on the worker's thread. A call may hold it up for a moment: nothing else could run meanwhile.
    """

    def __init__(
        self,
        settings: Settings,
        store: Steps,
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
        if not self._may_run(job):
            self._watchdog.expect_stop(job_id)
            return False
        return True

    def finished(self, job_id: str, outcome: Outcome) -> Verdict:
        job = self._jobs[job_id]
        self._watchdog.forget(job_id)
        if outcome.success and self._settler.verdict_of(job_id) is None:
            self._store.validate(job_id)
        verdict, result = self._judge(job_id, outcome)
        return _verdict_that_counts(self._settler.settle(job, verdict, result).result())

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

    def unreadable(self, job_id: str) -> Verdict:
        self._watchdog.forget(job_id)
        verdict = Verdict.of(InternalError("The host's report of the run could not be read."))
        return _verdict_that_counts(self._settler.settle(self._jobs[job_id], verdict).result())

    def left_behind(self, job_id: str, error: GuardError, close: Callable[[Verdict], None]) -> None:
        settled = self._settler.settle(self._jobs[job_id], Verdict.of(error))
        settled.add_done_callback(lambda done: close(_verdict_that_counts(done.result())))

    def native_started(self, prompt_id: str) -> None:
        self._watchdog.watch_native(prompt_id)

    def native_finished(self, prompt_id: str) -> None:
        self._watchdog.forget(prompt_id)

    def _may_run(self, job: Job) -> bool:
        """Write down that the job starts; False if it has ended, or is being ended. The worker's thread."""
        if self._settler.verdict_of(job.job_id) is not None:
            return False
        starting = self._store.start(job.job_id)
        # From the commit, as the log of an ending comes from its own: so the two are in order.
        starting.add_done_callback(_log_start)
        try:
            if starting.result(START_WAIT_S) is None:
                return False
        except (GuardError, FutureTimeoutError) as error:
            log.warning(
                "job %s: that it starts cannot be written yet: %s",
                job.job_id,
                str(error) or "the job store does not answer",
                extra={"job_id": job.job_id},
            )
        return True

    def _judge(self, job_id: str, outcome: Outcome) -> tuple[Verdict, Result]:
        """Decide how the run ended; check the files of a successful one, and set them aside where they fail."""
        if not outcome.success:
            error = explain_failure(outcome)
            # Ask for this first: "CUDA error: out of memory" looks like a fault of the GPU and is none.
            if isinstance(error, OutOfMemoryError):
                if self._settings.watchdog.free_memory:
                    self._host.free_memory()
            elif contains(outcome.exception_message, GPU_FAULT):
                self._watchdog.handle_gpu_fault()
            return Verdict.of(error), Result()
        results = self._settings.results

        def check() -> tuple[Artifact, ...]:
            artifacts = checks.check(outcome, results)
            if self._settings.store.survives == "power_cut":
                checks.sync(outcome)
            return artifacts

        try:
            artifacts = checks.run_within(results.check_timeout_s, check)
        except Exception as error:
            if not isinstance(error, GuardError):
                log.exception("job %s: the checks raised", job_id, extra={"job_id": job_id})
                error = InternalError("The result could not be checked.", details=f"{type(error).__name__}: {error}")
            quarantine.set_aside(checks.own_files(outcome), self._quarantine / job_id, results)
            return Verdict.of(error), Result()
        return SUCCESS, Result(checks.own_outputs(outcome), artifacts)


def _log_start(done: Future[Job | None]) -> None:
    """The store's thread."""
    job = None if done.exception() is not None else done.result()
    if job is not None:
        log.info("job %s started", job.job_id, extra={"job_id": job.job_id})


def _verdict_that_counts(settled: Settled | None) -> Verdict:
    """The verdict on disk."""
    if settled is None or settled.job.verdict is None:
        return Verdict.of(InternalError("The job store does not know the job."))
    return settled.job.verdict
