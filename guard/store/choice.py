"""Open the store that `store.url` names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..clock import Clock
from ..settings import SettingsError
from .disk import database_path
from .held_file import Survives
from .members import Member
from .slices import Limits
from .sqlite import SqliteStore
from .table_store import TableStore

if TYPE_CHECKING:
    from .postgres_once import OnceStore
    from .postgres_probe import Probe

#: How addresses of a PostgreSQL database begin.
POSTGRES = ("postgresql://", "postgres://")

NEEDS_POSTGRES = "fleet.enabled: servers that share a queue need store.url = postgresql://…"


def is_postgres(url: str) -> bool:
    return url.startswith(POSTGRES)


def probe_postgres(url: str) -> Probe:
    """Look at the database. Raises SettingsError, StoreUnusableError. Blocks."""
    from .postgres_address import read_address

    address = read_address(url)
    from .postgres_probe import probe

    return probe(address)


def open_once(url: str) -> OnceStore:
    """The database of a fleet, for a command. Raises SettingsError."""
    if not is_postgres(url):
        raise SettingsError(NEEDS_POSTGRES)
    from .postgres_address import read_address

    address = read_address(url)
    from .postgres_once import OnceStore

    return OnceStore(address)


def make_store(
    url: str,
    own: Path,
    clock: Clock,
    survives: Survives = "power_cut",
    limits: Limits | None = None,
    *,
    open_now: bool = True,
    member: Member | None = None,
) -> TableStore:
    """The store of the server whose folder is `own`; see :class:`.sqlite.SqliteStore`.

    `member`: it is one of several servers that share the database.

    Raises SettingsError for a URL that cannot be used, or where the package is missing that it needs.
    """
    if not is_postgres(url):
        if member is not None:
            raise SettingsError(NEEDS_POSTGRES)
        return SqliteStore(database_path(url, own), clock, survives, limits, open_now=open_now)
    from .postgres_address import read_address  # an optional package

    address = read_address(url)
    if member is not None:
        from .postgres_fleet import FleetStore

        return FleetStore(address, clock, member, limits, open_now=open_now)
    from .postgres import PostgresStore

    return PostgresStore(address, clock, limits, open_now=open_now)
