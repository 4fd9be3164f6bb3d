"""What is left to be asked for of the limits that the boxes of a fleet share. Times are the engine's.

Boxes commit one after the other, so what a transaction reads here is what all of them have taken until then. A row
goes once its bucket is full again: that is what a new one is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..quotas import Taking, Whose, make_refusal
from .database import Database, Foreseeing
from .members import NOW_MS

#: By what is counted and whose it is.
At = tuple[str, Whose]
_LEFT = "SELECT what, owner, user_id, units, at_ms FROM buckets"


@dataclass(frozen=True)
class Levels:
    """What was left in buckets, each with the time at which it was, and the time now. One without a row is full."""

    now_ms: int
    left: Mapping[At, tuple[float, int]]

    def find(self, taking: Taking) -> float:
        """How much is in the bucket now."""
        left, at_ms = self.left.get((taking.what, taking.whose), (taking.quota.units, self.now_ms))
        return taking.quota.fill(left, (self.now_ms - at_ms) / 1000)


def read(db: Database, places: Sequence[At]) -> Levels:
    keys = [(what, *_name(whose)) for what, whose in places]
    rows = db.execute(_ask(len(keys)), [value for key in keys for value in key]).fetchall()
    found = {tuple(row[:3]): (row[3], row[4]) for row in rows}
    now_ms = next(row[4] for row in rows if not row[0])
    left = {place: found[key] for place, key in zip(places, keys, strict=True) if key in found}
    return Levels(now_ms, left)


def _ask(count: int) -> str:
    marks = ", ".join(["(?, ?, ?)"] * count)
    return f"{_LEFT} WHERE (what, owner, user_id) IN ({marks}) UNION ALL SELECT '', '', '', 0, {NOW_MS}"


def foresee(db: Foreseeing, takings: Sequence[Taking]) -> None:
    """Ask for what :func:`take` will read."""
    if takings:
        keys = [(taking.what, *_name(taking.whose)) for taking in takings]
        db.foresee(_ask(len(keys)), [value for key in keys for value in key])


def take(db: Database, takings: Sequence[Taking]) -> None:
    """Take all, or raise RateLimitedError, having written nothing."""
    if not takings:
        return
    levels = read(db, [(taking.what, taking.whose) for taking in takings])
    for taking in takings:
        if wait_s := taking.quota.find_wait_s(levels.find(taking), taking.units):
            raise make_refusal(taking.what, taking.whose, taking.quota, wait_s)
    _write(db, takings, levels)


def add(db: Database, takings: Sequence[Taking]) -> None:
    """Note what was taken already, also where that is more than there was."""
    _write(db, takings, read(db, [(taking.what, taking.whose) for taking in takings]))


def _write(db: Database, takings: Iterable[Taking], levels: Levels) -> None:
    cast(Foreseeing, db).forget_foreseen((_LEFT,))
    rows: list[tuple[Any, ...]] = []
    for taking in takings:
        left = levels.find(taking) - taking.units
        full_at_ms = levels.now_ms + int((taking.quota.units - left) / taking.quota.per_s * 1000) + 1
        rows.append((taking.what, *_name(taking.whose), left, levels.now_ms, full_at_ms))
    marks = ", ".join(["(?, ?, ?, ?, ?, ?)"] * len(rows))  # one statement: others wait for its end
    db.execute(
        f"INSERT INTO buckets (what, owner, user_id, units, at_ms, full_at_ms) VALUES {marks} "
        "ON CONFLICT (what, owner, user_id) DO UPDATE SET units = excluded.units, at_ms = excluded.at_ms, "
        "full_at_ms = excluded.full_at_ms",
        [value for row in rows for value in row],
    )


def forget_full(db: Database) -> None:
    db.execute(f"DELETE FROM buckets WHERE full_at_ms < {NOW_MS}")


def _name(whose: Whose) -> tuple[str, str]:
    owner, user = (*whose, "", "")[:2]
    return owner, user
