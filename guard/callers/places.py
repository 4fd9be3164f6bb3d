"""Where a waiting job stands, for callers that ask again and again: looked up in the tables twice a second."""

from __future__ import annotations

import time
from asyncio import wrap_future
from collections import OrderedDict
from concurrent.futures import Future
from typing import Protocol

from ..job import Job, JobState
from ..store import Waiting

#: For so long a place that was looked up is told again, while jobs only leave the line in turn.
TOLD_AGAIN_S = 0.5
#: So many are kept at once.
KEPT = 10_000


#: Each with the time until which it is told, the first to be forgotten first.
_Kept = OrderedDict[str, tuple[Waiting | None, float]]


class Line(Protocol):
    """What places are looked up in: see :class:`guard.store.Store`."""

    def locate(self, job_id: str) -> Future[Waiting | None]: ...


class Places:
    """Looks up where jobs stand. Event loop."""

    def __init__(self, line: Line) -> None:
        self._line = line
        #: Each with the time until which it is told. Replaced, never emptied: a look-up under way may still write to
        #: the old one.
        self._kept: _Kept = OrderedDict()
        #: The number of the last change of state that moved jobs out of turn.
        self._moved_by = 0

    def follow(self, job: Job) -> None:
        """A new state is durable. A job that ends unstarted, or overtakes, moves others at once. The store's thread."""
        never_ran = job.state.settled and job.started_at_ms is None
        if never_ran or (job.state is JobState.QUEUED and job.priority):
            self._kept, self._moved_by = OrderedDict(), job.event_id

    async def find(self, job_id: str) -> Waiting | None:
        """Where the job stands; None if it does not wait."""
        kept, now_s = self._kept, time.monotonic()
        place, until_s = kept.get(job_id, (None, 0.0))
        if now_s >= until_s:
            place = await wrap_future(self._line.locate(job_id))
            _keep(kept, job_id, place, now_s)
        return place

    def note(self, job: Job, place: Waiting | None) -> None:
        """The job, as it came in, had that place."""
        if self._moved_by < job.event_id:
            _keep(self._kept, job.job_id, place, time.monotonic())


def _keep(kept: _Kept, job_id: str, place: Waiting | None, now_s: float) -> None:
    kept.pop(job_id, None)
    while kept and next(iter(kept.values()))[1] <= now_s:
        kept.popitem(last=False)
    if len(kept) >= KEPT:
        kept.clear()
    kept[job_id] = place, now_s + TOLD_AGAIN_S
