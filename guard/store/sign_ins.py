"""Links that sign a browser in on any box of a fleet, by the digests of their tokens. Times are the engine's."""

from __future__ import annotations

from .database import Database
from .members import NOW_MS


def put(db: Database, digest: str, good_for_ms: int) -> None:
    db.execute(f"DELETE FROM sign_ins WHERE until_ms < {NOW_MS}")
    db.execute(f"INSERT INTO sign_ins (digest, until_ms) VALUES (?, {NOW_MS} + ?)", (digest, good_for_ms))


def use(db: Database, digest: str) -> bool:
    """Use a link up, and say whether it was good."""
    query = f"DELETE FROM sign_ins WHERE digest = ? RETURNING until_ms >= {NOW_MS}"
    row = db.execute(query, (digest,)).fetchone()
    return row is not None and bool(row[0])
