"""What happened to a job: one stream that the store and the worker write, with many readers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .host import Progress
from .job import Job, JobState


class Events:
    """Wakes those who wait for a job, and keeps the progress of the running ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[str, set[Waiter]] = {}
        #: Of the running jobs; None until the first progress.
        self._progress: dict[str, Progress | None] = {}

    def changed(self, job: Job) -> None:
        """A new state is durable. The store's thread."""
        with self._lock:
            if job.state is JobState.RUNNING:
                self._progress[job.job_id] = None
            elif job.state is not JobState.VALIDATING:
                self._progress.pop(job.job_id, None)
            waiters = list(self._waiters.get(job.job_id, ()))
        for waiter in waiters:
            waiter.wake()

    def progressed(self, job_id: str, progress: Progress) -> None:
        """The worker's thread. A node that goes on after its job has ended is not listened to."""
        with self._lock:
            if job_id in self._progress:
                self._progress[job_id] = progress

    def progress(self, job_id: str) -> Progress | None:
        return self._progress.get(job_id)

    @contextmanager
    def watching(self, job_id: str) -> Iterator[Waiter]:
        """A waiter that misses no change from here on. Event loop.

        Read the job after entering: what was durable before is seen there, what comes later wakes the waiter.
        """
        waiter = Waiter(asyncio.get_running_loop())
        with self._lock:
            self._waiters.setdefault(job_id, set()).add(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                waiters = self._waiters[job_id]
                waiters.discard(waiter)
                if not waiters:
                    del self._waiters[job_id]


class Waiter:
    """One reader that sleeps on the event loop and is woken from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._woken = asyncio.Event()

    def wake(self) -> None:
        self._loop.call_soon_threadsafe(self._woken.set)

    async def wait(self, timeout_s: float) -> bool:
        """True once something has changed, False after `timeout_s`."""
        try:
            await asyncio.wait_for(self._woken.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        self._woken.clear()
        return True
