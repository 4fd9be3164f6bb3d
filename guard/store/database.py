"""What both engines understand, and the few questions that each of them answers in its own way.

Statements are written once, in SQL that SQLite and PostgreSQL read alike, with `?` for values. For SQLite they name
the index (`INDEXED BY`) and the order of a join (`CROSS JOIN … USING`); the connection to PostgreSQL leaves that out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast


class Rows(Protocol):
    """What a statement has found, or how many rows it has changed."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Database(Protocol):
    """A connection: `sqlite3.Connection`, or :class:`.postgres_connection.PostgresConnection`."""

    @property
    def in_transaction(self) -> bool: ...
    def execute(self, query: str, values: Sequence[Any] = ..., /) -> Rows: ...
    def executemany(self, query: str, values: Iterable[Sequence[Any]], /) -> object: ...
    def close(self) -> None: ...


class Remote(Database, Protocol):
    """A connection to an engine that is another process, perhaps on another machine: each question waits for it."""

    def look_up(self, columns: str, table: str, key: str, values: Sequence[Any]) -> Iterator[Any]: ...
    def last_number(self, table: str) -> int: ...
    def keep_last_numbers(self) -> None: ...
    def list_columns(self) -> list[tuple[str, list[str]]]: ...


class Foreseeing(Database, Protocol):
    """Such a connection while it writes: see :class:`.postgres_connection.PostgresConnection`."""

    def foresee(self, query: str, values: Sequence[Any]) -> None: ...
    def take_foreseen(self, query: str, values: Sequence[Any]) -> Rows | None: ...
    def forget_foreseen(self, beginnings: tuple[str, ...] = ...) -> None: ...


@contextmanager
def snapshot(db: Database) -> Iterator[None]:
    """Let all queries see the same state of the tables."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("ROLLBACK")


def look_up(db: Database, columns: str, table: str, key: str, values: Sequence[Any]) -> Iterator[Any]:
    """Read the rows that have these values as their key, in that order; None where there is none.

    SQLite reads each by itself, as it would hold all of them to sort them. Little is read that nobody takes.
    """
    if not isinstance(db, sqlite3.Connection):
        yield from cast(Remote, db).look_up(columns, table, key, values)
        return
    query = f"SELECT {columns} FROM {table} WHERE {key} = ?"
    for value in values:
        yield db.execute(query, (value,)).fetchone()


def last_number(db: Database, table: str) -> int:
    """The last number that the table has assigned. A damaged counter may say less than what is there."""
    if not isinstance(db, sqlite3.Connection):
        return cast(Remote, db).last_number(table)
    (counted,) = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    (there,) = db.execute(f"SELECT coalesce(max(rowid), 0) FROM {table}").fetchone()
    return max(int(counted), int(there))


def keep_last_numbers(db: Database) -> None:
    """Note what `last_number` says, before rows go: no number is given twice. SQLite does that by itself."""
    if not isinstance(db, sqlite3.Connection):
        cast(Remote, db).keep_last_numbers()


def list_columns(db: Database) -> list[tuple[str, list[str]]]:
    """The tables, each with the names of its columns."""
    if not isinstance(db, sqlite3.Connection):
        return cast(Remote, db).list_columns()
    tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return [
        (table, [name for _, name, *_ in db.execute(f'PRAGMA table_info("{table}")').fetchall()]) for (table,) in tables
    ]
