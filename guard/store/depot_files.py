"""What the depot has of owners' uploads, and which results it does not have yet.

Uploads are written with the job that names them. A result that could not be put in with its verdict is written down in
that commit, and its row goes once it is there, or its file is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..job import Artifact, Job
from ..outgoing import StoredFile
from . import kept
from .database import Database
from .outbox import DeliveryState, Due, select_due
from .result_files import PATHS_AT_ONCE
from .rows import find_job, marks


@dataclass(frozen=True)
class Deposit:
    """A result on its way into the depot.

    Attributes:
        artifact, is_copy: which of the job's files it is.
        attempts: so many have ended. `since_ms`: when its job succeeded.
    """

    number: int
    job_id: str
    artifact: int
    is_copy: bool
    attempts: int
    since_ms: int
    next_at_ms: int
    state: DeliveryState = DeliveryState.PENDING
    ended_at_ms: int | None = None
    last_status: int | None = None
    last_error: str | None = None

    @property
    def shares(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class Holder:
    """The box that has a result which the depot lacks. `since_ms`: when its job succeeded. `is_sure` False: it has made
    it, and the depot has had it since.
    """

    box: str
    since_ms: int
    is_sure: bool = True


_NAMES = tuple(field.name for field in fields(Deposit))[:7]
_COLUMNS = ", ".join(_NAMES)


def note_uploads(db: Database, owner: str, files: Sequence[StoredFile], now_ms: int) -> None:
    db.executemany(
        "INSERT INTO uploads VALUES (?, ?, ?, ?, ?) ON CONFLICT (owner, path) DO UPDATE SET "
        "depot_key = excluded.depot_key, bytes = excluded.bytes, used_at_ms = excluded.used_at_ms",
        [(owner, file.path, file.key, file.bytes, now_ms) for file in files],
    )
    kept.note(db, owner, files, now_ms)


def claim_upload(db: Database, owner: str, wanted: Iterable[tuple[str, bool]], file: StoredFile, now_ms: int) -> str:
    """See :meth:`.depot_protocol.DepotRecords.claim_upload`."""
    for path, is_free in wanted:
        row = db.execute("SELECT depot_key FROM uploads WHERE owner = ? AND path = ?", (owner, path)).fetchone()
        if row is None and is_free:
            note_uploads(db, owner, [StoredFile(path, file.key, file.bytes)], now_ms)
        if row[0] == file.key if row is not None else is_free:
            return path
    return ""


def find_uploads(db: Database, owner: str, paths: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for start in range(0, len(paths), PATHS_AT_ONCE):
        some = paths[start : start + PATHS_AT_ONCE]
        query = f"SELECT path, depot_key FROM uploads WHERE owner = ? AND path IN ({marks(some)})"
        found.update(db.execute(query, (owner, *some)).fetchall())
    return found


def list_uploads(db: Database, owner: str, limit: int) -> list[str]:
    """See :meth:`.depot_protocol.DepotRecords.list_uploads`."""
    query = "SELECT path FROM uploads WHERE owner = ? AND path <> depot_key ORDER BY path LIMIT ?"
    return [path for (path,) in db.execute(query, (owner, limit)).fetchall() if "/" not in path]


def find_newer_upload(db: Database, owner: str, path: str, key: str, since_ms: int) -> str | None:
    """See :meth:`.depot_protocol.DepotRecords.find_newer_upload`."""
    query = "SELECT depot_key FROM uploads WHERE owner = ? AND path = ? AND depot_key <> ? AND used_at_ms >= ?"
    row = db.execute(query, (owner, path, key, since_ms)).fetchone()
    return row[0] if row is not None else None


def agree_on_mark(db: Database, place: str, mark: str) -> str:
    """The mark of the folder that all boxes use there; the given one where none has said another. Empty: not known."""
    if mark:
        db.execute("INSERT INTO depots VALUES (?, ?) ON CONFLICT (place) DO NOTHING", (place, mark))
    row = db.execute("SELECT mark FROM depots WHERE place = ?", (place,)).fetchone()
    return str(row[0]) if row is not None else ""


def select_inputs(db: Database, keys: Sequence[str]) -> frozenset[str]:
    found: set[str] = set()
    for start in range(0, len(keys), PATHS_AT_ONCE):
        some = keys[start : start + PATHS_AT_ONCE]
        found.update(
            key for (key,) in db.execute(f"SELECT depot_key FROM uploads WHERE depot_key IN ({marks(some)})", some)
        )
    return frozenset(found)


def forget_uploads(db: Database, key: str) -> None:
    db.execute("DELETE FROM uploads WHERE depot_key = ?", (key,))
    kept.forget(db, key)


def list_unread(db: Database, since_ms: int, after: int, limit: int) -> list[tuple[int, tuple[Artifact, ...]]]:
    rows = db.execute(
        "SELECT DISTINCT jobs.number, jobs.job_id FROM unread JOIN jobs ON jobs.job_id = unread.job_id "
        "WHERE unread.since_ms >= ? AND jobs.number > ? ORDER BY jobs.number LIMIT ?",
        (since_ms, after, limit),
    ).fetchall()
    jobs = [(number, find_job(db, job_id)) for number, job_id in rows]
    return [(number, job.result.artifacts) for number, job in jobs if job is not None]


def note_results(db: Database, job: Job, now_ms: int) -> None:
    """Write down which of the job's files the depot has, and which it does not have yet."""
    kept.note(db, job.owner, job.result.stored, now_ms, job.job_id)
    db.executemany(
        "INSERT INTO unstored (job_id, artifact, is_copy, box, attempts, since_ms, next_at_ms) "
        "VALUES (?, ?, ?, ?, 0, ?, ?)",
        [(job.job_id, artifact, int(is_copy), box, now_ms, now_ms) for artifact, is_copy, box in job.result.unstored],
    )


def find_holder(db: Database, job_id: str, artifact: int, is_copy: bool) -> Holder | None:
    query = "SELECT box, since_ms FROM unstored WHERE job_id = ? AND artifact = ? AND is_copy = ?"
    row = db.execute(query, (job_id, artifact, int(is_copy))).fetchone()
    if row is not None:
        return Holder(*row)
    row = db.execute("SELECT box, settled_at_ms FROM jobs WHERE job_id = ? AND box IS NOT NULL", (job_id,)).fetchone()
    return Holder(row[0], row[1], is_sure=False) if row is not None else None


def find_due(db: Database, box: str, now_ms: int, limit: int, under_way: Collection[int]) -> Due[Deposit]:
    waiting = "unstored INDEXED BY unstored_due WHERE box = ?"
    rows, next_at_ms = select_due(db, _COLUMNS, waiting, now_ms, limit, under_way, (), (box,))
    return Due([_read(row) for row in rows], next_at_ms)


def count_held(db: Database) -> dict[str, int]:
    """How many results each box has that the depot lacks."""
    return dict(db.execute("SELECT box, count(*) FROM unstored GROUP BY box").fetchall())


def give_up(db: Database, box: str) -> int:
    """Let nobody wait for what that box alone has: as if it had been gone for long. Returns how many results.

    Their rows stay: where it comes back after all, it puts them in.
    """
    return int(db.execute("UPDATE unstored SET since_ms = 0 WHERE box = ? AND since_ms <> 0", (box,)).rowcount)


def list_orphans(db: Database, box: str, before: str, after: int, limit: int) -> list[Deposit]:
    """See :meth:`.depot_protocol.DepotRecords.list_orphans`."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM unstored WHERE number > ? AND box <> ? "
        "AND (box = ? OR box NOT IN (SELECT box FROM boxes)) ORDER BY number LIMIT ?",
        (after, box, before, limit),
    )
    return [_read(row) for row in rows.fetchall()]


def adopt(db: Database, box: str, number: int, now_ms: int) -> None:
    db.execute("UPDATE unstored SET box = ?, next_at_ms = ? WHERE number = ?", (box, now_ms, number))


def record_attempt(db: Database, after: Deposit) -> None:
    if after.state is DeliveryState.PENDING:
        db.execute(
            "UPDATE unstored SET attempts = ?, next_at_ms = ? WHERE number = ?",
            (after.attempts, after.next_at_ms, after.number),
        )
    else:
        db.execute("DELETE FROM unstored WHERE number = ?", (after.number,))


def hurry(db: Database, box: str, now_ms: int) -> None:
    db.execute("UPDATE unstored SET next_at_ms = ? WHERE box = ? AND next_at_ms > ?", (now_ms, box, now_ms))


def count(db: Database, box: str) -> int:
    (waiting,) = db.execute("SELECT count(*) FROM unstored WHERE box = ?", (box,)).fetchone()
    return int(waiting)


def _read(row: tuple[Any, ...]) -> Deposit:
    stored = dict(zip(_NAMES, row, strict=True))
    return Deposit(**{**stored, "is_copy": bool(stored["is_copy"])})
