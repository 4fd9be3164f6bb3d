"""Run operations on a PostgreSQL database that several boxes share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from .arrivals import Asked
from .database import Database
from .postgres_connection import PostgresConnection
from .postgres_engine import PostgresEngine
from .postgres_shared import SharedDatabase
from .threads import Batch, Operation, Task
from .upkeep import Upkeep

#: To look takes a question, for which commits wait: the next look comes after so many times what the last one took.
PAUSES = 2


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
        super()._commit(batch)
        # It has asked the same; and whoever hears of it may have something to write, which would wait for the look.
        self._due_s = max(self._due_s, time.monotonic() + self._LOOK_S / 2)

    def _catch_up(self, db: PostgresConnection) -> None:
        while self._follow(db.ask_at_once(self._ask)):
            pass
        self._held.note_followed()

    def _forget_kept(self) -> None:
        self._forget()
