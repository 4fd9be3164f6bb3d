"""Where a waiting job stands, for callers that ask again and again: looked up in the tables a few times a second."""

from __future__ import annotations

import time
from asyncio import wrap_future
from concurrent.futures import Future
from typing import Protocol

from ..job import Job, JobState
from ..store import Waiting

#: For so long a place that was looked up is told again, while jobs only leave the line in turn.
TOLD_AGAIN_S = 0.25
#: So many are kept at once.
KEPT = 10_000


class Line(Protocol):
    """What places are looked up in: see :class:`guard.store.Store`."""

    def locate(self, job_id: str) -> Future[Waiting | None]: ...


class Places:
    """Looks up where jobs stand. Event loop."""

    def __init__(self, line: Line) -> None:
        self._line = line
        #: Each with the time until which it is told. Replaced, never emptied: a look-up under way may still write to
        #: the old one.
        self._kept: dict[str, tuple[Waiting | None, float]] = {}

    def follow(self, job: Job) -> None:
        """A new state is durable. A job that ends unstarted, or overtakes, moves others at once. The store's thread."""
        never_ran = job.state.settled and job.started_at_ms is None
        if never_ran or (job.state is JobState.QUEUED and job.priority):
            self._kept = {}

    async def find(self, job_id: str) -> Waiting | None:
        """Where the job stands; None if it does not wait."""
        kept, now_s = self._kept, time.monotonic()
        place, until_s = kept.get(job_id, (None, 0.0))
        if now_s >= until_s:
            place = await wrap_future(self._line.locate(job_id))
            if len(kept) >= KEPT:
                kept.clear()
            kept[job_id] = place, now_s + TOLD_AGAIN_S
        return place
