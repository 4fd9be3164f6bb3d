"""Deadlines: a thread of its own, on the monotonic clock, that never waits for the event loop."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from dataclasses import dataclass

from .clock import Clock
from .errors import GenerationTimeoutError, GuardError, QueueTimeoutError, WorkerDiedError
from .host import Host
from .job import Job
from .settings import Settings
from .settle import Settler
from .store import Store

log = logging.getLogger("guarded.watchdog")

#: The longest sleep between two looks; a deadline that is nearer wakes it earlier.
TURN_S = 0.5


@dataclass
class _Watched:
    job: Job
    deadline_s: float
    ended: bool = False


class Watchdog:
    """Ends what runs or waits too long. The thread only calls :meth:`turn`."""

    def __init__(self, settings: Settings, store: Store, host: Host, settler: Settler, clock: Clock) -> None:
        self._settings = settings
        self._store = store
        self._host = host
        self._settler = settler
        self._clock = clock
        self._condition = threading.Condition()
        self._running: dict[str, _Watched] = {}
        self._looking: Future[list[Job]] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="guarded-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def watch(self, job: Job) -> None:
        """The job clock starts now. The worker's thread."""
        with self._condition:
            self._running[job.job_id] = _Watched(job, self._clock.monotonic_s() + job.timeout_s)
            self._condition.notify()

    def forget(self, job_id: str) -> None:
        """The run is over. The worker's thread."""
        with self._condition:
            self._running.pop(job_id, None)

    def turn(self, now_s: float) -> float:
        """End what is due at `now_s` (monotonic seconds). Returns when to look again."""
        worker_alive = self._host.worker_alive()
        with self._condition:
            held = [watched for watched in self._running.values() if not watched.ended]
            due = [watched for watched in held if not worker_alive or watched.deadline_s <= now_s]
            for watched in due:
                watched.ended = True
            rest = [watched.deadline_s for watched in held if not watched.ended]
        for watched in due:
            job = watched.job
            if worker_alive:
                log.error("job %s ran longer than %g s", job.job_id, job.timeout_s)
                error: GuardError = GenerationTimeoutError(
                    f"The job ran longer than {job.timeout_s:g} s.", extra_info={"timeout_s": job.timeout_s}
                )
            else:
                error = WorkerDiedError("ComfyUI's worker thread died under the job.")
            self._settler.end(job, error)
        self._settler.retry()
        self._end_overdue()
        return min([*rest, now_s + TURN_S])

    def _end_overdue(self) -> None:
        """Look for jobs that have waited too long; the answer comes on the store's thread."""
        if self._looking is not None and not self._looking.done():
            return
        timeout_s = self._settings.queue.timeout_s
        self._looking = self._store.overdue(self._clock.now_ms() - int(timeout_s * 1000))
        self._looking.add_done_callback(self._overdue)

    def _overdue(self, done: Future[list[Job]]) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        timeout_s = self._settings.queue.timeout_s
        for job in done.result():
            self._settler.end_waiting(
                job,
                QueueTimeoutError(f"The job waited longer than {timeout_s:g} s.", extra_info={"timeout_s": timeout_s}),
            )

    def _loop(self) -> None:
        again_s = self._clock.monotonic_s()
        while True:
            with self._condition:
                if self._closed:
                    return
                self._condition.wait(max(again_s - self._clock.monotonic_s(), 0))
                if self._closed:
                    return
            try:
                again_s = self.turn(self._clock.monotonic_s())
            except Exception:
                # Without this thread nothing ends a hung job, so no fault of ours may end it.
                log.exception("the watchdog stumbled")
                again_s = self._clock.monotonic_s() + TURN_S
