"""The job store on PostgreSQL: the same operations and tables as on SQLite."""

from __future__ import annotations

from ..clock import Clock
from .postgres_address import Address
from .postgres_engine import PostgresEngine
from .postgres_held import HeldDatabase
from .postgres_upkeep import PostgresUpkeep
from .slices import Limits
from .table_store import TableStore


class PostgresStore(TableStore):
    """The store in a PostgreSQL database, which only one process uses at a time."""

    _engine: PostgresEngine

    def __init__(self, address: Address, clock: Clock, limits: Limits | None = None, *, open_now: bool = True) -> None:
        """Open the database, and make its tables if there are none; blocks.

        Args:
            limits, open_now: as of :class:`.sqlite.SqliteStore`.

        Raises:
            StoreLockedError: another process uses it.
            StoreTooNewError: a later version wrote it; it is left as it is.
            StoreUnusableError: the engine cannot be reached, refuses, or would not keep what a store promises.
        """
        super().__init__(clock, PostgresUpkeep(clock, limits or Limits()))
        held = HeldDatabase(address)
        self._engine = PostgresEngine(held, self._transitions.load, self._publish, self._keep_changes, self._upkeep)
        self._begin(open_now)
