"""Pass on what happens to jobs: the store and the worker write one stream, which has many readers."""

from __future__ import annotations

import asyncio
import base64
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from ..host import Progress
from ..job import Job, JobState
from ..quotas.threads import run_beside, working_for
from ..signal import Signal
from ..store import Standing
from ..wake import LoopCaller, wrap_future
from .event import (
    ALARM,
    POSITION,
    PREVIEW,
    PROGRESS,
    STATE,
    AlarmEvent,
    Event,
    preview_event,
    progress_event,
    state_event,
)
from .subscription import ChangeLog, Subscription

log = logging.getLogger("guarded.events")

#: An ending with one of these codes is also an alarm for operators.
_ALARMING = frozenset({"generation_timeout", "worker_died", "internal_error"})

#: A state that is not the last one waits for so long, so that readers are woken once for several.
LATER_S = 0.02
#: The least time between two reports of progress.
PROGRESS_EVERY_S = 0.1
#: The least time between two previews of one job: it takes the processor to encode them.
PREVIEW_EVERY_S = 0.2
#: So many readers go on in one turn of the loop; each takes a tenth of a millisecond.
WOKEN_AT_ONCE = 32


class Events:
    """Takes events from any thread, and gives them to readers on the event loop. Without readers it does nothing."""

    def __init__(self, store: ChangeLog) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._loop = LoopCaller()
        #: The running jobs, each with its last report of progress.
        self._running: dict[str, tuple[Job, Progress | None]] = {}
        #: What the loop has not passed on yet: states and alarms, in order, and the jobs that have made progress.
        self._inbox: list[Job | Event] = []
        #: Whether the loop will pass that on: at once, after a moment, or (None) not yet.
        self._is_urgent: bool | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._moved: set[str] = set()
        #: The newest picture of each job, if no reader has had it yet.
        self._pictures: dict[str, tuple[str, Callable[[], bytes]]] = {}
        self._progress_due_s = 0.0
        #: Something has happened that an operator should look at: its code, a message, the job, and the box of a fleet
        #: that it is about where that is another one. Any thread.
        self.alarmed: Signal[[str, str, str | None, str | None]] = Signal()
        #: A new reader wants positions: called with its one job (None: several) on the event loop.
        self.joined: Signal[[str | None]] = Signal()
        # Event loop only.
        self._showing: dict[str, asyncio.Task[None]] = {}
        self._count = 0
        self._streams = 0
        self._readers_of: Counter[str] = Counter()
        self._of_job: dict[str, set[Subscription]] = {}
        self._of_owner: dict[str, set[Subscription]] = {}
        self._of_all: set[Subscription] = set()

    # What others tell it. ----------------------------------------------------------------------------------------

    def follow(self, job: Job) -> None:
        """A new state of ours is durable. The store's thread."""
        self.follow_other(job)
        if job.verdict is not None and job.verdict.code in _ALARMING:
            self.alarm(job.verdict.code, job.verdict.message, job.job_id)

    def follow_other(self, job: Job) -> None:
        """A new state is durable; of another server's doing, it is that one which raises alarms. The store's thread."""
        with self._lock:
            if job.state is JobState.RUNNING:
                self._running[job.job_id] = (job, None)
            elif job.state is not JobState.VALIDATING:
                self._running.pop(job.job_id, None)
                self._moved.discard(job.job_id)
                self._pictures.pop(job.job_id, None)
        if self._is_wanted(job):
            self._put(job)

    def find(self, job: Job) -> None:
        """Another server runs the job, which is no news; it may tell of its progress. The store's thread."""
        with self._lock:
            self._running.setdefault(job.job_id, (job, None))

    def alarm(self, code: str, message: str, job_id: str | None = None, box: str | None = None) -> None:
        """Tell operators of something that they should look at; `box`: of another box of the fleet. Any thread."""
        body: AlarmEvent = {"code": code, "job_id": job_id, "message": message}
        self.alarmed(code, message, job_id, box)
        self._put(Event(ALARM, lambda: body))

    def progressed(self, job_id: str, progress: Progress) -> None:
        """Note how far the job is, unless it has ended. The worker's thread."""
        with self._lock:
            if (known := self._running.get(job_id)) is None:
                return
            self._running[job_id] = (known[0], progress)
            first = not self._moved
            if has_readers := self.has_readers(PROGRESS):
                self._moved.add(job_id)
        if first and has_readers:
            self._loop.call(self._arm_progress)

    def previewed(self, job_id: str, mime: str, encode: Callable[[], bytes]) -> None:
        """Take a picture; the newest is encoded, on a thread of its own, if somebody wants it. The worker's thread."""
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
        """Give an event that is no state to whoever reads such events. Event loop."""
        self._pass_on()  # the states before it
        self._tell(event)

    def progress(self, job_id: str) -> Progress | None:
        """How far the job is; None where it does not run, or has reported nothing yet. Any thread."""
        return self._running.get(job_id, (None, None))[1]

    # Who reads. ----------------------------------------------------------------------------------------------

    def subscribe(
        self,
        names: Iterable[str] = (STATE,),
        *,
        owner: str | None = None,
        job_id: str | None = None,
        after: int | None = None,
        wants_end: bool = False,
        hears: Callable[[Job], bool] | None = None,
    ) -> Subscription:
        """Begin to read one job's events, an owner's, or (with neither) everybody's. Event loop; close it.

        Args:
            names: the events that the reader wants.
            after: the `id` of the last state that the reader knows: it gets every later one, also those of earlier
                processes. None: from now on. Read the store after this call: the reader gets every later state.
            wants_end: of the one job's states, the reader needs no other than the last.
            hears: whether the reader passes on what happens to a job; None: any. It decides for nothing but what is
                asked of other servers.
        """
        self._loop.bind()
        subscription = Subscription(
            self.unsubscribe, self._store, frozenset(names), owner, job_id, after, wants_end, hears
        )
        self._count += 1
        self._readers_of.update(subscription.names)
        self._group(subscription).add(subscription)
        if POSITION in subscription.names:
            self.joined(job_id)
        return subscription

    def has_readers(self, name: str) -> bool:
        """Whether anybody reads such events. Any thread."""
        return self._readers_of[name] > 0

    def list_read(self, job: Job) -> frozenset[str]:
        """Which events of the job somebody reads. Event loop."""
        groups = [self._of_all, self._of_owner.get(job.owner, ()), self._of_job.get(job.job_id, ())]
        readers = [reader for group in groups for reader in group if reader.hears is None or reader.hears(job)]
        return frozenset[str]().union(*(reader.names for reader in readers))

    def find_running(self, job_id: str) -> Job | None:
        """The job, while it runs, here or elsewhere. Any thread."""
        return self._running.get(job_id, (None, None))[0]

    def list_running(self) -> list[Job]:
        """The jobs that run, here or elsewhere. Any thread."""
        with self._lock:
            return [job for job, _progress in self._running.values()]

    def count_running(self) -> int:
        """Any thread."""
        return len(self._running)

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Somebody gets events as a stream of his own, to the end of this block. Event loop."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def count_streams(self) -> int:
        """Any thread."""
        return self._streams

    def end_all(self) -> None:
        """The server goes: let every stream end, once its reader has what there is. Any thread."""
        self._loop.call(self._end_all)

    def _end_all(self) -> None:
        groups = [self._of_all, *self._of_owner.values(), *self._of_job.values()]
        for reader in [reader for group in groups for reader in group]:
            reader.end()

    async def read_head(self) -> int:
        """The number of the last state. Raises GuardError where the store cannot be read."""
        return (await wrap_future(self._store.read_changes(2**53))).head

    def unsubscribe(self, subscription: Subscription) -> None:
        """Give the reader nothing more. Event loop."""
        group = self._group(subscription)
        if subscription in group:
            group.discard(subscription)
            self._count -= 1
            self._readers_of.subtract(subscription.names)
        for key, groups in ((subscription.job_id, self._of_job), (subscription.owner, self._of_owner)):
            if key is not None and not groups.get(key, True):
                del groups[key]

    def _group(self, subscription: Subscription) -> set[Subscription]:
        if subscription.job_id is not None:
            return self._of_job.setdefault(subscription.job_id, set())
        if subscription.owner is not None:
            return self._of_owner.setdefault(subscription.owner, set())
        return self._of_all

    # From the writers to the readers. ------------------------------------------------------------------------

    def _put(self, item: Job | Event) -> None:
        # A reader that begins just now finds this in the store.
        if not self._count:
            return
        with self._lock:
            self._inbox.append(item)
            before = self._is_urgent
            is_urgent = not isinstance(item, Job) or item.state.settled
            self._is_urgent = is_urgent or bool(before)
        if is_urgent and not before:
            self._loop.call(self._pass_on)
        elif before is None:
            self._loop.call(self._pass_on_later)

    def _pass_on_later(self) -> None:
        if self._is_urgent is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LATER_S, self._pass_on)

    def _pass_on(self) -> None:
        with self._lock:
            items, self._inbox = self._inbox, []
            self._is_urgent = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for item in items:
            if isinstance(item, Job):
                self._give(state_event(item, self.progress(item.job_id)), self._readers(STATE, item))
            else:
                self._tell(item)

    def _tell(self, event: Event) -> None:
        self._give(event, self._readers(event.name, event.job))

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
                self.tell(progress_event(job, progress))

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
            with working_for(job.owner):
                data = base64.b64encode(await run_beside(encode)).decode()
        except Exception as error:  # another pack's kind of picture may raise anything
            log.debug("job %s: its preview cannot be encoded: %s", job.job_id, error)
            return
        if job.job_id in self._running:
            self.tell(preview_event(job, mime, data))

    def _is_wanted(self, job: Job) -> bool:
        """Whether some reader is to hear of the job's new state."""
        if self._of_all or job.owner in self._of_owner:
            return True
        readers = list(self._of_job.get(job.job_id, ()))
        return any(job.state.settled or not reader.wants_end for reader in readers)

    def _readers(self, name: str, job: Job | Standing | None) -> list[Subscription]:
        groups = [self._of_all]
        if job is not None:
            groups += [self._of_job.get(job.job_id, set()), self._of_owner.get(job.owner, set())]
        return [reader for group in groups for reader in group if name in reader.names]

    @staticmethod
    def _give(event: Event, readers: Sequence[Subscription]) -> None:
        for reader in readers:
            reader.keep(event)
        _wake(readers)


def _wake(readers: Sequence[Subscription], begin: int = 0) -> None:
    """Wake some now and some in each later turn of the loop: thousands may wait for one job."""
    end = begin + WOKEN_AT_ONCE
    for reader in readers[begin:end]:
        reader.wake()
    if end < len(readers):
        asyncio.get_running_loop().call_soon(_wake, readers, end)
