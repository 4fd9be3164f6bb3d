"""Listens to the host: what concerns the warm-up that runs ends here, all else goes on to the jobs' own listener."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from ..client import LOCAL
from ..errors import GuardError, InternalError, WorkerDiedError
from ..host import Host, Outcome, Progress
from ..job import Job, JobState, Result, Verdict
from ..life.checking import Checking
from ..life.runs import Runs
from ..life.watchdog import Watchdog
from ..settings import ResultsSettings
from ..spent import Spent

log = logging.getLogger("guarded.warmup")

Close = Callable[[Verdict], None]
#: Hears once how the run ended. Any thread.
Ended = Callable[[Verdict], None]


def make_job(job_id: str, timeout_s: float, now_ms: int) -> Job:
    """What the watchdog watches: a job that the store has never seen, and that runs as far as anybody asks."""
    return Job(
        job_id=job_id,
        number=0,
        owner=LOCAL.owner,
        state=JobState.RUNNING,
        priority=0,
        attempts=1,
        created_at_ms=now_ms,
        started_at_ms=now_ms,
        settled_at_ms=None,
        timeout_s=timeout_s,
        locale="en",
        client_id=None,
        shape="",
        template="",
        parameters={},
        outputs_to_execute=(),
        metadata={},
        has_secrets=False,
    )


class WarmupRuns:
    """Between the host and the jobs' listener; see :class:`guard.host.HostListener` for the threads."""

    def __init__(
        self,
        settings: ResultsSettings,
        others: Runs,
        watchdog: Watchdog,
        host: Host,
        quarantine: Path,
    ) -> None:
        self._others = others
        self._watchdog = watchdog
        self._host = host
        self._quarantine = quarantine
        self._checking = Checking(settings, quarantine, syncs=False)
        self._lock = threading.Lock()
        #: The runs of late: one that could not be handed over in time may come all the same.
        self._known: deque[str] = deque(maxlen=100)
        self._job: Job | None = None
        self._ended: Ended = lambda _verdict: None
        #: Why the watchdog has ended it before its own end.
        self._early: Verdict | None = None
        #: Called where the host frees its models, with whether that is a warm-up's own doing. The worker's thread.
        self.freed: Callable[[bool], None] = lambda _own: None

    def expect(self, job: Job, ended: Ended) -> None:
        """The run is about to be handed to the host."""
        with self._lock:
            self._job, self._ended, self._early = job, ended, None
            self._known.append(job.job_id)

    def end(self, job_id: str, verdict: Verdict) -> None:
        """The run is over; whoever says so first is heard. Any thread."""
        with self._lock:
            if self._job is None or self._job.job_id != job_id:
                return
            ended, self._job = self._ended, None
            verdict = self._early or verdict
        self._watchdog.forget(job_id)
        ended(verdict)

    def stop(self, job: Job, error: GuardError) -> None:
        """End it before its own end. Any thread."""
        with self._lock:
            if self._job is job and self._early is None:
                self._early = Verdict.of(error)
        self._host.stop(job.job_id)

    def _is_own(self, job_id: str) -> bool:
        return job_id in self._known

    # What the host tells. ------------------------------------------------------------------------------------

    def started(self, job_id: str) -> bool:
        if not self._is_own(job_id):
            return self._others.started(job_id)
        job = self._job
        if job is None or job.job_id != job_id:
            return False
        self._watchdog.watch(job, self.stop)
        return True

    def gives(self, job_id: str, path: str) -> None:
        self._others.gives(job_id, path)

    def reads(self, job_id: str, path: str, is_asked: bool) -> bool:
        return self._others.reads(job_id, path, is_asked)

    def finished(self, job_id: str, outcome: Outcome, close: Close) -> None:
        if not self._is_own(job_id):
            self._others.finished(job_id, outcome, close)
            return
        self._watchdog.forget(job_id)
        error = outcome.refusal or (None if outcome.success else self._others.explain(outcome))
        if error is not None:
            self._settle(job_id, outcome, close, Verdict.of(error), Result())
            return
        self._checking.check(
            job_id, outcome, lambda *judged: self._settle(job_id, outcome, close, *judged), lambda: None
        )

    def _settle(self, job_id: str, outcome: Outcome, close: Close, verdict: Verdict, _result: Result) -> None:
        """Leave no trace: nobody has asked for the files. Any thread."""
        for file in (*outcome.files, *outcome.byproducts):
            if file.path is not None:
                with contextlib.suppress(OSError):
                    file.path.unlink()
        shutil.rmtree(self._quarantine / job_id, ignore_errors=True)
        close(verdict)
        self.end(job_id, verdict)

    def released(self, job_id: str) -> None:
        if self._is_own(job_id):
            self.end(job_id, Verdict.of(WorkerDiedError("ComfyUI no longer has the warm-up.")))
        else:
            self._others.released(job_id)

    def progressed(self, job_id: str, progress: Progress) -> None:
        if self._is_own(job_id):
            self._watchdog.note_progress(job_id)
        else:
            self._others.progressed(job_id, progress)

    def previewed(self, job_id: str, mime: str, encode: Callable[[], bytes]) -> None:
        if not self._is_own(job_id):
            self._others.previewed(job_id, mime, encode)

    def dropped(self, job_id: str) -> None:
        if not self._is_own(job_id):  # else `released` follows
            self._others.dropped(job_id)

    def lost(self, job_id: str) -> None:
        if not self._is_own(job_id):
            self._others.lost(job_id)

    def unreadable(self, job_id: str, close: Close, spent: Spent | None = None) -> None:
        self.left_behind(job_id, InternalError("The host's report of the run could not be read."), close, spent)

    def left_behind(self, job_id: str, error: GuardError, close: Close, spent: Spent | None = None) -> None:
        if not self._is_own(job_id):
            self._others.left_behind(job_id, error, close, spent)
            return
        close(Verdict.of(error))
        self.end(job_id, Verdict.of(error))

    def native_started(self, prompt_id: str) -> None:
        self._others.native_started(prompt_id)

    def native_finished(self, prompt_id: str) -> None:
        self._others.native_finished(prompt_id)

    def memory_freed(self, after: str | None) -> None:
        self.freed(after is not None and self._is_own(after))
