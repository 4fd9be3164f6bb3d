"""Mend a damaged database: build its indexes anew, or copy the rows that can still be read to a new file.

A new file takes the old one's place only when it is complete and on the disk, and the damaged one is always kept.
Whatever fails for want of room raises `sqlite3.OperationalError` or OSError and leaves everything as it was.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import schema
from .tables import Table, any_text, list_columns, list_tables

log = logging.getLogger("guarded.store")

#: The files that make up one database.
PARTS = ("", "-wal", "-shm")
#: No page of 4 KiB has more rows of ours.
ROWS_PER_PAGE = 128
#: Give up looking for more rows between damaged pages after so many failures (about a second).
PROBES = 20_000
#: A larger number is damage: no counter of ours comes as far.
LAST_NUMBER = 2**53

Row = tuple[Any, ...]


def reindex(path: Path) -> None:
    """Build all indexes anew where the damage is in them alone.

    The change is committed only once a check of the whole file has found nothing.
    """
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as db:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE")
            if (found := find_damage(db)) is None:
                return  # the damage is none that indexes can have
            db.execute("REINDEX")
            if find_damage(db) is not None:
                return
            db.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        return
    log.error("indexes of the job database %s were damaged (%s); they were built anew. No job is lost.", path, found)


def find_damage(db: sqlite3.Connection) -> str | None:
    """Check the whole file; say in one line what is wrong. 64 MiB take up to half a second.

    Raises `sqlite3.DatabaseError` where it cannot be read at all.
    """
    (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    return None if verdict == "ok" else one_line(verdict)


def one_line(message: object) -> str:
    return " ".join(str(message).split()).removeprefix("*** in database main *** ")


@dataclass(frozen=True)
class Saved:
    """How many jobs were saved, how many of them wait, and whether nothing was unreadable.

    An open job without what it was to do is not saved.
    """

    jobs: int
    waiting: int
    is_all: bool


def salvage(path: Path, damage: str) -> None:
    """Copy every row that can be read to a new file and put that in place, unless nothing could be read."""
    fresh = path.with_name(f"{path.name}.repairing")
    fresh.unlink(missing_ok=True)
    try:
        saved = _copy_rows(path, fresh)
        if saved is not None:
            sync(fresh)
            os.replace(fresh, _repaired(path))
            sync(path.parent)
    finally:
        fresh.unlink(missing_ok=True)
    if saved is None:
        return
    aside = finish(path)
    log.error(
        "the job database %s was damaged (%s); what could be read is in a new file: %d jobs were saved, %d of them "
        "waiting. %s The damaged file was set aside as %s.",
        path,
        damage,
        saved.jobs,
        saved.waiting,
        "Nothing was unreadable." if saved.is_all else "Rows may be missing.",
        aside,
    )


def finish(path: Path) -> str | None:
    """Put the file that `salvage` has completed in place, if there is one; return the damaged one's new name.

    Each step may be repeated: a kill in between loses neither file.
    """
    repaired = _repaired(path)
    if not repaired.exists():
        return None
    aside = set_aside(path)
    os.replace(repaired, path)
    sync(path.parent)
    return aside


def set_aside(path: Path) -> str:
    """Rename a damaged database, with what belongs to it; return its new name."""
    aside = find_free_name(path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}"))
    for suffix in PARTS:
        if (part := Path(f"{path}{suffix}")).exists():
            os.replace(part, f"{aside}{suffix}")
    sync(path.parent)
    return aside.name


def find_free_name(path: Path) -> Path:
    """`path`, with a number appended if that name is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no such thing for folders
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _repaired(path: Path) -> Path:
    return path.with_name(f"{path.name}.repaired")


def find_version(db: sqlite3.Connection) -> int:
    """The schema's version by its tables, where they are those of another version than the file says."""
    (said,) = db.execute("PRAGMA user_version").fetchone()
    columns = list_columns(db)
    with closing(sqlite3.connect(":memory:")) as model:
        alike = []
        # A migration that cannot run here is for the one who migrates to report.
        with suppress(sqlite3.OperationalError):
            for number, script in enumerate(schema.MIGRATIONS, start=1):
                model.executescript(script)
                if list_columns(model) == columns:
                    alike.append(number)
    return said if said in alike or not alike else alike[-1]


# Copying. ----------------------------------------------------------------------------------------------------


def _copy_rows(path: Path, fresh: Path) -> Saved | None:
    try:
        damaged = _open_damaged(path)
        with closing(damaged):
            version = find_version(damaged)
            there = list_columns(damaged)
            reader = Reader(damaged)
            with closing(
                _create(fresh, version if 0 < version <= len(schema.MIGRATIONS) else len(schema.MIGRATIONS))
            ) as db:
                db.execute("BEGIN")
                for table in list_tables(db):
                    if set(there.get(table.name, ())) >= {column.name for column in table.columns}:
                        _copy_table(db, table, reader)
                    else:
                        reader.is_all = False
                _restore_counters(db, reader)
                _drop_strays(db)
                db.execute("COMMIT")
                if not reader.rows:
                    return None
                jobs, waiting = db.execute(
                    "SELECT count(*), total(state = 'queued') FROM jobs WHERE settled_at_ms IS NOT NULL "
                    "OR EXISTS (SELECT 1 FROM bodies WHERE number = jobs.number)"
                ).fetchone()
                return Saved(jobs, int(waiting), reader.is_all)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        return None


def _open_damaged(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=5)
    try:
        db.execute("PRAGMA writable_schema = ON")  # bear a table's description that makes no sense
        db.execute("PRAGMA cell_size_check = ON")
        db.execute("PRAGMA query_only = ON")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        db.close()
        raise
    return db


def _create(fresh: Path, version: int) -> sqlite3.Connection:
    """An empty database of that version. A file that is not completed is thrown away, so it needs no journal."""
    db = sqlite3.connect(fresh, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        for script in schema.MIGRATIONS[:version]:
            db.executescript(script)
        db.execute(f"PRAGMA user_version = {version}")
    except BaseException:
        db.close()
        raise
    return db


def _copy_table(db: sqlite3.Connection, table: Table, reader: Reader) -> None:
    """Copy the rows that can be read and make sense. A row that breaks a constraint was damaged, too."""
    names = table.names if table.alias or not table.has_rowid else f"rowid, {table.names}"
    insert = f"INSERT OR IGNORE INTO {table.name} ({names}) VALUES ({', '.join('?' * len(names.split(', ')))})"
    for row in reader.read(table):
        values = row[1:] if table.alias else row
        if table.fault(row[1:] if table.has_rowid else row) is not None:
            reader.is_all = False
            continue
        reader.rows += db.execute(insert, values).rowcount


def _restore_counters(db: sqlite3.Connection, reader: Reader) -> None:
    """Let each counter go on behind every number that it may have given."""
    columns = list_columns(db)
    used = {"jobs": "SELECT number FROM bodies"}
    if "event_id" in columns["jobs"]:
        used["transitions"] = "SELECT event_id FROM jobs"
    for table in list_tables(db):
        if not table.counts:
            continue
        numbers = f"SELECT rowid FROM {table.name}"
        if table.name in used:
            numbers += f" UNION ALL {used[table.name]}"
        (last,) = db.execute(f"SELECT coalesce(max(rowid), 0) FROM ({numbers})").fetchone()
        if table.name in reader.counters:
            last = max(last, reader.counters[table.name])
        elif not reader.is_all:
            last += ROWS_PER_PAGE * reader.pages
        db.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table.name,))
        if last:
            db.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (table.name, last))


def _drop_strays(db: sqlite3.Connection) -> None:
    """Delete what belongs to jobs that are lost. Webhooks stay: each says all that its receiver needs."""
    for table in list_tables(db):
        names = {column.name for column in table.columns}
        if table.name == "bodies":
            db.execute("DELETE FROM bodies WHERE number NOT IN (SELECT number FROM jobs)")
        elif "job_id" in names and table.name not in ("jobs", "webhooks"):
            db.execute(f"DELETE FROM {table.name} WHERE job_id NOT IN (SELECT job_id FROM jobs)")


class Reader:
    """Reads the rows of a damaged database that lie on undamaged pages.

    Attributes:
        is_all: nothing has been unreadable so far.
        rows: how many rows its user has kept.
        pages: how many pages the file has.
        counters: the last number that each table has given, as far as it can be read.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.is_all = True
        self.rows = 0
        (self.pages,) = db.execute("PRAGMA page_count").fetchone()
        self.counters = self._read_counters()

    def read(self, table: Table) -> Iterator[Row]:
        """Rows, each once: its values; before them its rowid, where the table has one."""
        with any_text(self._db):
            yield from self._read_by_number(table) if table.has_rowid else self._read_by_key(table)

    def _read_counters(self) -> dict[str, int]:
        counters: dict[str, int] = {}
        with any_text(self._db):
            for row in self._rows("SELECT name, seq FROM sqlite_sequence"):
                if row is not None and isinstance(row[1], int) and 0 <= row[1] <= LAST_NUMBER:
                    counters[row[0]] = max(row[1], counters.get(row[0], 0))
        return counters

    def _read_by_number(self, table: Table) -> Iterator[Row]:
        """Read from both ends towards the damage, then from the middle of what is left, and so on.

        A seek fails only where its way leads over a damaged page, so this finds the good pages between damaged ones.
        """
        gaps: deque[tuple[int, int, tuple[str, ...]]] = deque([(0, self._find_end(table), ("ASC", "DESC"))])
        failures = 0
        while gaps and failures < PROBES:
            low, high, orders = gaps.popleft()
            is_done = False
            for order in orders:
                at, is_done = yield from self._scan(table, low, high, order)
                low, high = (at, high) if order == "ASC" else (low, at)
                if is_done:
                    break
            else:
                failures += 1
            if not is_done and high - low > 2:
                middle = (low + high) // 2
                gaps += [(low, middle + 1, ("DESC",)), (middle, high, ("ASC",))]

    def _find_end(self, table: Table) -> int:
        """A number behind all of the table's. Where its last page is damaged, it is an estimate."""
        row = next(self._rows(f"SELECT max(rowid) FROM {table.name} NOT INDEXED"), None)
        if row is None:
            counted = self.counters.get(table.name) or max(self.counters.values(), default=None)
            row = (ROWS_PER_PAGE * self.pages if counted is None else counted,)
        return 1 + int(row[0] or 0)

    def _scan(self, table: Table, low: int, high: int, order: str) -> Generator[Row, None, tuple[int, bool]]:
        """Read rows between two numbers; return the number up to which that went, and whether it is all of them."""
        query = (
            f"SELECT rowid, {table.names} FROM {table.name} NOT INDEXED WHERE rowid > ? AND rowid < ? "
            f"ORDER BY rowid {order}"
        )
        is_up = order == "ASC"
        at = low if is_up else high
        for row in self._rows(query, (low, high)):
            if row is None or not (at < row[0] < high if is_up else low < row[0] < at):
                # A bad link leads into another page, perhaps in a circle.
                self.is_all = False
                return at, False
            at = row[0]
            yield row
        return at, True

    def _read_by_key(self, table: Table) -> Iterator[Row]:
        """Read from both ends towards the damage."""
        names = [column.name for column in table.columns]
        places = [names.index(name) for name in table.key]
        seen: set[Row] = set()
        for order in ("ASC", "DESC"):
            by = ", ".join(f"{name} {order}" for name in table.key)
            for row in self._rows(f"SELECT {table.names} FROM {table.name} NOT INDEXED ORDER BY {by}"):
                key = tuple(row[place] for place in places) if row is not None else ()
                if row is None or key in seen:
                    self.is_all = False
                    break
                seen.add(key)
                yield row
            else:
                return

    def _rows(self, query: str, values: Sequence[Any] = ()) -> Iterator[Row | None]:
        """The rows of a query; None at the end where the rest cannot be read."""
        seen = 0
        try:
            cursor = self._db.execute(query, values)
            try:
                for row in cursor:
                    seen += 1
                    yield row
                return
            except (sqlite3.DatabaseError, MemoryError) as error:
                self._note(error)
            finally:
                cursor.close()
            # Before sqlite3 hands out a row it looks for the next one, and where that fails, it loses the first: the
            # last row before the damage must be read alone.
            yield from self._db.execute(f"{query} LIMIT 1 OFFSET {seen}", values).fetchall()
        except (sqlite3.DatabaseError, MemoryError) as error:
            self._note(error)
        yield None

    def _note(self, error: BaseException) -> None:
        """Note damage; raise what is none: the disk is full, or refuses."""
        if isinstance(error, sqlite3.OperationalError):
            raise error
        self.is_all = False
