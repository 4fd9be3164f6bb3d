"""What both engines have in common: a thread that opens and writes, others that read, and what is said meanwhile."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ..errors import GuardError
from . import forks
from .held_file import TakenOverError
from .pause import Pause
from .threads import Ask, Batch, DatabaseThread, Operation, make_refusal, refuse
from .upkeep import Upkeep

log = logging.getLogger("guarded.store")

T = TypeVar("T")


class StoreEngine(ABC):
    """Runs operations on a database: many writes in one commit, on the thread `guarded-store`."""

    #: How often the writer looks after the database, if not as often as others look after theirs.
    _LOOK_S: float | None = None

    def __init__(self, shown: str, load: Operation[None], publish: Callable[[], None], upkeep: Upkeep) -> None:
        """Call :meth:`open` or :meth:`serve` next.

        Args:
            shown: the database's name for people.
            load: reads from the tables what the caller keeps in memory. Called on opening, and on the writer's thread
                after each transaction that was rolled back.
            publish: called on the writer's thread after each commit, before the operations' futures are done.
            upkeep: keeps the database small between commits.
        """
        self.shown = shown
        #: Why the database cannot be written now; None where it can. Any thread.
        self.trouble: str | None = f"the job database {shown} is not open yet"
        #: Why the last write failed, until one succeeds. Each is tried all the same. Any thread.
        self.failing: str | None = None
        self._load = load
        self._publish = publish
        self._upkeep = upkeep
        self._writer = DatabaseThread("guarded-store", self._commit, self._look, look_s=self._LOOK_S)
        self._is_loaded = False
        #: What the first opening does in its transaction, and who is told the result.
        self._first: tuple[Operation[Any], Callable[[Any], None]] | None = None
        #: Whom to tell on the writer's thread that the database is open.
        self._untold: Callable[[], None] | None = None
        #: Another process has taken over.
        self._is_over = False
        #: This process is a child that forked off the one that opened the database.
        self._is_copy = False
        self._pause = Pause()
        self._unreadable_since_s: float | None = time.monotonic()
        forks.watch(self)

    @abstractmethod
    def open(self) -> None:
        """Open or create the database. Blocks.

        Raises:
            StoreLockedError: another process has it open.
            StoreTooNewError: a later version wrote it.
            StoreUnusableError: the disk or the engine refuses.
        """

    def serve(self, first: Operation[T], tell: Callable[[T], None]) -> None:
        """Open the database now or, where that fails, as soon as it can be: `trouble` says why. Blocks.

        Args:
            first: runs in the transaction of the first opening.
            tell: gets what `first` has returned. The writer's thread, before any other operation.
        """
        self._first = first, tell
        self._try_to_open()
        self._start()

    @property
    def silent_s(self) -> float:
        """How long the oldest write that is not done has waited; 0 where none waits. Any thread."""
        return self._writer.silent_s

    @property
    def unreadable_s(self) -> float:
        """For how long nobody has been able to read the database; 0 where this or another process is. Any thread."""
        since_s = self._unreadable_since_s
        return 0.0 if since_s is None or self._pause.is_locked or self._is_over else time.monotonic() - since_s

    @property
    @abstractmethod
    def is_readable(self) -> bool:
        """Whether the database is open, if only to read it. Any thread."""

    @property
    def lacks_readers(self) -> bool:
        """Whether what is looked up has failed, and would again, although the database is open. Any thread."""
        return False

    def write(
        self,
        operation: Operation[T],
        durable: bool = False,
        urgent: bool = True,
        held: bool = False,
        ask: Ask | None = None,
    ) -> Future[T]:
        """Run an operation on the writer's thread, in a transaction; the future is done when that is on disk.

        `durable`: it survives a power cut, for which its commit waits. `urgent`: somebody waits for it; others share
        the commit of what comes next, a moment later. `held`: see :meth:`let_go`. `ask`: asks for what the operation
        will read, where each question takes its time: see :meth:`.postgres_connection.PostgresConnection.foresee`.
        """
        if self.trouble is not None:
            return self._refuse()
        return self._writer.run(operation, durable, urgent, held, ask)

    def write_here(self, operation: Operation[T], durable: bool = False, ask: Ask | None = None) -> Future[T]:
        """The same for a thread that waits for it: on that very thread, where nobody need be woken for it by that."""
        return self.write(operation, durable, ask=ask)

    def let_go(self) -> None:
        """Run what was held, in one piece; something urgent takes it along before that. Any thread."""
        self._writer.let_go()

    def remind(self) -> None:
        """Run what was held and is not urgent, a moment later at most. Any thread."""
        self._writer.remind()

    @abstractmethod
    def read(self, operation: Operation[T]) -> Future[T]:
        """Look up a few rows on the reader's thread."""

    @abstractmethod
    def read_list(self, operation: Operation[T]) -> Future[T]:
        """Run an operation that changes nothing on the lister's thread, so that no look-up waits for it."""

    @abstractmethod
    def read_slowly(self, operation: Operation[T]) -> Future[T]:
        """Run an operation that changes nothing on the tidier's thread, since it would hold up lists."""

    def close(self) -> None:
        """Finish what was handed in and close. Later operations fail."""
        if self._is_copy:
            return
        self._close()
        self.trouble = f"the job database {self.shown} is closed"

    def leave_to_parent(self) -> None:
        """See :mod:`.forks`."""
        for thread in (self._writer, *self._readers):
            if thread is not None and thread.db is not None:
                forks.keep_for_ever(thread.db)
        self._is_copy = True
        self.trouble = "this process is a copy of the server's"

    # What each engine does in its own way. The writer's thread, or the main thread before that has begun. ----------

    @property
    @abstractmethod
    def _readers(self) -> tuple[DatabaseThread | None, ...]: ...

    @abstractmethod
    def _start(self) -> None:
        """Start the threads."""

    @abstractmethod
    def _close(self) -> None:
        """End the threads, and close the connections."""

    @abstractmethod
    def _open(self) -> None:
        """Open the database, and do what the first opening does. Raises what keeps it from that."""

    @abstractmethod
    def _note_closed(self, error: BaseException) -> None:
        """Note why the database cannot be opened, and when to try again."""

    @abstractmethod
    def _close_connections(self) -> None:
        """Close what is open; nobody can read."""

    @abstractmethod
    def _look(self) -> bool:
        """Look after the database while there is nothing to do; say whether there is more to do."""

    @abstractmethod
    def _commit(self, batch: Batch) -> None:
        """Do a batch in one transaction. An operation that refuses harms none of its neighbours."""

    # What both do alike. ---------------------------------------------------------------------------------------

    def _try_to_open(self) -> None:
        try:
            self._open()
        except TakenOverError as error:
            self._note_taken_over(error)
        except Exception as error:
            self._note_closed(error)
        else:
            if self._pause.due_s:
                log.info("the job database %s is in use now", self.shown)
            self._pause.end()

    def _note_taken_over(self, error: BaseException) -> None:
        """Leave the database to another process for good."""
        self._is_over = True
        self._close_connections()
        self.trouble = f"{error}, which this one no longer uses; end one of the two"
        log.critical("%s", self.trouble)

    def _note_unreadable(self) -> None:
        if self._unreadable_since_s is None:
            self._unreadable_since_s = time.monotonic()

    def _tell(self) -> None:
        """Tell that the database is open, if it has just been opened."""
        untold, self._untold = self._untold, None
        if untold is not None:
            untold()
            self._publish()

    def _refuse(self) -> Future[Any]:
        return refuse(self.trouble)

    def _make_refusal(self) -> GuardError:
        return make_refusal(self.trouble)
