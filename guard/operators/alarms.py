"""Keep what operators should look at: in the store, so that a restart or a closed page loses none."""

from __future__ import annotations

from asyncio import wrap_future
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from typing_extensions import TypedDict

from ..clock import Clock
from ..owners import hide
from ..store import Alarm, NewAlarm

#: So many wait in memory while the store takes none; of more, the newest.
WAITING = 200


class KeptAlarmBody(TypedDict):
    """Something that an operator should look at; `seen_at_ms` is null until one has said that it is seen.

    `box`: where it happened, of a fleet; else null.
    """

    id: int
    at_ms: int
    code: str
    message: str
    job_id: str | None
    seen_at_ms: int | None
    box: str | None


class Records(Protocol):
    """Where they are kept: see :class:`guard.store.Store`."""

    def put_alarms(self, alarms: list[NewAlarm]) -> Future[None]: ...
    def list_alarms(self, limit: int, before: int | None = None) -> Future[list[Alarm]]: ...
    def count_unseen_alarms(self) -> Future[int]: ...
    def mark_alarms_seen(self, numbers: list[int], up_to: int) -> Future[int]: ...


class Alarms:
    """Hands alarms in to the store until it has them. `note` and `turn` run on any thread, the rest on the loop."""

    def __init__(self, store: Records, clock: Clock, find_box: Callable[[], str] | None = None) -> None:
        """`find_box`: the name of this server among those that share the store."""
        self._store = store
        self._clock = clock
        self._find_box = find_box
        self._waiting: deque[NewAlarm] = deque(maxlen=WAITING)

    def note(self, code: str, message: str, job_id: str | None, box: str | None = None) -> None:
        """Keep one, with the time; `box` where it is about another box than this one."""
        if box is None and self._find_box is not None:
            box = self._find_box()
        self._put([NewAlarm(self._clock.now_ms(), code, message, job_id, box)])

    def turn(self) -> None:
        """Hand in again what the store has not taken."""
        again = []
        while self._waiting:
            try:
                again.append(self._waiting.popleft())
            except IndexError:  # another thread was faster
                break
        if again:
            self._put(again)

    def _put(self, alarms: list[NewAlarm]) -> None:
        def look(done: Future[None]) -> None:
            if done.exception() is not None:
                self._waiting.extend(alarms)

        self._store.put_alarms(alarms).add_done_callback(look)

    async def list_page(self, limit: int, before: int | None) -> list[KeptAlarmBody]:
        """The newest first; `before` is the `id` of the last one of the page before."""
        return [_body(alarm) for alarm in await wrap_future(self._store.list_alarms(limit, before))]

    async def count_unseen(self) -> int:
        """How many nobody has marked as seen."""
        return await wrap_future(self._store.count_unseen_alarms())

    async def mark_seen(self, ids: list[int], up_to: int) -> int:
        """Mark these, and all up to the id `up_to`; returns how many are left."""
        return await wrap_future(self._store.mark_alarms_seen(ids, up_to))


def _body(alarm: Alarm) -> KeptAlarmBody:
    return {
        "id": alarm.number,
        "at_ms": alarm.at_ms,
        "code": alarm.code,
        "message": hide(alarm.message),
        "job_id": alarm.job_id,
        "seen_at_ms": alarm.seen_at_ms,
        "box": alarm.box,
    }
