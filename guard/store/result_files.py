"""Result files: which job made each, and which of them the owners have not fetched."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence

from ..job import Job
from .database import Database
from .rows import find_job

#: Paths in one query: old builds of SQLite allow 999 parameters.
PATHS_AT_ONCE = 500
_UNSTORED = "SELECT job_id FROM unstored"


def record(db: Database, job: Job) -> None:
    """Write down the files of a job that succeeded."""
    files = [
        (file.type, _path_key(f"{file.subfolder}/{file.filename}"), job.job_id, file.index)
        for artifact in job.result.artifacts
        for file in (artifact, artifact.copy)
        if file is not None
    ]
    # An earlier file of the same name has been written over; only the newest can still be fetched.
    replace = "ON CONFLICT (type, path) DO UPDATE SET job_id = excluded.job_id, artifact = excluded.artifact"
    db.executemany(f"INSERT INTO made VALUES (?, ?, ?, ?) {replace}", files)
    db.executemany(
        f"INSERT INTO unread VALUES (?, ?, ?, ?, ?) {replace}, since_ms = excluded.since_ms",
        [(*file, job.settled_at_ms) for file in files],
    )


def find_maker(db: Database, kind: str, path: str) -> tuple[Job, int] | None:
    query = "SELECT job_id, artifact FROM made WHERE type = ? AND path = ?"
    row = db.execute(query, (kind, _path_key(path))).fetchone()
    job = find_job(db, row[0]) if row is not None else None
    return (job, row[1]) if job is not None else None


def list_made(db: Database, kind: str, after: str, limit: int) -> list[str]:
    query = "SELECT path FROM made WHERE type = ? AND path > ? ORDER BY path LIMIT ?"
    rows = db.execute(query, (kind, after.encode("utf-8", "surrogatepass"), limit))
    return [bytes(key).decode("utf-8", "surrogatepass") for (key,) in rows]


def _look_up_each(db: Database, query: str, keys: Sequence[bytes], values: Sequence[object]) -> list[bytes]:
    """What the query finds for each of the keys by itself: `path = column1` in it, and `values` for the rest."""
    all_keys = ", ".join(["(?)"] * len(keys))
    found = db.execute(f"SELECT ({query}) FROM (VALUES {all_keys}) AS asked", (*values, *keys))
    return [bytes(key) for (key,) in found if key is not None]


def select_made(db: Database, kind: str, paths: Sequence[str]) -> frozenset[str]:
    by_key = {_path_key(path): path for path in paths}
    made: list[str] = []
    keys = list(by_key)
    for start in range(0, len(keys), PATHS_AT_ONCE):
        some = keys[start : start + PATHS_AT_ONCE]
        query = "SELECT path FROM made WHERE type = ? AND path = column1"
        made += [by_key[key] for key in _look_up_each(db, query, some, [kind])]
    return frozenset(made)


def mark_fetched(db: Database, job_id: str, artifact: int) -> None:
    db.execute("DELETE FROM unread WHERE job_id = ? AND artifact = ?", (job_id, artifact))


def select_unread(db: Database, kind: str, paths: Sequence[str], since_ms: int) -> frozenset[str]:
    by_key = {_path_key(path): path for path in paths}
    unread: list[str] = []
    keys = list(by_key)
    for start in range(0, len(keys), PATHS_AT_ONCE):
        some = keys[start : start + PATHS_AT_ONCE]
        query = "SELECT path FROM unread WHERE type = ? AND path = column1 AND since_ms >= ?"
        unread += [by_key[key] for key in _look_up_each(db, query, some, [kind, since_ms])]
        # What the depot does not have yet is nowhere else, whoever has fetched it.
        query = f"SELECT path FROM made WHERE type = ? AND path = column1 AND job_id IN ({_UNSTORED})"
        unread += [by_key[key] for key in _look_up_each(db, query, some, [kind])]
    return frozenset(unread)


def list_unread(db: Database, since_ms: int, at_most: int) -> dict[str, frozenset[str]] | None:
    query = "SELECT type, path FROM unread WHERE since_ms >= ? LIMIT ?"
    rows = db.execute(query, (since_ms, at_most + 1)).fetchall()
    unstored = f"SELECT type, path FROM made WHERE job_id IN ({_UNSTORED}) LIMIT ?"
    rows += db.execute(unstored, (at_most + 1,)).fetchall()
    if len(rows) > at_most:
        return None
    by_kind: dict[str, set[str]] = {}
    for kind, key in rows:
        by_kind.setdefault(kind, set()).add(key.decode("utf-8", "surrogatepass"))
    return {kind: frozenset(paths) for kind, paths in by_kind.items()}


def _path_key(path: str) -> bytes:
    """A path below a root as in the tables: with slashes, and as bytes, since file names need not be UTF-8."""
    slashed = path.replace("\\", "/") if os.name == "nt" else path
    return posixpath.normpath(slashed.lstrip("/")).encode("utf-8", "surrogatepass")
