"""Threads that each own a connection to the database and run what they are handed, in order."""

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
from typing import Any, TypeVar

from ..errors import DiskFullError, GuardError, ServerUnavailableError
from .database import Database, Foreseeing

log = logging.getLogger("guarded.store")

T = TypeVar("T")
Operation = Callable[[Database], T]
#: Asks for what an operation will read: see :meth:`.postgres_connection.PostgresConnection.foresee`.
Ask = Callable[[Foreseeing], None]

#: The most operations in one batch. 32 clients at once share one; more would only make the first of them wait.
BATCH = 256
#: How long an operation that is not urgent waits for others at most, to share their commit.
LATER_S = 0.02
#: … or as long as a commit takes, where that is longer, and at most this.
MOST_LATER_S = 0.25
#: How often an idle thread looks after what it has to look after.
LOOK_S = 1.0
#: … or this, where it said that there is more to do.
MORE_S = 0.01
#: The same failure is logged again after this time.
AGAIN_S = 60.0


@dataclass(frozen=True, eq=False)
class Task:
    """An operation, and the future that gets its result. The rest: see :meth:`.store_engine.StoreEngine.write`."""

    operation: Operation[Any]
    future: Future[Any]
    durable: bool = False
    urgent: bool = True
    ask: Ask | None = None


Batch = list[Task]


class DatabaseThread:
    """A thread that runs batches of what it is handed. Its user gives it the connection, `db`."""

    def __init__(
        self,
        name: str,
        work: Callable[[Batch], None],
        idle: Callable[[], bool | None] | None = None,
        db: Database | None = None,
        look_s: float | None = None,
    ) -> None:
        """`work` runs a batch; `idle` is called at the start and then every `look_s` (`LOOK_S`), between batches.

        If it returns true, it is called again after `MORE_S`.
        """
        self.db = db
        self._work = work
        self._idle = idle
        self._look_s = look_s
        #: So long the thread waits for something urgent before it begins with what is not: 0, or what a commit takes
        #: where that is long. The thread itself.
        self.patience_s = 0.0
        self._idle_s = 0.0
        #: Until `idle` is called again.
        self._pause_s = 0.0
        self._inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        #: Tasks that are not urgent, which the thread gets with the next one that is, or after a while.
        self._later: Batch = []
        self._lock = threading.Lock()
        #: Whether there ever were any, and whether the thread would not look for them soon by itself.
        self._naps = False
        self._sleeps = False
        #: Whether it was woken for what was held, with which something urgent comes soon.
        self._is_reminded = False
        #: Held by whoever works with the connection: the thread, or one that does so in its place.
        self._turn = threading.Lock()
        #: When each task that is not done was handed in.
        self._since_s: deque[float] = deque()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._closed = False
        #: What is being done, and whether nothing more will come. The thread itself.
        self._gathered: Batch = []
        self._is_ending = False

    def start(self) -> None:
        self._thread.start()

    @property
    def silent_s(self) -> float:
        """How long the oldest task has waited or runs; 0 where there is none. Any thread."""
        try:
            return max(time.monotonic() - self._since_s[0], 0.0)
        except IndexError:
            return 0.0

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits. Any thread."""
        return self._inbox.empty()

    def look_soon(self) -> None:
        """Call `idle` after this batch. The thread itself."""
        self._pause_s = 0.0

    def run(
        self,
        operation: Operation[T],
        durable: bool = False,
        urgent: bool = True,
        held: bool = False,
        ask: Ask | None = None,
    ) -> Future[T]:
        """Run the operation after those that were handed in before. Any thread.

        `urgent` False: within `LATER_S`. `held`: once the caller calls :meth:`let_go` (or :meth:`remind` of what is not
        urgent), with what it has held besides, or once something urgent comes.
        """
        future: Future[T] = Future()
        with self._lock:  # a close comes before or after: what it does not see would never be done
            if not self._closed:
                self._since_s.append(time.monotonic())
                self._later.append(Task(operation, future, durable, urgent, ask))
                if not held and (urgent or self._sleeps or not self._naps):
                    self._hand_in()
                self._naps = self._naps or not urgent
                return future
        future.set_exception(ServerUnavailableError("The job store is closed."))
        return future

    def run_here(self, operation: Operation[T], allows: Callable[[Batch], bool], durable: bool = False) -> Future[T]:
        """Run the operation on the caller's own thread where this one has nothing to do, with all that waits.

        To wake a thread and to wait for it takes longer than most commits. Where this one has something to do, or where
        the caller does not allow itself that batch, the operation is run as by :meth:`run`.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                future.set_exception(ServerUnavailableError("The job store is closed."))
                return future
            self._since_s.append(time.monotonic())
            self._later.append(Task(operation, future, durable))
            is_free = len(self._since_s) == len(self._later)  # what was handed in before is done
            if not (is_free and allows(self._later) and self._turn.acquire(blocking=False)):
                self._hand_in()
                return future
            batch, self._later = self._later, []
        try:
            self._do([task for task in batch if task.future.set_running_or_notify_cancel()], batch)
        finally:
            self._turn.release()
        return future

    def let_go(self) -> None:
        """Run what was held. Any thread."""
        with self._lock:
            if not self._closed:
                self._hand_in()

    def remind(self) -> None:
        """Run what was held and is not urgent within `LATER_S`. Any thread."""
        with self._lock:
            if self._sleeps and self._later and not self._closed:
                self._is_reminded = True
                self._hand_in()

    def _hand_in(self) -> None:
        """Let the thread have what there is. In one piece, so that it shares a commit."""
        if self._later:
            self._inbox.put(self._later)
            self._later = []

    def add_waiting(self, rest: Batch) -> Batch:
        """The rest of a batch, with what has come in since. The thread itself, within a batch."""
        return rest if self._is_ending else self._gather(rest, [])

    def swap(self, db: Database) -> None:
        """Use another connection from the next batch on; the old one is closed when its batch is done."""
        old, self.db = self.db, db
        if old is not None:
            self.run(lambda _db: old.close())

    def close(self) -> None:
        """Do what was handed in, end the thread, and close the connection."""
        with self._lock:
            self._closed = True
            self._hand_in()
            self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()
        with self._turn:
            self.close_connection()

    def close_connection(self) -> None:
        """The thread itself, or another one while it does not run."""
        db, self.db = self.db, None
        if db is not None:
            db.close()

    def _loop(self) -> None:
        self._run_idle()
        while not self._is_ending:
            try:
                handed = self._wait()
            except queue.Empty:
                self.let_go()  # what somebody has held and forgotten
                self._run_idle()
                continue
            work = self._gather([], handed)
            with self._turn:
                self._do(work, self._gathered)
            self._gathered = []
            if not self._is_ending and time.monotonic() >= self._idle_s + self._pause_s:
                self._run_idle()

    def _gather(self, tasks: Batch, handed: Batch | None) -> Batch:
        """What to do now: those tasks, what was handed in, and what waits behind that."""
        due_s = self._find_due_s()
        while handed is not None:
            self._gathered += handed
            # A request that was cancelled has cancelled its operation.
            tasks += [task for task in handed if task.future.set_running_or_notify_cancel()]
            if len(tasks) >= BATCH:
                return tasks
            try:
                handed = self._take_more(0.0 if any(task.urgent for task in tasks) else due_s - time.monotonic())
            except queue.Empty:
                return tasks
        self._is_ending = True
        return tasks

    def _find_due_s(self) -> float:
        """Until when what nobody waits for waits for something urgent, which would else wait for its commit."""
        is_reminded, self._is_reminded = self._is_reminded, False
        return time.monotonic() + max(self.patience_s, LATER_S if is_reminded else 0.0)

    def _take_more(self, rest_s: float) -> Batch | None:
        """What comes within that time, or else what there is by then. Raises queue.Empty."""
        if rest_s > 0:
            with contextlib.suppress(queue.Empty):
                return self._inbox.get(timeout=rest_s)
            with self._lock:
                self._hand_in()
        return self._inbox.get_nowait()

    def _do(self, work: Batch, gathered: Batch) -> None:
        """Do what was not cancelled of a batch. Whoever has the turn."""
        if work:
            try:
                self._work(work)
            except BaseException as error:
                # A bug: the callers must hear of it, and the thread must live.
                fail(gathered, report_failure(error))
        for _task in gathered:
            self._since_s.popleft()

    def _wait(self) -> Batch | None:
        """Wait for the next tasks; None: the thread shall end. Raises queue.Empty where it shall look after things.

        Between two urgent tasks the thread only naps: what comes in meanwhile and is not urgent need not wake it.
        """
        if self._naps:
            with contextlib.suppress(queue.Empty):
                return self._inbox.get(timeout=min(max(LATER_S, self.patience_s), self._pause_s))
        with self._lock:
            if self._naps:
                self._hand_in()
            self._sleeps = True
        try:
            return self._inbox.get(timeout=self._pause_s if self._idle is not None else None)
        finally:
            self._sleeps = False

    def _run_idle(self) -> None:
        self._idle_s = time.monotonic()
        self._pause_s = LOOK_S if self._look_s is None else self._look_s
        try:
            with self._turn:
                if self._idle is not None and self._idle():
                    self._pause_s = MORE_S
        except BaseException as error:
            report_failure(error)


def fail(batch: Batch, error: BaseException) -> None:
    """Give the error to every task of the batch that is not done."""
    for task in batch:
        if not task.future.done():
            task.future.set_exception(error)


def make_refusal(trouble: str | None) -> GuardError:
    """The error of whatever is asked of a database that is in trouble."""
    text = "The job database cannot be used now."
    return ServerUnavailableError(text, details=trouble or "", retry_after_s=10)


def refuse(trouble: str | None) -> Future[Any]:
    """What an operation gets that is not even tried."""
    future: Future[Any] = Future()
    future.set_exception(make_refusal(trouble))
    return future


def is_damage(error: BaseException) -> bool:
    """Whether SQLite says that the file itself is damaged, and not that it is busy, or its disk full, or the like.

    All of those are subclasses, and so are the faults of operations; but a table or index that is gone is damage, too.
    """
    is_gone = isinstance(error, sqlite3.OperationalError) and str(error).startswith(("no such table", "no such index"))
    return is_gone or type(error) is sqlite3.DatabaseError


#: What was logged, and when last.
_complaints: dict[str, float] = {}


def complain(text: str, trace: bool = False) -> None:
    """Log an error, the same one once a minute: whoever meets it tries again every second."""
    now_s = time.monotonic()
    if now_s < _complaints.get(text, -AGAIN_S) + AGAIN_S:
        return
    if len(_complaints) > 100:
        _complaints.clear()
    _complaints[text] = now_s
    log.error("%s", text, exc_info=trace)


def report_failure(error: BaseException) -> GuardError:
    """Log that the database failed; return the error for the callers."""
    complain(f"the job store failed: {error}", trace=not isinstance(error, (sqlite3.Error, OSError)))
    is_full = isinstance(error, sqlite3.OperationalError) and "full" in str(error)
    if is_full or getattr(error, "sqlstate", None) == "53100":
        return DiskFullError("The disk with the job database is full.", retry_after_s=60)
    return ServerUnavailableError("The job database cannot be used now.", details=str(error), retry_after_s=10)
