"""Drain the server: refuse new jobs, let the running one end, leave those that wait in the store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from ..store import Counts
from .health import Health

log = logging.getLogger("guarded.drain")

_LOOK_S = 0.1


class Slots(Protocol):
    """What a drain asks of the job store: see :class:`guard.store.Store`."""

    def count_jobs(self) -> Future[Counts]: ...


class Drain:
    """Begins and ends a drain. Any thread."""

    def __init__(self, health: Health, store: Slots, wake: Callable[[], None]) -> None:
        self._health = health
        self._store = store
        self._wake = wake
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Take no new job from now on."""
        with self._lock:
            if not self._health.draining:
                log.warning("draining: no new job is taken")
            self._health.draining = True

    def end(self) -> None:
        """Take jobs again."""
        with self._lock:
            self._health.draining = False
        self._wake()

    def run(self, grace_s: float) -> None:
        """Begin, and wait until no job holds a slot any more, or for `grace_s`."""
        self.begin()
        ends_s = time.monotonic() + grace_s
        while time.monotonic() < ends_s and self._store.count_jobs().result(grace_s).leased:
            time.sleep(_LOOK_S)
