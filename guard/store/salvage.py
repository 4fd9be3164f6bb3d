"""Copy the rows of a damaged database that can be read to a new one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from . import schema
from .pages import find_bad_header, has_log, read_leaves
from .tables import Row, Table, any_text, list_columns, list_tables

#: No page of 4 KiB has more rows of ours.
ROWS_PER_PAGE = 128
#: A larger number is damage: no counter of ours comes as far.
LAST_NUMBER = 2**53

#: What reading raises for damage: SQLite; Python, where a size is too large; and where what SQLite says is not UTF-8.
#: Its subclass OperationalError says that the disk refuses.
_UNREADABLE = (sqlite3.DatabaseError, MemoryError, UnicodeDecodeError)


@dataclass(frozen=True)
class Saved:
    """How many jobs were saved, how many of them wait, and whether nothing was unreadable.

    An open job without what it was to do is not saved.
    """

    jobs: int
    waiting: int
    is_all: bool


def copy_rows(path: Path, fresh: Path) -> Saved | None:
    """Fill the file `fresh`, which does not exist yet; None: nothing could be read.

    Raises `sqlite3.OperationalError` where there is no room, or the disk refuses.
    """
    reader = _open_damaged(path)
    version = find_version(reader.db) if reader else 0
    with closing(_create(fresh, version if 0 < version <= len(schema.MIGRATIONS) else len(schema.MIGRATIONS))) as db:
        db.execute("BEGIN")
        copy = _Copy(db)
        if reader:
            with closing(reader.db):
                for table in copy.tables:
                    copy.add_rows(table, reader)
        else:
            copy.gaps = {table.name for table in copy.tables}
        # Closing has worked the log into the file. Where it could not be, the file is older than what is in the log.
        if not has_log(path):
            copy.add_leaves(read_leaves(path))
        if not copy.rows:
            return None
        copy.drop_strays()
        copy.restore_counters(reader.counters if reader else {}, path.stat().st_size)
        saved = copy.count()
        db.execute("COMMIT")
    return saved


def find_missing(db: sqlite3.Connection, version: int) -> str | None:
    """Say which table or index of that version's schema is not there, if one is not."""
    names = "SELECT type, name FROM sqlite_master WHERE type IN ('table', 'index')"
    with closing(sqlite3.connect(":memory:")) as model:
        for script in schema.MIGRATIONS[:version]:
            model.executescript(script)
        missing = {*model.execute(names)} - {*db.execute(names)}
    return None if not missing else "there is no {} {}".format(*min(missing))


def find_version(db: sqlite3.Connection) -> int:
    """The schema's version by its tables, where they are those of another version than the file says."""
    (said,) = db.execute("PRAGMA user_version").fetchone()
    models: list[dict[str, tuple[str, ...]]] = []
    with closing(sqlite3.connect(":memory:")) as model, suppress(sqlite3.OperationalError):
        for script in schema.MIGRATIONS:
            model.executescript(script)  # one that cannot run here is for the one who migrates to report
            models.append({table.name: list_columns(model, table.name) for table in list_tables(model)})
    found = {name: columns for name in {*chain(*models)} if (columns := list_columns(db, name))}
    alike = [number for number, columns in enumerate(models, start=1) if columns == found]
    return said if said in alike or not alike else alike[-1]


def _open_damaged(path: Path) -> Reader | None:
    """None: SQLite takes it for no database at all, or for one that it cannot use."""
    if find_bad_header(path):
        return None
    db = sqlite3.connect(path, isolation_level=None, timeout=5)
    try:
        db.execute("PRAGMA writable_schema = ON")  # bear descriptions of tables that make no sense
        db.execute("PRAGMA cell_size_check = ON")
        db.execute("PRAGMA query_only = ON")
        try:
            list_columns(db, "jobs")  # where a description is bad, the first look fails, and the next one bears it
        except _UNREADABLE as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
        return Reader(db)
    except BaseException as error:
        db.close()
        if isinstance(error, sqlite3.OperationalError) or not isinstance(error, _UNREADABLE):
            raise
        return None


def _create(fresh: Path, version: int) -> sqlite3.Connection:
    """An empty database of that version. A file that is not completed is thrown away, so it needs no journal."""
    db = sqlite3.connect(fresh, isolation_level=None)
    try:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        for script in schema.MIGRATIONS[:version]:
            db.executescript(script)
        db.execute(f"PRAGMA user_version = {version}")
    except BaseException:
        db.close()
        raise
    return db


class _Copy:
    """The new database while it is filled.

    Attributes:
        gaps: the names of tables of which not every row could be read.
        rows: how many rows it has got.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.tables = list_tables(db)
        self.gaps: set[str] = set()
        self.rows = 0
        columns = list_columns(db, "jobs")
        self._event_at = columns.index("event_id") if "event_id" in columns else None

    def add_rows(self, table: Table, reader: Reader) -> None:
        """Add what SQLite finds of a table."""
        reader.is_whole = True
        for row in reader.read(table):
            values = row[1:] if table.has_rowid else row
            if table.fault(values) is None:
                self._add(table, row[0], values)
            else:
                reader.is_whole = False
        if not reader.is_whole:
            self.gaps.add(table.name)

    def add_leaves(self, rows: Iterable[tuple[int, list[Any]]]) -> None:
        """Add rows that SQLite did not find. They do not say whose they are, but their values do."""
        numbered = [table for table in self.tables if table.has_rowid]
        by_length: dict[int, list[Table]] = {}
        for rowid, values in rows:
            if (length := len(values)) not in by_length:
                by_length[length] = [table for table in numbered if table.least <= length <= len(table.columns)]
            for table in by_length[length]:
                if self._has(table, rowid, values):
                    continue
                row = table.complete(rowid, values)
                if table.fault(row) is None:
                    if table.name == "jobs":  # as it was before
                        job_id = table.as_dict(row)["job_id"]
                        self._db.execute("DELETE FROM jobs WHERE number = ? AND job_id = ?", (rowid, job_id))
                    self._add(table, rowid, row)
                    self.gaps.add(table.name)
                    break

    def _has(self, table: Table, rowid: int, values: Sequence[Any]) -> bool:
        """Whether the table has that row. Of a job there may be earlier ones on free pages whose list is lost, too."""
        query = f"SELECT 1 FROM {table.name} WHERE rowid = ?"
        if table.name == "jobs" and self._event_at is not None:
            event_id = values[self._event_at] if len(values) > self._event_at else 0
            return self._db.execute(f"{query} AND event_id >= ?", (rowid, event_id)).fetchone() is not None
        return self._db.execute(query, (rowid,)).fetchone() is not None

    def _add(self, table: Table, rowid: Any, values: Sequence[Any]) -> None:
        """A row that breaks a constraint was damaged, too, or is there already."""
        names, row = table.names, tuple(values)
        if table.has_rowid and not table.alias:
            names, row = f"rowid, {names}", (rowid, *row)
        marks = ", ".join("?" * len(row))
        self.rows += self._db.execute(f"INSERT OR IGNORE INTO {table.name} ({names}) VALUES ({marks})", row).rowcount

    def drop_strays(self) -> None:
        """Delete what contradicts the rest: jobs that have moved on since, and what belongs to jobs that are lost.

        Webhooks stay: each says all that its receiver needs.
        """
        if self._event_at is not None:
            self._db.execute(
                "DELETE FROM jobs WHERE EXISTS (SELECT 1 FROM transitions WHERE job_id = jobs.job_id "
                "AND event_id > jobs.event_id AND state <> jobs.state)"
            )
        for table in self.tables:
            if table.name == "bodies":
                self._db.execute("DELETE FROM bodies WHERE number NOT IN (SELECT number FROM jobs)")
            elif table.name not in ("jobs", "webhooks") and "job_id" in list_columns(self._db, table.name):
                self._db.execute(f"DELETE FROM {table.name} WHERE job_id NOT IN (SELECT job_id FROM jobs)")

    def restore_counters(self, counters: dict[str, int], size_bytes: int) -> None:
        """Let each counter go on behind every number that it may have given; `counters` are those that are known."""
        used = {"jobs": "SELECT number FROM bodies", "transitions": "SELECT event_id FROM jobs"}
        for table in self.tables:
            if not table.counts:
                continue
            numbers = " UNION ALL ".join([f"SELECT rowid FROM {table.name}", *filter(None, [used.get(table.name)])])
            (last,) = self._db.execute(f"SELECT coalesce(max(rowid), 0) FROM ({numbers})").fetchone()
            if table.name in counters:
                last = max(last, counters[table.name])
            elif self.gaps:
                last += ROWS_PER_PAGE * (size_bytes // 4096)
            self._db.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table.name,))
            if last:
                self._db.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (table.name, last))

    def count(self) -> Saved:
        jobs, waiting = self._db.execute(
            "SELECT count(*), total(state = 'queued') FROM jobs WHERE settled_at_ms IS NOT NULL "
            "OR EXISTS (SELECT 1 FROM bodies WHERE number = jobs.number)"
        ).fetchone()
        return Saved(jobs, int(waiting), not self.gaps)


class Reader:
    """Reads the rows that SQLite still finds in a damaged database.

    Attributes:
        is_whole: nothing of the table that is read has been unreadable so far.
        counters: the last number that each table has given, as far as it can be read.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.is_whole = True
        self.counters = self._read_counters()

    def read(self, table: Table) -> Iterator[Row]:
        """Rows, each once, from both ends towards the damage: a rowid, where the table has one, and the values."""
        if not {column.name for column in table.columns} <= {*list_columns(self.db, table.name)}:
            self.is_whole = False  # its description is lost
            return
        key = ("rowid",) if table.has_rowid else table.key
        shown = f"rowid, {table.names}" if table.has_rowid else table.names
        places = [shown.split(", ").index(name) for name in key]
        seen: set[Row] = set()
        with any_text(self.db):
            for order in ("ASC", "DESC"):
                by = ", ".join(f"{name} {order}" for name in key)
                for row in self._rows(f"SELECT {shown} FROM {table.name} NOT INDEXED ORDER BY {by}"):
                    at = tuple(row[place] for place in places) if row is not None else ()
                    if row is None or at in seen:  # seen: a bad link, perhaps in a circle
                        self.is_whole = False
                        break
                    seen.add(at)
                    yield row
                else:
                    return

    def _read_counters(self) -> dict[str, int]:
        counters: dict[str, int] = {}
        if not list_columns(self.db, "sqlite_sequence"):
            return counters
        with any_text(self.db):
            for row in self._rows("SELECT name, seq FROM sqlite_sequence"):
                if row is not None and isinstance(row[1], int) and 0 <= row[1] <= LAST_NUMBER:
                    counters[row[0]] = max(row[1], counters.get(row[0], 0))
        return counters

    def _rows(self, query: str) -> Iterator[Row | None]:
        """The rows of a query; None at the end where the rest cannot be read."""
        seen = 0
        try:
            cursor = self.db.execute(query)
            try:
                for row in cursor:
                    seen += 1
                    yield row
                return
            except _UNREADABLE as error:
                self._note(error)
            finally:
                cursor.close()
            # Before sqlite3 hands out a row it looks for the next one, and where that fails, it loses the first: the
            # last row before the damage must be read alone.
            yield from self.db.execute(f"{query} LIMIT 1 OFFSET {seen}").fetchall()
        except _UNREADABLE as error:
            self._note(error)
        yield None

    def _note(self, error: BaseException) -> None:
        """Note damage; raise what is none: the disk is full, or refuses."""
        if isinstance(error, sqlite3.OperationalError):
            raise error
        self.is_whole = False
