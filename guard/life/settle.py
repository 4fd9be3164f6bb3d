"""End every job in one way: note the verdict, make it durable, and only then tell of it. The first verdict counts.

An ending that the store cannot write (a full disk) stays here, and is handed in again until the store has it. Nobody
hears of it before.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from ..access.client_ids import ClientIds
from ..clock import Clock
from ..errors import FAMILY, GuardError, InternalError
from ..files.cleaning import Cleaner
from ..host import Host
from ..job import Job, JobState, Result, Verdict
from ..signal import Signal
from ..store import Settled
from .secrets import Secrets

log = logging.getLogger("guarded.settle")

#: In place of an ending that the store cannot put into its tables, whatever the disk does.
_UNWRITABLE = InternalError("The job's ending could not be written.")


class Records(Protocol):
    """What the settler asks of the job store: see :class:`guard.store.Store`."""

    @property
    def silent_s(self) -> float: ...
    def settle(
        self,
        job_id: str,
        verdict: Verdict,
        result: Result | None = None,
        *,
        only_waiting: bool = False,
        token: str | None = None,
        here: bool = False,
    ) -> Future[Settled | None]: ...
    def release(self, job_id: str, held: bool = False) -> Future[None]: ...


class Ending:
    """An ending that was handed in and is not on disk yet.

    Attributes:
        error: what to tell the job's socket; None for a run's own ending, which the host tells itself.
        only_waiting: it holds only if the job still waits, which the store decides.
        token: it holds only if the job is still that run's, which the store decides; None: whoever has it.
        since_s: when it was handed in.
        future: what everybody who ends this job waits for.
        replaced_by: a later ending that holds in any case. This one is not handed in again.
    """

    def __init__(
        self,
        job_id: str,
        verdict: Verdict,
        result: Result | None = None,
        error: GuardError | None = None,
        only_waiting: bool = False,
        token: str | None = None,
    ) -> None:
        self.job_id = job_id
        self.verdict = verdict
        self.result = result
        self.error = error
        self.only_waiting = only_waiting
        self.token = token
        self.since_s = 0.0
        self.replaced_by: Ending | None = None
        self.future: Future[Settled | None] = Future()
        # Several wait for it: none of them can cancel it any more.
        self.future.set_running_or_notify_cancel()


class Settler:
    """Gives jobs their verdicts. Any thread; no method waits."""

    def __init__(
        self,
        store: Records,
        host: Host,
        secrets: Secrets,
        client_ids: ClientIds,
        clock: Clock,
        stalled_after_s: float,
        has_lost: Callable[[], bool] = lambda: False,
    ) -> None:
        """`has_lost`: whether the jobs that this server has begun are no longer its own."""
        self._store = store
        self._has_lost = has_lost
        self._host = host
        self._secrets = secrets
        self._client_ids = client_ids
        self._clock = clock
        self._stalled_after_s = stalled_after_s
        self._cleaner = Cleaner(host.folders)
        self._lock = threading.Lock()
        #: By job, oldest first: at most one for each open job.
        self._endings: dict[str, Ending] = {}
        #: Those of them that the store has refused, to be handed in again.
        self._refused: deque[Ending] = deque()
        #: Jobs whose ending was refused, from the first refusal until all are on disk; and when that one was.
        self._late: set[str] = set()
        self._refused_s = 0.0
        self._has_stalled = False
        #: A slot will be free as soon as the store comes to it. Called on any thread.
        self.releasing: Signal[[]] = Signal()
        #: A slot has become free. Called on the store's thread.
        self.released: Signal[[]] = Signal()
        #: The job of that id is being ended before its own end. Called on any thread.
        self.ending: Signal[[str]] = Signal()
        #: The store takes no endings: a code and a message for operators. Called on the watchdog's thread.
        self.alarmed: Signal[[str, str]] = Signal()

    def settle(
        self, job: Job, verdict: Verdict, result: Result | None = None, *, here: bool = False
    ) -> Future[Settled | None]:
        """Give a job its verdict, unless it has one. The future is done once its ending is durable, and never fails.

        `here`: the caller's thread has nothing else to do, and may write it itself.
        """
        if self.has_lost(job):
            return _drop(job)
        verdict, result = self._cleaner.clean_ending(verdict, result, job.owner)
        return self._hand_in(Ending(job.job_id, verdict, result, token=job.token), here=here)

    def end(self, job: Job, error: GuardError) -> Future[Settled | None]:
        """End a job before its own end: settle it, stop it, and tell its socket once that is durable.

        The stop does not wait for the disk: the verdict counts from now on, whatever the stopped run reports.
        """
        ending = Ending(job.job_id, Verdict.of(error), error=error, token=job.token)
        future = _drop(job) if self.has_lost(job) else self._hand_in(ending)
        self.stop(job.job_id)
        return future

    def stop(self, job_id: str) -> None:
        """Stop the job's run here, if there is one: it has ended, or has been taken from this server."""
        self._host.stop(job_id)
        self.ending(job_id)

    def has_lost(self, job: Job) -> bool:
        """Whether the job, as a claim has given it, is no longer this server's. Any thread."""
        return job.token is not None and self._has_lost()

    def follow(self, job: Job) -> None:
        """Another server has changed the job. The store's thread."""
        if job.state.settled:
            self._secrets.forget(job.job_id)
            self.stop(job.job_id)

    @property
    def has_ends_of_runs(self) -> bool:
        """Whether the end of a run waits for the store. Any thread."""
        with self._lock:
            return any(ending.token is not None for ending in self._endings.values())

    def end_waiting(self, job_id: str, error: GuardError) -> Future[Settled | None]:
        """End a job that waits; leave it alone if it has begun to run meanwhile, or is being ended already."""
        return self._hand_in(Ending(job_id, Verdict.of(error), error=error, only_waiting=True))

    def release(self, job_id: str, held: bool = False) -> None:
        """Free the job's slot. Where that fails, the reconciler finds it and calls this again.

        `held`: with the store's next commit, or once it is reminded.
        """

        def done(future: Future[None]) -> None:
            """The store's thread."""
            if future.exception() is None:
                self.released()

        self._store.release(job_id, held).add_done_callback(done)
        self.releasing()

    def verdict_of(self, job_id: str) -> Verdict | None:
        """The verdict that counts for the job although it is not on disk yet; nobody may be told of it."""
        ending = self._endings.get(job_id)
        return None if ending is None or ending.only_waiting else ending.verdict

    @property
    def oldest_unwritten_s(self) -> float | None:
        """How long the oldest ending has waited for the disk; None where none does."""
        with self._lock:
            oldest = next(iter(self._endings.values()), None)
        return None if oldest is None else self._clock.monotonic_s() - oldest.since_s

    def is_stalled(self) -> bool:
        """Whether the store has taken nothing for longer than `store.stalled_after_s`: then no job may begin."""
        return max(self.oldest_unwritten_s or 0.0, self._store.silent_s) > self._stalled_after_s

    def retry(self) -> None:
        """Hand in again what the store refused. The watchdog calls this at every turn.

        One ending is enough to see whether the store takes it: the others follow as soon as it has.
        """
        with self._lock:
            first = self._refused.popleft() if self._refused else None
        if first is not None:
            self._write(first)
        self._report_stall()

    # From the hand-in to the commit. -------------------------------------------------------------------------

    def _hand_in(self, ending: Ending, *, here: bool = False) -> Future[Settled | None]:
        """Make this the job's ending, unless it has one; returns the future of the one that it has."""
        job_id = ending.job_id
        with self._lock:
            known = self._endings.get(job_id)
            if known is not None and (ending.only_waiting or _holds_against(known, ending)):
                return known.future
            ending.since_s = self._clock.monotonic_s()
            if known is not None:  # the store has not decided on it; whatever it will say, the job ends now
                ending.since_s, known.replaced_by = known.since_s, ending
            self._endings[job_id] = ending
            is_refused = known in self._refused
            if known is not None and is_refused:
                self._refused.remove(known)
        if known is not None and is_refused:
            _share(ending, known)
        self._write(ending, here=here)
        return ending.future

    def _write(self, ending: Ending, *, here: bool = False) -> None:
        how = {"only_waiting": ending.only_waiting, "here": here}
        future = self._store.settle(ending.job_id, ending.verdict, ending.result, token=ending.token, **how)
        future.add_done_callback(lambda done: self._take_answer(ending, done))

    def _take_answer(self, ending: Ending, done: Future[Settled | None]) -> None:
        """The store's thread, after the commit or its failure."""
        if (failure := done.exception()) is not None:
            self._keep(ending, failure)
            return
        settled = done.result()
        with self._lock:
            if self._endings.get(ending.job_id) is ending:
                del self._endings[ending.job_id]
            again = list(self._refused)
            self._refused.clear()
        try:
            self._tell(ending, settled)
        except Exception:
            log.exception("job %s: its ending could not be told", ending.job_id, extra={"job_id": ending.job_id})
        ending.future.set_result(settled)
        for other in again:
            self._write(other)
        self._report_written(ending.job_id)

    def _keep(self, ending: Ending, failure: BaseException) -> None:
        """Keep an ending that could not be written. The store's thread; any thread where the store is closed."""
        if isinstance(failure, InternalError) and ending.verdict != (substitute := Verdict.of(_UNWRITABLE)):
            # Not the disk but this very ending is at fault. The job must end all the same, and nobody has heard yet.
            ending.verdict, ending.result = substitute, None
            ending.error = ending.error and _UNWRITABLE
            self._write(ending)
            return
        with self._lock:
            newer = ending.replaced_by
            if newer is None:
                self._refused.append(ending)
            is_first = not self._late
            if is_first:
                self._refused_s = self._clock.monotonic_s()
            self._late.add(ending.job_id)
        if newer is not None:
            _share(newer, ending)
        if is_first:
            log.error(
                "job %s: its ending (%s) cannot be written yet, so nobody hears of it: %s",
                ending.job_id,
                ending.verdict.code or "success",
                failure,
                extra={"job_id": ending.job_id},
            )

    # After the commit. ---------------------------------------------------------------------------------------

    def _tell(self, ending: Ending, settled: Settled | None) -> None:
        """Say how the job ended, now that it is durable. The store's thread."""
        if settled is not None and not settled.job.state.settled:
            return  # it had begun to run
        job_id = ending.job_id
        self._secrets.forget(job_id)
        if settled is None or not settled.won:
            return
        job = settled.job
        _log_ending(job)
        if ending.only_waiting:
            self._host.stop(job_id)
            self.ending(job_id)
        if ending.error is not None:
            client_id = self._client_ids.of(job.owner, job.client_id) if job.client_id is not None else None
            was_interrupted = job.started_at_ms is not None and job.state is JobState.CANCELLED
            self._host.announce(job_id, client_id, ending.error, was_interrupted)

    def _report_written(self, job_id: str) -> None:
        """Log once that all endings which the store had refused are on disk. The store's thread."""
        with self._lock:
            self._late.discard(job_id)
            is_over = self._refused_s > 0.0 and not self._late
            took_s = self._clock.monotonic_s() - self._refused_s
            if is_over:
                self._refused_s = 0.0
        if is_over:
            log.warning("every ending is on disk, %.1f s after the first one could not be written", took_s)

    def _report_stall(self) -> None:
        """Raise an alarm once where the store takes nothing, and log when that is over. The watchdog's thread."""
        is_stalled = self.is_stalled()
        if is_stalled and not self._has_stalled:
            message = f"The job store has written nothing for {self._stalled_after_s:g} s; no job begins meanwhile."
            log.error("%s", message)
            self.alarmed("store_stalled", message)
        elif self._has_stalled and not is_stalled:
            log.warning("the job store writes again")
        self._has_stalled = is_stalled


def _holds_against(known: Ending, later: Ending) -> bool:
    """Whether an ending that the store has not decided on ends the job in any case in which the later one would."""
    return not known.only_waiting and (known.token is None or later.token is not None)


def _drop(job: Job) -> Future[Settled | None]:
    """What whoever ends a run is told that no longer counts."""
    future: Future[Settled | None] = Future()
    future.set_result(Settled(job, won=False))
    return future


def _share(newer: Ending, older: Ending) -> None:
    """Give those who wait for the older ending, which no longer matters, the answer of the newer one."""
    newer.future.add_done_callback(lambda done: older.future.set_result(done.result()))


#: Ends in which the guard or its machine has a part that fails. Of the others, those for which whoever asked is to
#: blame, or that somebody wanted, need no operator's look.
_FAULTS = frozenset({"worker_died", "server_restarted", "disk_full", "internal_error"})
_WANTED = frozenset({"cancelled", "interrupted"})


def _level_of(code: str) -> int:
    if code in _FAULTS:
        return logging.ERROR
    status = FAMILY[code].status if code in FAMILY else None
    asked = status is not None and 400 <= status < 500
    return logging.INFO if asked or code in _WANTED else logging.WARNING


def _log_ending(job: Job) -> None:
    """Log how the job ended, in the one line that it has, and the warnings about each file of a success."""
    verdict, files = job.verdict, job.result.artifacts
    began_ms, ended_ms = job.started_at_ms, job.settled_at_ms or 0
    facts: dict[str, Any] = {
        "owner": job.owner,
        "template": job.template or None,
        "state": job.state.value,
        "code": verdict.code if verdict is not None else None,
        "waited_s": ((began_ms or ended_ms) - job.created_at_ms) / 1000,
        "ran_s": (ended_ms - began_ms) / 1000 if began_ms is not None else None,
    }
    about = {"job_id": job.job_id, "facts": facts}
    times = f"waited {facts['waited_s']:.1f} s" + (f", ran {facts['ran_s']:.1f} s" if began_ms is not None else "")
    if verdict is None or verdict.state is JobState.CANCELLED:
        log.info("job %s of %s %s; %s", job.job_id, job.owner, job.state.value, times, extra=about)
    elif verdict.state is JobState.FAILED:
        message = verdict.message
        if "exception_message" in verdict.details:
            # A node's own words may quote the prompt.
            message = "node {node_id} ({node_type}) raised {exception_type}".format_map(verdict.details)
        code = verdict.code or ""
        what = (job.job_id, job.owner, code, message, times)
        log.log(_level_of(code), "job %s of %s failed: %s: %s; %s", *what, extra=about)
    else:
        made = "1 file" if len(files) == 1 else f"{len(files)} files"
        log.info("job %s of %s succeeded with %s; %s", job.job_id, job.owner, made, times, extra=about)
        for file in files:
            if file.warnings:
                log.warning("job %s: %s: %s", job.job_id, file.filename, ", ".join(file.warnings), extra=about)
