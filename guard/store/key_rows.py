"""The keys of a fleet, each as the text that its owner in :mod:`..access` makes of it; a change of any has a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Protocol, TypeVar

from .database import Database

T = TypeVar("T")
Rows = Mapping[str, str]
#: Gets all keys by their ids; returns what to tell, and those that are new or changed. It may be called again.
Edit = Callable[[Rows], "tuple[T, Rows]"]


class KeyTable(Protocol):
    """Where the keys of a fleet are."""

    def read_keys(self, known: int | None) -> Future[tuple[int, Rows] | None]:
        """Read all, with the number of the last change; None where that is the `known` one."""

    def change_keys(self, edit: Edit[T]) -> Future[T]:
        """Change some, while nobody else does."""


def read(db: Database, known: int | None) -> tuple[int, Rows] | None:
    last = _find_last(db)
    return None if last == known else (last, dict(db.execute("SELECT key_id, body FROM keys").fetchall()))


def change(db: Database, edit: Edit[T]) -> T:
    told, changed = edit(dict(db.execute("SELECT key_id, body FROM keys").fetchall()))
    if changed:
        number = _find_last(db) + 1
        db.executemany(
            "INSERT INTO keys (key_id, body, change) VALUES (?, ?, ?) "
            "ON CONFLICT (key_id) DO UPDATE SET body = excluded.body, change = excluded.change",
            [(key_id, body, number) for key_id, body in changed.items()],
        )
    return told


def _find_last(db: Database) -> int:
    (last,) = db.execute("SELECT coalesce(max(change), 0) FROM keys").fetchone()
    return int(last)
