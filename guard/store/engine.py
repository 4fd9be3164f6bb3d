"""Open the database whatever it takes, and run operations on it: many writes in one commit.

The database is in WAL mode. Every commit survives the death of the process, by SIGKILL too. A commit with a durable
operation waits for the disk (`synchronous=FULL`), so it survives a power cut, with all commits before it. A power cut
may lose the commits since then (`synchronous=NORMAL`) but leaves the file whole.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from ..errors import GuardError
from ..wake import together
from .check import Check
from .database import Database
from .disk import StoreLockedError, StoreUnusableError
from .file_lock import LockedError
from .held_file import HeldFile, Survives, TakenOverError
from .pause import describe
from .slices import Means
from .store_engine import StoreEngine
from .threads import Ask, Batch, DatabaseThread, Operation, fail, is_damage, report_failure
from .upkeep import Upkeep

log = logging.getLogger("guarded.store")

T = TypeVar("T")

#: After this many commits the tidier works the log into the database. That waits about 10 ms for the disk, which
#: otherwise some commit would have to do.
TIDY_COMMITS = 250
#: Mend a damaged file no more often than this: there may be damage that nothing mends.
MEND_S = 10.0
READER, LISTER, TIDIER = "guarded-store-reader", "guarded-store-lister", "guarded-store-tidier"


class Engine(StoreEngine):
    """Four threads, each with a connection of its own: `guarded-store` opens and writes; `guarded-store-reader` looks
    up single rows; `guarded-store-lister` reads lists; `guarded-store-tidier` does what would hold up either.
    """

    def __init__(
        self, path: Path, load: Operation[None], publish: Callable[[], None], survives: Survives, upkeep: Upkeep
    ) -> None:
        """`survives`: what durable operations survive; for `kill` no commit waits for the disk."""
        super().__init__(str(path), load, publish, upkeep)
        self.path = path
        self._file = HeldFile(path, survives)
        self._means = Means(self._begin, self.read_list, self.read_slowly)
        self._reader: DatabaseThread | None = None
        self._lister: DatabaseThread | None = None
        self._tidier: DatabaseThread | None = None
        self._commits = 0
        #: What has shown that the file is damaged, until it is mended.
        self._damage: BaseException | None = None
        self._mend_due_s = 0.0
        #: The connections were opened without the right to write, which no connection ever gets.
        self._is_read_only = False

    def open(self) -> None:
        """As every engine; if only to read it: see `trouble`."""
        try:
            self._open()
        except BaseException as error:
            if self._reader is not None and isinstance(error, sqlite3.OperationalError):
                self._note_closed(error)
            else:
                self._close_connections()
                self._file.release()
                if isinstance(error, LockedError):
                    raise StoreLockedError(describe(error, self.path)) from None
                if isinstance(error, (sqlite3.Error, OSError)):
                    raise StoreUnusableError(describe(error, self.path)) from error
                raise
        self._start()

    @property
    def is_readable(self) -> bool:
        return self._reader is not None

    def write_here(self, operation: Operation[T], durable: bool = False, ask: Ask | None = None) -> Future[T]:
        if self.trouble is not None:
            return self._refuse()
        return self._writer.run_here(operation, self._is_quick, durable)

    def _is_quick(self, batch: Batch) -> bool:
        """Whether a commit of that batch waits for nothing: neither for the disk, nor until the file is mended."""
        is_well = self._is_loaded and self._damage is None and self.failing is None
        return is_well and not (self._file.waits_for_disk and any(task.durable for task in batch))

    def read(self, operation: Operation[T]) -> Future[T]:
        return self._hand_in(self._reader, operation)

    def read_list(self, operation: Operation[T]) -> Future[T]:
        return self._hand_in(self._lister, operation)

    def read_slowly(self, operation: Operation[T]) -> Future[T]:
        return self._hand_in(self._tidier, operation)

    def report_damage(self, error: BaseException) -> None:
        """Have the file mended, since it is damaged. Any thread."""
        self._damage = error
        self.trouble = f"the job database {self.path} is damaged, and is being mended: {error}"
        self._writer.run(lambda _db: None)  # wakes it

    def leave_to_parent(self) -> None:
        super().leave_to_parent()
        self._reader = self._lister = self._tidier = None

    def _start(self) -> None:
        self._writer.start()

    def _close(self) -> None:
        self._writer.close()
        self._close_connections()
        self._file.release()

    @property
    def _readers(self) -> tuple[DatabaseThread | None, ...]:
        return self._reader, self._lister, self._tidier

    def _hand_in(self, reader: DatabaseThread | None, operation: Operation[T]) -> Future[T]:
        return self._refuse() if reader is None else reader.run(operation)

    # Opening: the writer's thread, or the main thread before that has begun. -------------------------------------

    def _open(self) -> None:
        """What can be read already, although writing fails, stays open for readers."""
        if self._reader is None or (self._is_read_only and self._file.is_writable()):
            self._close_connections()
            self._is_read_only = False
            is_suspect = self._damage is not None
            self._writer.db, self._damage = self._file.open(is_suspect), None
            check = None if is_suspect else Check(self.report_damage)
            self._take_back(self._writer.db)
            self._reader, self._lister = self._start_reader(READER), self._start_reader(LISTER)
            self._tidier = self._start_reader(TIDIER, check)
            self._unreadable_since_s = None
        self._keep()
        db = self._connection
        first, tell = self._first or (lambda _db: None, lambda _told: None)
        try:
            self._file.sync(db, durable=True)
            db.execute("BEGIN IMMEDIATE")
            self._file.sign(db)
            told = first(db)
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._take_back(db)
            raise
        self._first = self.failing = None
        self._untold = lambda: tell(told)
        if self._damage is None:
            self.trouble = None
        self._tidy()  # a process that keeps being killed would otherwise never come to it

    def _start_reader(self, name: str, check: Check | None = None) -> DatabaseThread:
        def look() -> None:
            if check is not None and isinstance(thread.db, sqlite3.Connection):
                check.look(thread.db)

        idle = look if check is not None else None
        thread: DatabaseThread = DatabaseThread(
            name, lambda batch: self._read(thread, batch), idle, self._file.connect()
        )
        thread.start()
        return thread

    def _note_closed(self, error: BaseException) -> None:
        if is_damage(error):
            self._damage = error
        self._is_read_only = isinstance(error, sqlite3.OperationalError) and "readonly" in str(error)
        self.trouble = describe(error, self.path)
        self._pause.begin(error, self.trouble)

    def _close_connections(self) -> None:
        readers = self._readers
        self._reader = self._lister = self._tidier = None
        for thread in readers:
            if thread is not None:
                thread.close()
        self._writer.close_connection()
        self._note_unreadable()

    @property
    def _connection(self) -> sqlite3.Connection:
        """The writer's."""
        assert isinstance(self._writer.db, sqlite3.Connection)
        return self._writer.db

    def _keep(self) -> None:
        """Continue in another file where the one that was open had to be written anew."""
        if (fresh := self._file.keep(self._connection)) is not None:
            for thread in (self._writer, *self._readers):
                if thread is not None:
                    thread.swap(fresh if thread is self._writer else self._file.connect())

    # The writer's thread. ------------------------------------------------------------------------------------

    def _look(self) -> bool:
        self._tell()
        self._look_after()
        self._tell()
        return self._keep_small()

    def _keep_small(self) -> bool:
        """Do one slice of :mod:`.upkeep`."""
        if self.trouble is not None or self.failing is not None:
            return False
        db = self._connection
        try:
            return self._upkeep.turn(db, self._means, self._writer.is_idle)
        except Exception as error:
            self._note_failure(error)
            return False

    def _look_after(self) -> None:
        if self._is_over:
            return
        if self._damage is not None and self._reader is not None:
            self._mend()
        elif self.trouble is not None:
            if time.monotonic() >= self._pause.due_s:
                self._try_to_open()
        else:
            try:
                self._keep()
                self._file.check(self._connection)
                if self.failing is not None:
                    self._try_to_write()
            except Exception as error:
                self._note_failure(error)

    def _try_to_write(self) -> None:
        """Nobody may hand in anything while the last write is said to have failed."""
        db = self._connection
        try:
            self._file.sync(db, durable=True)
            db.execute("BEGIN IMMEDIATE")
            self._file.check(db)
            self._file.sign(db)
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._take_back(db)
            raise
        self.failing = None

    def _begin(self, db: Database) -> None:
        assert isinstance(db, sqlite3.Connection)
        self._file.sync(db, durable=False)
        db.execute("BEGIN IMMEDIATE")
        self._file.check(db)

    def _tidy(self) -> None:
        """Have the log worked into the database. The writer's thread."""
        self.read_slowly(lambda db: db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall())

    def _mend(self) -> None:
        """Close the file, and open it again: that mends it. The leases of this process live on."""
        if time.monotonic() < self._mend_due_s:
            return
        log.error("the job database %s is damaged, and will be mended: %s", self.path, self._damage)
        self._close_connections()
        self._try_to_open()
        self._mend_due_s = time.monotonic() + MEND_S

    def _note_failure(self, error: BaseException) -> GuardError:
        """Do what a failure calls for; return the error for the callers."""
        if isinstance(error, TakenOverError):
            self._note_taken_over(error)
            return self._make_refusal()
        if is_damage(error):
            self._damage = error
            self.trouble = f"the job database {self.path} is damaged, and is being mended: {error}"
        self.failing = describe(error, self.path)
        return report_failure(error)

    def _commit(self, batch: Batch) -> None:
        if self._damage is not None and self._reader is not None:
            self._mend()
            self._tell()
        if self.trouble is not None:
            fail(batch, self._make_refusal())
            return
        refusals: list[tuple[Future[Any], GuardError]] = []
        db = self._connection
        try:
            self._keep()
            db = self._connection
            if not self._is_loaded:
                self._take_back(db)
            results = None
            while results is None:
                results = self._attempt(db, batch, refusals)
                if results is None:
                    self._take_back(db)
                    refused = {future for future, _error in refusals}
                    batch = [task for task in batch if task.future not in refused]
            db.execute("COMMIT")
        except BaseException as error:
            # Nothing of the batch is on disk, so nobody may be told that it is.
            with contextlib.suppress(sqlite3.Error):
                self._take_back(db)
            failure = self._note_failure(error)
            fail(batch, failure)
            for future, refusal in refusals:
                if not future.done():
                    future.set_exception(refusal)
            return
        self.failing = None
        self._commits += 1
        if self._commits % TIDY_COMMITS == 0:
            self._tidy()
        if self._upkeep.is_due:
            self._writer.look_soon()
        with together():
            self._publish()
            for future, refusal in refusals:
                future.set_exception(refusal)
            for future, result in results:
                future.set_result(result)

    def _attempt(
        self, db: sqlite3.Connection, batch: Batch, refusals: list[tuple[Future[Any], GuardError]]
    ) -> list[tuple[Future[Any], Any]] | None:
        """Begin a transaction and do the batch in it; add the operations that refuse to `refusals`.

        None: an operation refused after it had written, so the batch must be done again without it. That hardly ever
        happens, as operations check before they write, and it is cheaper than a savepoint for each.
        """
        self._file.sync(db, any(task.durable for task in batch))
        db.execute("BEGIN IMMEDIATE")
        self._file.check(db)
        results = []
        for task in batch:
            writes = db.total_changes
            try:
                results.append((task.future, task.operation(db)))
            except Exception as error:
                if isinstance(error, sqlite3.OperationalError) or is_damage(error):
                    raise
                refusals.append((task.future, error if isinstance(error, GuardError) else report_failure(error)))
                if db.total_changes != writes:
                    return None
        return results

    def _take_back(self, db: sqlite3.Connection) -> None:
        self._is_loaded = False
        if db.in_transaction:
            db.execute("ROLLBACK")
        self._load(db)
        self._is_loaded = True

    # The readers' threads. -----------------------------------------------------------------------------------

    def _read(self, thread: DatabaseThread, batch: Batch) -> None:
        for task in batch:
            try:
                if thread.db is None:
                    raise self._make_refusal()
                task.future.set_result(task.operation(thread.db))
            except GuardError as error:
                task.future.set_exception(error)
            except BaseException as error:
                if is_damage(error):
                    self.report_damage(error)
                task.future.set_exception(report_failure(error))
