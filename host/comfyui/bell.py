"""End the wait of ComfyUI's worker for a prompt, so that it asks the supplier for a job.

Its queue tells that it is not empty by a condition, on which the worker waits under the queue's lock. Ours in its place
knows whether somebody waits: nothing is rung for that nobody hears.
"""

from __future__ import annotations

import threading
from typing import Any


class Bell(threading.Condition):
    """The condition `not_empty` of one queue."""

    def __init__(self, queue: Any) -> None:
        """`queue` is ComfyUI's own, untyped object."""
        super().__init__(queue.mutex)
        self._queue = queue
        self._waiting = 0

    def wait(self, timeout: float | None = None) -> bool:
        """As ComfyUI's queue waits: it looks again where there is a timeout, and else for a prompt alone."""
        can_be_rung = timeout is not None
        self._waiting += can_be_rung
        try:
            return super().wait(timeout)
        finally:
            self._waiting -= can_be_rung

    def ring(self) -> bool:
        """End the wait, under the queue's lock. False: nobody waits, or there is a prompt to take."""
        if not self._waiting or self._queue.queue:
            return False
        self.notify()
        return True
