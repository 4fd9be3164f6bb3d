"""Whose the files in the depot are: what the quotas of owners' files count there, all boxes together.

A row says that the owner has put the file in, or has put it in again: with the job that names or makes it, or with the
upload. It goes with the file, or once the file has outlived every age.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..outgoing import StoredFile
from ..quotas import FILE_BYTES
from .database import Database
from .result_files import PATHS_AT_ONCE
from .rows import marks


@dataclass(frozen=True)
class Kept:
    """A file of an owner's in the depot; `at_ms`: when it was put in last. `is_shared`: others have it as well."""

    key: str
    bytes: int
    at_ms: int
    is_unread: bool
    is_shared: bool


def note(db: Database, owner: str, files: Iterable[StoredFile], now_ms: int, job_id: str | None = None) -> None:
    """`job_id`: the job that has made them; until its owner has fetched all of its files, they go last."""
    db.executemany(
        "INSERT INTO kept (owner, depot_key, bytes, at_ms, job_id) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (owner, depot_key) DO UPDATE SET "
        "bytes = excluded.bytes, at_ms = excluded.at_ms, job_id = coalesce(excluded.job_id, kept.job_id)",
        [(owner, file.key, file.bytes, now_ms, job_id) for file in files],
    )


def count(db: Database, owners: Sequence[str]) -> dict[str, int]:
    """How many bytes the files of each come to. Owners without any are left out."""
    held: dict[str, int] = {}
    for start in range(0, len(owners), PATHS_AT_ONCE):
        some = owners[start : start + PATHS_AT_ONCE]
        query = f"SELECT owner, sum(bytes + {FILE_BYTES}) FROM kept WHERE owner IN ({marks(some)}) GROUP BY owner"
        held.update((owner, int(total)) for owner, total in db.execute(query, some).fetchall())
    return held


def list_oldest(db: Database, owner: str, before_ms: int, limit: int) -> list[Kept]:
    """The owner's files from before that time, in the order in which they go: unread ones last."""
    rows = db.execute(
        "SELECT depot_key, bytes, at_ms, CASE WHEN EXISTS (SELECT 1 FROM unread WHERE unread.job_id = kept.job_id) "
        "THEN 1 ELSE 0 END AS is_unread, CASE WHEN EXISTS (SELECT 1 FROM kept AS other "
        "WHERE other.depot_key = kept.depot_key AND other.owner <> kept.owner) THEN 1 ELSE 0 END "
        "FROM kept WHERE owner = ? AND at_ms < ? ORDER BY is_unread, at_ms, depot_key LIMIT ?",
        (owner, before_ms, limit),
    ).fetchall()
    return [Kept(key, size, at_ms, bool(unread), bool(shared)) for key, size, at_ms, unread, shared in rows]


def forget(db: Database, key: str) -> None:
    """The file is gone, for whomever."""
    db.execute("DELETE FROM kept WHERE depot_key = ?", (key,))


def forget_of(db: Database, owner: str, key: str) -> None:
    """The owner no longer has it."""
    db.execute("DELETE FROM kept WHERE owner = ? AND depot_key = ?", (owner, key))
    db.execute("DELETE FROM uploads WHERE owner = ? AND depot_key = ?", (owner, key))


def forget_before(db: Database, at_ms: int, limit: int) -> int:
    """Forget some of those that no sweep has left; how many."""
    some = "SELECT owner, depot_key FROM kept WHERE at_ms < ? LIMIT ?"
    rows = db.execute(some, (at_ms, limit)).fetchall()
    db.executemany("DELETE FROM kept WHERE owner = ? AND depot_key = ?", rows)
    return len(rows)
