"""The tables as a database describes them, and which rows can be what this package wrote.

SQLite keeps no checksums: where a bad disk changes bytes within a value, it reads another value.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..job import JobState
from .outbox import DeliveryState
from .rows import RowCheck

#: What a value of each declared type may be in Python.
_TYPES: dict[str, tuple[type, ...]] = {"INTEGER": (int,), "REAL": (float, int), "TEXT": (str,), "BLOB": (bytes,)}

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
    #: The types of the values of rows that were found to be right.
    _right: set[tuple[type, ...]] = field(default_factory=set, init=False, repr=False, compare=False)
    #: Raises where a row's values make no sense together.
    _sense: Callable[[Sequence[Any]], object] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (make := _SENSE.get(self.name)) is not None:
            object.__setattr__(self, "_sense", make([column.name for column in self.columns]))

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
        kinds = tuple(map(type, row))
        if kinds not in self._right:
            for column, value in zip(self.columns, row, strict=True):
                if not (value is None and column.is_nullable) and not isinstance(value, column.types):
                    return self._refuse(column)
            self._right.add(kinds)
        for column, value in zip(self.columns, row, strict=True):
            if type(value) is str and not value.isascii() and not _is_text(value):
                return self._refuse(column)
        if self._sense is None:
            return None
        try:
            self._sense(row)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return f"a row of {self.name} makes no sense"
        return None

    def _refuse(self, column: Column) -> str:
        return f"{self.name}.{column.name} holds what cannot be there"


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


def _check_jobs(columns: Sequence[str]) -> Callable[[Sequence[Any]], object]:
    """`columns` may be those of an earlier version."""
    at = {name: place for place, name in enumerate(columns)}
    reads = RowCheck(columns)

    def check(row: Sequence[Any]) -> None:
        reads.check(row)
        is_settled = JobState(row[at["state"]]).settled
        if is_settled is not (row[at["verdict"]] is not None) or is_settled is not (
            row[at["settled_at_ms"]] is not None
        ):
            raise ValueError

    return check


def _check_states(states: type[Enum]) -> Callable[[Sequence[str]], Callable[[Sequence[Any]], object]]:
    def make(columns: Sequence[str]) -> Callable[[Sequence[Any]], object]:
        at = {name: place for place, name in enumerate(columns)}
        return lambda row: states(row[at["state"]])

    return make


_SENSE: dict[str, Callable[[Sequence[str]], Callable[[Sequence[Any]], object]]] = {
    "jobs": _check_jobs,
    "transitions": _check_states(JobState),
    "webhooks": _check_states(DeliveryState),
}
