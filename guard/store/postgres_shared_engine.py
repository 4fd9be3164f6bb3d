"""Run operations on a PostgreSQL database that several boxes share."""

from __future__ import annotations

from collections.abc import Callable

from .database import Database, snapshot
from .postgres_connection import PostgresConnection
from .postgres_engine import PostgresEngine
from .postgres_shared import SharedDatabase
from .threads import Operation
from .upkeep import Upkeep


class SharedEngine(PostgresEngine):
    """Each transaction waits for its turn, and begins with what the other boxes have changed meanwhile."""

    _LOOK_S = 0.1
    _held: SharedDatabase

    def __init__(
        self,
        held: SharedDatabase,
        load: Operation[None],
        follow: Operation[bool],
        publish: Callable[[], None],
        keep: Callable[[], Callable[[bool], None]],
        forget_kept: Callable[[], None],
        upkeep: Upkeep,
    ) -> None:
        """As :class:`PostgresEngine`; `follow` takes in what others have changed, and says whether there is more.

        `forget_kept`: what `keep` has taken is not in the database.
        """
        super().__init__(held, load, publish, keep, upkeep)
        self._follow = follow
        self._forget = forget_kept

    def _begin(self, db: Database) -> None:
        assert isinstance(db, PostgresConnection)
        super()._begin(db)
        while self._held.take_turn(db):
            if not self._follow(db):
                self._held.note_followed()
                return
            # It is far behind: the others need not wait for all of that.
            db.roll_back()
            self._catch_up(db)
            super()._begin(db)

    def _check(self, db: PostgresConnection) -> None:
        if self._held.has_news(db):
            self._catch_up(db)
        self._publish()

    def _catch_up(self, db: Database) -> None:
        is_more = True
        while is_more:
            with snapshot(db):
                is_more = self._follow(db)
        self._held.note_followed()

    def _forget_kept(self) -> None:
        self._forget()
