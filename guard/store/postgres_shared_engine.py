"""Run operations on a PostgreSQL database that several boxes share."""

from __future__ import annotations

import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import psycopg

from .arrivals import Asked
from .claiming import PAUSE_S, Signature
from .database import Database, Rows
from .postgres_answers import Unsure, answer
from .postgres_connection import PostgresConnection
from .postgres_engine import PostgresEngine
from .postgres_shared import SharedDatabase
from .threads import Batch, Operation, Task, complain, fail
from .upkeep import Upkeep

#: To look takes a question, for which commits wait: the next look comes after so many times what the last one took.
PAUSES = 2


class AtOnce(ABC):
    """An operation that the engine can do by itself, in one question.

    Attributes:
        goes_first: it may go before what shares its commit, which then shares the next one. Without that, it is done
            in this way only where nothing shares its commit.
        needs_turn: it waits for its turn, and is done whatever others have written until then. Without that, it is
            tried where nobody has written of late, and does nothing if somebody has.
    """

    goes_first = False
    needs_turn = True

    @abstractmethod
    def __call__(self, db: Database) -> object:
        """Do it in the other way."""

    @abstractmethod
    def is_plain(self) -> bool:
        """Whether the engine may be able to."""

    @abstractmethod
    def ask(self, db: Database, signature: Signature) -> Rows:
        """Ask for it, and let what it does sign the commit."""

    @abstractmethod
    def take(self, db: Database, told: Rows) -> tuple[bool, object]:
        """Whether that is all there is to do, and the result; None: it has written nothing."""

    @abstractmethod
    def find(self, db: Database) -> object:
        """What it has done where its answer was lost."""


class SharedEngine(PostgresEngine):
    """Each transaction waits for its turn, and begins with what the other boxes have changed meanwhile."""

    _LOOK_S = 0.1
    _held: SharedDatabase

    def __init__(
        self,
        held: SharedDatabase,
        load: Operation[None],
        ask: Operation[Asked],
        follow: Callable[[Asked], bool],
        publish: Callable[[], None],
        keep: Callable[[], Callable[[bool], None]],
        forget_kept: Callable[[], None],
        upkeep: Upkeep,
    ) -> None:
        """As :class:`PostgresEngine`; `ask` asks for what others have changed, `follow` takes that in and says whether
        there is more.

        `forget_kept`: what `keep` has taken is not in the database.
        """
        super().__init__(held, load, publish, keep, upkeep)
        self._ask, self._follow = ask, follow
        self._forget = forget_kept
        #: Whether others have written of late: then the next transaction asks for that as it begins.
        self._expects_news = False
        #: Before that nobody looks what others have done.
        self._due_s = -math.inf
        #: Before that nothing of the kind is tried in one question.
        self._at_once_s: dict[type, float] = {}

    def _begin(self, db: Database, batch: Sequence[Task] = ()) -> None:
        assert isinstance(db, PostgresConnection)
        db.begin()
        while self._take_turn(db, batch):
            # It is far behind: the others need not wait for all of that.
            db.roll_back()
            self._catch_up(db)
            db.begin()

    def _take_turn(self, db: PostgresConnection, batch: Sequence[Task]) -> bool:
        """Wait for the turn, take in what others have changed, and ask for what the batch will read, in one question.

        Returns whether there is more of what others have changed.
        """
        turn = self._held.ask_for_turn(db)
        asked = self._ask(db) if self._expects_news else None
        self._ask_for(db, batch)
        self._expects_news = self._held.has_news(turn)
        if not self._expects_news:
            return False
        is_more = self._follow(asked or self._ask(db))
        if not is_more:
            self._held.note_followed()
        return is_more

    def _check(self, db: PostgresConnection) -> None:
        began_s = time.monotonic()
        if began_s >= self._due_s:
            if self._held.has_news(self._held.ask_who_wrote(db)):
                self._expects_news = True
                self._catch_up(db)
            now_s = time.monotonic()
            self._due_s = now_s + PAUSES * (now_s - began_s)
        self._publish()

    def _commit(self, batch: Batch) -> None:
        first = _find_first(batch)
        if first is not None and self._commit_at_once(first):
            batch = [task for task in batch if task is not first]
            batch = self._writer.add_waiting(batch) if batch else []
        if batch:
            super()._commit(batch)
        # It has asked the same; and whoever hears of it may have something to write, which would wait for the look.
        self._due_s = max(self._due_s, time.monotonic() + self._LOOK_S / 2)

    # What the engine does by itself. -----------------------------------------------------------------------------

    def _commit_at_once(self, task: Task) -> bool:
        """Do that in one question. False: nothing has changed."""
        does = task.operation
        assert isinstance(does, AtOnce)
        is_early = time.monotonic() < self._at_once_s.get(type(does), -math.inf)
        is_early = is_early or (self._expects_news and not does.needs_turn)
        if self.trouble is not None or not self._is_loaded or is_early or not does.is_plain():
            return False
        db, began_s = self._connection, time.monotonic()
        try:
            turn, told = self._ask_at_once(db, does)
        except psycopg.Error as error:
            return self._note_error(error, task, does)
        try:
            is_done, result = self._read_answer(db, turn, told, does)
        except BaseException as error:
            self._fail([task], [], error)  # what it has done is read again
            return True
        if is_done:
            self._note_duration(began_s)
            self._announce([(task.future, result)], [])
        elif turn is None:
            self._expects_news = True
        else:
            self._at_once_s[type(does)] = time.monotonic() + PAUSE_S
        return is_done

    def _ask_at_once(self, db: PostgresConnection, does: AtOnce) -> tuple[tuple[Rows, Asked] | None, Rows]:
        """Ask for that, commit, and wait for both."""
        if not does.needs_turn:
            return None, does.ask(db, self._held.make_signature())  # one statement is a transaction
        db.begin()
        turn = self._held.ask_for_turn(db), self._ask(db)
        told = does.ask(db, self._held.make_signature())
        db.commit()
        return turn, told

    def _read_answer(
        self, db: PostgresConnection, turn: tuple[Rows, Asked] | None, told: Rows, does: AtOnce
    ) -> tuple[bool, object]:
        """Take in what others have done, and then what this has; whether it has done anything, and what."""
        if turn is not None:
            who, asked = turn
            self._expects_news = self._held.has_news(who)
            if self._expects_news:
                if self._follow(asked):
                    self._catch_up(db)
                self._held.note_followed()
        is_done, result = does.take(db, told)
        if result is not None:
            self._held.note_commit()
        return is_done, result

    def _note_error(self, error: psycopg.Error, task: Task, does: AtOnce) -> bool:
        db = self._connection
        if not db.is_lost:
            complain(f"the engine cannot do this by itself: {self.address.hide(error)}")
            self._at_once_s[type(does)] = time.monotonic() + PAUSE_S
            with contextlib.suppress(psycopg.Error):
                self._take_back(db)
            return False  # in the other way

        def tell(_is_late: bool) -> None:
            try:
                answer([(task.future, does.find(self._connection))], [])
            except Exception as failure:
                fail([task], self._note_failure(failure))

        self._unsure = Unsure(self._held.commits, [task], tell)
        self._wait_for_answer(error)
        return True

    def _catch_up(self, db: PostgresConnection) -> None:
        while self._follow(db.ask_at_once(self._ask)):
            pass
        self._held.note_followed()

    def _forget_kept(self) -> None:
        self._forget()


def _find_first(batch: Batch) -> Task | None:
    """What of a batch may be done in one question, before the rest."""
    return next(
        (
            task
            for task in batch
            if isinstance(task.operation, AtOnce) and (len(batch) == 1 or task.operation.goes_first)
        ),
        None,
    )
