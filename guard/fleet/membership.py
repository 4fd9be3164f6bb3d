"""Be a box of the fleet: beat, notice when the lease is over, join again, and take back what dead boxes had.

A box has lost its lease when the database says so, or when no beat that it sent in the last two thirds of the lease was
answered. It then takes no job, stops its runs and drops their results. It joins again once none of that is left, so
that no two runs of one job are ever in one process, and a beat was answered: the store's writer, over which it joins,
may have a connection where the beats find none, and such a box would cost job after job an attempt.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

from ..clock import Clock
from ..signal import Signal
from ..store import Recovery
from ..store.members import Beat, Box, Member
from .names import make_name

log = logging.getLogger("guarded.fleet")

#: The part of the lease after which a box that hears nothing gives up.
SILENT = 2 / 3
#: So many beats in a lease; but no more than one a second is needed.
BEATS, BEAT_S = 30, 1.0
#: The clock is set by the engine's where they differ by so much.
CLOCK_OFF_MS = 1000
#: So often the boxes are looked at.
LOOK_S = 1.0


class Lease(Protocol):
    """What this asks of the job store: see :class:`guard.store.postgres_fleet.FleetStore`."""

    member: Member

    def beat(self) -> Beat | None: ...
    def list_boxes(self, known: Sequence[Box] = ()) -> list[Box]: ...
    def is_displaced(self) -> bool: ...
    def drop_beats(self) -> None: ...
    def join(self) -> Future[tuple[str, Recovery]]: ...
    def reap(self) -> Future[dict[str, Recovery]]: ...


class Membership:
    """A thread that beats. The lease's end is also seen by whoever calls :meth:`turn`, since a beat may hang."""

    def __init__(
        self, store: Lease, clock: Clock, is_clear: Callable[[], bool], rename: Callable[[], str] = make_name
    ) -> None:
        """`is_clear`: whether no run of the time before is left in this process. `rename`: makes a name for it, and for
        the next one, where another process has its own."""
        self._store = store
        self._clock = clock
        self._is_clear = is_clear
        self._rename = rename
        self._lock = threading.Lock()
        lease_s = store.member.lease_ms / 1000
        self._beat_s = min(lease_s / BEATS, BEAT_S)
        self._silent_s = lease_s * SILENT
        #: When the last beat was sent that was answered; monotonic.
        self._sent_s = time.monotonic()
        self._has_joined = False
        self._is_heard = True
        self._is_beating = False
        self._boxes: tuple[Box, ...] = ()
        self._look_at_s = 0.0
        #: The lease is over: stop every run. Why; on any thread.
        self.lost: Signal[[str]] = Signal()
        #: This is a box again: what its name had left. On this thread.
        self.joined: Signal[[Recovery]] = Signal()
        #: Boxes were found dead: what became of their jobs. On the store's thread.
        self.reaped: Signal[[Mapping[str, Recovery]]] = Signal()
        #: The boxes were looked at: see :attr:`boxes`. On this thread, which must not wait.
        self.looked: Signal[[tuple[Box, ...]]] = Signal()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="guarded-fleet", daemon=True)

    @property
    def is_member(self) -> bool:
        """Whether this is a box of the fleet. Any thread."""
        return self._store.member.epoch is not None

    @property
    def is_beating(self) -> bool:
        """Whether the last beat was answered: a box may take no job before its first one, or after one that was not.

        Any thread.
        """
        return self._is_beating

    @property
    def boxes(self) -> tuple[Box, ...]:
        """All boxes, this one among them, by name, as they were about a second ago; none before the first look.

        While the database cannot be reached, as they were then. Any thread.
        """
        return self._boxes

    def is_first_of(self, name: str) -> bool:
        """Whether this is the first of the live boxes whose status has that. Any thread."""
        those = [box.box for box in self._boxes if box.is_alive and box.status.get(name) is True]
        return self.is_member and those[:1] == [self._store.member.box]

    def begin(self) -> None:
        """The database is open, and this is a box. The store's thread, once."""
        self._sent_s, self._has_joined = time.monotonic(), True
        log.info("this box is %s of the fleet", self._store.member.box)
        self._thread.start()

    def close(self) -> None:
        """Beat no more."""
        self._is_over.set()

    def turn(self) -> None:
        """Notice a lease that is over although the beat hangs. The watchdog's thread."""
        silent_s = time.monotonic() - self._sent_s
        if self._has_joined and self.is_member and silent_s > self._silent_s:
            self._lose(f"no beat of the last {silent_s:.0f} s was answered")

    def _loop(self) -> None:
        wait_s = 0.0
        while not self._is_over.wait(wait_s):
            wait_s = self._beat_s
            try:
                self._beat()
            except Exception as error:
                if self._is_heard:
                    log.warning("a beat of this box was not answered: %s", _first_line(error))
                    wait_s = 0.0  # its connection may have ended, and there is another
                self._is_heard = False

    def _beat(self) -> None:
        member = self._store.member
        sent_s, epoch = time.monotonic(), member.epoch
        try:
            beat = self._store.beat()
        except BaseException:
            self._is_beating = False
            raise
        self._is_beating = True
        if epoch is None:
            if self._is_clear():
                self._join()
            return
        if member.epoch != epoch:
            return  # it was given up meanwhile
        if beat is None:
            if self._store.is_displaced():
                log.error("another process has joined as %s; this one takes a name of its own", member.box)
                self._lose("another process has its name")
                member.box = self._rename()
            else:
                self._lose("its lease was over, and others have taken its jobs")
            return
        self._sent_s, self._is_heard = sent_s, True
        if abs(beat.now_ms - self._clock.now_ms()) > CLOCK_OFF_MS:
            self._clock.follow(beat.now_ms)
        if beat.finds_dead:
            self._store.reap().add_done_callback(self._note_reaped)
        if sent_s >= self._look_at_s:
            self._look_at_s = sent_s + LOOK_S
            self._boxes = tuple(self._store.list_boxes(self._boxes))
            self.looked(self._boxes)

    def _join(self) -> None:
        sent_s = time.monotonic()
        epoch, recovery = self._store.join().result()
        self._sent_s, self._is_heard = sent_s, True
        self._store.member.epoch = epoch
        log.warning("this box has joined the fleet again as %s", self._store.member.box)
        self.joined(recovery)

    def _lose(self, why: str) -> None:
        with self._lock:
            if self._store.member.epoch is None:
                return
            self._store.member.epoch = None
        log.error("this box is no longer in the fleet: %s; its runs are stopped and begin again elsewhere", why)
        self.lost(why)

    def _note_reaped(self, done: Future[dict[str, Recovery]]) -> None:
        if done.cancelled() or done.exception() is not None:
            return  # the next beat finds them again
        for box, recovery in done.result().items():
            log.error(
                "the lease of %s is over: %d of its jobs wait again, %d could not be repeated",
                box,
                recovery.requeued,
                len(recovery.settled),
            )
        self.reaped(done.result())


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
