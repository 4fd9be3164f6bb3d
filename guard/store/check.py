"""Look for damage in a database that is in use: in slices, as one long look would keep SQLite's log from shrinking.

Small files have been checked before they are used (:mod:`.disk`), but not every value in them.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from .rows import IS_OPEN
from .tables import Table, any_text, list_tables

#: A slice ends after this time, or after so many rows. Then the log may be worked into the file before the next one.
SLICE_S = 0.02
SLICE_ROWS = 10_000


class Check:
    """One walk over everything in a database, in slices: each row with all its pages, and whether it makes sense; each
    entry of each index.

    What changes meanwhile may be seen twice or not at all. The thread that owns the connection.
    """

    def __init__(self, report: Callable[[BaseException], None]) -> None:
        """`report` is told of damage."""
        self._report = report
        self._db: sqlite3.Connection | None = None
        self._slices: Iterator[None] = iter(())
        self.is_done = False

    def look(self, db: sqlite3.Connection | None) -> None:
        """Look at one more slice, until all is seen or damage is found."""
        if self.is_done or db is None:
            return
        try:
            self.is_done = not self.step(db)
        except sqlite3.DatabaseError as error:
            self._db = None  # begin again
            if type(error) is not sqlite3.DatabaseError:
                raise  # the disk refuses, or the like
            self.is_done = True
            self._report(error)

    def step(self, db: sqlite3.Connection) -> bool:
        """Look at one more slice; say whether there is more to see. Leaves no transaction open.

        Raises `sqlite3.DatabaseError`, which is not an OperationalError, for damage.
        """
        if db is not self._db:  # the first slice, or another file
            self._db, self._slices = db, _walk(db)
        return next(self._slices, self) is not self


def find_nonsense(db: sqlite3.Connection, everywhere: bool) -> str | None:
    """Say which row makes no sense, if one does: the value is damaged, which a check of the file does not see.

    Unless `everywhere`, look only at rows that the server cannot do without: open jobs, and webhooks to deliver.
    """
    live = {"jobs": IS_OPEN, "webhooks": "state = 'pending'"}
    for table in list_tables(db):
        if everywhere or table.name in live:
            query = f"SELECT {table.names} FROM {table.name} {'' if everywhere else f'WHERE {live[table.name]}'}"
            try:
                fault = _find_fault(db, table, query)
            except sqlite3.OperationalError:  # a text that is none, say
                with any_text(db):
                    fault = _find_fault(db, table, query)
            if fault:
                return fault
    return None


def _find_fault(db: sqlite3.Connection, table: Table, query: str) -> str | None:
    return next((fault for row in db.execute(query) if (fault := table.fault(row))), None)


def _walk(db: sqlite3.Connection) -> Iterator[None]:
    for table in list_tables(db):
        yield from _walk_rows(db, table)
        yield
        for index in _list_indexes(db, table):
            yield from _walk_index(db, table, index)
            yield


def _walk_rows(db: sqlite3.Connection, table: Table) -> Iterator[None]:
    key = ("rowid",) if table.has_rowid else table.key
    names, marks = ", ".join(key), ", ".join("?" * len(key))
    after: Sequence[Any] | None = None
    while True:
        where = f"WHERE ({names}) > ({marks})" if after is not None else ""
        query = f"SELECT {names}, {table.names} FROM {table.name} NOT INDEXED {where} ORDER BY {names}"
        _rows, last, is_end = _read_slice(db, query, after or (), lambda row: table.fault(row[len(key) :]))
        if is_end or last is None:
            return
        after = last[: len(key)]
        yield


@dataclass(frozen=True)
class _Index:
    name: str
    order: str
    where: str
    beyond: str  # a column that is not in the index, so that each entry must lead to its row


def _list_indexes(db: sqlite3.Connection, table: Table) -> list[_Index]:
    rows = db.execute(
        "SELECT name, coalesce(sql, '') FROM sqlite_master WHERE type = 'index' AND tbl_name = ?", (table.name,)
    )
    found = []
    for name, sql in rows.fetchall():
        info = db.execute(f"PRAGMA index_xinfo({name})").fetchall()
        order = ", ".join(f"{column} {'DESC' if down else 'ASC'}" for _n, _c, column, down, _coll, key in info if key)
        covered = {column for _n, _c, column, *_rest in info}
        beyond = next((column.name for column in table.columns if column.name not in covered), "1")
        where = re.search(r"\sWHERE\s.*", sql, re.DOTALL)
        found.append(_Index(name, order, where[0] if where else "", beyond))
    return found


def _walk_index(db: sqlite3.Connection, table: Table, index: _Index) -> Iterator[None]:
    query = f"SELECT {index.beyond} FROM {table.name} INDEXED BY {index.name} {index.where} ORDER BY {index.order}"
    seen = 0
    while True:
        # OFFSET walks over what was seen, without its rows: some milliseconds for each million entries.
        rows, _last, is_end = _read_slice(db, f"{query} LIMIT -1 OFFSET ?", (seen,))
        seen += rows
        if is_end:
            return
        yield


def _read_slice(
    db: sqlite3.Connection,
    query: str,
    values: Sequence[Any],
    find_fault: Callable[[Sequence[Any]], str | None] | None = None,
) -> tuple[int, Sequence[Any] | None, bool]:
    """Read rows for a moment. Return how many, the last one, and whether there are no more."""
    until_s = time.monotonic() + SLICE_S
    rows, row = 0, None
    with any_text(db), closing(db.execute(query, values)) as cursor:
        for row in cursor:
            rows += 1
            if find_fault is not None and (fault := find_fault(row)):
                raise sqlite3.DatabaseError(fault)
            if rows >= SLICE_ROWS or time.monotonic() > until_s:
                return rows, row, False
    return rows, row, True
