"""Let callers here hear of jobs that other boxes of the fleet run: which are listened to, where they are, what is said.

States come from the job database. Progress, previews and the messages of the host come from the box that runs the job,
over a stream that is open only while somebody here listens to such a job. What comes after the end of a job is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

from ..events.event import PREVIEW, PROGRESS
from ..events.stream import Events
from ..host import Progress
from ..job import Job
from ..store.members import Box
from ..wake import wrap_future
from .sockets import Sockets

#: Besides the names of events: what the host sends to the job's client id.
MESSAGES = "messages"
#: Among the names of what is wanted: the client knows previews with metadata.
METADATA = "metadata"
#: Of so many jobs elsewhere is more told than their states.
AT_MOST = 1000


class Places(Protocol):
    """What this asks of the job store: see :class:`guard.store.postgres_fleet.FleetStore`."""

    def find_places(self, job_ids: Sequence[str]) -> Future[dict[str, str]]: ...


class Elsewhere:
    """Event loop."""

    def __init__(
        self,
        store: Places,
        events: Events,
        sockets: Sockets,
        list_boxes: Callable[[], Collection[Box]],
        list_own: Callable[[], Collection[str]],
        name_own: Callable[[], str],
    ) -> None:
        """`list_own`: the jobs that run here, on the box that `name_own` names."""
        self._store = store
        self._events = events
        self._sockets = sockets
        self._list_boxes = list_boxes
        self._list_own = list_own
        self._name_own = name_own
        #: Where a job runs, by its id and the number of its state.
        self._places: dict[tuple[str, int], str] = {}
        #: Of each job, the number of the state in which it began to run, and of the last message that was passed on.
        self._heard: dict[str, tuple[int, int]] = {}

    def begin(self) -> None:
        """The running loop is the one."""
        self._sockets.bind()

    def is_busy(self) -> bool:
        """Whether anything may run elsewhere."""
        return self._events.count_running() > 0

    async def choose(self) -> dict[tuple[str, str], dict[str, dict[str, object]]]:
        """By the name and the address of its box: the jobs that somebody here listens to, with what is wanted of each.

        Raises GuardError where the store cannot be read.
        """
        own = set(self._list_own())
        jobs = {job.job_id: job for job in self._events.list_running() if job.job_id not in own}
        for job_id in self._heard.keys() - jobs.keys():
            del self._heard[job_id]
        wanted = {job_id: names for job_id, job in jobs.items() if (names := self._list_wanted(job))}
        places = await self._find_places([jobs[job_id] for job_id in list(wanted)[:AT_MOST]])
        own_name = self._name_own()
        boxes = [box for box in self._list_boxes() if box.is_alive and box.box != own_name]
        urls = {box.box: box.url for box in boxes}
        chosen: dict[tuple[str, str], dict[str, dict[str, object]]] = {}
        for job_id, place in places.items():
            if (url := urls.get(place)) is not None:
                facts = {"names": sorted(wanted[job_id]), "after": self._find_heard(jobs[job_id])}
                chosen.setdefault((place, url), {})[job_id] = facts
        return chosen

    def _find_heard(self, job: Job) -> int:
        run, number = self._heard.get(job.job_id, (0, 0))
        return number if run == job.event_id else 0

    def _list_wanted(self, job: Job) -> frozenset[str]:
        names = self._events.list_read(job) & {PROGRESS, PREVIEW}
        if not self._sockets.is_heard(job):
            return names
        return names | ({MESSAGES, METADATA} if self._sockets.takes_metadata(job) else {MESSAGES})

    async def _find_places(self, jobs: Sequence[Job]) -> Mapping[str, str]:
        keys = {job.job_id: (job.job_id, job.event_id) for job in jobs}
        self._places = {key: place for key, place in self._places.items() if key in keys.values()}
        unknown = [job_id for job_id, key in keys.items() if key not in self._places]
        if unknown:
            found = await wrap_future(self._store.find_places(unknown))
            self._places.update({keys[job_id]: place for job_id, place in found.items()})
        return {job_id: self._places[key] for job_id, key in keys.items() if key in self._places}

    # What the streams bring. -------------------------------------------------------------------------------------

    def take_progress(self, job_id: str, progress: Progress) -> None:
        self._events.progressed(job_id, progress)

    def take_preview(self, job_id: str, mime: str, picture: bytes) -> None:
        self._events.previewed(job_id, mime, lambda: picture)

    def take_message(self, job_id: str, number: int, content: str | bytes) -> None:
        """What the host of another box has sent to the job's client id; each once, and nothing after the job's end."""
        job = self._events.find_running(job_id)
        if job is None or number <= self._find_heard(job):
            return
        self._heard[job_id] = job.event_id, number
        self._sockets.take(job, content)
