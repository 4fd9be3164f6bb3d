"""Keep a PostgreSQL database small: bodies of settled jobs go as in SQLite, and their space is used again.

To give space back to the disk is left to the engine (`VACUUM FULL`), and so is its log. Records stay for their age
whatever they take: by how much their going makes the tables smaller cannot be seen.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import Future

from ..clock import Clock
from ..errors import GuardError
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
        self._measuring: Future[tuple[int, int, int, float]] | None = None
        self._measured_s = -math.inf
        #: What submits had added when that began.
        self._added_before = 0

    def turn(self, db: Database, means: Means, is_idle: bool) -> bool:
        if time.monotonic() < self._due_s:
            return False
        try:
            self._look(means)
            return self._thin_if_due(db, means)
        except BaseException as error:
            self._found.clear()
            self._search = self._measuring = None
            self._due_s = time.monotonic() + AGAIN_S
            if isinstance(error, GuardError):
                complain(f"the job database cannot be made smaller now: {error}")
                return False
            raise

    @property
    def is_due(self) -> bool:
        limit = self.limits.max_bytes
        return bool(limit and self._find_excess() > 0 and not self._is_bare)

    def _look(self, means: Means) -> None:
        if self._measuring is not None and self._measuring.done():
            measuring, self._measuring = self._measuring, None
            total, of_bodies, living, took_s = measuring.result()
            self.size = Size(total, max(of_bodies - living, 0), 0)
            self._added -= self._added_before
            self._measured_s = time.monotonic() + PAUSES * took_s
        elif self._measuring is None and time.monotonic() > self._measured_s + MEASURE_S:
            self._added_before = self._added
            is_asked = self.limits.max_bytes > 0
            self._measuring = means.read_slowly(lambda db: measure(db, is_asked))

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

    def _find_excess(self) -> float:
        used = self.size.used_bytes + self._added
        if not (limit := self.limits.max_bytes):
            return 0
        self._is_thinning = used > limit * (THIN_TO if self._is_thinning else THIN_ABOVE)
        return used - limit * THIN_TO if self._is_thinning else 0


def measure(db: Database, is_exact: bool) -> tuple[int, int, int, float]:
    """The bytes of all tables, of the one with bodies, of the bodies in that, and how long it took to count them."""
    assert isinstance(db, PostgresConnection)
    began_s = time.monotonic()
    [(total, of_bodies)] = db.raw.execute(
        "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint, "
        "coalesce(sum(pg_total_relation_size(oid)) FILTER (WHERE relname = 'bodies'), 0)::bigint "
        "FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"
    )
    living = of_bodies
    if is_exact:
        [(living,)] = db.raw.execute("SELECT coalesce(sum(octet_length(body)), 0)::bigint FROM bodies")
    return total, of_bodies, living, time.monotonic() - began_s
