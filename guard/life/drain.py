"""Drain the server: refuse new jobs, let the running one end, leave those that wait in the store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Protocol

from .health import Health

log = logging.getLogger("guarded.drain")

_LOOK_S = 0.1


class Slots(Protocol):
    """What a drain asks of the job store: see :class:`guard.store.Store`."""

    @property
    def queued(self) -> int: ...
    @property
    def leased(self) -> int: ...
    def count_open(self, owner: str | None) -> int: ...


class Drain:
    """Begins and ends a drain. Any thread."""

    def __init__(
        self, health: Health, store: Slots, wake: Callable[[], None], handing: Callable[[], Collection[str] | None]
    ) -> None:
        """`handing`: see :meth:`.dispatcher.Dispatcher.handing`."""
        self._handing = handing
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
        """Begin, and wait until no job holds a slot or is checked any more, or for `grace_s`.

        It asks for what the store knows in memory: a disk that hangs must not hold up the end of the process.
        """
        self.begin()
        ends_s = time.monotonic() + grace_s
        while (left_s := ends_s - time.monotonic()) > 0 and self._is_busy():
            time.sleep(min(_LOOK_S, left_s))

    def _is_busy(self) -> bool:
        return (
            self._handing() != frozenset()
            or self._store.leased > 0
            or self._store.count_open(None) > self._store.queued
        )
