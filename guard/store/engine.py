"""Run operations on the database: each on a thread that owns its connection, many writes in one commit.

The database is in WAL mode with `synchronous=NORMAL`: a commit survives the death of the process, by SIGKILL too. A
power cut may lose the last commits but leaves the file whole.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from ..errors import DiskFullError, GuardError, ServerUnavailableError
from .disk import StoreLockedError, StoreUnusableError, connect, identify, open_database, rewrite

log = logging.getLogger("guarded.store")

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]
#: Operations, each with the future that gets its result.
Batch = list[tuple[Operation[Any], "Future[Any]"]]

#: The most operations in one commit. 32 clients at once share one; more would only make the first of them wait.
BATCH = 256
#: After this many commits the tidier works the log into the database. That waits about 10 ms for the disk, which
#: otherwise some commit would have to do.
TIDY_COMMITS = 250
#: How often the writer checks that its file is still there.
LOOK_S = 1.0


class Engine:
    """An open database file, locked against other processes.

    Three threads, each with a connection of its own: `guarded-store` writes; `guarded-store-reader` reads, so that a
    long list holds up no commit; `guarded-store-tidier` does what would hold up the reader.
    """

    def __init__(self, path: Path, load: Operation[None], publish: Callable[[], None]) -> None:
        """Open or create the database; blocks.

        Args:
            load: reads from the tables what the caller keeps in memory. Called here, and on the writer's thread after
                each transaction that was rolled back.
            publish: called on the writer's thread after each commit, before the operations' futures are done.

        Raises:
            StoreLockedError: another process has the file open.
            StoreTooNewError: a later version wrote it.
            StoreUnusableError: the disk refuses.
        """
        self.path = path
        self._load = load
        self._publish = publish
        self._commits = 0
        self._lock = FileLock(f"{path}.lock", thread_local=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreLockedError(f"another server has {path} open; give this one its own user directory") from None
        except OSError as error:
            raise StoreUnusableError(f"the job database {path} cannot be used: {error}") from error
        try:
            db = open_database(path)
            load(db)
            self._is_loaded = True
            self._identity = identify(path)
            self._looked_s = time.monotonic()
            self._writer = DatabaseThread("guarded-store", db, self._commit, self._look)
            self._reader = DatabaseThread("guarded-store-reader", connect(path), _read)
            self._tidier = DatabaseThread("guarded-store-tidier", connect(path), _read)
        except sqlite3.OperationalError as error:
            self._lock.release()
            raise StoreUnusableError(f"the job database {path} cannot be used: {error}") from error
        except BaseException:
            self._lock.release()
            raise

    def write(self, operation: Operation[T]) -> Future[T]:
        """Run an operation on the writer's thread, in a transaction; the future is done when that is on disk."""
        return self._writer.run(operation)

    def read(self, operation: Operation[T]) -> Future[T]:
        """Run an operation that changes nothing on the reader's thread."""
        return self._reader.run(operation)

    def read_slowly(self, operation: Operation[T]) -> Future[T]:
        """Run an operation that changes nothing on the tidier's thread, since it would hold up the reader."""
        return self._tidier.run(operation)

    def close(self) -> None:
        """Finish what was handed in and close. Later operations fail."""
        self._writer.close()
        self._reader.close()
        self._tidier.close()
        self._lock.release()

    # The writer's thread. ------------------------------------------------------------------------------------

    def _commit(self, db: sqlite3.Connection, batch: Batch) -> None:
        """Do a batch in one transaction. An operation that refuses harms none of its neighbours."""
        refusals: list[tuple[Future[Any], GuardError]] = []
        try:
            if self._is_gone():
                db = self._restore(db)
            if not self._is_loaded:
                self._take_back(db)
            results = None
            while results is None:
                results = self._attempt(db, batch, refusals)
                if results is None:
                    self._take_back(db)
                    refused = {future for future, _error in refusals}
                    batch = [item for item in batch if item[1] not in refused]
            db.execute("COMMIT")
        except BaseException as error:
            # Nothing of the batch is on disk, so nobody may be told that it is.
            with contextlib.suppress(sqlite3.Error):
                self._take_back(db)
            failure = report_failure(error)
            for _operation, future in batch:
                future.set_exception(failure)
            for future, refusal in refusals:
                if not future.done():
                    future.set_exception(refusal)
            return
        self._commits += 1
        if self._commits % TIDY_COMMITS == 0:
            self._tidier.run(lambda db: db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall())
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
        db.execute("BEGIN IMMEDIATE")
        results = []
        for operation, future in batch:
            writes = db.total_changes
            try:
                results.append((future, operation(db)))
            except sqlite3.OperationalError:
                raise
            except Exception as error:
                refusals.append((future, error if isinstance(error, GuardError) else report_failure(error)))
                if db.total_changes != writes:
                    return None
        return results

    def _take_back(self, db: sqlite3.Connection) -> None:
        self._is_loaded = False
        if db.in_transaction:
            db.execute("ROLLBACK")
        self._load(db)
        self._is_loaded = True

    def _look(self, db: sqlite3.Connection) -> None:
        """Write a lost file anew while there is nothing to do, instead of with the next job."""
        if self._is_gone():
            self._restore(db)

    def _is_gone(self) -> bool:
        """Whether someone has deleted or replaced the file that we write to.

        SQLite would keep writing to the nameless file, and all of it would be lost with the process.
        """
        now_s = time.monotonic()
        if now_s < self._looked_s + LOOK_S:
            return False
        self._looked_s = now_s
        try:
            return identify(self.path) != self._identity
        except FileNotFoundError:
            return True

    def _restore(self, db: sqlite3.Connection) -> sqlite3.Connection:
        """Write everything to a new file of the old name, and continue there."""
        log.error("the job database %s was deleted or replaced under the running server; writing it anew", self.path)
        self._looked_s = 0.0  # every commit tries again until this succeeds
        rewrite(db, self.path)
        fresh = connect(self.path)
        self._writer.swap(fresh)
        self._reader.swap(connect(self.path))
        self._tidier.swap(connect(self.path))
        self._identity = identify(self.path)
        return fresh


class DatabaseThread:
    """A thread that owns a connection and runs what it is handed, in order."""

    def __init__(
        self,
        name: str,
        db: sqlite3.Connection,
        work: Callable[[sqlite3.Connection, Batch], None],
        idle: Operation[None] | None = None,
    ) -> None:
        """`work` runs a batch; `idle` is called every `LOOK_S` while there is none."""
        self._db = db
        self._work = work
        self._idle = idle
        self._inbox: queue.SimpleQueue[tuple[Operation[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._closed = False
        self._thread.start()

    def run(self, operation: Operation[T]) -> Future[T]:
        future: Future[T] = Future()
        if self._closed:
            future.set_exception(ServerUnavailableError("The job store is closed."))
        else:
            self._inbox.put((operation, future))
        return future

    def swap(self, db: sqlite3.Connection) -> None:
        """Use another connection from the next batch on; the old one is closed when its batch is done."""
        old, self._db = self._db, db
        self.run(lambda _db: old.close())

    def close(self) -> None:
        self._closed = True
        self._inbox.put(None)
        self._thread.join()

    def _loop(self) -> None:
        is_open = True
        while is_open:
            try:
                batch = [self._inbox.get(timeout=LOOK_S if self._idle is not None else None)]
            except queue.Empty:
                self._run_idle()
                continue
            while len(batch) < BATCH:
                try:
                    batch.append(self._inbox.get_nowait())
                except queue.Empty:
                    break
            is_open = None not in batch
            # A request that was cancelled has cancelled its operation.
            work = [item for item in batch if item is not None and item[1].set_running_or_notify_cancel()]
            if work:
                try:
                    self._work(self._db, work)
                except BaseException as error:
                    # A bug: the callers must hear of it, and the thread must live.
                    failure = report_failure(error)
                    for _operation, future in work:
                        if not future.done():
                            future.set_exception(failure)
        self._db.close()

    def _run_idle(self) -> None:
        try:
            if self._idle is not None:
                self._idle(self._db)
        except Exception as error:
            report_failure(error)


def _read(db: sqlite3.Connection, batch: Batch) -> None:
    for operation, future in batch:
        try:
            future.set_result(operation(db))
        except GuardError as error:
            future.set_exception(error)
        except BaseException as error:
            future.set_exception(report_failure(error))


def report_failure(error: BaseException) -> GuardError:
    """Log that the database failed; return the error for the callers."""
    log.error("the job store failed: %s", error, exc_info=not isinstance(error, sqlite3.Error))
    if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
        return DiskFullError("The disk with the job database is full.", retry_after_s=60)
    return ServerUnavailableError("The job database cannot be used now.", details=str(error), retry_after_s=10)
