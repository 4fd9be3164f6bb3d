"""End jobs at their deadlines, and replace a worker that hangs or has died.

A thread of its own, on the monotonic clock, that never waits for the event loop. docs/architecture.md has the ladder.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from ..clock import Clock
from ..errors import GenerationTimeoutError, GuardError, QueueTimeoutError, WorkerDiedError
from ..host import Host
from ..job import Job
from ..settings import Settings
from ..signal import Signal
from .health import Health
from .process import Process
from .settle import Settler

log = logging.getLogger("guarded.watchdog")

#: The longest sleep between two turns; a nearer deadline shortens it.
TURN_S = 0.5
#: The share of the grace after which an exception is injected: most nodes have reached a check by then.
INJECT_AFTER = 0.2
#: So many times the grace a worker may stay away between two prompts while others wait: giving memory back takes time.
AWAY_FACTOR = 3
#: The time between a fault of the GPU and the restart: the verdict must reach whoever waits for it.
FAULT_GRACE_S = 1.0
#: How often a restart that failed is tried again.
RESTART_EVERY_S = 10.0
#: What operators read while one fails.
RESTART_FAILED = "The process should restart and cannot; the log says why. It is tried again."


@dataclass
class _Watched:
    """A prompt that the worker has. `job` is None for a native one, which did not come through the guard; `end` ends
    one that the store does not know."""

    prompt_id: str
    job: Job | None
    deadline_s: float
    active_s: float
    end: Callable[[Job, GuardError], object] | None = None
    stopped_s: float = math.inf
    injected: bool = False
    stuck: bool = False


class Overdue(Protocol):
    """What the watchdog asks of the job store: see :class:`guard.store.Store`."""

    @property
    def queued(self) -> int: ...
    @property
    def leases(self) -> frozenset[str]: ...
    def list_overdue(self, created_before_ms: int) -> Future[list[Job]]: ...


class Watchdog:
    """Ends what runs or waits too long, and replaces the worker. The thread only calls :meth:`turn`."""

    def __init__(
        self,
        settings: Settings,
        store: Overdue,
        host: Host,
        health: Health,
        settler: Settler,
        process: Process,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._store = store
        self._host = host
        self._health = health
        self._settler = settler
        self._process = process
        self._clock = clock
        self._condition = threading.Condition()
        self._watched: dict[str, _Watched] = {}
        self._looking: Future[list[Job]] | None = None
        self._restart_s = math.inf
        #: Since when the worker has stayed away although something waits; and whether that was reported, and no more.
        self._missed_since_s = math.inf
        self._is_missing = False
        #: Why the process must restart once no job is under way, since it could not when a worker hung; and when next.
        self._owed_restart: str | None = None
        self._owed_restart_s = -math.inf
        #: A worker serves the queue again. Called on any thread.
        self.repaired: Signal[[]] = Signal()
        #: A worker had to be given up: a code and a message. Called on the watchdog's thread.
        self.alarmed: Signal[[str, str]] = Signal()
        #: A turn is over. Called on the watchdog's thread.
        self.turned: Signal[[]] = Signal()
        #: How often each was done since the start: `timeout <limit>`, `stop`, `inject`, `replace <reason>`.
        self.counts: Counter[str] = Counter()
        # With a GPU that nobody can use there is nothing to go on with.
        health.watch("restart failed", RESTART_FAILED, lambda: process.failure is not None and health.restarting)
        health.warn("restart failed", RESTART_FAILED, lambda: process.failure is not None and not health.restarting)
        self._thread = threading.Thread(target=self._loop, name="guarded-watchdog", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def replacements(self) -> int:
        """How many workers were replaced since the start."""
        return self.counts["replace hung"] + self.counts["replace dead"]

    # What others tell it. ----------------------------------------------------------------------------------------

    def watch(self, job: Job, end: Callable[[Job, GuardError], object] | None = None) -> None:
        """Start the job's clock. The worker's thread.

        `end` ends a run that is nobody's job, in place of the settler; its timeouts are not counted. Any thread.
        """
        self._watch(job.job_id, job, job.timeout_s, end)

    def watch_native(self, prompt_id: str) -> None:
        """Start the clock of a native prompt. The worker's thread."""
        self._watch(prompt_id, None, self._settings.watchdog.native_timeout_s or math.inf)

    def note_progress(self, job_id: str) -> None:
        """The job makes progress. The worker's thread."""
        watched = self._watched.get(job_id)
        if watched is not None:
            watched.active_s = self._clock.monotonic_s()

    def expect_stop(self, job_id: str) -> None:
        """Somebody else has ended the job: climb the ladder if the worker does not let go. Any thread."""
        with self._condition:
            watched = self._watched.get(job_id)
            if watched is not None and watched.stopped_s == math.inf:
                watched.stopped_s = self._clock.monotonic_s()
                self.counts["stop"] += 1
                self._condition.notify()

    def forget(self, prompt_id: str) -> None:
        """The run is over. Any thread."""
        with self._condition:
            watched = self._watched.pop(prompt_id, None)
        if watched is not None and watched.stuck and self._health.stuck:
            self._find_free(f"{prompt_id} has ended after all, and the worker is free", prompt_id)

    def handle_gpu_fault(self) -> None:
        """Restart the process soon, since it can no longer use the GPU. The worker's thread."""
        if self._settings.watchdog.on_gpu_fault == "report":
            log.error("this process can no longer use the GPU; restart it")
            return
        with self._condition:
            self._restart_s = self._clock.monotonic_s() + FAULT_GRACE_S
        self._health.restarting = True

    # What it does. -------------------------------------------------------------------------------------------

    def turn(self, now_s: float) -> float:
        """Do what is due at `now_s` (monotonic seconds). Returns when the next turn is due."""
        if self._settings.watchdog.on_stuck == "exit":
            self._process.end_if_silent(self._settings.watchdog.gil_hang_s)
        if now_s >= self._restart_s:
            self._restart_s = now_s + RESTART_EVERY_S
            self._restart("this process can no longer use the GPU")
        alive = self._host.worker_alive()
        # Only now, since a dead worker begins nothing more.
        with self._condition:
            watched = list(self._watched.values())
        if not alive:
            self._bury_worker(watched)
        else:
            for one in watched:
                if one.stopped_s < math.inf:
                    self._climb(one, now_s)
                elif (limit := self._find_limit(one, now_s)) is not None:
                    self._end(one, now_s, limit)
            self._miss(now_s)
            self._pay_restart(watched, now_s)
        self._settler.retry()
        self._end_overdue()
        self.turned()
        return min([*(one.deadline_s for one in watched if one.deadline_s > now_s), now_s + TURN_S])

    def _watch(
        self,
        prompt_id: str,
        job: Job | None,
        timeout_s: float,
        end: Callable[[Job, GuardError], object] | None = None,
    ) -> None:
        now_s = self._clock.monotonic_s()
        with self._condition:
            self._watched[prompt_id] = _Watched(prompt_id, job, now_s + timeout_s, now_s, end)
            if timeout_s < TURN_S:  # otherwise the next turn sees it in time
                self._condition.notify()

    def _find_limit(self, one: _Watched, now_s: float) -> GuardError | None:
        """The error for a limit that the prompt has passed, if it has."""
        if one.deadline_s <= now_s:
            timeout_s = one.job.timeout_s if one.job is not None else self._settings.watchdog.native_timeout_s
            return GenerationTimeoutError(
                f"The job ran longer than {timeout_s:g} s.", extra_info={"timeout_s": timeout_s}
            )
        stall_s = self._settings.watchdog.stall_timeout_s
        if stall_s and one.job is not None and one.active_s + stall_s <= now_s:
            return GenerationTimeoutError(
                f"The job made no progress for {stall_s:g} s.", extra_info={"stall_timeout_s": stall_s}
            )
        return None

    def _end(self, one: _Watched, now_s: float, error: GuardError) -> None:
        """The first rung: give the verdict, and set a stop that holds until the worker lets go."""
        if one.job is None:  # the settler logs the same for a job
            log.error("native prompt %s: %s", one.prompt_id, error.message)
        with self._condition:
            one.stopped_s = now_s
            self.counts["stop"] += 1
            limit = "native" if one.job is None else "stall" if "stall_timeout_s" in error.extra_info else "job"
            self.counts[f"timeout {limit}"] += one.end is None
        if one.job is not None:
            (one.end or self._settler.end)(one.job, error)
        else:
            self._host.stop(one.prompt_id)
        if self._settings.watchdog.free_memory:
            self._host.free_memory()

    def _climb(self, one: _Watched, now_s: float) -> None:
        """The next rungs, for a prompt that was told to stop and has not ended."""
        settings = self._settings.watchdog
        if settings.inject and not one.injected and now_s >= one.stopped_s + settings.interrupt_grace_s * INJECT_AFTER:
            one.injected = self._host.inject(one.prompt_id)
            if one.injected:
                self.counts["inject"] += 1
                log.warning(
                    "%s does not check for interrupts; an exception was raised in its code",
                    one.prompt_id,
                    extra={"job_id": one.prompt_id},
                )
        if not one.stuck and now_s >= one.stopped_s + settings.interrupt_grace_s:
            reason = f"{one.prompt_id} does not end, {settings.interrupt_grace_s:g} s after it was stopped"
            # Where the prompt is just ending, the next turn tries again if it does not.
            one.stuck = self._give_worker_up(one.prompt_id, reason, now_s)

    def _miss(self, now_s: float) -> None:
        """Give up a worker that has work and stays away, where no prompt runs that could be late."""
        away_s = self._host.worker_away_s() if self._host.has_waiting() or self._store.queued else 0.0
        if not away_s:
            self._missed_since_s = math.inf
            if self._is_missing and not self._host.worker_away_s():
                self._is_missing = False
                self._find_free("the worker has come back after all, and is free")
            return
        self._missed_since_s = min(self._missed_since_s, now_s)
        grace_s = AWAY_FACTOR * self._settings.watchdog.interrupt_grace_s
        if min(now_s - self._missed_since_s, away_s) >= grace_s and not self._is_missing:
            reason = f"the worker has taken none of the prompts that wait, {grace_s:g} s after the one before"
            if self._give_worker_up(None, reason, now_s):
                self._missed_since_s = math.inf
                self._is_missing = self._health.stuck

    def _give_worker_up(self, prompt_id: str | None, reason: str, now_s: float) -> bool:
        """The last rungs: go on without the worker, as `watchdog.on_stuck` says. False: it has just let go."""
        settings = self._settings.watchdog
        if settings.on_stuck == "report":
            self._health.stuck = True
            log.error("%s; the worker is stuck (watchdog.on_stuck is report)", reason, extra={"job_id": prompt_id})
            self.alarmed("worker_stuck", reason)
            return True
        if settings.on_stuck == "exit":
            self._process.exit(reason)
        elif settings.on_stuck == "restart":
            self._owe_restart(reason, now_s)
        elif (hung := self._host.hung_workers()) >= settings.max_disowned:
            self._owe_restart(f"{reason}, and {hung} worker(s) hang already", now_s)
        # There is room for one more, or the process could not be restarted: go on serving.
        if not self._host.replace_worker(prompt_id, WorkerDiedError("The job did not end and was left behind.")):
            return False
        self.counts["replace hung"] += 1
        log.error("%s; another worker has taken over", reason, extra={"job_id": prompt_id})
        self.alarmed("worker_replaced", f"{reason}; another worker has taken over")
        return True

    def _find_free(self, text: str, prompt_id: str | None = None) -> None:
        """A worker that was reported goes on after all."""
        self._health.stuck = False
        log.warning("%s", text, extra={"job_id": prompt_id})
        self.repaired()

    def _owe_restart(self, reason: str, now_s: float) -> None:
        """Restart now; where that fails, again when no job is under way."""
        self._owed_restart = reason
        if now_s >= self._owed_restart_s:
            self._owed_restart_s = now_s + RESTART_EVERY_S
            self._restart(reason)

    def _pay_restart(self, watched: list[_Watched], now_s: float) -> None:
        """Try an owed restart again, if it is still needed and costs nobody his job."""
        if self._owed_restart is None or watched:
            return
        if not self._host.hung_workers():
            log.warning("the workers that hung have ended after all; no restart is needed")
            self._owed_restart, self._process.failure = None, None
        elif now_s >= self._owed_restart_s and not self._store.leases:
            self._owed_restart_s = now_s + RESTART_EVERY_S
            self._restart(self._owed_restart)

    def _restart(self, reason: str) -> None:
        failed_before = self._process.failure is not None
        self._process.restart(reason)
        if not failed_before:
            self.alarmed("restart_failed", f"{reason}, and the process cannot be restarted: {self._process.failure}")

    def _bury_worker(self, watched: list[_Watched]) -> None:
        """The worker is dead: end its jobs, and let another take over."""
        error = WorkerDiedError("ComfyUI's worker thread died under the job.")
        for one in watched:
            if one.job is not None:
                (one.end or self._settler.end)(one.job, error)
        if self._host.replace_worker(None, error):
            self.counts["replace dead"] += 1
            log.error("ComfyUI's worker thread was found dead; another has taken over")
            self.alarmed("worker_replaced", "ComfyUI's worker thread was found dead; another has taken over")
            self.repaired()
        for one in watched:
            self.forget(one.prompt_id)

    def _end_overdue(self) -> None:
        """Look for jobs that have waited too long. The answer comes on the store's thread."""
        if self._looking is not None and not self._looking.done():
            return
        timeout_s = self._settings.queue.timeout_s
        self._looking = self._store.list_overdue(self._clock.now_ms() - int(timeout_s * 1000))
        self._looking.add_done_callback(self._end_each)

    def _end_each(self, done: Future[list[Job]]) -> None:
        """End the jobs that the store found. The store's thread."""
        if done.cancelled() or done.exception() is not None:
            return
        timeout_s = self._settings.queue.timeout_s
        error = QueueTimeoutError(f"The job waited longer than {timeout_s:g} s.", extra_info={"timeout_s": timeout_s})
        for job in done.result():
            self._settler.end_waiting(job.job_id, error)

    def _loop(self) -> None:
        again_s = self._clock.monotonic_s()
        while True:
            with self._condition:
                self._condition.wait(max(again_s - self._clock.monotonic_s(), 0))
            try:
                again_s = self.turn(self._clock.monotonic_s())
            except BaseException:
                # Without this thread nothing ends a hung job, so no fault of ours, nor a SystemExit out of a pack's
                # wrapper of ComfyUI's queue, may end the thread.
                log.exception("the watchdog failed at one turn and goes on")
                again_s = self._clock.monotonic_s() + TURN_S
