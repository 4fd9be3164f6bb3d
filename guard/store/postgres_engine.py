"""Run operations on a PostgreSQL database: many writes in one commit, and every commit is on the engine's disk.

A lost connection is made again. Meanwhile each operation is refused, as with a full disk, and whoever has something to
say says it again. Where it is lost between a commit and its answer, the table `epoch` tells afterwards how that ended:
each commit leaves its number there.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import psycopg

from ..errors import GuardError, InternalError, ServerUnavailableError
from ..wake import together
from .database import Database
from .disk import StoreLockedError, StoreTooNewError, StoreUnusableError
from .engine import LISTER, READER, TIDIER
from .file_lock import LockedError
from .postgres_answers import Done, Refusals, Told, Unsure, announce_late, answer
from .postgres_connection import PostgresConnection
from .postgres_held import STATEMENT_S, HeldDatabase
from .postgres_reader import PostgresReader
from .slices import Means
from .store_engine import StoreEngine
from .threads import LATER_S, MOST_LATER_S, Batch, DatabaseThread, Operation, Task, fail, report_failure
from .upkeep import Upkeep

log = logging.getLogger("guarded.store")

T = TypeVar("T")

#: Where the connection is lost during a commit, those who wait for that are kept waiting for so long: the engine may be
#: back by then, and say how it ended.
HOLD_S = 5.0
#: A look-up or a list takes no longer than this.
READ_S = 10


class PostgresEngine(StoreEngine):
    """The threads of :class:`.engine.Engine`, each with a connection of its own."""

    def __init__(
        self,
        held: HeldDatabase,
        load: Operation[None],
        publish: Callable[[], None],
        keep: Callable[[], Callable[[bool], None]],
        upkeep: Upkeep,
    ) -> None:
        """`keep` takes what `publish` would announce, and returns what announces it.

        That is told whether those who had handed it in have given up by then.
        """
        super().__init__(held.address.shown, load, publish, upkeep)
        self.address = held.address
        self._keep = keep
        self._held = held
        self._unsure: Unsure | None = None
        self._means = Means(self._begin, self.read_list, self.read_slowly)
        self._reader, self._lister, self._tidier = (
            PostgresReader(name, self._held, self._find_refusal, within_s)
            for name, within_s in ((READER, READ_S), (LISTER, READ_S), (TIDIER, STATEMENT_S))
        )

    def open(self) -> None:
        try:
            self._open()
        except BaseException as error:
            self._close_connections()
            if isinstance(error, LockedError):
                raise StoreLockedError(self._held.describe(error)) from None
            if isinstance(error, (psycopg.Error, StoreUnusableError)):
                raise StoreUnusableError(self._held.describe(error)) from None
            raise
        self._start()

    @property
    def is_readable(self) -> bool:
        return self.trouble is None

    @property
    def lacks_readers(self) -> bool:
        return self.trouble is None and any(reader.has_failed for reader in self._readers)

    def read(self, operation: Operation[T]) -> Future[T]:
        return self._hand_in(self._reader, operation)

    def read_list(self, operation: Operation[T]) -> Future[T]:
        return self._hand_in(self._lister, operation)

    def read_slowly(self, operation: Operation[T]) -> Future[T]:
        return self._hand_in(self._tidier, operation)

    @property
    def _readers(self) -> tuple[PostgresReader, ...]:
        return self._reader, self._lister, self._tidier

    def _start(self) -> None:
        for thread in (self._writer, *self._readers):
            thread.start()

    def _close(self) -> None:
        for thread in (self._writer, *self._readers):
            thread.close()

    def _hand_in(self, reader: DatabaseThread, operation: Operation[T]) -> Future[T]:
        return reader.run(operation) if self.trouble is None else self._refuse()

    def _find_refusal(self) -> GuardError | None:
        return None if self.trouble is None else self._make_refusal()

    # Opening: the writer's thread, or the main thread before that has begun. -------------------------------------

    def _open(self) -> None:
        if self._writer.db is None:
            self._writer.db, last = self._held.open()
            self._is_loaded = False
            if self._unsure is not None and self._unsure.is_kept is None:
                # Now, and for good: the commit below is numbered, too, and its answer may be lost as well.
                self._unsure.is_kept = last == self._unsure.number
                if not self._unsure.is_kept:
                    self._forget_kept()
            self._take_back(self._connection)
        first, tell = self._first or (lambda _db: None, lambda _told: None)
        db = self._connection
        try:
            self._begin(db)
            told = first(db)
            self._held.sign(db)
            db.commit()
            self._held.note_commit()
        except BaseException:
            with contextlib.suppress(psycopg.Error):
                self._take_back(db)
            raise
        self._held.is_signed = True
        self._first = self.failing = self._unreadable_since_s = None
        self._untold = lambda: tell(told)
        self.trouble = None
        self._settle_unsure()

    def _forget_kept(self) -> None:
        """What `keep` has taken is not in the database."""

    def _settle_unsure(self) -> None:
        """Tell those who wait for a commit whose answer was lost how it ended."""
        unsure, self._unsure = self._unsure, None
        if unsure is None:
            return
        if unsure.is_kept:
            log.warning("the answer to a commit was lost, but it is in the job database %s", self.address.shown)
            unsure.tell(unsure.is_refused)
        else:
            fail(unsure.batch, self._make_refusal())

    def _note_closed(self, error: BaseException) -> None:
        self._close_connections()
        self.trouble = self._held.describe(error)
        is_known = isinstance(error, (psycopg.Error, LockedError, StoreUnusableError, StoreTooNewError))
        self._pause.begin(error if not is_known or isinstance(error, LockedError) else OSError(), self.trouble)

    def _close_connections(self) -> None:
        self._writer.close_connection()
        self._note_unreadable()

    @property
    def _connection(self) -> PostgresConnection:
        assert isinstance(self._writer.db, PostgresConnection)
        return self._writer.db

    # The writer's thread. ------------------------------------------------------------------------------------

    def _look(self) -> bool:
        self._tell()
        self._look_after()
        self._tell()
        if self.trouble is not None or self.failing is not None:
            return False
        try:
            return self._upkeep.turn(self._connection, self._means, self._writer.is_idle)
        except Exception as error:
            self._note_failure(error)
            return False

    def _look_after(self) -> None:
        if self._is_over:
            return
        if self.trouble is not None:
            if time.monotonic() >= self._pause.due_s:
                self._try_to_open()
            return
        try:
            db = self._connection
            if self.failing is None:
                self._check(db)
                return
            self._begin(db)
            self._held.sign(db)
            db.commit()
            self._held.note_commit()
            self.failing = None
        except Exception as error:
            self._note_failure(error)

    def _check(self, db: PostgresConnection) -> None:
        """See that the connection is not lost, before somebody needs it."""
        db.raw.execute("SELECT 1")

    def _begin(self, db: Database, batch: Sequence[Task] = ()) -> None:
        """Begin a transaction, and ask for what the batch will read."""
        assert isinstance(db, PostgresConnection)
        db.begin()
        self._ask_for(db, batch)

    def _ask_for(self, db: PostgresConnection, batch: Sequence[Task]) -> None:
        for task in batch:
            try:
                if task.ask is not None:
                    task.ask(db)
            except psycopg.Error:
                raise
            except Exception as error:  # its operation meets the same, and that one alone
                log.debug("a question could not be asked: %s", error)

    def _note_failure(self, error: BaseException) -> GuardError:
        """Do what a failure calls for; return the error for the callers."""
        db = self._writer.db
        is_lost = db is None or self._connection.is_lost or getattr(error, "sqlstate", None) == "25006"  # read-only now
        if is_lost:
            if self.trouble is None:
                self._pause.end()
                self._note_closed(error)
                self._pause.due_s = time.monotonic()  # at once
            self._writer.look_soon()
            return self._make_refusal()
        with contextlib.suppress(psycopg.Error):
            self._take_back(self._connection)
        self.failing = self._held.describe(error)
        if isinstance(error, psycopg.Error):
            return report_failure(Told(self.address.hide(error), error.sqlstate))
        return report_failure(error)

    def _commit(self, batch: Batch) -> None:
        if self.trouble is not None:
            fail(batch, self._make_refusal())
            return
        refusals: Refusals = []
        began_s = time.monotonic()
        try:
            done = self._try_together(batch, refusals)
        except psycopg.Error as error:
            if self._unsure is not None:
                self._wait_for_answer(error)
                return
            if self._connection.is_lost or len(batch) == 1:
                self._fail(batch, refusals, error)
                return
            # An answer may come late: which operation has met the error is seen when each has its own transaction.
            with contextlib.suppress(psycopg.Error):
                self._take_back(self._connection)
            for task in batch:
                self._commit([task])
            return
        except BaseException as error:
            self._fail(batch, refusals, error)
            return
        self._note_duration(began_s)
        self._announce(done, refusals)

    def _note_duration(self, began_s: float) -> None:
        """Let what is not urgent wait for as long as a commit takes."""
        took_s = time.monotonic() - began_s
        self._writer.patience_s = min(took_s, MOST_LATER_S) if took_s > LATER_S else 0.0

    def _fail(self, batch: Batch, refusals: Refusals, error: BaseException) -> None:
        sqlstate = getattr(error, "sqlstate", None) or ""
        if sqlstate[:2] in ("22", "54") and not self._connection.is_lost:
            # A value that no column can hold: nothing is wrong with the engine.
            self._take_back(self._connection)
            fail(batch, InternalError("This cannot be written.", details=self.address.hide(error)))
        else:
            fail([task for task in batch if task.future not in dict(refusals)], self._note_failure(error))
        for future, refusal in refusals:
            if not future.done():
                future.set_exception(refusal)

    def _try_together(self, batch: Batch, refusals: Refusals) -> Done:
        """Do the batch, without the operations that refuse, and commit."""
        db = self._connection
        if not self._is_loaded:
            self._take_back(db)
        done = None
        while done is None:
            done = self._attempt(db, batch, refusals)
            if done is None:
                self._take_back(db)
                refused = {future for future, _error in refusals}
                batch = [task for task in batch if task.future not in refused]
        self._held.sign(db)
        try:
            db.commit()
        except psycopg.Error:
            if db.is_lost:
                publish, results = self._keep(), done
                self._unsure = Unsure(
                    self._held.commits, batch, lambda is_late: announce_late(publish, is_late, results, refusals)
                )
            raise
        self._held.note_commit()
        return done

    def _attempt(self, db: PostgresConnection, batch: Batch, refusals: Refusals) -> Done | None:
        """Begin a transaction and do the batch in it. None: an operation refused after it had written."""
        self._begin(db, batch)
        done = []
        for task in batch:
            writes = db.writes
            try:
                done.append((task.future, task.operation(db)))
            except psycopg.Error:
                raise
            except Exception as error:
                refusals.append((task.future, error if isinstance(error, GuardError) else report_failure(error)))
                if db.writes != writes:
                    return None
        return done

    def _announce(self, done: Done, refusals: Refusals) -> None:
        self.failing = None
        if self._upkeep.is_due:
            self._writer.look_soon()
        with together():
            self._publish()
            answer(done, refusals)

    def _wait_for_answer(self, error: BaseException) -> None:
        """The connection was lost between a commit and its answer: ask the engine as soon as it is back."""
        until_s = time.monotonic() + HOLD_S
        self._note_failure(error)
        while self._unsure is not None and not self._is_over:
            self._try_to_open()
            if self._unsure is None or time.monotonic() > until_s:
                break
            time.sleep(0.1)
        if (unsure := self._unsure) is not None:
            text = "The job database was lost, and it is not known whether it has this. Repeat it with the same key."
            unsure.is_refused = True
            fail(unsure.batch, ServerUnavailableError(text, details=self.trouble or "", retry_after_s=10))

    def _take_back(self, db: Database) -> None:
        assert isinstance(db, PostgresConnection)
        self._is_loaded = False
        db.roll_back()
        self._load(db)
        self._is_loaded = True
