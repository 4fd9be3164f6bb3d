"""Try to deliver until it succeeds: when to try again, and what an attempt has come to, also while the disk is full."""

from __future__ import annotations

import asyncio
import logging
import random
from asyncio import wrap_future
from collections.abc import Collection, Set
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, cast

from ..clock import Clock
from ..errors import GuardError
from ..signal import Signal
from ..store import DeliveryState, Due
from ..store.outbox import PAUSE_AT_MOST_S

log = logging.getLogger("guarded.webhooks")

#: So many attempts may be waiting to be written down, or be under way; beyond that, nothing else is sent.
UNWRITTEN_AT_MOST = 500
#: The pause before the store, which could not write an attempt down, is asked to again.
WRITE_AGAIN_S = 5.0


class Item(Protocol):
    """What is delivered: a frozen dataclass with these fields, and with `since_ms`, `ended_at_ms` and `last_status`."""

    @property
    def number(self) -> int: ...
    @property
    def job_id(self) -> str: ...
    @property
    def shares(self) -> tuple[str, ...]:
        """Of what not too many may be under way at once: the target, and whose it is."""

    @property
    def state(self) -> DeliveryState: ...
    @property
    def attempts(self) -> int: ...
    @property
    def last_error(self) -> str | None: ...
    @property
    def next_at_ms(self) -> int: ...


T = TypeVar("T", bound=Item)


@dataclass(frozen=True)
class Attempt:
    """How one attempt went. `status` is the receiver's answer; None where it gave none."""

    status: int | None = None
    error: str | None = None
    retry_after_s: float = 0.0
    hopeless: bool = False

    @property
    def outcome(self) -> str:
        """The outcome in a word, for the metrics."""
        if self.status is None:
            return "refused" if self.hopeless else "unreachable"
        return "delivered" if self.delivered else "gone" if self.status == 410 else "failed"

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def final(self) -> bool:
        """Whether another attempt is of no use: delivered, not allowed, or no longer wanted by the receiver (410)."""
        return self.delivered or self.hopeless or self.status == 410


def draw_pause_s(first_s: float, attempt: Attempt, attempts: int) -> float:
    """The pause after `attempts` attempts: it doubles from `first_s` up to an hour. Half of it is random, so that not
    everything reaches a receiver at once when it comes back. A receiver may ask for a longer one (Retry-After), up to
    an hour too."""
    pause_s: float = min(first_s * 2 ** min(attempts - 1, 30), PAUSE_AT_MOST_S) * random.uniform(0.5, 1.0)
    return max(pause_s, min(attempt.retry_after_s, PAUSE_AT_MOST_S))


class Attempts(Generic[T]):
    """What is still to be delivered: the store puts it in, and a sender takes it out. Event loop.

    How an attempt ended counts from that moment. The store is handed it at once, and again and again where it cannot
    write: a full disk must not send twice what was received, or try anew without the pause.
    """

    #: What is delivered, for the log; and where it is said that something is given up.
    WHAT = ""
    LOG = log

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: Deliveries as their last attempt has left them, by number, that are not on disk like that yet.
        self._unwritten: dict[int, T] = {}
        #: Those of them that the store has in hand.
        self._handed_in: set[int] = set()
        self._again: asyncio.TimerHandle | None = None
        #: There is something new to send. Called on any thread.
        self.filled: Signal[[]] = Signal()
        #: Nobody will try that delivery again: the delivery, and why. Called on the event loop.
        self.given_up: Signal[[T, str]] = Signal()

    def _find(self, now_ms: int, limit: int, under_way: Collection[int], full: Collection[str]) -> Future[Due[T]]:
        """Ask the store what is due."""
        raise NotImplementedError

    def _write(self, after: T) -> Future[None]:
        """Have the store write down how an attempt ended."""
        raise NotImplementedError

    def _retry_at_ms(self, delivery: T, attempt: Attempt, now_ms: int) -> int | None:
        """When to try again after this attempt; None to give up."""
        raise NotImplementedError

    def _describe_end(self, delivery: T) -> str:
        """That nobody will try that again, for the log."""
        raise NotImplementedError

    async def find_due(self, limit: int, *, under_way: Collection[int], full: Set[str]) -> tuple[list[T], float | None]:
        """Deliveries to try now, and in how many seconds the next one will be due (None: none is waiting)."""
        now_ms = self._clock.now_ms()
        again = [
            delivery
            for delivery in self._unwritten.values()
            if delivery.state is DeliveryState.PENDING
            and delivery.number not in under_way
            and full.isdisjoint(delivery.shares)
        ]
        due = [delivery for delivery in again if delivery.next_at_ms <= now_ms][:limit]
        known = {*under_way, *self._unwritten}
        room = max(min(limit - len(due), UNWRITTEN_AT_MOST - len(known)), 0)
        stored = await wrap_future(self._find(now_ms, room, known, full))
        next_ms = [delivery.next_at_ms for delivery in again if delivery.next_at_ms > now_ms]
        if stored.next_at_ms is not None:
            next_ms.append(stored.next_at_ms)
        return [*due, *stored.deliveries], max(min(next_ms) - now_ms, 0) / 1000 if next_ms else None

    def record_attempt(self, delivery: T, attempt: Attempt) -> None:
        """Note how an attempt ended; waits for nothing."""
        now_ms = self._clock.now_ms()
        next_at_ms = self._retry_at_ms(delivery, attempt, now_ms)
        if attempt.delivered:
            state = DeliveryState.DELIVERED
        elif next_at_ms is None:
            state = DeliveryState.DEAD
        else:
            state = DeliveryState.PENDING
        self._unwritten[delivery.number] = replace(
            cast(Any, delivery),
            state=state,
            attempts=delivery.attempts + 1,
            next_at_ms=next_at_ms or now_ms,
            ended_at_ms=None if state is DeliveryState.PENDING else now_ms,
            last_status=attempt.status,
            last_error=attempt.error,
        )
        self._hand_in(delivery.number)

    def _hand_in(self, number: int) -> None:
        """Have the store write down how that delivery's last attempt ended, unless it is about to."""
        if number not in self._handed_in:
            after = self._unwritten[number]
            self._handed_in.add(number)
            wrap_future(self._write(after)).add_done_callback(lambda written: self._finish(after, written))

    def _finish(self, after: T, written: asyncio.Future[None]) -> None:
        """The store has written that, or cannot."""
        self._handed_in.discard(after.number)
        error = None if written.cancelled() else written.exception()
        is_newest = self._unwritten.get(after.number) is after
        if written.cancelled() or error is not None:
            if is_newest:  # another one is tried next
                self._unwritten[after.number] = self._unwritten.pop(after.number)
            if self._again is None:
                log.error(
                    "%d attempts to deliver %s cannot be written down: %s",
                    len(self._unwritten),
                    self.WHAT,
                    error,
                    exc_info=None if isinstance(error, GuardError) else error,
                )
                self._again = asyncio.get_running_loop().call_later(WRITE_AGAIN_S, self._write_again)
            return
        if is_newest:
            del self._unwritten[after.number]
            if after.state is DeliveryState.DEAD:
                why = after.last_error or "?"
                self.LOG.warning("%s: %s", self._describe_end(after), why, extra={"job_id": after.job_id})
                self.given_up(after, why)
        # It can write again.
        for number in list(self._unwritten):
            self._hand_in(number)
        self.filled()  # the job's next webhook may be due now

    def _write_again(self) -> None:
        """Try with one; where that succeeds, the others follow."""
        self._again = None
        waiting = [number for number in self._unwritten if number not in self._handed_in]
        if waiting:
            self._hand_in(waiting[0])
