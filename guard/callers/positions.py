"""Where the waiting jobs stand, told as it changes: worked out once for all readers, and only where there are any."""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import wrap_future
from collections.abc import Callable

from typing_extensions import TypedDict

from .. import messages
from ..errors import GuardError
from ..events.event import POSITION, Event
from ..events.stream import Events
from ..job import Job
from ..settings import QueueSettings
from ..store import Standing, Store
from ..wake import Wake
from .estimate import Estimates

log = logging.getLogger("guarded.positions")

#: The least time between two looks at the whole queue; a long queue is given more, so that looking takes 5 % at most.
LEAST_S = 0.25
REST_FACTOR = 20
#: A place is told when it has changed by this share of itself: each step near the head, every 500th at 10,000.
TOLD_SHARE = 0.05

#: A notice in seconds up to here, in minutes up to there, in hours above.
_SECONDS_UP_TO = 90
_MINUTES_UP_TO = 90 * 60


def notice(position: int, running: int, max_jobs: int, eta_s: float | None, locale: str) -> str:
    """What an end user reads who has to wait."""
    facts = {"running": running, "max_jobs": max_jobs, "position": position}
    # Where nothing runs the server is not busy: the job is about to begin, or the server takes none right now.
    key = "queued" if running else "waiting"
    if eta_s is None:
        return messages.text(key if position == 1 else f"{key}_place", locale, **facts)
    if eta_s <= _SECONDS_UP_TO:
        wait = messages.format_count("seconds", max(round(eta_s), 1), locale)
    elif eta_s <= _MINUTES_UP_TO:
        wait = messages.format_count("minutes", round(eta_s / 60), locale)
    else:
        wait = messages.format_count("hours", round(eta_s / 3600), locale)
    return messages.text(f"{key}_time", locale, time=wait, **facts)


class PositionBody(TypedDict):
    """Where a waiting job stands (1 is next), and what to tell its user meanwhile."""

    job_id: str
    position: int
    eta_s: float | None
    running: int
    max_jobs: int
    user_message: str | None


class Positions:
    """Watches the queue while somebody wants to know. One task on the event loop."""

    def __init__(self, settings: QueueSettings, store: Store, events: Events, estimates: Estimates) -> None:
        self._settings = settings
        self._store = store
        self._events = events
        self._estimates = estimates
        self._wake = Wake()
        #: By job, the place and whether there was an estimate, as told last.
        self._told: dict[str, tuple[int, bool]] = {}
        self._asked: set[str] = set()
        events.joined.subscribe(self._joined)

    def changed(self, _job: Job) -> None:
        """A job has come, gone or begun. The store's thread."""
        if self._events.has_readers(POSITION):
            self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            began_s = time.monotonic()
            try:
                await self.turn()
            except GuardError as error:
                log.warning("the queue cannot be looked at: %s", error)
            await asyncio.sleep(max(LEAST_S, REST_FACTOR * (time.monotonic() - began_s)))

    async def turn(self) -> None:
        """Look at the queue, and tell of every place that has changed enough."""
        for job_id in self._asked:
            self._told.pop(job_id, None)
        self._asked.clear()
        standings = await wrap_future(self._store.list_standings())
        running = self._store.leased
        moved = await asyncio.to_thread(self._moved, standings)
        for standing, position, eta_s in moved:
            self._events.tell(Event(POSITION, self._body(standing, position, running, eta_s), standing))

    def _joined(self, job_id: str | None) -> None:
        """Somebody begins to read; of its one job it is told at once. Event loop."""
        if job_id is not None:
            self._asked.add(job_id)
        self._wake.set()

    def _moved(self, standings: list[Standing]) -> list[tuple[Standing, int, float | None]]:
        """On a thread of its own: 10,000 jobs take some 10 ms."""
        moved, told = [], {}
        ahead_s = self._estimates.rest_s()
        for position, standing in enumerate(standings, start=1):
            before = self._told.get(standing.job_id)
            now = (position, ahead_s is not None)
            if before is None or before[1] != now[1] or abs(position - before[0]) > position * TOLD_SHARE:
                moved.append((standing, position, None if ahead_s is None else round(ahead_s, 1)))
                before = now
            told[standing.job_id] = before
            usual_s = self._estimates.usual_s(standing.kind)
            ahead_s = None if ahead_s is None or usual_s is None else ahead_s + usual_s
        self._told = told
        return moved

    def _body(self, standing: Standing, position: int, running: int, eta_s: float | None) -> Callable[[], PositionBody]:
        max_jobs = self._settings.max_jobs
        return lambda: {
            "job_id": standing.job_id,
            "position": position,
            "eta_s": eta_s,
            "running": running,
            "max_jobs": max_jobs,
            "user_message": (
                notice(position, running, max_jobs, eta_s, standing.locale) if position + running > max_jobs else None
            ),
        }
