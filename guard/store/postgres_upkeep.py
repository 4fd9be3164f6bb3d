"""Keep a PostgreSQL database small: bodies of settled jobs go as in SQLite, and their space is used again.

To give space back to the disk is left to the engine (`VACUUM FULL`), and so is its log. What tables have room for again
is not seen from outside: so the records that are there are weighed, and count for no more than that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from ..clock import Clock
from ..errors import GuardError
from . import records
from .database import Database
from .facts import Size
from .postgres_connection import PostgresConnection
from .slices import AGAIN_S, Limits, Means
from .threads import complain
from .upkeep import THIN_ABOVE, THIN_TO, Span, Upkeep

#: The bodies are measured again after this, and after so many times what that took.
MEASURE_S = 30.0
PAUSES = 20


class PostgresUpkeep(Upkeep):
    """The writer's thread."""

    def __init__(self, clock: Clock, limits: Limits) -> None:
        super().__init__(None, clock, limits)
        self._measuring: Future[Measured] | None = None
        self._measured_s = -math.inf

    def turn(self, db: Database, means: Means, is_idle: bool) -> bool:
        if time.monotonic() < self._due_s:
            return False
        try:
            self._look(means)
            if self._is_beyond(0):  # as in SQLite
                self._forgetter.look(means)
            return self._thin_if_due(db, means) or self._forget_if_due(db, means)
        except BaseException as error:
            self._found.clear()
            self._forgetter.start_anew()
            self._search = self._measuring = None
            self._due_s = time.monotonic() + AGAIN_S
            if isinstance(error, GuardError):
                complain(f"the job database cannot be made smaller now: {error}")
                return False
            raise

    @property
    def is_due(self) -> bool:
        limit = self.limits.max_bytes
        return bool(limit and self._find_excess() > 0 and (self._forgetter.has_some or not self._is_bare))

    def _look(self, means: Means) -> None:
        if self._measuring is not None and self._measuring.done():
            measuring, self._measuring = self._measuring, None
            measured = measuring.result()
            self.size = Size(measured.bytes, measured.free_bytes, 0)
            self._added -= measured.added
            self._measured_s = time.monotonic() + PAUSES * measured.took_s
        elif self._measuring is None and time.monotonic() > self._measured_s + MEASURE_S:
            # What had been added and deleted then is in it, and nothing since: the question may have had to wait.
            self._measuring = means.read_slowly(lambda db: measure(db, self.limits.max_bytes, lambda: self._added))

    def _thin_if_due(self, db: Database, means: Means) -> bool:
        now_ms = self._clock.now_ms()
        excess, before = self._find_excess(), self.thinned[1]
        age_ms = min(self.limits.bodies_max_age_s * 1000, now_ms)
        before_ms = self._clock.aging_ms() - age_ms
        is_time = before_ms > self._done_ms + age_ms / 1000 or self._search is not None
        is_more = False
        if excess > 0:
            is_more = self._thin(db, means, Span(now_ms, is_all=True), excess)
        elif is_time:
            is_more = self._thin(db, means, Span(int(before_ms), is_all=False), math.inf)
        self._added -= self.thinned[1] - before
        return is_more

    def _forget_if_due(self, db: Database, means: Means) -> bool:
        if not self._is_bare or self._find_excess() <= 0:
            return False
        gone = self._forgetter.turn(db, means)
        if gone:
            self._added -= gone * self._forgetter.each_bytes
            if not self._forgetter.has_some:
                self._measured_s = -math.inf  # before more of them go
        return gone is not None

    def _find_excess(self) -> float:
        used = self.size.used_bytes + self._added
        if not (limit := self.limits.max_bytes):
            return 0
        self._is_thinning = used > limit * (THIN_TO if self._is_thinning else THIN_ABOVE)
        if not self._is_thinning:
            self._forgetter.relax()
            return 0
        return used - limit * THIN_TO


@dataclass(frozen=True)
class Measured:
    """The bytes of all tables, how many of them are not in use, and how long it took to count that.

    Attributes:
        added: what had been added since the time before when the bodies were counted.
    """

    bytes: int
    free_bytes: int
    took_s: float
    added: int


def measure(db: Database, max_bytes: int, read_added: Callable[[], int]) -> Measured:
    """What the tables take. Exact only where there is a limit, and above that it counts what is there of records."""
    assert isinstance(db, PostgresConnection)
    began_s = time.monotonic()
    [(total, of_bodies)] = db.raw.execute(
        "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint, "
        "coalesce(sum(pg_total_relation_size(oid)) FILTER (WHERE relname = 'bodies'), 0)::bigint "
        "FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"
    )
    free, added = 0, read_added()
    if max_bytes:
        [(living,)] = db.raw.execute("SELECT coalesce(sum(octet_length(body)), 0)::bigint FROM bodies")
        free = max(of_bodies - living, 0)
        if total - free > max_bytes * THIN_TO:
            free += max(total - of_bodies - records.weigh_all(db), 0)
    return Measured(total, free, time.monotonic() - began_s, added)
