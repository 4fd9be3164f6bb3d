"""What operators should look at, the newest: what, when, of which job, and since when it is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from .database import Database

#: So many are kept.
KEPT = 1000
#: A longer text of one is cut.
MESSAGE_CHARS = 2000


@dataclass(frozen=True)
class NewAlarm:
    """Something that has just happened; `job_id` where it concerns one job, `box` where it was, of a fleet."""

    at_ms: int
    code: str
    message: str
    job_id: str | None = None
    box: str | None = None


@dataclass(frozen=True)
class Alarm:
    """The same as the store knows it; `seen_at_ms` is None until an operator has said that it is seen."""

    number: int
    at_ms: int
    code: str
    message: str
    job_id: str | None
    seen_at_ms: int | None
    box: str | None


_COLUMNS = ", ".join(field.name for field in fields(Alarm))


def put(db: Database, alarms: Sequence[NewAlarm]) -> None:
    db.executemany(
        "INSERT INTO alarms (at_ms, code, message, job_id, box) VALUES (?, ?, ?, ?, ?)",
        [(alarm.at_ms, alarm.code, alarm.message[:MESSAGE_CHARS], alarm.job_id, alarm.box) for alarm in alarms],
    )
    db.execute("DELETE FROM alarms WHERE number <= (SELECT max(number) FROM alarms) - ?", (KEPT,))


def list_newest(db: Database, limit: int, before: int | None) -> list[Alarm]:
    query = f"SELECT {_COLUMNS} FROM alarms WHERE number < ? ORDER BY number DESC LIMIT ?"
    return [Alarm(*row) for row in db.execute(query, (2**62 if before is None else before, limit))]


def count_unseen(db: Database) -> int:
    (count,) = db.execute("SELECT count(*) FROM alarms INDEXED BY alarms_unseen WHERE seen_at_ms IS NULL").fetchone()
    return int(count)


def mark_seen(db: Database, numbers: Sequence[int], up_to: int, now_ms: int) -> int:
    """Mark those of these numbers, and all up to `up_to`; return how many that were not seen are left."""
    update = "UPDATE alarms SET seen_at_ms = ? WHERE seen_at_ms IS NULL AND number"
    db.executemany(f"{update} = ?", [(now_ms, number) for number in numbers])
    db.execute(f"{update} <= ?", (now_ms, up_to))
    return count_unseen(db)
