"""Keep the database small, in slices between the writer's commits.

Bodies of settled jobs go after a time, where the database is too large, and where its disk runs short, the first
settled first; what a job's nodes reported besides files goes with its body, where it is large. Where no body is left
and the database is still too large, records go: the oldest of the owner who has most. The pages that become free are
given back to the disk, and so is a log that has grown.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..clock import Clock
from ..errors import DiskFullError, GuardError
from ..signal import Signal
from . import slices
from .bodies import LOOKED_AT, Found, delete_body, find_bodies
from .database import Database
from .facts import Size
from .records import Forgetter
from .rows import pragma
from .slices import AGAIN_S, Limits, Means, Read
from .threads import complain, is_damage

#: Bodies are thinned out from the first of these shares of `max_bytes` on, down to the second. New jobs may take the
#: database up to the last one while that goes on.
THIN_ABOVE, THIN_TO, MOST = 0.95, 0.9, 1.125
#: Where an eighth of the file is free pages, they are given back until a sixteenth is; a few MiB may always stay. The
#: more of them there are, the longer SQLite looks for the one that it needs.
FREE_ABOVE, FREE_TO = 0.125, 0.0625
FREE_BYTES = 8 * 2**20
#: A log larger than this is cut off while nobody waits. SQLite reuses a smaller one as it is.
LOG_BYTES = 16 * 2**20
#: … and than this, also while somebody waits. No page is given back meanwhile, since each moved page makes it grow.
LOG_MOST = 64 * 2**20
#: After slices that may have written so many pages, or submits of so many bytes, the log is worked into the database.
TIDY_PAGES = 2000
TIDY_BYTES = 16 * 2**20
#: The log is cut off where no more of its pages than these must be copied for that.
CUT_PAGES = 200
#: What a submit writes besides the body, in its rows and indexes.
ROW_BYTES = 2048
#: Pages that one deleted body, or one moved page, may write.
STEP_PAGES = 3


@dataclass(frozen=True)
class Span:
    """The jobs that settled before that time, or (`is_all`) all that have settled by now."""

    before_ms: int
    is_all: bool

    def covers(self, settled_at_ms: int) -> bool:
        return self.is_all or settled_at_ms < self.before_ms


@dataclass(frozen=True)
class _Search:
    span: Span
    future: Future[Found]


class Upkeep:
    """The writer's thread, except where it says otherwise."""

    def __init__(self, path: Path | None, clock: Clock, limits: Limits) -> None:
        """`path`: of SQLite's file."""
        self._log = Path(f"{path}-wal")
        self._clock = clock
        self.limits = limits
        #: As of the last look. Any thread.
        self.size = Size(0, 0, 0)
        #: Bodies deleted, and their bytes, since the start. Any thread.
        self.thinned = (0, 0)
        #: Where the disk is short: how many bytes the database should come down to. Any thread sets it.
        self._pressed_to_bytes = math.inf
        #: Bytes that submits have added since the last look.
        self._added = 0
        self._untidy_bytes = 0
        self._untidy_pages = 0
        self._is_thinning = False
        self._is_giving_back = False
        #: No job that has settled has a body any more, as of the last look.
        self._is_bare = False
        #: Whether pages can be given back; an old file has no way to tell whose page is the last one.
        self._is_incremental = True
        self._forgetter = Forgetter(clock, limits)
        #: The records of these jobs have gone. Called on the writer's thread.
        self.forgotten: Signal[[list[str]]] = self._forgetter.forgotten
        #: Bodies to delete, each with the time at which its job settled, the first one first.
        self._found: deque[tuple[int, int]] = deque()
        #: No job that settled before that time has a body.
        self._done_ms = 0
        self._search: _Search | None = None
        self._looks_at = LOOKED_AT
        self._tidying: Future[Any] | None = None
        #: How many rows the writer's connection had changed when that began.
        self._changes = 0
        self._due_s = 0.0

    def relieve(self, wanted_bytes: int) -> None:
        """Make the database smaller by so many bytes, since its disk is short of them; 0: it is not. Any thread."""
        self._pressed_to_bytes = self.size.bytes - wanted_bytes if wanted_bytes else math.inf

    # Submits. ------------------------------------------------------------------------------------------------

    def take(self, owner: str, body_bytes: int) -> None:
        """Count a body that an owner is about to write.

        Raises:
            DiskFullError: the database has no room for it.
            QuotaExceededError: what room is left is for others.
        """
        needed = body_bytes + ROW_BYTES
        if self.limits.max_bytes and (refusal := self._find_refusal(needed)) is not None:
            raise refusal
        if self._is_beyond(needed):
            self._forgetter.check(owner)
        self.count(body_bytes)

    def has_room(self, body_bytes: int) -> bool:
        """Whether there is room for a body, whoever writes it: `take` would not refuse it."""
        return not self._is_beyond(body_bytes + ROW_BYTES)

    def count(self, body_bytes: int) -> None:
        """Count a body that was written."""
        self._added += body_bytes + ROW_BYTES
        self._untidy_bytes += body_bytes + ROW_BYTES

    def _is_beyond(self, needed: int) -> bool:
        """Whether so many bytes more are more than there should be, at which shares of owners count."""
        return self.size.used_bytes + self._added + needed > self.limits.max_bytes > 0

    def find_refusal(self) -> DiskFullError | None:
        """Why no job at all can be let in, if so. Any thread."""
        return self._find_refusal(0) if self.limits.max_bytes else None

    def _find_refusal(self, needed: int) -> DiskFullError | None:
        after = self.size.used_bytes + self._added + needed
        # Where several owners have records, whoever has most of them leaves the others some room.
        is_all = self._is_bare and not self._forgetter.is_shared
        if after <= self.limits.max_bytes * (1 if is_all else MOST):
            return None
        facts = {"bytes": after - needed, "max_bytes": self.limits.max_bytes}
        return DiskFullError(
            "The job database is as large as it may become.",
            details=f"It has {facts['bytes']} bytes, and store.max_bytes is {facts['max_bytes']}.",
            extra_info=facts,
            retry_after_s=10 if self._is_bare else 1,
        )

    @property
    def is_due(self) -> bool:
        """Whether a slice should not wait until there is nothing else to do."""
        limit = self.limits.max_bytes
        return self._untidy_bytes > TIDY_BYTES or bool(
            limit
            and self.size.used_bytes + self._added > limit * THIN_ABOVE
            and (self._forgetter.has_some or not self._is_bare)
        )

    # Slices. -------------------------------------------------------------------------------------------------

    def turn(self, db: Database, means: Means, is_idle: bool) -> bool:
        """Do one slice of what is due; say whether there is more. `is_idle`: nobody waits for the writer."""
        if time.monotonic() < self._due_s:
            return False
        try:
            self._measure(db)
            return self._turn(db, means, is_idle)
        except BaseException as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            self._found.clear()
            self._forgetter.start_anew()
            if self._tidying is not None:  # what it was to work in is in the log still
                self._untidy_pages = TIDY_PAGES + 1
            self._search = self._tidying = None
            self._due_s = time.monotonic() + AGAIN_S
            if is_damage(error) or not isinstance(error, (sqlite3.Error, OSError, GuardError)):
                raise
            complain(f"the job database cannot be made smaller now: {error}")
            return False

    def _turn(self, db: Database, means: Means, is_idle: bool) -> bool:
        assert isinstance(db, sqlite3.Connection)
        is_log_large = self.size.log_bytes > (LOG_BYTES if is_idle else LOG_MOST)
        if self._tidying is not None and self._tidying.done():
            if (error := self._tidying.exception()) is not None:
                raise error
            tidying, self._tidying = self._tidying, None
            if is_log_large:
                self._cut_log(db, tidying.result(), is_idle)
        elif self._tidying is None and (
            self._untidy_pages > TIDY_PAGES or self._untidy_bytes > TIDY_BYTES or is_log_large
        ):
            self._untidy_pages = self._untidy_bytes = 0
            self._changes = db.total_changes
            self._tidying = means.read_slowly(lambda db: db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone())
        now_ms = self._clock.now_ms()
        excess = self._find_excess()
        if self._is_beyond(0):  # not only once no body is left: a flood brings bodies as fast as they go
            self._forgetter.look(means)
        if excess > 0 and self._thin(db, means, Span(now_ms, is_all=True), excess):
            return True
        if self._is_bare and self._is_thinning and (forgotten := self._forgetter.turn(db, means)) is not None:
            self._untidy_pages += forgotten * STEP_PAGES
            return True
        if is_idle and self._has_too_many_free() and self.size.log_bytes <= LOG_MOST:
            if self._tidying is None:  # otherwise the log would grow faster than it is worked in
                self._give_back(db, means)
            return True
        age_ms = min(self.limits.bodies_max_age_s * 1000, now_ms)
        before_ms = self._clock.aging_ms() - age_ms
        # Not each second: a thousandth later does not matter.
        is_time = before_ms > self._done_ms + age_ms / 1000 or self._search is not None
        if excess <= 0 and is_time and self._thin(db, means, Span(int(before_ms), is_all=False), math.inf):
            return True
        return self._tidying is not None

    def _measure(self, db: Database) -> None:
        assert isinstance(db, sqlite3.Connection)
        pages, free, page_bytes, mode = (
            pragma(db, name) for name in ("page_count", "freelist_count", "page_size", "auto_vacuum")
        )
        try:
            log_bytes = os.stat(self._log).st_size
        except OSError:
            log_bytes = 0
        self.size = Size(pages * page_bytes, free * page_bytes, log_bytes)
        self._is_incremental = mode != 0
        self._added = 0

    def _find_excess(self) -> float:
        """How many bytes of bodies must go whatever their age; 0 or less: none."""
        used, most = self.size.used_bytes, self._pressed_to_bytes
        if limit := self.limits.max_bytes:
            self._is_thinning = used > limit * (THIN_TO if self._is_thinning else THIN_ABOVE)
            if not self._is_thinning:
                self._forgetter.relax()
            else:
                most = min(most, limit * THIN_TO)
        return used - most

    def _thin(self, db: Database, means: Means, span: Span, most_bytes: float) -> bool:
        """Delete bodies of jobs that settled in that time, not many more than so many bytes. False: there are none."""
        if not self._found and not self._find(means.read, span):
            return self._search is not None
        self._is_bare = False
        if not span.covers(self._found[0][1]):
            return False
        until_s = time.monotonic() + slices.SLICE_S
        bodies = size = done_ms = 0
        now_ms = self._clock.now_ms()
        means.begin(db)
        while self._found and span.covers(self._found[0][1]) and size < most_bytes:
            number, done_ms = self._found.popleft()
            size += delete_body(db, number, now_ms)
            bodies += 1
            if time.monotonic() > until_s:
                break
        db.execute("COMMIT")
        self._done_ms = done_ms
        self.thinned = (self.thinned[0] + bodies, self.thinned[1] + size)
        self._untidy_pages += bodies * STEP_PAGES
        return True

    def _find(self, read: Read, span: Span) -> bool:
        """Find bodies to delete, on a reader's thread; False: there are none, or none yet."""
        if self._search is None:
            after_ms, before_ms, limit = self._done_ms, 2**62 if span.is_all else span.before_ms, self._looks_at
            self._search = _Search(span, read(lambda db: find_bodies(db, after_ms, before_ms, limit)))
        if not self._search.future.done():
            return False
        search, self._search = self._search, None
        found = search.future.result()
        self._found.extend(found.bodies)
        if found.is_end:
            # Who settled before that time has no body, and whoever settles from now on does so later.
            self._done_ms = max(self._done_ms, search.span.before_ms)
            self._is_bare = search.span.is_all
        elif not found.bodies:
            # A great many may have settled in one millisecond: the clock was ahead, and a start has set their times.
            self._looks_at = LOOKED_AT if found.up_to_ms > self._done_ms else self._looks_at * 2
            self._done_ms = found.up_to_ms
            return self._find(read, span)
        return bool(self._found)

    def _has_too_many_free(self) -> bool:
        if not self._is_incremental:
            return False
        free = self.size.free_bytes
        share = self.size.bytes * (FREE_TO if self._is_giving_back else FREE_ABOVE)
        self._is_giving_back = free > (0 if self._pressed_to_bytes < math.inf else max(share, FREE_BYTES))
        return self._is_giving_back

    def _give_back(self, db: sqlite3.Connection, means: Means) -> None:
        """Move pages from the end of the file to free places, and cut the end off."""
        until_s = time.monotonic() + slices.SLICE_S
        means.begin(db)
        while time.monotonic() < until_s:
            # One page: Python takes only the first step of the statement.
            db.execute("PRAGMA incremental_vacuum(1)")
            self._untidy_pages += STEP_PAGES
        db.execute("COMMIT")

    def _cut_log(self, db: sqlite3.Connection, tidied: tuple[int, int, int], is_idle: bool) -> None:
        """Cut the log off, unless somebody reads an earlier state of it; `tidied`: what was said of its pages.

        Where something has been written since, that would wait for the disk. Where nobody waits, it can be put off.
        """
        _busy, pages, done = tidied
        is_done = pages == done and db.total_changes == self._changes and not self._untidy_pages
        if not is_done and (is_idle or pages - done > CUT_PAGES):
            return
        (before,) = db.execute("PRAGMA busy_timeout").fetchone()
        db.execute("PRAGMA busy_timeout = 0")  # whoever reads must not hold the writer up
        try:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            db.execute(f"PRAGMA busy_timeout = {before}")
