"""Carry out what is to be delivered: when, and how many at once, so that one receiver that hangs holds up no other,
and one owner whose receivers all hang no other owner."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import Generic

from ..errors import GuardError
from ..quotas.threads import working_for
from ..signal import Signal
from ..wake import Wake
from .attempts import Attempt, Attempts, T

log = logging.getLogger("guarded.webhooks")

#: The longest sleep; a delivery that is due earlier ends it.
LOOK_S = 60.0

#: After a fault of the store.
PAUSE_S = 5.0


class Carrier(Generic[T]):
    """Takes out what is due: one task on the event loop, and one for each delivery under way.

    A delivery is marked only when its attempt has ended. If the process dies before that is on disk, it is sent again.
    """

    #: Deliveries under way at once, those to one target, and those of one owner, where it is not the target itself.
    AT_ONCE = 32
    AT_ONCE_TO_ONE = 8
    AT_ONCE_OF_ONE = 16

    def __init__(self, due: Attempts[T]) -> None:
        self._due = due
        self._wake = Wake()
        #: An attempt has ended: its outcome in a word, and the seconds it took. Called on the event loop.
        self.attempted: Signal[[str, float]] = Signal()
        self._under_way: dict[int, asyncio.Task[None]] = {}
        #: By what they share: how many are under way.
        self._sharing: Counter[str] = Counter()
        self._full: set[str] = set()

    async def attempt(self, delivery: T) -> Attempt:
        """Try once. Raises what it does not expect."""
        raise NotImplementedError

    def report(self, delivery: T, error: Exception) -> Attempt:
        """Log what an attempt did not expect, and say what it comes to."""
        log.error("job %s: an attempt failed", delivery.job_id, exc_info=error)
        return Attempt(error=f"{type(error).__name__}: {error}"[:500])

    def wake(self) -> None:
        """Look at what is due now. Any thread."""
        self._wake.set()

    async def run(self) -> None:
        """Send for ever."""
        while True:
            try:
                sleep_s = await self.turn()
            except Exception as error:
                if not isinstance(error, GuardError):  # of its own troubles the store tells
                    log.exception("what is due of %s cannot be looked up", self._due.WHAT)
                sleep_s = PAUSE_S
            await self._wake.wait(sleep_s)

    async def turn(self) -> float:
        """Begin all deliveries that are due and have room. Returns the seconds until the next one is due."""
        while True:
            full, room = frozenset(self._full), max(self.AT_ONCE - len(self._under_way), 0)
            deliveries, next_s = await self._due.find_due(room, under_way=list(self._under_way), full=full)
            for delivery in deliveries:
                if self._full.isdisjoint(delivery.shares):
                    self._begin(delivery)
            # A delivery without room gets its turn when another one ends; what is due behind it, now.
            if len(deliveries) < room or self._full <= full:
                return LOOK_S if next_s is None else min(next_s, LOOK_S)

    def _begin(self, delivery: T) -> None:
        self._under_way[delivery.number] = asyncio.create_task(self._deliver(delivery))
        for share, at_once in zip(delivery.shares, (self.AT_ONCE_TO_ONE, self.AT_ONCE_OF_ONE), strict=False):
            self._sharing[share] += 1
            if self._sharing[share] >= at_once:
                self._full.add(share)

    async def _deliver(self, delivery: T) -> None:
        began_s = time.monotonic()
        try:
            try:
                with working_for(delivery.shares[-1] if delivery.shares else ""):
                    attempt = await self.attempt(delivery)
            except Exception as error:  # a fault of ours: an attempt all the same, so that the pauses grow
                attempt = self.report(delivery, error)
            self._due.record_attempt(delivery, attempt)
            self.attempted(attempt.outcome, time.monotonic() - began_s)
        finally:
            del self._under_way[delivery.number]
            for share in delivery.shares:
                self._full.discard(share)
                self._sharing[share] -= 1
                if not self._sharing[share]:
                    del self._sharing[share]
            self._wake.set()
