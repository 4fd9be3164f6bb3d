"""A job that begins in the commit that lets it in, for a worker that waits and is on its way meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from ..job import Job
from ..store import Beginning

#: How long it waits for the worker that was called for it.
COMES_S = 1.0


class Coming:
    """A job on its way into the store, where it begins if it is the next one.

    Attributes:
        future: done once that is on disk or will not be: the job, if it has begun. Whoever hands the job in sees to it.
    """

    def __init__(self, beginning: Beginning) -> None:
        self.beginning = beginning
        self.future: Future[Job | None] = Future()
        # Not the worker's to cancel: the job comes in all the same.
        self.future.set_running_or_notify_cancel()


class Place:
    """Where one such job is, until somebody has come for it. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._coming: Coming | None = None

    @property
    def is_taken(self) -> bool:
        return self._coming is not None

    def put(self, coming: Coming) -> None:
        self._coming = coming

    def take(self, only: Coming | None = None) -> Coming | None:
        """Come for it; `only`: if it is that one. Of several who come one gets it."""
        with self._lock:
            coming = self._coming
            if coming is None or (only is not None and coming is not only):
                return None
            self._coming = None
        return coming
