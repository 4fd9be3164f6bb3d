"""Turn what the worker reports of a run into states and verdicts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from pathlib import Path
from typing import Protocol

from ..client import LOCAL
from ..depot.outcomes import PutAll
from ..errors import (
    CancelledError,
    DiskFullError,
    GenerationFailedError,
    GuardError,
    InternalError,
    OutOfMemoryError,
    PolicyViolationError,
    WorkerDiedError,
)
from ..events.stream import Events
from ..files.given import Given
from ..files.names import owner_folder
from ..host import Host, Outcome, Progress
from ..host_words import GPU_FAULT, contains, explain_failure
from ..job import Job, JobState, Result, Verdict
from ..settings import Settings
from ..signal import Signal
from ..spent import Spent
from ..store import Settled
from ..wake import together
from .checking import Checking
from .face_words import read_face_error
from .returns import Returns
from .settle import Settler
from .watchdog import Watchdog

log = logging.getLogger("guarded.queue")

#: The worker waits this long until a start is on disk, then begins without: the job's clock runs, and native prompts
#: wait behind it. Until then a prompt that kills the process would be tried without an end.
START_WAIT_S = 10.0

#: In place of a verdict on a run whose job was taken from it: nobody is told of its end.
GIVEN_AWAY = Verdict(JobState.QUEUED)

#: Tells how a run ended; on any thread.
Close = Callable[[Verdict], None]


class Steps(Protocol):
    """What a run asks of the job store: see :class:`guard.store.Store`."""

    def start(self, job_id: str) -> Future[Job | None]: ...
    def validate(self, job_id: str, held: bool = False) -> Future[Job | None]: ...
    def spend(self, job: Job, spent: Spent, held: bool = False) -> Future[None]: ...
    def remind(self) -> None: ...
    def hold_back(self, owners: frozenset[str]) -> None: ...


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
        max_pixels_of: Callable[[str], int] = lambda _owner: 0,
        face_classes: Collection[str] = (),
        put_all: PutAll | None = None,
        returns: Returns | None = None,
        look_again: Callable[[str, str, bool], bool] | None = None,
        given: Given | None = None,
        judge_files: Callable[[str], None] = lambda _owner: None,
    ) -> None:
        """
        Args:
            max_pixels_of: how many pixels the pictures of an owner's jobs may have; 0: any.
            face_classes: node classes whose word counts that a picture shows no face.
            put_all: puts a job's files into the depot, if there is one.
            returns: takes what another server may be able to run.
            look_again: looks at a file that a job is about to read, see :meth:`.KeptFiles.look_again`; or None.
            given: hears which files the jobs that run read.
            judge_files: raises where an owner has too many files for another job to begin.
        """
        self._settings = settings
        self._store = store
        self._host = host
        self._settler = settler
        self._watchdog = watchdog
        self._events = events
        self._max_pixels_of = max_pixels_of
        self._face_classes = frozenset(face_classes)
        self._returns = returns
        self._look_again = look_again
        self._given = given or Given()
        self._judge_files = judge_files
        syncs = settings.store.survives == "power_cut"
        self._checking = Checking(
            settings.results,
            quarantine,
            syncs=syncs,
            put_all=put_all,
            holds_up=store.remind,
            hold_back=self._hold_back,
        )
        self._jobs: dict[str, Job] = {}
        #: Those of them that somebody has ended before their own end.
        self._ended: set[str] = set()
        #: Those that the worker has.
        self._running: set[str] = set()
        #: A run begins. The worker's thread, before the host tells anybody.
        self.began: Signal[[Job]] = Signal()
        #: A run has taken that much of the worker. Any thread.
        self.spent: Signal[[Job, Spent]] = Signal()
        #: Other owners may have a slot than before. Any thread.
        self.held_back: Signal[[]] = Signal()

    def expect(self, job: Job) -> None:
        """The job is about to be handed to the host."""
        self._jobs[job.job_id] = job

    def expect_stop(self, job_id: str) -> None:
        """Somebody ends the job before its own end. Any thread, before the watchdog hears of it."""
        if job_id in self._jobs:
            self._ended.add(job_id)
        self._checking.drop(job_id)

    def started(self, job_id: str) -> bool:
        job = self._jobs[job_id]
        self._watchdog.watch(job)
        if not self._may_run(job):
            self._watchdog.expect_stop(job_id)
            return False
        self._running.add(job_id)
        self.began(job)
        return True

    def list_ids(self) -> list[str]:
        """The jobs that the host has, or is about to have. Any thread."""
        return list(self._jobs)

    def are_running(self) -> bool:
        """Whether the worker has a job. Any thread."""
        return bool(self._running)

    def gives(self, job_id: str, path: str) -> None:
        self._given.give(job_id, path)

    def reads(self, job_id: str, path: str, is_asked: bool) -> bool:
        return self._look_again is None or self._look_again(job_id, path, is_asked)

    def finished(self, job_id: str, outcome: Outcome, close: Close) -> None:
        self._watchdog.forget(job_id)
        if outcome.trespass:
            self._end(job_id, Verdict.of(self._report_trespass(job_id, outcome)), close, outcome.spent)
        elif outcome.refusal is not None:
            self._end(job_id, Verdict.of(outcome.refusal), close, outcome.spent)
        elif not outcome.success:
            self._fail(job_id, self.explain(outcome), close, outcome.spent)
        elif (early := self._settler.verdict_of(job_id)) is not None:
            self._end(job_id, early, close, outcome.spent)
        else:
            # The begin of the next job takes these along; without one the store is reminded as the worker goes on.
            self._count(job_id, outcome.spent)
            self._store.validate(job_id, held=True)
            job = self._jobs[job_id]
            then, go_on = partial(self._close, job, close, outcome.spent), partial(self.released, job_id, held=True)
            then_beside = partial(self._close, job, close, outcome.spent, here=True)
            strips = self._settings.results.strip_metadata and job.owner != LOCAL.owner
            max_pixels = self._max_pixels_of(job.owner)
            self._checking.check(
                job_id,
                outcome,
                then,
                go_on,
                strips=strips,
                max_pixels=max_pixels,
                options=job.results,
                owner=job.owner,
                # With more slots another job of the owner may be in the host's queue already.
                owner_folder=owner_folder(job.owner) if self._settings.queue.max_jobs == 1 else "",
                then_beside=then_beside,
            )

    def _hold_back(self, owners: frozenset[str]) -> None:
        """Too many of these owners' runs wait for their checks. Any thread."""
        self._store.hold_back(owners)
        self.held_back()

    def go_on(self) -> None:
        """The worker has its next job, or waits for one. The worker's thread."""
        self._checking.go_on()
        self._store.remind()

    def released(self, job_id: str, *, held: bool = False) -> None:
        self._jobs.pop(job_id, None)
        self._given.take_back(job_id)
        self._ended.discard(job_id)
        self._running.discard(job_id)
        self._watchdog.forget(job_id)
        self._settler.release(job_id, held)

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

    def unreadable(self, job_id: str, close: Close, spent: Spent | None = None) -> None:
        self._end(job_id, Verdict.of(InternalError("The host's report of the run could not be read.")), close, spent)

    def left_behind(self, job_id: str, error: GuardError, close: Close, spent: Spent | None = None) -> None:
        self._end(job_id, Verdict.of(error), close, spent)

    def _end(self, job_id: str, verdict: Verdict, close: Close, spent: Spent | None) -> None:
        """End a run that leaves nothing to check.

        Its slot is free before anybody hears of the end: who sends the next job then need not wait.
        """
        job = self._jobs[job_id]
        self._count(job_id, spent)
        self.released(job_id)
        self._settle(job, close, spent, verdict, Result())

    def _fail(self, job_id: str, error: GuardError, close: Close, spent: Spent | None) -> None:
        """End a run that has failed, unless a larger card than this, or a disk with room, may have done with it."""
        job = self._jobs[job_id]
        lacks_room = isinstance(error, OutOfMemoryError | DiskFullError) and self._settler.verdict_of(job_id) is None
        if self._returns is None or not (lacks_room and self._returns.takes(job, error)):
            self._end(job_id, Verdict.of(error), close, spent)
            return
        self._count(job_id, spent)
        self.released(job_id)

        def end(is_elsewhere: bool) -> None:
            if is_elsewhere:
                close(GIVEN_AWAY)
            else:
                self._settle(job, close, spent, Verdict.of(error), Result())

        self._returns.give_back(job, error, end)

    def _count(self, job_id: str, spent: Spent | None) -> None:
        """Write down what a run has taken. Before its next state: a start counts what a killed run has not told."""
        # What a run had taken that was lost, whoever took its job has counted.
        if spent is not None and not self._settler.has_lost(self._jobs[job_id]):
            self._store.spend(self._jobs[job_id], spent, held=True)
            self.spent(self._jobs[job_id], spent)

    def native_started(self, prompt_id: str) -> None:
        self._watchdog.watch_native(prompt_id)

    def native_finished(self, prompt_id: str) -> None:
        self._watchdog.forget(prompt_id)

    def memory_freed(self, after: str | None) -> None:
        """Nobody's jobs mind."""

    def _may_run(self, job: Job) -> bool:
        """Write down that the job starts; False if it has ended, or is being ended. The worker's thread."""
        if job.job_id in self._ended or self._settler.verdict_of(job.job_id) is not None:
            return False
        try:
            self._judge_files(job.owner)
        except GuardError as error:
            self._settler.end(job, error)
            return False
        if job.state is JobState.RUNNING:
            return True  # the worker has written that itself
        starting = self._store.start(job.job_id)
        # From the commit, as the log of an ending comes from its own: so the two are in order.
        starting.add_done_callback(log_start)
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

    def explain(self, outcome: Outcome) -> GuardError:
        """Say why the run failed. The worker's thread: ComfyUI's worker frees memory right after."""
        error = explain_failure(outcome)
        # Ask for this first: "CUDA error: out of memory" looks like a fault of the GPU and is none.
        if isinstance(error, OutOfMemoryError):
            if self._settings.watchdog.free_memory:
                self._host.free_memory()
        elif contains(outcome.exception_message, GPU_FAULT):
            self._watchdog.handle_gpu_fault()
        elif isinstance(error, GenerationFailedError) and "exception_message" in error.extra_info:
            said: str = error.extra_info["exception_message"]
            if (face_error := read_face_error(said, outcome.node_type in self._face_classes)) is not None:
                return face_error(f"{outcome.node_type}: {said[:300]}", extra_info=error.extra_info)
        return error

    def _report_trespass(self, job_id: str, outcome: Outcome) -> GuardError:
        """Tell the operator of a job that reached for what is not its owner's. The worker's thread."""
        message = f"A job of {self._jobs[job_id].owner} tried to {outcome.trespass}, which no job of a key may."
        log.error("job %s: %s", job_id, message, extra={"job_id": job_id})
        self._events.alarm("policy_violation", message, job_id)
        where = {"node_id": outcome.node_id} if outcome.node_id is not None else {}
        return PolicyViolationError("A node of the job reached for what is not its owner's.", extra_info=where)

    def _close(
        self, job: Job, close: Close, spent: Spent | None, verdict: Verdict, result: Result, *, here: bool = False
    ) -> None:
        """End a run that was checked, unless another server may have room for its files. Any thread.

        `here`: this thread has nothing else to do.
        """
        is_full = verdict.code == DiskFullError.code and self._settler.verdict_of(job.job_id) is None
        error = DiskFullError(verdict.message)
        if self._returns is None or not (is_full and self._returns.takes(job, error)):
            self._settle(job, close, spent, verdict, result, here=here)
            return

        def end(is_elsewhere: bool) -> None:
            if is_elsewhere:
                close(GIVEN_AWAY)
            else:
                self._settle(job, close, spent, verdict, result)

        self._returns.give_back(job, error, end)

    def _settle(
        self, job: Job, close: Close, spent: Spent | None, verdict: Verdict, result: Result, *, here: bool = False
    ) -> None:
        """Give the job its verdict, and have the host tell it once it is durable. Any thread."""
        with together():  # the loop hears of the end once the host has told it
            settled = self._settler.settle(job, verdict, result.evolve(spent=spent), here=here)
            settled.add_done_callback(lambda done: close(_verdict_that_counts(done.result())))


def log_start(done: Future[Job | None]) -> None:
    """Log that a job has started. The store's thread."""
    job = None if done.cancelled() or done.exception() is not None else done.result()
    if job is not None:
        log.debug("job %s started", job.job_id, extra={"job_id": job.job_id})


def _verdict_that_counts(settled: Settled | None) -> Verdict:
    """The verdict on disk."""
    if settled is None:
        return Verdict.of(InternalError("The job store does not know the job."))
    return settled.job.verdict or GIVEN_AWAY
