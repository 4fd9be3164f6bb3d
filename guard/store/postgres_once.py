"""The database of a fleet as a command uses it: one transaction, between those of the boxes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from typing import TypeVar

import psycopg

from ..errors import GuardError
from . import alarms, depot_files, key_rows, members, postgres_schema, sign_ins
from .alarms import NewAlarm
from .disk import StoreTooNewError, StoreUnusableError
from .key_rows import Edit, Rows
from .postgres_address import Address
from .postgres_connection import PostgresConnection
from .postgres_held import HeldDatabase, find_fault
from .schema import MIGRATIONS

T = TypeVar("T")


class OnceStore:
    """What commands ask of the database. Each call connects, blocks, and returns a future that is done."""

    def __init__(self, address: Address) -> None:
        self._held = HeldDatabase(address)

    def read_keys(self, known: int | None) -> Future[tuple[int, Rows] | None]:
        return self._run(lambda db: key_rows.read(db, known))

    def change_keys(self, edit: Edit[T]) -> Future[T]:
        return self._run(lambda db: key_rows.change(db, edit))

    def put_sign_in(self, digest: str, good_for_ms: int) -> Future[None]:
        return self._run(lambda db: sign_ins.put(db, digest, good_for_ms))

    def list_boxes(self) -> Future[list[tuple[str, bool, int]]]:
        """Each box that there is, or that has left results: its name, whether it lives, how many it alone has."""

        def operation(db: PostgresConnection) -> list[tuple[str, bool, int]]:
            held = depot_files.count_held(db)
            alive = {box.box: box.is_alive for box in members.list_boxes(db, 0)}
            return [(box, alive.get(box, False), held.get(box, 0)) for box in sorted({*alive, *held})]

        return self._run(operation)

    def give_up(self, box: str) -> Future[int]:
        """That box never comes back: see :func:`.depot_files.give_up`. What is lost is told as an alarm."""

        def operation(db: PostgresConnection) -> int:
            count = depot_files.give_up(db, box)
            if count:
                text = f"{box} was given up by an operator: {count} results that it alone has are answered with 410."
                alarms.put(db, [NewAlarm(members.tell_time(db), "box_forgotten", text, None, box)])
            return count

        return self._run(operation)

    def _run(self, operation: Callable[[PostgresConnection], T]) -> Future[T]:
        future: Future[T] = Future()
        try:
            with closing(self._held.connect()) as db:
                find_fault(db.raw)
                self._prepare(db)
                db.begin()
                # As boxes do, which commit one after the other: no number of a change is given twice.
                db.execute("SELECT writer FROM epoch FOR UPDATE").fetchone()
                told = operation(db)
                db.commit()
            future.set_result(told)
        except (psycopg.Error, StoreUnusableError, StoreTooNewError) as error:
            future.set_exception(StoreUnusableError(self._held.describe(error)))
        except GuardError as error:
            future.set_exception(error)
        return future

    def _prepare(self, db: PostgresConnection) -> None:
        """Make the tables where there are none; those of boxes of an earlier version stay as they know them."""
        [(known,)] = db.raw.execute("SELECT to_regclass(quote_ident(current_schema()) || '.schema_version')::text")
        if known is None:
            postgres_schema.prepare(db.raw)
            return
        version = postgres_schema.read_version(db.raw)
        if version < len(MIGRATIONS):
            raise StoreUnusableError("its servers have an earlier version of this package; start one of this version")
