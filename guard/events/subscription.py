"""What one reader of events has not read yet, within bounds."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from ..job import Job
from ..store import Changes
from ..wake import wrap_future
from .event import Event, state_event

#: So many states, and bytes that their jobs' nodes reported, wait for a reader. One further behind reads the store.
STATES_KEPT, STATES_BYTES = 256, 2**20
#: At most this many alarms wait for one reader.
ALARMS_KEPT = 100


class ChangeLog(Protocol):
    """What the stream asks of the job store: see :class:`guard.store.Store`."""

    def read_changes(self, after: int, *, owner: str | None = None, job_id: str | None = None) -> Future[Changes]: ...


class Subscription:
    """What one reader has not read yet. Event loop.

    It holds little, however slow the reader is: the last progress, position and preview of each job, `STATES_KEPT`
    states and `ALARMS_KEPT` alarms. It reads further states from the store, so a reader misses none.
    """

    def __init__(
        self,
        unsubscribe: Callable[[Subscription], None],
        store: ChangeLog,
        names: frozenset[str],
        owner: str | None,
        job_id: str | None,
        after: int | None,
        wants_end: bool,
        hears: Callable[[Job], bool] | None = None,
    ) -> None:
        self.names = names
        self.wants_end = wants_end
        self.hears = hears
        self.owner = owner
        self.job_id = job_id
        self._unsubscribe = unsubscribe
        self._store = store
        self._states: deque[Event] = deque()
        self._alarms: deque[Event] = deque(maxlen=ALARMS_KEPT)
        self._latest: dict[tuple[str, str], Event] = {}
        #: The last state that the reader has; the last one that it must get from the store; whether the store must
        #: first say which one that is.
        self._seen = after or 0
        self._owed = 0
        self._resuming = after is not None
        #: The server goes: the reader comes again, here or elsewhere.
        self.is_over = False
        self._wakeup: asyncio.Future[bool] | None = None

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Read nothing more."""
        self._unsubscribe(self)

    def end(self) -> None:
        """Wake the reader, which is to look at `is_over`."""
        self.is_over = True
        if self._wakeup is not None:
            _expire(self._wakeup)

    def has_seen(self, event_id: int) -> None:
        """Leave out the states up to that number: the reader knows them from elsewhere."""
        self._seen = max(self._seen, event_id)

    async def next(self, timeout_s: float) -> list[Event]:
        """What has happened since the last call; waits for it, and returns nothing after `timeout_s` or :meth:`end`.

        States come in order and without a gap. Of progress, position and preview only the newest come.

        Raises:
            GuardError: the store cannot be read.
        """
        while True:
            if self._is_behind:
                events = await self._read_store()
            else:
                if not self._has_news and not await self._wait(timeout_s):
                    return []
                events = self._take()
            if events:
                return events

    def keep(self, event: Event) -> None:
        """Keep the event for the reader, which is to be woken."""
        if event.job is None:
            self._alarms.append(event)
        elif event.id is not None:
            self._put_state(event, event.id, event.job.job_id)
        else:
            self._latest[event.name, event.job.job_id] = event

    def wake(self) -> None:
        """Let the reader have what there is, unless it has had it."""
        if self._wakeup is not None and not self._wakeup.done() and self._has_news:
            self._wakeup.set_result(True)

    @property
    def _has_news(self) -> bool:
        return bool(self._states or self._alarms or self._latest or self._is_behind)

    @property
    def _is_behind(self) -> bool:
        return self._resuming or self._seen < self._owed

    def _put_state(self, event: Event, event_id: int, job_id: str) -> None:
        # Progress and position belong to the state before.
        for key in [key for key in self._latest if key[1] == job_id] if self._latest else ():
            del self._latest[key]
        if len(self._states) == STATES_KEPT or sum(state.size for state in self._states) > STATES_BYTES:
            self._states.clear()
            self._owed = event_id
        elif self._is_behind:
            self._owed = max(self._owed, event_id)
        else:
            self._states.append(event)

    def _take(self) -> list[Event]:
        states = [event for event in self._states if event.id is not None and event.id > self._seen]
        if states:
            self._seen = states[-1].id or self._seen
        events = [*states, *self._alarms, *self._latest.values()]
        self._states.clear()
        self._alarms.clear()
        self._latest.clear()
        return events

    async def _read_store(self) -> list[Event]:
        """The next states that the reader must get from the store."""
        changes = await wrap_future(self._store.read_changes(self._seen, owner=self.owner, job_id=self.job_id))
        if self._seen > changes.head:
            self._seen = 0  # the number is from another database, and this one is newer
            return []
        if self._resuming:
            self._resuming, self._owed = False, max(self._owed, changes.head)
        self._seen = changes.up_to
        return [state_event(job) for job in changes.jobs]

    async def _wait(self, timeout_s: float) -> bool:
        """Whether something came within `timeout_s`."""
        loop = asyncio.get_running_loop()
        self._wakeup = loop.create_future()
        timer = loop.call_later(timeout_s, _expire, self._wakeup)
        try:
            return await self._wakeup
        finally:
            timer.cancel()
            self._wakeup = None


def _expire(wakeup: asyncio.Future[bool]) -> None:
    if not wakeup.done():
        wakeup.set_result(False)
