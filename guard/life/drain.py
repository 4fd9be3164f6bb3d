"""Drain the server: refuse new jobs, let the running one end, leave those that wait in the store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from .. import private_files
from ..signal import Signal
from .health import Health

log = logging.getLogger("guarded.drain")

_LOOK_S = 0.1
#: So long at most do streams have to tell their readers that they end.
_LEAVE_S = 3.0
#: The file in our own folder that stands for an operator's drain, which outlives the process.
_MARK = "draining"


class Slots(Protocol):
    """What a drain asks of the job store: see :class:`guard.store.Store`."""

    @property
    def queued(self) -> int: ...
    @property
    def leased(self) -> int: ...
    @property
    def under_way(self) -> int: ...


class Drain:
    """Begins and ends a drain. Any thread but the event loop's: an operator's drain is noted on the disk."""

    def __init__(
        self,
        health: Health,
        store: Slots,
        wake: Callable[[], None],
        handing: Callable[[], Collection[str] | None],
        folder: Path,
    ) -> None:
        """`handing`: see :meth:`.dispatcher.Dispatcher.handing`. `folder` is our own; at the start."""
        self._mark = folder / _MARK
        self._handing = handing
        self._health = health
        self._store = store
        self._wake = wake
        self._lock = threading.Lock()
        #: The process is about to end: who listens is to go elsewhere. The drain's thread.
        self.leaving: Signal[[]] = Signal()
        #: They say how much is still to be done, besides the jobs, that another process cannot do.
        self.doing: list[Callable[[], int]] = []
        #: Requests that are worked on or wait for a job, until their answers are sent. The event loop's.
        self.requests = 0
        #: They say how many still listen then.
        self.listeners: list[Callable[[], int]] = []

        if self._mark.is_file():
            log.warning(
                "draining: an operator's drain from before the start goes on; POST /guarded/drain?off=1 ends it"
            )
            health.draining = True

    def begin(self) -> None:
        """Take no new job until :meth:`end`, also after a restart."""
        with self._lock:
            self._refuse()
            try:
                private_files.write(self._mark, b"")
            except OSError as error:
                log.error("draining: a restart would end it, for it cannot be noted: %s", error)

    def end(self) -> None:
        """Take jobs again."""
        with self._lock:
            try:
                self._mark.unlink(missing_ok=True)
            except OSError as error:
                log.error("the drain is over, but the next start would take it up, for its mark stays: %s", error)
            self._health.draining = False
        self._wake()

    def _refuse(self) -> None:
        if not self._health.draining:
            log.warning("draining: no new job is taken")
        self._health.draining = True

    def run(self, grace_s: float) -> None:
        """Take no new job, and wait until none holds a slot or is checked any more and nothing of what they have
        made is still to be put into the depot, or for `grace_s`.

        Streams end then, and who waits for a job is answered. Of this the next process knows nothing. It asks for what
        the store knows in memory: a disk that hangs must not hold up the end of the process.
        """
        with self._lock:
            self._refuse()
        ends_s = time.monotonic() + grace_s
        while (left_s := ends_s - time.monotonic()) > 0 and self._is_busy():
            time.sleep(min(_LOOK_S, left_s))
        self.leaving()
        ends_s = time.monotonic() + _LEAVE_S
        while time.monotonic() < ends_s and (self.requests or any(count() for count in self.listeners)):
            time.sleep(_LOOK_S)

    def _is_busy(self) -> bool:
        is_running = self._handing() != frozenset() or self._store.leased > 0 or self._store.under_way > 0
        return is_running or any(count() for count in self.doing)
