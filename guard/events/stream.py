"""What happened to the jobs: one stream that the store and the worker write, with many readers."""

from __future__ import annotations

import asyncio
import base64
import logging
import threading
from asyncio import wrap_future
from collections import Counter, deque
from collections.abc import Callable, Iterable
from types import TracebackType

from ..host import Progress
from ..job import Job, JobState
from ..signal import Signal
from ..store import Standing, Store
from ..wake import LoopCaller
from .event import (
    ALARM,
    POSITION,
    PREVIEW,
    PROGRESS,
    STATE,
    AlarmEvent,
    Event,
    PreviewEvent,
    ProgressEvent,
)

log = logging.getLogger("guarded.events")

#: Endings that a person should look into.
_ALARMING = frozenset({"generation_timeout", "worker_died", "internal_error"})

#: States kept for one reader. One that is further behind reads them again from the store, where they are for good.
STATES_KEPT = 256
#: Alarms kept for one reader.
ALARMS_KEPT = 100
#: The time between two reports of progress.
PROGRESS_EVERY_S = 0.1
#: The time between two previews of one job: encoding them takes the processor.
PREVIEW_EVERY_S = 0.2


class Events:
    """Passes on what it is told, from any thread, to readers on the event loop. Without readers it does nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._loop = LoopCaller()
        #: Of the running jobs; no progress until the first report.
        self._running: dict[str, tuple[Job, Progress | None]] = {}
        #: What the loop has not passed on yet: states and alarms, in order, and the jobs that have moved on.
        self._inbox: list[Job | Event] = []
        self._moved: set[str] = set()
        #: The newest picture of each job that nobody has been shown yet.
        self._pictures: dict[str, tuple[str, Callable[[], bytes]]] = {}
        self._progress_due_s = 0.0
        #: A reader of positions begins: called with its one job (None: several) on the event loop.
        self.joined: Signal[[str | None]] = Signal()
        # Event loop only.
        self._showing: dict[str, asyncio.Task[None]] = {}
        self._count = 0
        self._wanted: Counter[str] = Counter()
        self._of_job: dict[str, set[Subscription]] = {}
        self._of_owner: dict[str, set[Subscription]] = {}
        self._of_all: set[Subscription] = set()

    # What it is told. ----------------------------------------------------------------------------------------

    def changed(self, job: Job) -> None:
        """A new state is durable. The store's thread."""
        with self._lock:
            if job.state is JobState.RUNNING:
                self._running[job.job_id] = (job, None)
            elif job.state is not JobState.VALIDATING:
                self._running.pop(job.job_id, None)
                self._moved.discard(job.job_id)
                self._pictures.pop(job.job_id, None)
        self._put(job)
        if job.verdict is not None and job.verdict.code in _ALARMING:
            self.alarm(job.verdict.code, job.verdict.message, job.job_id)

    def alarm(self, code: str, message: str, job_id: str | None = None) -> None:
        """Something that an operator should look at. Any thread."""
        body: AlarmEvent = {"code": code, "job_id": job_id, "message": message}
        self._put(Event(ALARM, lambda: body))

    def progressed(self, job_id: str, progress: Progress) -> None:
        """The worker's thread. A node that goes on after its job has ended is not listened to."""
        with self._lock:
            known = self._running.get(job_id)
            if known is None:
                return
            self._running[job_id] = (known[0], progress)
            first = self._count > 0 and not self._moved
            if self._count:
                self._moved.add(job_id)
        if first:
            self._loop.call(self._arm_progress)

    def previewed(self, job_id: str, mime: str, encode: Callable[[], bytes]) -> None:
        """The worker's thread. Of many pictures the newest is encoded, on a thread of its own, if anybody wants it."""
        if not self.has_readers(PREVIEW):
            return
        with self._lock:
            if job_id not in self._running:
                return
            first = job_id not in self._pictures
            self._pictures[job_id] = (mime, encode)
        if first:
            self._loop.call(lambda: self._begin_showing(job_id))

    def tell(self, event: Event) -> None:
        """Pass on what is no state. Event loop."""
        self._give(event, self._readers(event.name, event.job))

    def progress(self, job_id: str) -> Progress | None:
        return self._running.get(job_id, (None, None))[1]

    # Who reads. ----------------------------------------------------------------------------------------------

    def subscribe(
        self,
        names: Iterable[str] = (STATE,),
        *,
        owner: str | None = None,
        job_id: str | None = None,
        after: int | None = None,
    ) -> Subscription:
        """A reader of one job, of an owner's jobs, or (with neither) of everybody's. Event loop; close it.

        Args:
            names: of the events that it wants.
            after: the `id` of the last state that it knows: it gets every later one, also those of earlier
                processes. None: from now on. What the store says after this call is not newer than what will come.
        """
        self._loop.bind()
        subscription = Subscription(self, self._store, frozenset(names), owner, job_id, after)
        self._count += 1
        self._wanted.update(subscription.names)
        self._group(subscription).add(subscription)
        if POSITION in subscription.names:
            self.joined(job_id)
        return subscription

    def has_readers(self, name: str) -> bool:
        """Whether anybody reads such events. Any thread."""
        return self._wanted[name] > 0

    async def head(self) -> int:
        """The number of the last state that there is. Raises GuardError where the store cannot be read."""
        return (await wrap_future(self._store.read_changes(2**53))).head

    def _close(self, subscription: Subscription) -> None:
        group = self._group(subscription)
        if subscription in group:
            group.discard(subscription)
            self._count -= 1
            self._wanted.subtract(subscription.names)
        for key, groups in ((subscription.job_id, self._of_job), (subscription.owner, self._of_owner)):
            if key is not None and not groups.get(key, True):
                del groups[key]

    def _group(self, subscription: Subscription) -> set[Subscription]:
        if subscription.job_id is not None:
            return self._of_job.setdefault(subscription.job_id, set())
        if subscription.owner is not None:
            return self._of_owner.setdefault(subscription.owner, set())
        return self._of_all

    # How it goes from the one to the other. ------------------------------------------------------------------

    def _put(self, item: Job | Event) -> None:
        # A reader that begins at this moment reads what is durable from the store.
        if not self._count:
            return
        with self._lock:
            self._inbox.append(item)
            first = len(self._inbox) == 1
        if first:
            self._loop.call(self._pass_on)

    def _pass_on(self) -> None:
        with self._lock:
            items, self._inbox = self._inbox, []
        for item in items:
            if isinstance(item, Job):
                self._give(_state(item, self.progress(item.job_id)), self._readers(STATE, item))
            else:
                self.tell(item)

    def _arm_progress(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_at(max(self._progress_due_s, loop.time()), self._pass_progress_on)

    def _pass_progress_on(self) -> None:
        self._progress_due_s = asyncio.get_running_loop().time() + PROGRESS_EVERY_S
        with self._lock:
            moved = [self._running[job_id] for job_id in self._moved]
            self._moved.clear()
        for job, progress in moved:
            if progress is not None:
                self.tell(_moved(job, progress))

    def _begin_showing(self, job_id: str) -> None:
        if job_id not in self._showing:
            self._showing[job_id] = asyncio.get_running_loop().create_task(self._show(job_id))

    async def _show(self, job_id: str) -> None:
        try:
            while True:
                with self._lock:
                    picture = self._pictures.pop(job_id, None)
                    job, _progress = self._running.get(job_id, (None, None))
                if picture is None or job is None:
                    return
                if self._readers(PREVIEW, job):
                    await self._encode(job, *picture)
                await asyncio.sleep(PREVIEW_EVERY_S)
        finally:
            del self._showing[job_id]

    async def _encode(self, job: Job, mime: str, encode: Callable[[], bytes]) -> None:
        try:
            data = base64.b64encode(await asyncio.to_thread(encode)).decode()
        except Exception as error:  # a picture of somebody's own kind
            log.debug("job %s: its preview cannot be encoded: %s", job.job_id, error)
            return
        if job.job_id in self._running:
            self.tell(_seen(job, mime, data))

    def _readers(self, name: str, job: Job | Standing | None) -> list[Subscription]:
        groups = [self._of_all]
        if job is not None:
            groups += [self._of_job.get(job.job_id, set()), self._of_owner.get(job.owner, set())]
        return [reader for group in groups for reader in group if name in reader.names]

    @staticmethod
    def _give(event: Event, readers: Iterable[Subscription]) -> None:
        for reader in readers:
            reader.put(event)


class Subscription:
    """What one reader has not read yet. Event loop.

    It holds little, however slow the reader: of each job's progress, position and preview only the last; of states
    and alarms a number. States beyond that number are read from the store, so that none is ever missed.
    """

    def __init__(
        self,
        events: Events,
        store: Store,
        names: frozenset[str],
        owner: str | None,
        job_id: str | None,
        after: int | None,
    ) -> None:
        self.names = names
        self.owner = owner
        self.job_id = job_id
        self._events = events
        self._store = store
        self._states: deque[Event] = deque()
        self._alarms: deque[Event] = deque(maxlen=ALARMS_KEPT)
        self._latest: dict[tuple[str, str], Event] = {}
        #: The last state given to the reader, the last one that it must have from the store, and whether that one is
        #: still to be found out.
        self._seen = after or 0
        self._owed = 0
        self._resuming = after is not None
        self._woken: asyncio.Future[bool] | None = None

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._events._close(self)

    def has_seen(self, event_id: int) -> None:
        """The reader knows the state of that number, from elsewhere."""
        self._seen = max(self._seen, event_id)

    async def next(self, timeout_s: float) -> list[Event]:
        """What has happened since the last call, at least one event; none where nothing does within `timeout_s`.

        States come in order and without a gap; progress, position and preview as they are now.

        Raises:
            GuardError: the store cannot be read.
        """
        while True:
            if self._behind:
                found = await self._from_store()
            else:
                if not (self._states or self._alarms or self._latest) and not await self._wait(timeout_s):
                    return []
                found = self._take()
            if found:
                return found

    def put(self, event: Event) -> None:
        if event.job is None:
            self._alarms.append(event)
        elif event.id is not None:
            self._put_state(event, event.id, event.job.job_id)
        else:
            self._latest[event.name, event.job.job_id] = event
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(True)

    @property
    def _behind(self) -> bool:
        return self._resuming or self._seen < self._owed

    def _put_state(self, event: Event, event_id: int, job_id: str) -> None:
        # Progress and position tell of the state before.
        for key in [key for key in self._latest if key[1] == job_id] if self._latest else ():
            del self._latest[key]
        if len(self._states) == STATES_KEPT:
            self._states.clear()
            self._owed = event_id
        elif self._behind:
            self._owed = max(self._owed, event_id)
        else:
            self._states.append(event)

    def _take(self) -> list[Event]:
        states = [event for event in self._states if event.id is not None and event.id > self._seen]
        if states:
            self._seen = states[-1].id or self._seen
        found = [*states, *self._alarms, *self._latest.values()]
        self._states.clear()
        self._alarms.clear()
        self._latest.clear()
        return found

    async def _from_store(self) -> list[Event]:
        """The next part of what the reader is owed."""
        changes = await wrap_future(self._store.read_changes(self._seen, owner=self.owner, job_id=self.job_id))
        if self._seen > changes.head:
            self._seen = 0  # a number from another database: this one was begun anew
            return []
        if self._resuming:
            self._resuming, self._owed = False, max(self._owed, changes.head)
        self._seen = changes.up_to
        return [_state(job) for job in changes.jobs]

    async def _wait(self, timeout_s: float) -> bool:
        loop = asyncio.get_running_loop()
        self._woken = loop.create_future()
        timer = loop.call_later(timeout_s, _expire, self._woken)
        try:
            return await self._woken
        finally:
            timer.cancel()
            self._woken = None


def _state(job: Job, progress: Progress | None = None) -> Event:
    return Event(STATE, lambda: job.body(progress=progress.body() if progress else None), job, job.event_id)


def _moved(job: Job, progress: Progress) -> Event:
    def make() -> ProgressEvent:
        return {"job_id": job.job_id, **progress.body()}

    return Event(PROGRESS, make, job)


def _seen(job: Job, mime: str, data: str) -> Event:
    body: PreviewEvent = {"job_id": job.job_id, "mime": mime, "data": data}
    return Event(PREVIEW, lambda: body, job)


def _expire(woken: asyncio.Future[bool]) -> None:
    if not woken.done():
        woken.set_result(False)
