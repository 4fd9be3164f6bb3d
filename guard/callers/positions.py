"""Tell readers where the waiting jobs stand in the queue, as it changes: computed once for all readers."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from asyncio import wrap_future
from concurrent.futures import Future
from typing import Protocol

from typing_extensions import TypedDict

from .. import messages
from ..errors import GuardError
from ..events.event import POSITION, Event
from ..events.stream import Events
from ..job import Job
from ..settings import QueueSettings
from ..store import Standing, Waiting
from ..wake import Wake
from .estimate import Estimates
from .interleave import interleave

log = logging.getLogger("guarded.positions")

#: The least time between two looks at the whole queue. After a look that took t comes a rest of 20 t, so that looking
#: takes 5 % of the time at most.
LEAST_S = 0.25
REST_FACTOR = 20
#: A position is told once it has changed by this share: every step near the head, every 500th at 10,000.
TOLD_SHARE = 0.05

#: A notice gives seconds up to the first, minutes up to the second, hours above.
_SECONDS_UP_TO = 90
_MINUTES_UP_TO = 90 * 60
#: To whoever is next, so many seconds are "a few".
_A_FEW_S = 5


def notice(position: int, running: int, max_jobs: int, eta_s: float | None, locale: str) -> str:
    """The text for an end user who has to wait."""
    facts = {"running": running, "max_jobs": max_jobs, "position": position}
    # Where nothing runs the server is not busy: the job is about to begin, or the server takes none right now.
    key = "queued" if running else "waiting"
    if eta_s is None:
        return messages.text(f"{key}_next" if position == 1 else f"{key}_place", locale, **facts)
    if position == 1 and eta_s <= _A_FEW_S:
        return messages.text(key, locale, **facts)
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


class Queue(Protocol):
    """What positions are computed from: see :class:`guard.store.Store`."""

    @property
    def leased(self) -> int: ...
    def list_standings(self) -> Future[list[Standing]]: ...
    def get(self, job_id: str) -> Future[Job | None]: ...
    def locate(self, job_id: str) -> Future[Waiting | None]: ...


class Positions:
    """Watches the queue while somebody reads positions. One task on the event loop."""

    def __init__(self, settings: QueueSettings, queue: Queue, events: Events, estimates: Estimates) -> None:
        self._settings = settings
        self._queue = queue
        self._events = events
        self._estimates = estimates
        self._wake = Wake()
        #: By job: the position that was told last, and whether with an estimate.
        self._told: dict[str, tuple[int, bool]] = {}
        #: Jobs with a new reader, which gets the position at once.
        self._due: set[str] = set()
        events.joined.subscribe(self._serve_reader)

    def follow(self, _job: Job) -> None:
        """A new state is durable, so positions may have changed. The store's thread."""
        if self._events.has_readers(POSITION):
            self._wake.set()

    async def run(self) -> None:
        """Take a turn whenever the queue has changed, and a rest after it. Never ends."""
        while True:
            await self._wake.wait()
            began_s = time.monotonic()
            try:
                await self.turn()
            except GuardError as error:  # of its own troubles the store tells
                log.debug("positions in the queue cannot be read: %s", error)
            await asyncio.sleep(max(LEAST_S, REST_FACTOR * (time.monotonic() - began_s)))

    async def turn(self) -> None:
        """Look at the queue, and tell every position that has changed enough."""
        due, self._due = self._due, set()
        for job_id in due:
            self._told.pop(job_id, None)
        standings = await wrap_future(self._queue.list_standings())
        running = self._queue.leased
        changes = await asyncio.to_thread(self._find_changes, standings)
        for standing, position, eta_s in changes:
            self._tell(standing, position, running, eta_s)
        for job_id in due - {standing.job_id for standing in standings} if standings else ():
            await self._tell_far_back(job_id, running)

    async def _tell_far_back(self, job_id: str, running: int) -> None:
        """Tell a new reader of a job that waits behind all that are listed."""
        job, waiting = await wrap_future(self._queue.get(job_id)), await wrap_future(self._queue.locate(job_id))
        if job is not None and waiting is not None:
            standing = Standing(job_id, job.owner, job.client_id, job.locale, job.kind)
            self._tell(standing, waiting.position, running, self._estimates.starts_in_s(waiting))

    def _tell(self, standing: Standing, position: int, running: int, eta_s: float | None) -> None:
        make = functools.partial(self._describe, standing, position, running, eta_s)
        self._events.tell(Event(POSITION, make, standing))

    def _serve_reader(self, job_id: str | None) -> None:
        """Tell a new reader of one job its position soon. Event loop."""
        if job_id is not None:
            self._due.add(job_id)
        self._wake.set()

    def _find_changes(self, standings: list[Standing]) -> list[tuple[Standing, int, float | None]]:
        """The positions that must be told now. For a thread of its own: 10,000 jobs take some 10 ms."""
        changes, told = [], {}
        ahead_s = self._estimates.rest_s()
        for position, standing in enumerate(interleave(standings), start=1):
            before = self._told.get(standing.job_id)
            now = (position, ahead_s is not None)
            if before is None or before[1] != now[1] or abs(position - before[0]) > position * TOLD_SHARE:
                changes.append((standing, position, None if ahead_s is None else round(ahead_s, 1)))
                before = now
            told[standing.job_id] = before
            usual_s = self._estimates.usual_s(standing.kind)
            ahead_s = None if ahead_s is None or usual_s is None else ahead_s + usual_s
        self._told = told
        return changes

    def _describe(self, standing: Standing, position: int, running: int, eta_s: float | None) -> PositionBody:
        max_jobs = self._settings.max_jobs
        must_wait = position + running > max_jobs
        return {
            "job_id": standing.job_id,
            "position": position,
            "eta_s": eta_s,
            "running": running,
            "max_jobs": max_jobs,
            "user_message": notice(position, running, max_jobs, eta_s, standing.locale) if must_wait else None,
        }
