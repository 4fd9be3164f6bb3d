"""Bodies of settled jobs, and what is large of their results: which may go, and how they are deleted."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .database import Database
from .listed import keep_files

#: What nodes reported besides files stays without the body where a job's result is no larger than that.
RESULT_BYTES = 16 * 2**10
#: Jobs looked at in one search for bodies, which takes some 20 ms on a reader's thread, and bodies found at once.
LOOKED_AT = 20_000
FOUND = 500


@dataclass(frozen=True)
class Found:
    """Numbers of jobs with bodies and when they settled, the first ones first; up to when; whether there are no more
    after that."""

    bodies: list[tuple[int, int]]
    up_to_ms: int
    is_end: bool


def find_bodies(db: Database, after_ms: int, before_ms: int, limit: int) -> Found:
    """Look at the first `limit` jobs that settled in that time, from `after_ms` on, for those that have bodies."""
    looked_at = (
        "SELECT number, settled_at_ms FROM jobs INDEXED BY jobs_settled WHERE settled_at_ms >= ? AND settled_at_ms < ? "
        "ORDER BY settled_at_ms LIMIT ?"
    )
    values = (after_ms, before_ms, limit)
    query = (
        f"SELECT number, settled_at_ms FROM ({looked_at}) AS looked_at "
        "WHERE EXISTS (SELECT 1 FROM bodies WHERE bodies.number = looked_at.number) ORDER BY settled_at_ms LIMIT ?"
    )
    bodies = db.execute(query, (*values, FOUND)).fetchall()
    if bodies:
        return Found(bodies, bodies[-1][1], is_end=False)
    looked, last_ms = db.execute(
        f"SELECT count(*), max(settled_at_ms) FROM ({looked_at}) AS looked_at", values
    ).fetchone()
    return Found([], last_ms or after_ms, is_end=looked < limit)


def delete_body(db: Database, number: int, now_ms: int) -> int:
    """Delete the body of a job that has settled, and what is large of its result; return their bytes. An open job keeps
    its body."""
    where = "number = ? AND EXISTS (SELECT 1 FROM jobs WHERE jobs.number = bodies.number AND settled_at_ms IS NOT NULL)"
    row = db.execute(f"SELECT length(body) FROM bodies WHERE {where}", (number,)).fetchone()
    if row is None:
        return 0
    db.execute("DELETE FROM bodies WHERE number = ?", (number,))
    db.execute("UPDATE jobs SET body_gone_at_ms = ? WHERE number = ?", (now_ms, number))
    return int(row[0]) + _shorten_result(db, number)


def _shorten_result(db: Database, number: int) -> int:
    """Leave of a large result the files, and nothing of the ids of the nodes asked for it; return the bytes less."""
    large = "coalesce(length(result), 0) + length(outputs_to_execute)"
    where = f"number = ? AND {large} > ?"
    row = db.execute(f"SELECT result, {large} FROM jobs WHERE {where}", (number, RESULT_BYTES)).fetchone()
    if row is None:
        return 0
    result = json.loads(row[0]) if row[0] else None
    if result is not None:
        result["outputs"] = keep_files(result["outputs"])
        if len(json.dumps(result["outputs"])) > RESULT_BYTES:  # names can be long as well
            result["outputs"] = {}
    shortened = json.dumps(result) if result is not None else None
    db.execute("UPDATE jobs SET result = ?, outputs_to_execute = '[]' WHERE number = ?", (shortened, number))
    return max(0, int(row[1]) - len(shortened or ""))
