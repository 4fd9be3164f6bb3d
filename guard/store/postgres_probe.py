"""Look at a PostgreSQL database without using it, for the doctor."""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from dataclasses import dataclass

import psycopg
from psycopg import RawCursor

from .disk import StoreTooNewError, StoreUnusableError
from .postgres_address import Address
from .postgres_held import CONNECT_S, find_fault
from .postgres_schema import read_version

PINGS = 7


@dataclass(frozen=True)
class Probe:
    """Which engine it is, its way there and back, the bytes of its tables; and of which schema these are, 0: none."""

    version: str
    latency_ms: float
    bytes: int
    schema: int


def probe(address: Address) -> Probe:
    """Connect for a moment. Raises StoreUnusableError where a server could not use it. Blocks."""
    try:
        with closing(
            psycopg.connect(
                address.conninfo,
                autocommit=True,
                cursor_factory=RawCursor,
                connect_timeout=CONNECT_S,
                application_name="comfyui-guarded doctor",
            )
        ) as raw:
            find_fault(raw)
            [(version,)] = raw.execute("SELECT current_setting('server_version')")
            took_ms = []
            for _ping in range(PINGS):
                began_s = time.perf_counter()
                raw.execute("SELECT 1")
                took_ms.append((time.perf_counter() - began_s) * 1000)
            [(size, known)] = raw.execute(
                "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint, "
                "coalesce(bool_or(relname = 'schema_version'), false) "
                "FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"
            )
            schema = read_version(raw) if known else 0
            return Probe(version, statistics.median(took_ms), int(size), schema)
    except (psycopg.Error, StoreTooNewError) as error:
        raise StoreUnusableError(address.hide(error)) from None
