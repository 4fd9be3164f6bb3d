"""The boxes of a fleet: which are there, until when each is believed to live, and which runs they have.

Only PostgreSQL has more than one box, so these statements are in its words. All times that decide are the engine's.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from ..job import Job
from .database import Database
from .rows import COLUMNS, read_job

_NOW_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
_UNDER_WAY = "state IN ('dispatched', 'running', 'validating')"
#: Jobs under way that no box has: a server that had the database for itself has left them.
_ORPHANS = f"SELECT {COLUMNS} FROM jobs INDEXED BY jobs_open WHERE {_UNDER_WAY} AND box IS NULL"


@dataclass
class Member:
    """This process as a box. The writer's thread changes it, and whoever finds that the lease is over; any reads it.

    Attributes:
        box: its name; process: the name of this process of it.
        max_jobs: how many jobs it runs at once; 0: none. lease_ms: for so long a beat holds.
        epoch: names the time since it joined; None: it is none of the boxes now.
    """

    box: str
    lease_ms: int
    max_jobs: int = 1
    process: str = ""
    epoch: str | None = None


@dataclass(frozen=True)
class Box:
    """A box as the others see it: the time of its last beat, by the engine's clock, and whether that holds."""

    box: str
    max_jobs: int
    beat_at_ms: int
    is_alive: bool


def tell_time(db: Database) -> int:
    """The engine's clock, in milliseconds since the epoch."""
    (now_ms,) = db.execute(f"SELECT {_NOW_MS}").fetchone()
    return int(now_ms)


def join(db: Database, member: Member) -> str:
    """Become a box, in place of whoever had the name; returns the new epoch."""
    epoch = secrets.token_hex(8)
    db.execute(
        f"INSERT INTO boxes (box, epoch, max_jobs, until_ms) VALUES (?, ?, ?, {_NOW_MS} + ?) "
        "ON CONFLICT (box) DO UPDATE SET epoch = excluded.epoch, max_jobs = excluded.max_jobs, "
        "until_ms = excluded.until_ms",
        (member.box, epoch, member.max_jobs, member.lease_ms),
    )
    return epoch


@dataclass(frozen=True)
class Beat:
    """The answer to a beat: the engine's time, whether there are boxes whose lease is over, and whether this one looks
    after what one box is enough for.
    """

    now_ms: int
    finds_dead: bool
    is_keeper: bool


def beat(db: Database, member: Member) -> Beat | None:
    """Say that this box lives. None: it is no box any more."""
    row = db.execute(
        f"UPDATE boxes SET until_ms = {_NOW_MS} + ? WHERE box = ? AND epoch = ? "
        f"RETURNING {_NOW_MS}, (SELECT count(*) FROM boxes AS others WHERE others.until_ms < {_NOW_MS}), "
        f"box <= (SELECT min(others.box) FROM boxes AS others WHERE others.until_ms >= {_NOW_MS})",
        (member.lease_ms, member.box, member.epoch or ""),
    ).fetchone()
    # A box alone may find no other that is alive, itself as it was before this beat.
    return None if row is None else Beat(int(row[0]), row[1] > 0, row[2] is not False)


def is_taken(db: Database, member: Member) -> bool:
    """Whether another process has become a box under this one's name."""
    query = "SELECT 1 FROM boxes WHERE box = ? AND epoch <> ?"
    return db.execute(query, (member.box, member.epoch or "")).fetchone() is not None


def may_claim(db: Database, member: Member) -> bool:
    """Whether this box's lease holds now."""
    query = f"SELECT 1 FROM boxes WHERE box = ? AND epoch = ? AND until_ms > {_NOW_MS}"
    return db.execute(query, (member.box, member.epoch or "")).fetchone() is not None


def take_out_dead(db: Database, member: Member) -> list[tuple[str, int]]:
    """Delete boxes whose lease is over; returns each with the time of its last beat.

    None soon after the engine's start: every beat was late then.
    """
    lease = "? * interval '1 millisecond'"
    rows = db.execute(
        f"DELETE FROM boxes WHERE until_ms < {_NOW_MS} AND box <> ? "
        f"AND clock_timestamp() > pg_postmaster_start_time() + {lease} RETURNING box, until_ms",
        (member.box, member.lease_ms),
    ).fetchall()
    return [(box, until_ms - member.lease_ms) for box, until_ms in rows]


def leave(db: Database, member: Member) -> bool:
    """Be a box no more. False: it has been none."""
    query = "DELETE FROM boxes WHERE box = ? AND epoch = ?"
    return db.execute(query, (member.box, member.epoch or "")).rowcount > 0


def list_boxes(db: Database, lease_ms: int) -> list[Box]:
    rows = db.execute(f"SELECT box, max_jobs, until_ms, until_ms > {_NOW_MS} FROM boxes ORDER BY box")
    return [Box(box, max_jobs, until_ms - lease_ms, bool(alive)) for box, max_jobs, until_ms, alive in rows]


# The jobs of a box. -------------------------------------------------------------------------------------------------


def list_under_way(db: Database, box: str, *, and_orphans: bool) -> list[Job]:
    """What the box has under way; `and_orphans`: also what no box has."""
    own = f"SELECT {COLUMNS} FROM jobs INDEXED BY jobs_of_box WHERE box = ? AND box IS NOT NULL AND {_UNDER_WAY}"
    rows = db.execute(own, (box,)).fetchall()
    return [read_job(row) for row in [*rows, *(db.execute(_ORPHANS).fetchall() if and_orphans else [])]]


def list_secretive(db: Database, box: str, *, and_orphans: bool) -> list[Job]:
    """The waiting jobs whose secrets were in that box's memory."""
    whose = "(only_box = ? OR only_box IS NULL)" if and_orphans else "only_box = ?"
    query = f"SELECT {COLUMNS} FROM jobs WHERE state = 'queued' AND has_secrets <> 0 AND {whose}"
    return [read_job(row) for row in db.execute(query, (box,)).fetchall()]


def give(db: Database, job: Job, member: Member, token: str) -> None:
    """Let the box have the job; what its run writes must say the token."""
    db.execute("UPDATE jobs SET box = ?, token = ? WHERE number = ?", (member.box, token, job.number))


def take_back(db: Database, jobs: Iterable[Job]) -> None:
    """What their runs still write is refused."""
    for job in jobs:
        db.execute("UPDATE jobs SET box = NULL, token = NULL WHERE number = ?", (job.number,))


def bind(db: Database, number: int, member: Member) -> None:
    """Let no other box take the job: its secrets are here."""
    db.execute("UPDATE jobs SET only_box = ? WHERE number = ?", (member.box, number))


def holds(db: Database, job_id: str, token: str | None) -> bool:
    """Whether the job is still that run's."""
    row = db.execute("SELECT token FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
    return row is not None and token is not None and row[0] == token


def find_first(db: Database, owner: str, box: str) -> Job | None:
    """The owner's next job that the box may take."""
    row = db.execute(
        f"SELECT {COLUMNS} FROM jobs INDEXED BY jobs_queued WHERE owner = ? AND state = 'queued' "
        "AND (only_box IS NULL OR only_box = ?) ORDER BY priority DESC, round, place, number LIMIT 1",
        (owner, box),
    ).fetchone()
    return None if row is None else read_job(row)
