"""Records of settled jobs: which may go, whose take most room, and how they are deleted."""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from ..clock import Clock
from ..quotas.refusal import refuse
from ..signal import Signal
from . import slices
from .database import Database, keep_last_numbers
from .rows import IS_OPEN
from .slices import Limits, Means

#: What the rows of a job and their places in the indexes take besides their texts.
ROW_BYTES, POSTGRES_ROW_BYTES = 4096, 3072
#: So many of an owner's records are measured, the oldest and the newest; the others are taken to be like those.
MEASURED = 64
#: Records of less than this share of `store.max_bytes` are not what fills it, prompts of open jobs are: none goes.
MUCH = 0.5
#: Records that are looked at in one search, and found at once.
LOOKED_AT = 20_000
FOUND = 500

Row = tuple[int, str]


@dataclass(frozen=True)
class Shares:
    """What the records of each owner take, about, in bytes; and how many they are."""

    of: Mapping[str, int]
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def heaviest(self) -> str | None:
        return max(self.of, key=lambda owner: self.of[owner], default=None)

    @property
    def equal(self) -> int:
        """An equal share of what all take."""
        return sum(self.of.values()) // max(len(self.of), 1)

    @property
    def each(self) -> int:
        """What one record of whoever has most takes."""
        return self.of[self.heaviest] // self.counts[self.heaviest] if self.heaviest is not None else 0

    def has_too_much(self, owner: str) -> bool:
        return self.of.get(owner, 0) > self.equal


class Forgetter:
    """Deletes records where the database is too large without bodies, too. The writer's thread."""

    def __init__(self, clock: Clock, limits: Limits) -> None:
        self._clock = clock
        self._limits = limits
        self._shares = Shares({})
        self._rows: deque[Row] = deque()
        self._search: Future[Found] | None = None
        self._due_s = 0.0
        #: The records of these jobs have gone.
        self.forgotten: Signal[[list[str]]] = Signal()

    @property
    def has_some(self) -> bool:
        """Whether there are records to delete now."""
        return bool(self._rows)

    @property
    def is_shared(self) -> bool:
        """Whether several owners have records, as of the last look. Any thread."""
        return len(self._shares.of) > 1

    def check(self, owner: str) -> None:
        """Refuse a job of an owner that has more than an equal share, if there are others.

        Raises QuotaExceededError.
        """
        shares = self._shares
        if self.is_shared and shares.has_too_much(owner):
            raise refuse(
                "The job database is as large as it may become, and the records of your jobs take most of it.",
                "record_bytes",
                shares.of[owner],
                shares.equal,
                "the oldest of them are a day old and have gone",
            )

    @property
    def each_bytes(self) -> int:
        """What one of the records that go takes, about."""
        return self._shares.each

    def relax(self) -> None:
        """There is room: nobody has too much, whatever it has."""
        if self._shares.of:
            self._shares = Shares({})

    def start_anew(self) -> None:
        """Something has failed: what is known may be wrong."""
        self._rows.clear()
        self._search = None

    def turn(self, db: Database, means: Means) -> int | None:
        """Do a slice of what is due, and say how many have gone; None: none may go."""
        if not self._rows:
            return 0 if self.look(means) else None
        until_s = time.monotonic() + slices.SLICE_S
        gone: list[Row] = []
        means.begin(db)
        keep_last_numbers(db)
        while self._rows and (not gone or time.monotonic() < until_s):
            forget(db, [row := self._rows.popleft()])
            gone.append(row)
        db.execute("COMMIT")
        self.forgotten([job_id for _number, job_id in gone])
        return len(gone)

    def look(self, means: Means) -> bool:
        """Weigh what each owner has, and find what may go; say whether there is any, or may be."""
        if self._search is None:
            if self._rows or time.monotonic() < self._due_s:
                return bool(self._rows)
            now_ms = self._clock.aging_ms()
            settled_before_ms = now_ms - int(self._limits.kept_s * 1000)
            unread_since_ms = now_ms - int(self._limits.unread_max_age_s * 1000)
            self._search = means.read_slowly(lambda db: find(db, settled_before_ms, unread_since_ms))
        if not self._search.done():
            return True
        search, self._search = self._search, None
        found = search.result()
        if sum(found.shares.of.values()) >= self._limits.max_bytes * MUCH:
            self._shares = found.shares
            self._rows.extend(found.rows)
        else:
            self.relax()
        if not self._rows:
            self._due_s = time.monotonic() + slices.AGAIN_S
        return bool(self._rows)


@dataclass(frozen=True)
class Found:
    """Whose share is how large; records that may go, the oldest of whoever has most, as number and job id."""

    shares: Shares
    rows: list[Row]


def weigh(db: Database) -> Shares:
    """Estimate what each owner's records take. For a thread that may take its time: it counts along an index."""
    owners = db.execute(
        "WITH RECURSIVE each (owner) AS (SELECT min(owner) FROM jobs UNION ALL "
        "SELECT (SELECT min(owner) FROM jobs WHERE jobs.owner > each.owner) FROM each WHERE owner IS NOT NULL) "
        "SELECT owner FROM each WHERE owner IS NOT NULL"
    ).fetchall()
    weighed = {owner: found for (owner,) in owners if (found := _weigh_owner(db, owner))[0]}
    return Shares(
        {owner: size for owner, (_count, size) in weighed.items()},
        {owner: count for owner, (count, _size) in weighed.items()},
    )


def weigh_all(db: Database) -> int:
    """Estimate what the records of settled jobs and the rows of open ones take in PostgreSQL."""
    (still_open,) = db.execute(f"SELECT count(*) FROM jobs INDEXED BY jobs_open WHERE {IS_OPEN}").fetchone()
    return sum(weigh(db).of.values()) + int(still_open) * POSTGRES_ROW_BYTES


def _weigh_owner(db: Database, owner: str) -> tuple[int, int]:
    """How many records the owner has, and what they take."""
    settled = "FROM jobs INDEXED BY jobs_of_owner_ended WHERE owner = ? AND settled_at_ms IS NOT NULL"
    (count,) = db.execute(f"SELECT count(*) {settled}", (owner,)).fetchone()
    if not count:
        return 0, 0
    # PostgreSQL packs long texts.
    length = "length" if isinstance(db, sqlite3.Connection) else "pg_column_size"
    texts = ("metadata", "parameters", "outputs_to_execute", "result", "verdict")
    told = f"SELECT sum({length}(payload)) FROM webhooks WHERE webhooks.job_id = jobs.job_id"
    size = " + ".join([*(f"coalesce({length}({text}), 0)" for text in texts), f"coalesce(({told}), 0)"])
    measured = [
        row[0]
        for order in ("ASC", "DESC")
        for row in db.execute(f"SELECT {size} {settled} ORDER BY event_id {order} LIMIT ?", (owner, MEASURED))
    ]
    row_bytes = ROW_BYTES if isinstance(db, sqlite3.Connection) else POSTGRES_ROW_BYTES
    return count, int(count * (row_bytes + sum(measured) / len(measured)))


def find(db: Database, settled_before_ms: int, unread_since_ms: int) -> Found:
    """Find the oldest records of the owner who has most, as far as they may go.

    None may go that settled after the first time, or has a result that nobody has fetched since the second, or a
    webhook that is still to be sent. Where the heaviest owner has none that may, nobody else's go in their place.
    """
    shares = weigh(db)
    # A settled job keeps its lease until ComfyUI's worker lets go of it.
    query = (
        "SELECT number, job_id FROM (SELECT number, job_id, settled_at_ms FROM jobs INDEXED BY jobs_of_owner_ended "
        "WHERE owner = ? AND settled_at_ms IS NOT NULL ORDER BY event_id LIMIT ?) AS looked_at "
        "WHERE settled_at_ms < ? AND job_id NOT IN (SELECT job_id FROM leases) "
        "AND NOT EXISTS (SELECT 1 FROM unread WHERE unread.job_id = looked_at.job_id AND since_ms >= ?) "
        "AND NOT EXISTS (SELECT 1 FROM webhooks WHERE webhooks.job_id = looked_at.job_id AND state = 'pending') LIMIT ?"
    )
    values = (shares.heaviest, LOOKED_AT, settled_before_ms, unread_since_ms, FOUND)
    return Found(shares, db.execute(query, values).fetchall())


def forget(db: Database, rows: Sequence[Row]) -> None:
    """Delete jobs with everything about them."""
    for table in ("transitions", "idempotency", "unread", "unheard", "webhooks", "made", "puts", "unstored"):
        db.executemany(f"DELETE FROM {table} WHERE job_id = ?", [(job_id,) for _number, job_id in rows])
    for table in ("bodies", "workflows", "jobs"):
        db.executemany(f"DELETE FROM {table} WHERE number = ?", [(number,) for number, _job_id in rows])
