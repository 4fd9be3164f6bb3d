"""The boxes of a fleet: which are there, until when each is believed to live, and which runs they have.

Only PostgreSQL has more than one box, so these statements are in its words. All times that decide are the engine's.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..bounds import Bounds, read_json
from ..errors import GuardError
from ..job import Job
from ..urls import LONGEST, UrlError, read_url
from .database import Database, Rows
from .rows import COLUMNS, read_job

log = logging.getLogger("guarded.store")

#: So much of what a box tells about itself is read: the names of a thousand models and of ten thousand node classes.
STATUS_BYTES = 2**20
_STATUS = Bounds(values=50_000, depth=5, text=2**12)
#: No fleet has so many boxes; whoever can write into the table could make more.
MOST_BOXES = 1000

#: The engine's clock.
NOW_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
#: With twice a lease: a box that beats has none that lasts so long.
_AHEAD = f"{NOW_MS} + ? + 1000"
ASK_TOKEN = "SELECT token FROM jobs WHERE job_id = ?"
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
        url: where the other boxes, and people, reach it; None: nowhere.
        status: what it tells the others about itself, by name; see :meth:`tell`.
        vram_mb: the card's memory; None: nobody knows.
        loaded: the models of the last job that it took; affinity_wait_ms: for so long jobs of others go before one.
    """

    box: str
    lease_ms: int
    max_jobs: int = 1
    process: str = ""
    epoch: str | None = None
    url: str | None = None
    status: Mapping[str, Any] = field(default_factory=dict)
    vram_mb: int | None = None
    loaded: frozenset[str] = frozenset()
    affinity_wait_ms: int = 0
    #: The url and the status that the table has.
    told: tuple[str | None, Mapping[str, Any]] | None = field(default=None, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def tell(self, name: str, value: Any) -> None:
        """Let the other boxes know: what JSON can hold; None takes it back. With the next beat. Any thread.

        Each change sends the whole status, and every box reads it.
        """
        with self._lock:
            if self.status.get(name) == value:
                return
            rest = {key: kept for key, kept in self.status.items() if key != name}
            self.status = rest if value is None else {**rest, name: value}


@dataclass(frozen=True)
class Box:
    """A box as the others see it.

    Attributes:
        max_jobs: how many jobs it runs at once. beat_at_ms: the time of its last beat, by the engine's clock.
        is_alive: whether that held when the table was read. running: how many jobs it had under way then.
        url: where it is reached, a plain http(s) URL without a slash at its end; None: nowhere.
        status: what it tells about itself. Whoever can write into the table may have put anything there: its size is
            bounded and it is an object, and that is all. :meth:`text`, :meth:`number` and :meth:`texts` read it.
    """

    box: str
    max_jobs: int
    beat_at_ms: int
    is_alive: bool
    url: str | None = None
    status: Mapping[str, Any] = field(default_factory=dict)
    running: int = 0
    #: Names the time since it joined, and counts the changes of `url` and `status` since.
    epoch: str = ""
    revision: int | None = None
    #: The card's memory, where that box knows it.
    vram_mb: int | None = None

    def text(self, name: str, longest: int = 200) -> str | None:
        """A text of the status, shortened where it is longer; None where there is none."""
        value = self.status.get(name)
        return value[:longest] if isinstance(value, str) else None

    def number(self, name: str) -> float | None:
        """A number of the status that is not below 0."""
        value = self.status.get(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None

    def texts(self, name: str) -> frozenset[str] | None:
        """A list of texts of the status."""
        values = self.status.get(name)
        if not isinstance(values, list):
            return None
        return frozenset(value for value in values if isinstance(value, str))


def tell_time(db: Database) -> int:
    """The engine's clock, in milliseconds since the epoch."""
    (now_ms,) = db.execute(f"SELECT {NOW_MS}").fetchone()
    return int(now_ms)


def join(db: Database, member: Member) -> str:
    """Become a box, in place of whoever had the name; returns the new epoch."""
    epoch = secrets.token_hex(8)
    told = member.url, member.status
    db.execute(
        "INSERT INTO boxes (box, epoch, max_jobs, until_ms, url, status, vram_mb, revision) "
        f"VALUES (?, ?, ?, {NOW_MS} + ?, ?, ?, ?, 0) "
        "ON CONFLICT (box) DO UPDATE SET epoch = excluded.epoch, max_jobs = excluded.max_jobs, "
        "until_ms = excluded.until_ms, url = excluded.url, status = excluded.status, "
        "vram_mb = excluded.vram_mb, revision = 0",
        (
            *(member.box, epoch, member.max_jobs, member.lease_ms),
            *(member.url, _write_status(member.status), member.vram_mb),
        ),
    )
    member.told = told  # it is a box only once this is committed
    return epoch


@dataclass(frozen=True)
class Beat:
    """The answer to a beat: the engine's time, whether there are boxes whose lease is over, or longer than any is, and
    whether this one looks after what one box is enough for.
    """

    now_ms: int
    finds_dead: bool
    finds_ahead: bool
    is_keeper: bool


def beat(db: Database, member: Member) -> Beat | None:
    """Say that this box lives, and what has changed of what it tells. None: it is no box any more."""
    told = member.url, member.status
    has_news = told != member.told
    news = ", url = ?, status = ?, revision = coalesce(revision, 0) + 1" if has_news else ""
    row = db.execute(
        f"UPDATE boxes SET until_ms = {NOW_MS} + ?{news} WHERE box = ? AND epoch = ? "
        f"RETURNING {NOW_MS}, (SELECT count(*) FROM boxes AS others WHERE others.until_ms < {NOW_MS}), "
        f"(SELECT count(*) FROM boxes AS others WHERE others.until_ms > {_AHEAD}), "
        f"box <= (SELECT min(others.box) FROM boxes AS others WHERE others.until_ms >= {NOW_MS})",
        (
            member.lease_ms,
            *((member.url, _write_status(member.status)) if has_news else ()),
            member.box,
            member.epoch or "",
            2 * member.lease_ms,
        ),
    ).fetchone()
    if row is not None:
        member.told = told
    # A box alone may find no other that is alive, itself as it was before this beat.
    return None if row is None else Beat(int(row[0]), row[1] > 0, row[2] > 0, row[3] is not False)


def shorten_leases(db: Database, member: Member) -> None:
    """Let no lease last longer than one from now on: the engine's clock was set back, or its successor's is behind.

    Boxes that live beat again; those that do not are found dead in time.
    """
    db.execute(
        f"UPDATE boxes SET until_ms = {NOW_MS} + ? WHERE until_ms > {_AHEAD}", (member.lease_ms, 2 * member.lease_ms)
    )


def is_taken(db: Database, member: Member) -> bool:
    """Whether another process has become a box under this one's name."""
    query = "SELECT 1 FROM boxes WHERE box = ? AND epoch <> ?"
    return db.execute(query, (member.box, member.epoch or "")).fetchone() is not None


def take_out_dead(db: Database, member: Member) -> list[tuple[str, int]]:
    """Delete boxes whose lease is over; returns each with the time of its last beat.

    None soon after the engine's start: every beat was late then. Where its clock was set back to before that, nobody
    knows how long it has been.
    """
    since = "clock_timestamp() - pg_postmaster_start_time()"
    is_time = f"({since} > ? * interval '1 millisecond' OR {since} < interval '0')"
    rows = db.execute(
        f"DELETE FROM boxes WHERE until_ms < {NOW_MS} AND box <> ? AND {is_time} RETURNING box, until_ms",
        (member.box, member.lease_ms),
    ).fetchall()
    return [(box, until_ms - member.lease_ms) for box, until_ms in rows]


def leave(db: Database, member: Member) -> bool:
    """Be a box no more. False: it has been none."""
    query = "DELETE FROM boxes WHERE box = ? AND epoch = ?"
    return db.execute(query, (member.box, member.epoch or "")).rowcount > 0


def list_boxes(db: Database, lease_ms: int, known: Sequence[Box] = ()) -> list[Box]:
    """All boxes, by name. `known`: as they were before; only what has changed since of their statuses is read."""
    before = {box.box: box for box in known}
    found = db.execute(
        f"SELECT box, max_jobs, until_ms, until_ms > {NOW_MS}, (SELECT count(*) FROM jobs WHERE jobs.box = boxes.box "
        f"AND jobs.box IS NOT NULL AND {_UNDER_WAY}), epoch, revision, vram_mb FROM boxes ORDER BY box LIMIT ?",
        (MOST_BOXES,),
    ).fetchall()
    boxes = []
    for name, max_jobs, until_ms, is_alive, running, epoch, revision, vram_mb in found:
        box = before.get(name)
        if box is not None and (box.epoch, box.revision) == (epoch, revision):
            url, status = box.url, box.status
        else:
            url, status = _read_told(db, name)
        beat_at_ms = until_ms - lease_ms
        told = url, status, running, epoch, revision, vram_mb
        boxes.append(Box(name, max_jobs, beat_at_ms, bool(is_alive), *told))
    return boxes


def _read_told(db: Database, box: str) -> tuple[str | None, Mapping[str, Any]]:
    row = db.execute(
        "SELECT CASE WHEN octet_length(url) <= ? THEN url END, CASE WHEN octet_length(status) <= ? THEN status END "
        "FROM boxes WHERE box = ?",
        (LONGEST, STATUS_BYTES, box),
    ).fetchone()
    url, status = row or (None, None)
    return _read_url(url), _read_status(box, status)


def _read_url(text: str | None) -> str | None:
    try:
        return text.rstrip("/") if text is not None and read_url(text) else None
    except UrlError:
        return None


def _read_status(box: str, text: str | None) -> Mapping[str, Any]:
    try:
        status = read_json(text.encode(), _STATUS, "The status") if text is not None else None
    except (GuardError, UnicodeEncodeError) as error:
        log.warning("what %.40s tells about itself is not taken: %s", box, error)
        return {}
    return status if isinstance(status, dict) else {}


def _write_status(status: Mapping[str, Any]) -> str:
    """As JSON; without what is largest, where the others would not read all of it."""
    while True:
        # The names of files may be no text.
        text = json.dumps(dict(status), ensure_ascii=False).encode("utf-8", "replace")
        if len(text) <= STATUS_BYTES:
            return text.decode()
        largest = max(status, key=lambda name: len(json.dumps(status[name])))
        log.warning("the other boxes do not hear of the %s of this one: there is too much of it", largest)
        status = {name: value for name, value in status.items() if name != largest}


# The jobs of a box. -------------------------------------------------------------------------------------------------


def list_under_way(db: Database, box: str, *, and_orphans: bool) -> list[Job]:
    """What the box has under way; `and_orphans`: also what no box has."""
    own = f"SELECT {COLUMNS} FROM jobs INDEXED BY jobs_of_box WHERE box = ? AND box IS NOT NULL AND {_UNDER_WAY}"
    rows = db.execute(own, (box,)).fetchall()
    return [read_job(row) for row in [*rows, *(db.execute(_ORPHANS).fetchall() if and_orphans else [])]]


def list_runs(db: Database, limit: int) -> list[tuple[str, Job]]:
    """What all boxes have under way, each with its box."""
    rows = db.execute(
        f"SELECT box, {COLUMNS} FROM jobs INDEXED BY jobs_of_box WHERE box IS NOT NULL AND {_UNDER_WAY} "
        "ORDER BY started_at_ms, number LIMIT ?",
        (limit,),
    ).fetchall()
    return [(box, read_job(job)) for box, *job in rows]


def list_secretive(db: Database, box: str, *, and_orphans: bool) -> list[Job]:
    """The waiting jobs whose secrets were in that box's memory."""
    whose = "(only_box = ? OR only_box IS NULL)" if and_orphans else "only_box = ?"
    query = f"SELECT {COLUMNS} FROM jobs WHERE state = 'queued' AND has_secrets <> 0 AND {whose}"
    return [read_job(row) for row in db.execute(query, (box,)).fetchall()]


def list_running(db: Database, but: str) -> list[Job]:
    """What all boxes but that one run."""
    where = "box IS NOT NULL AND box <> ? AND state = 'running'"
    rows = db.execute(f"SELECT {COLUMNS} FROM jobs INDEXED BY jobs_of_box WHERE {where} AND {_UNDER_WAY}", (but,))
    return [read_job(row) for row in rows.fetchall()]


def find_places(db: Database, job_ids: Sequence[str]) -> dict[str, str]:
    """Which boxes have these jobs under way."""
    query = f"SELECT job_id, box FROM jobs WHERE job_id = ANY(?) AND box IS NOT NULL AND {_UNDER_WAY}"
    return dict(db.execute(query, (list(job_ids),)).fetchall())


def take_back(db: Database, jobs: Iterable[Job]) -> None:
    """What their runs still write is refused."""
    for job in jobs:
        db.execute("UPDATE jobs SET box = NULL, token = NULL WHERE number = ?", (job.number,))


def bind(db: Database, number: int, member: Member) -> None:
    """Let no other box take the job: its secrets are here."""
    # It is of a kind of its own: see `placing`.
    update = "UPDATE jobs SET only_box = ?, needs = CASE needs WHEN '' THEN '' ELSE needs || ':' || ? END"
    db.execute(f"{update} WHERE number = ?", (member.box, member.box, number))


def ask_token(db: Database, job_id: str) -> Rows:
    """Ask whose run the job is."""
    return db.execute(ASK_TOKEN, (job_id,))
