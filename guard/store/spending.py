"""What the worker's time was spent on, by day, owner, user and template: it outlives the records of the jobs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from .database import Database, Foreseeing

#: So many days on which something ran are kept, the newest: a year, and a month to look back at it. They are counted,
#: since a clock that is ahead would make all of them old.
KEPT_DAYS = 400
#: So many rows may a day of one owner have; what further users of it spend is counted without their names.
ROWS_OF_OWNER = 2000

_IS_THERE = "SELECT 1 FROM spending WHERE day = ? AND owner = ? AND user_id = ? AND template = ?"


@dataclass(frozen=True)
class Spending:
    """A day's runs of one owner's user and template ("": without either), and the worker's time that they took."""

    day: str
    owner: str
    user: str
    template: str
    runs: int
    gpu_ms: int
    load_ms: int


def name_day(at_ms: int) -> str:
    """The day of that time, in UTC: `2026-11-29`."""
    return datetime.fromtimestamp(at_ms / 1000, timezone.utc).date().isoformat()


def add(db: Database, at_ms: int, whose: tuple[str, str, str], gpu_ms: int, load_ms: int) -> None:
    """Count one run. `whose`: owner, user, template."""
    day = name_day(at_ms)
    owner, user, template = whose
    if _add(db, (gpu_ms, load_ms, day, owner, user, template)):
        return
    (rows,) = db.execute("SELECT count(*) FROM spending WHERE day = ? AND owner = ?", (day, owner)).fetchone()
    if rows >= ROWS_OF_OWNER:
        user = ""
        if _add(db, (gpu_ms, load_ms, day, owner, user, template)):
            return
    is_known = db.execute("SELECT 1 FROM spending WHERE day = ? LIMIT 1", (day,)).fetchone()
    db.execute("INSERT INTO spending VALUES (?, ?, ?, ?, 1, ?, ?)", (day, owner, user, template, gpu_ms, load_ms))
    if not is_known:
        db.execute(
            "DELETE FROM spending WHERE day < (WITH RECURSIVE days (day, number) AS (SELECT max(day), 1 FROM spending "
            "UNION ALL SELECT (SELECT max(day) FROM spending WHERE spending.day < days.day), number + 1 FROM days "
            "WHERE day IS NOT NULL AND number < ?) SELECT day FROM days WHERE number = ?)",
            (KEPT_DAYS, KEPT_DAYS),
        )


def foresee(db: Foreseeing, at_ms: int, whose: tuple[str, str, str]) -> None:
    """Ask for what :func:`add` will read."""
    db.foresee(_IS_THERE, (name_day(at_ms), *whose))


def clamp(db: Database, now_ms: int) -> None:
    """Count what was spent on days that have not come yet as spent today: the clock was ahead."""
    today = name_day(now_ms)
    db.execute(
        "INSERT INTO spending SELECT ?, owner, user_id, template, sum(runs), sum(gpu_ms), sum(load_ms) FROM spending "
        "WHERE day > ? GROUP BY owner, user_id, template ON CONFLICT (day, owner, user_id, template) "
        "DO UPDATE SET runs = spending.runs + excluded.runs, gpu_ms = spending.gpu_ms + excluded.gpu_ms, "
        "load_ms = spending.load_ms + excluded.load_ms",
        (today, today),
    )
    db.execute("DELETE FROM spending WHERE day > ?", (today,))


def _add(db: Database, values: tuple[object, ...]) -> bool:
    is_sqlite = isinstance(db, sqlite3.Connection)
    # Elsewhere the number of rows takes a question of its own.
    if not is_sqlite and db.execute(_IS_THERE, values[2:]).fetchone() is None:
        return False
    update = (
        "UPDATE spending SET runs = runs + 1, gpu_ms = gpu_ms + ?, load_ms = load_ms + ? "
        "WHERE day = ? AND owner = ? AND user_id = ? AND template = ?"
    )
    updated = db.execute(update, values)
    return not is_sqlite or updated.rowcount > 0


def read(db: Database, owner: str | None, first_day: str, last_day: str, limit: int) -> list[Spending]:
    """The rows of those days, in order; owner None: everybody's."""
    return list(_iterate(db, owner, first_day, last_day, limit))


def _iterate(db: Database, owner: str | None, first: str, last: str, limit: int) -> Iterator[Spending]:
    where, values = ("", ()) if owner is None else (" AND owner = ?", (owner,))
    query = (
        "SELECT day, owner, user_id, template, runs, gpu_ms, load_ms FROM spending "
        f"WHERE day BETWEEN ? AND ?{where} ORDER BY day, owner, user_id, template LIMIT ?"
    )
    for row in db.execute(query, (first, last, *values, limit)):
        yield Spending(*row)
