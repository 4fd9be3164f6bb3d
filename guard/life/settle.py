"""End every job in one way: first make the verdict durable, then tell of it. The first verdict counts.

A verdict that the store cannot write (a full disk) stays here and is handed in again until the store can.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from ..access.client_ids import ClientIds
from ..errors import GuardError
from ..host import Host
from ..job import Job, JobState, Result, Verdict
from ..signal import Signal
from ..store import Settled
from .secrets import Secrets

log = logging.getLogger("guarded.settle")


class Records(Protocol):
    """What the settler asks of the job store: see :class:`guard.store.Store`."""

    def settle(
        self, job_id: str, verdict: Verdict, result: Result | None = None, *, only_waiting: bool = False
    ) -> Future[Settled | None]: ...
    def release(self, job_id: str) -> Future[None]: ...


class Settler:
    """Gives jobs their verdicts. Any thread; no method waits."""

    def __init__(self, store: Records, host: Host, secrets: Secrets, client_ids: ClientIds) -> None:
        self._store = store
        self._host = host
        self._secrets = secrets
        self._client_ids = client_ids
        #: By job: the verdict that the store could not write, and how to hand it in again.
        self._unwritten: dict[str, tuple[Verdict, Callable[[], object]]] = {}
        #: Jobs whose unwritten verdict is in the log already.
        self._complained: set[str] = set()
        #: Jobs whose slots could not be freed.
        self._unreleased: set[str] = set()
        #: A slot has become free. Called on the store's thread.
        self.released: Signal[[]] = Signal()
        #: The job of that id is being ended before its own end. Called on any thread.
        self.ending: Signal[[str]] = Signal()

    def settle(self, job: Job, verdict: Verdict, result: Result | None = None) -> Future[Settled | None]:
        """Give a job its verdict; the future is done once that is durable."""
        self._rewrite(job.job_id)
        future = self._store.settle(job.job_id, verdict, result)
        self._follow(future, job, verdict, lambda: self.settle(job, verdict, result))
        return future

    def end(self, job: Job, error: GuardError) -> Future[Settled | None]:
        """End a job before its own end: settle it, stop it, tell its socket.

        The stop does not wait for the disk. The store takes calls in order, and the verdict goes first: whatever the
        stopped run reports comes too late to count.
        """
        self._rewrite(job.job_id)
        verdict = Verdict.of(error)
        future = self._store.settle(job.job_id, verdict)
        self._host.stop(job.job_id)
        self.ending(job.job_id)
        self._follow(future, job, verdict, lambda: self.end(job, error))
        future.add_done_callback(lambda done: self._announce(done, error))
        return future

    def end_waiting(self, job: Job, error: GuardError) -> Future[Settled | None]:
        """End a job that waits; leave it alone if it has begun to run meanwhile."""
        self._rewrite(job.job_id)
        verdict = Verdict.of(error)
        future = self._store.settle(job.job_id, verdict, only_waiting=True)
        self._follow(future, job, verdict, lambda: self.end_waiting(job, error))

        def stop(done: Future[Settled | None]) -> None:
            if _job_if_won(done) is not None:
                self._host.stop(job.job_id)

        future.add_done_callback(stop)
        future.add_done_callback(lambda done: self._announce(done, error))
        return future

    def release(self, job_id: str) -> None:
        """Free the job's slot."""

        def done(future: Future[None]) -> None:
            """The store's thread."""
            if future.exception() is not None:
                self._unreleased.add(job_id)
            else:
                self.released()

        self._store.release(job_id).add_done_callback(done)

    def unwritten_verdict(self, job_id: str) -> Verdict | None:
        """The verdict that counts for the job although it is not on disk yet."""
        verdict, _again = self._unwritten.get(job_id, (None, None))
        return verdict

    def retry(self) -> None:
        """Hand in again what the store could not write. The watchdog calls this at every turn."""
        for job_id in list(self._unwritten):
            self._rewrite(job_id)
        unreleased, self._unreleased = self._unreleased, set()
        for job_id in unreleased:
            self.release(job_id)

    def _rewrite(self, job_id: str) -> None:
        """Hand in a verdict that is not written yet, before any later one for the same job: the first one counts."""
        if (unwritten := self._unwritten.pop(job_id, None)) is not None:
            _verdict, again = unwritten
            again()

    def _follow(self, future: Future[Settled | None], job: Job, verdict: Verdict, again: Callable[[], object]) -> None:
        """Keep the verdict where it cannot be written; log the ending where it can."""

        def done(future: Future[Settled | None]) -> None:
            """The store's thread."""
            if (failure := future.exception()) is not None:
                self._unwritten.setdefault(job.job_id, (verdict, again))
                if job.job_id in self._complained:
                    return  # log it once: every turn of the watchdog tries again
                self._complained.add(job.job_id)
                log.error(
                    "job %s: the verdict %s cannot be written yet: %s",
                    job.job_id,
                    verdict.code or "success",
                    failure,
                    extra={"job_id": job.job_id},
                )
                return
            self._complained.discard(job.job_id)
            self._secrets.forget(job.job_id)
            if (ended := _job_if_won(future)) is not None:
                _log_ending(ended)

        future.add_done_callback(done)

    def _announce(self, done: Future[Settled | None], error: GuardError) -> None:
        """Tell the job's socket, once the verdict is durable. The store's thread."""
        if (job := _job_if_won(done)) is not None:
            client_id = self._client_ids.of(job.owner, job.client_id) if job.client_id is not None else None
            self._host.announce(job.job_id, client_id, error)


def _log_ending(job: Job) -> None:
    """Log how the job ended, and the warnings about each file of a success."""
    about = {"job_id": job.job_id}
    verdict = job.verdict
    if verdict is None or verdict.state is JobState.CANCELLED:
        log.info("job %s %s", job.job_id, job.state.value, extra=about)
    elif verdict.state is JobState.FAILED:
        message = verdict.message
        if "exception_message" in verdict.details:
            # A node's own words may quote the prompt.
            message = "node {node_id} ({node_type}) raised {exception_type}".format_map(verdict.details)
        log.error("job %s failed: %s: %s", job.job_id, verdict.code, message, extra=about)
    else:
        took_s = ((job.settled_at_ms or 0) - (job.started_at_ms or job.created_at_ms)) / 1000
        files = job.result.artifacts
        log.info("job %s succeeded in %.1f s with %d files", job.job_id, took_s, len(files), extra=about)
        for file in files:
            if file.warnings:
                log.warning("job %s: %s: %s", job.job_id, file.filename, ", ".join(file.warnings), extra=about)


def _job_if_won(done: Future[Settled | None]) -> Job | None:
    """The job, if this very verdict ended it."""
    if done.exception() is not None:
        return None
    settled = done.result()
    return settled.job if settled is not None and settled.won else None
