"""Read a PostgreSQL database, over another connection where the last one was lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import psycopg

from ..errors import GuardError
from .disk import StoreUnusableError
from .postgres_answers import Told
from .postgres_connection import PostgresConnection
from .postgres_held import HeldDatabase
from .postgres_statements import SilentError
from .threads import Batch, DatabaseThread, Operation, report_failure

T = TypeVar("T")

#: Where the engine cannot be reached, or says nothing, it is asked again after this, and who asks meanwhile is refused.
AGAIN_S = 1.0


class PostgresReader(DatabaseThread):
    """A thread that runs what changes nothing."""

    def __init__(
        self, name: str, held: HeldDatabase, find_refusal: Callable[[], GuardError | None], within_s: int
    ) -> None:
        """`find_refusal`: why nothing may be read now, if so. `within_s`: no statement takes longer."""
        super().__init__(name, self._read, self._try_again, look_s=AGAIN_S)
        self._held = held
        self._find_refusal = find_refusal
        self._within_s = within_s
        self._failed: tuple[float, str] | None = None

    @property
    def has_failed(self) -> bool:
        """Whether there was no connection, or no answer over it, when it was wanted last. Any thread."""
        return self._failed is not None

    def _try_again(self) -> None:
        """Connect where that has failed, although nobody asks: who is sent elsewhere meanwhile would not."""
        if self._failed is not None and self._find_refusal() is None:
            with suppress(psycopg.Error, StoreUnusableError):
                self._connect()

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
            db = self._connect()
            try:
                return operation(db)
            except psycopg.Error as error:
                if not db.is_lost:
                    db.roll_back()
                    raise
                self.close_connection()
                if isinstance(error, SilentError):
                    self._failed = time.monotonic() + AGAIN_S, str(error)
                if is_last or self._failed is not None:
                    raise
        raise AssertionError

    def _connect(self) -> PostgresConnection:
        """The connection, made anew where there is none. Raises psycopg.Error."""
        if self.db is None:
            if self._failed is not None and time.monotonic() < self._failed[0]:
                raise psycopg.OperationalError(self._failed[1])
            try:
                self.db = self._held.connect(
                    self._within_s + 2, default_transaction_read_only="on", statement_timeout=f"{self._within_s}s"
                )
            except psycopg.OperationalError as error:
                self._failed = time.monotonic() + AGAIN_S, str(error)
                raise
            self._failed = None
        assert isinstance(self.db, PostgresConnection)
        return self.db
