"""The tables as a database describes them, and which rows can be what this package wrote.

SQLite keeps no checksums: where a bad disk changes bytes within a value, it reads another value.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..job import JobState
from .outbox import DeliveryState
from .rows import COLUMNS, read_job

#: What a value of each declared type may be in Python.
_TYPES: dict[str, tuple[type, ...]] = {"INTEGER": (int,), "REAL": (float, int), "TEXT": (str,), "BLOB": (bytes,)}
_JOB = COLUMNS.split(", ")

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Column:
    """A column; `types` are those of its values in Python, None not counted. Rows older than it have its `default`."""

    name: str
    types: tuple[type, ...]
    is_nullable: bool
    default: Any


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        key: the columns of its primary key, in order.
        has_rowid: it is numbered; `alias` is the column that shows the number, if any.
        counts: it has a counter, so that no number is given twice.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    has_rowid: bool
    alias: str | None
    counts: bool

    @property
    def names(self) -> str:
        return ", ".join(column.name for column in self.columns)

    @property
    def least(self) -> int:
        """How many values a row must have; those of columns that were added later may be missing."""
        needed = [
            place for place, column in enumerate(self.columns) if not column.is_nullable and column.default is None
        ]
        return max(needed, default=-1) + 1

    def as_dict(self, row: Sequence[Any]) -> dict[str, Any]:
        return dict(zip((column.name for column in self.columns), row, strict=True))

    def complete(self, rowid: int, stored: Sequence[Any]) -> Row:
        """Make a row of what a page has of it: the alias of the rowid is not there, nor what was added later."""
        return tuple(
            (rowid if column.name == self.alias and stored[place] is None else stored[place])
            if place < len(stored)
            else column.default
            for place, column in enumerate(self.columns)
        )

    def fault(self, row: Sequence[Any]) -> str | None:
        """Say why a row (one value for each column) cannot be what this package wrote; None if it can."""
        for column, value in zip(self.columns, row, strict=True):
            if value is None and column.is_nullable:
                continue
            if not isinstance(value, column.types) or (isinstance(value, str) and not _is_text(value)):
                return f"{self.name}.{column.name} holds what cannot be there"
        sense = _SENSE.get(self.name)
        if sense is None:
            return None
        try:
            sense(self.as_dict(row))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return f"a row of {self.name} makes no sense"
        return None


def list_tables(db: sqlite3.Connection) -> list[Table]:
    """Describe all tables but SQLite's own."""
    rows = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY rowid").fetchall()
    return [_describe(db, name, sql) for name, sql in rows if not name.startswith("sqlite_")]


def list_columns(db: sqlite3.Connection, table: str) -> tuple[str, ...]:
    """The names of a table's columns; none where there is no such table."""
    with any_text(db):
        return tuple(name for _cid, name, *_rest in db.execute(f"PRAGMA table_info({table})").fetchall())


@contextmanager
def any_text(db: sqlite3.Connection) -> Iterator[None]:
    """Read text that is not UTF-8 as text with surrogates, which :meth:`Table.fault` reports, instead of failing."""
    before = db.text_factory
    db.text_factory = lambda value: value.decode("utf-8", "surrogateescape")
    try:
        yield
    finally:
        db.text_factory = before


def _describe(db: sqlite3.Connection, name: str, sql: str) -> Table:
    info = db.execute(f"PRAGMA table_info({name})").fetchall()
    key = tuple(column for _place, column, *_rest, order in sorted(info, key=lambda row: row[5]) if order)
    declared = sql.upper()
    has_rowid = "WITHOUT ROWID" not in declared
    types = {column: kind.upper() for _cid, column, kind, *_rest in info}
    return Table(
        name=name,
        columns=tuple(
            Column(
                column,
                _TYPES.get(kind.upper(), (object,)),
                is_nullable=not (required or order),
                default=db.execute(f"SELECT {default}").fetchone()[0] if default is not None else None,
            )
            for _cid, column, kind, required, default, order in info
        ),
        key=key,
        has_rowid=has_rowid,
        alias=key[0] if has_rowid and len(key) == 1 and types[key[0]] == "INTEGER" else None,
        counts="AUTOINCREMENT" in declared,
    )


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _check_job(row: dict[str, Any]) -> None:
    settled = JobState(row["state"]).settled
    if settled is not (row["verdict"] is not None) or settled is not (row["settled_at_ms"] is not None):
        raise ValueError
    if _has_all(row, _JOB):
        read_job(tuple(row[name] for name in _JOB))


def _has_all(row: dict[str, Any], names: Iterable[str]) -> bool:
    """Whether the row is of the schema of today. Rows of earlier ones lack columns."""
    return all(name in row for name in names)


_SENSE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "jobs": _check_job,
    "transitions": lambda row: JobState(row["state"]),
    "webhooks": lambda row: DeliveryState(row["state"]),
}
