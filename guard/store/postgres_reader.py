"""Read a PostgreSQL database, over another connection where the last one was lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import psycopg

from ..errors import GuardError
from .postgres_answers import Told
from .postgres_connection import PostgresConnection
from .postgres_held import HeldDatabase
from .threads import Batch, DatabaseThread, Operation, report_failure

T = TypeVar("T")


class PostgresReader(DatabaseThread):
    """A thread that runs what changes nothing."""

    def __init__(self, name: str, held: HeldDatabase, find_refusal: Callable[[], GuardError | None]) -> None:
        """`find_refusal`: why nothing may be read now, if so."""
        super().__init__(name, self._read)
        self._held = held
        self._find_refusal = find_refusal

    def _read(self, batch: Batch) -> None:
        for task in batch:
            try:
                task.future.set_result(self._look_up(task.operation))
            except GuardError as error:
                task.future.set_exception(error)
            except psycopg.Error as error:
                told = Told(self._held.address.hide(error), error.sqlstate)
                task.future.set_exception(report_failure(told))
            except BaseException as error:
                task.future.set_exception(report_failure(error))

    def _look_up(self, operation: Operation[T]) -> T:
        for is_last in (False, True):
            if (refusal := self._find_refusal()) is not None:
                raise refusal
            if isinstance(self.db, PostgresConnection) and not self._held.is_of_today(self.db):
                self.close_connection()
            if self.db is None:
                self.db = self._held.connect(default_transaction_read_only="on")
            db = self.db
            assert isinstance(db, PostgresConnection)
            try:
                return operation(db)
            except psycopg.Error:
                if not db.is_lost:
                    db.roll_back()
                    raise
                self.close_connection()
                if is_last:
                    raise
        raise AssertionError
