"""Run operations on the database: each on a thread that owns its connection, many writes in one commit.

The database is in WAL mode. Every commit survives the death of the process, by SIGKILL too. A commit with a durable
operation waits for the disk (`synchronous=FULL`), so it survives a power cut, with all commits before it. A power cut
may lose the commits since then (`synchronous=NORMAL`) but leaves the file whole.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from ..errors import DiskFullError, GuardError, ServerUnavailableError
from .disk import StoreLockedError, StoreUnusableError, connect, identify, open_database, rewrite

log = logging.getLogger("guarded.store")

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]

#: The most operations in one commit. 32 clients at once share one; more would only make the first of them wait.
BATCH = 256
#: After this many commits the tidier works the log into the database. That waits about 10 ms for the disk, which
#: otherwise some commit would have to do.
TIDY_COMMITS = 250
#: How often the writer checks that its file is still there.
LOOK_S = 1.0


@dataclass(frozen=True, eq=False)
class Task:
    """An operation, and the future that gets its result. `durable`: see :meth:`Engine.write`."""

    operation: Operation[Any]
    future: Future[Any]
    durable: bool = False


Batch = list[Task]


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

    #: Why the database cannot be used now; None where it can. Any thread.
    trouble: str | None = None

    @property
    def silent_s(self) -> float:
        """How long the oldest write that is not done has waited; 0 where none waits. Any thread."""
        return self._writer.silent_s

    def write(self, operation: Operation[T], durable: bool = False) -> Future[T]:
        """Run an operation on the writer's thread, in a transaction; the future is done when that is on disk.

        `durable`: it survives a power cut, for which its commit waits.
        """
        return self._writer.run(operation, durable)

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
                    batch = [task for task in batch if task.future not in refused]
            db.execute("COMMIT")
        except BaseException as error:
            # Nothing of the batch is on disk, so nobody may be told that it is.
            with contextlib.suppress(sqlite3.Error):
                self._take_back(db)
            failure = report_failure(error)
            for task in batch:
                task.future.set_exception(failure)
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
        self._sync(db, any(task.durable for task in batch))
        db.execute("BEGIN IMMEDIATE")
        results = []
        for task in batch:
            writes = db.total_changes
            try:
                results.append((task.future, task.operation(db)))
            except sqlite3.OperationalError:
                raise
            except Exception as error:
                refusals.append((task.future, error if isinstance(error, GuardError) else report_failure(error)))
                if db.total_changes != writes:
                    return None
        return results

    @staticmethod
    def _sync(db: sqlite3.Connection, durable: bool) -> None:
        """Let the next commit wait for the disk, or not. Within a transaction SQLite would ignore it."""
        db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")

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
        self._inbox: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        #: When each task that is not done was handed in.
        self._since_s: deque[float] = deque()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._closed = False
        self._thread.start()

    @property
    def silent_s(self) -> float:
        """How long the oldest task has waited or runs; 0 where there is none. Any thread."""
        try:
            return max(time.monotonic() - self._since_s[0], 0.0)
        except IndexError:
            return 0.0

    def run(self, operation: Operation[T], durable: bool = False) -> Future[T]:
        future: Future[T] = Future()
        if self._closed:
            future.set_exception(ServerUnavailableError("The job store is closed."))
        else:
            self._since_s.append(time.monotonic())
            self._inbox.put(Task(operation, future, durable))
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
            tasks = [task for task in batch if task is not None]
            # A request that was cancelled has cancelled its operation.
            work = [task for task in tasks if task.future.set_running_or_notify_cancel()]
            if work:
                try:
                    self._work(self._db, work)
                except BaseException as error:
                    # A bug: the callers must hear of it, and the thread must live.
                    failure = report_failure(error)
                    for task in work:
                        if not task.future.done():
                            task.future.set_exception(failure)
            for _task in tasks:
                self._since_s.popleft()
        self._db.close()

    def _run_idle(self) -> None:
        try:
            if self._idle is not None:
                self._idle(self._db)
        except Exception as error:
            report_failure(error)


def _read(db: sqlite3.Connection, batch: Batch) -> None:
    for task in batch:
        try:
            task.future.set_result(task.operation(db))
        except GuardError as error:
            task.future.set_exception(error)
        except BaseException as error:
            task.future.set_exception(report_failure(error))


def report_failure(error: BaseException) -> GuardError:
    """Log that the database failed; return the error for the callers."""
    log.error("the job store failed: %s", error, exc_info=not isinstance(error, sqlite3.Error))
    if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
        return DiskFullError("The disk with the job database is full.", retry_after_s=60)
    return ServerUnavailableError("The job database cannot be used now.", details=str(error), retry_after_s=10)
