"""One ending for every outcome: the verdict is durable first, then heard, and the first one holds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future

from .errors import GuardError
from .host import Host
from .job import Job, JobState, Result, Verdict
from .secrets import Secrets
from .store import Settled, Store

log = logging.getLogger("guarded.settle")


class Settler:
    """Gives jobs their verdicts. Any thread; nothing here waits."""

    def __init__(self, store: Store, host: Host, secrets: Secrets) -> None:
        self._store = store
        self._host = host
        self._secrets = secrets
        #: How to hand in again, by job, a verdict that the store could not take.
        self._unwritten: dict[str, Callable[[], object]] = {}

    def settle(self, job: Job, verdict: Verdict, result: Result | None = None) -> Future[Settled | None]:
        """The future is done once the verdict is durable."""
        self._rewrite(job.job_id)
        future = self._store.settle(job.job_id, verdict, result)
        self._follow(future, job, verdict, lambda: self.settle(job, verdict, result))
        return future

    def end(self, job: Job, error: GuardError) -> Future[Settled | None]:
        """End a job that has not come to its own end: settle it, stop it, tell its socket.

        The stop does not wait for the disk: the verdict is already on its way, ahead of whatever the stopped run
        reports, so that the run's own ending cannot overtake it.
        """
        self._rewrite(job.job_id)
        verdict = Verdict.of(error)
        future = self._store.settle(job.job_id, verdict)
        self._host.stop(job.job_id)
        self._follow(future, job, verdict, lambda: self.end(job, error))
        future.add_done_callback(lambda done: self._announce(done, error))
        return future

    def end_waiting(self, job: Job, error: GuardError) -> Future[Settled | None]:
        """The same for a job that ought to be waiting; one that has begun to run meanwhile is left alone."""
        self._rewrite(job.job_id)
        verdict = Verdict.of(error)
        future = self._store.settle(job.job_id, verdict, only_waiting=True)
        self._follow(future, job, verdict, lambda: self.end_waiting(job, error))

        def stop(done: Future[Settled | None]) -> None:
            if _won(done) is not None:
                self._host.stop(job.job_id)

        future.add_done_callback(stop)
        future.add_done_callback(lambda done: self._announce(done, error))
        return future

    def retry(self) -> None:
        """Hand in again what the store could not take. Called now and then by the watchdog."""
        for job_id in list(self._unwritten):
            self._rewrite(job_id)

    def _rewrite(self, job_id: str) -> None:
        """Before any later verdict for the same job, so that the first one still holds."""
        again = self._unwritten.pop(job_id, None)
        if again is not None:
            again()

    def _follow(self, future: Future[Settled | None], job: Job, verdict: Verdict, again: Callable[[], object]) -> None:
        def done(future: Future[Settled | None]) -> None:
            """The store's thread."""
            if (failure := future.exception()) is not None:
                self._unwritten.setdefault(job.job_id, again)
                log.error("job %s: verdict %s is not on disk yet: %s", job.job_id, verdict.code or "success", failure)
                return
            self._secrets.forget(job.job_id)
            if _won(future) is None:
                return
            if verdict.state is JobState.FAILED:
                log.error("job %s failed: %s: %s", job.job_id, verdict.code, verdict.message)
            else:
                log.info("job %s %s", job.job_id, verdict.state.value)

        future.add_done_callback(done)

    def _announce(self, done: Future[Settled | None], error: GuardError) -> None:
        """The store's thread, once the verdict is durable."""
        if (job := _won(done)) is not None:
            self._host.announce(job.job_id, job.client_id, error)


def _won(done: Future[Settled | None]) -> Job | None:
    """The job, where this very verdict has ended it."""
    if done.exception() is not None:
        return None
    settled = done.result()
    return settled.job if settled is not None and settled.won else None
