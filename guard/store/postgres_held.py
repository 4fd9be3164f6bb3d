"""The database in PostgreSQL as this process holds it: no other process may write to it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import psycopg
from psycopg import RawCursor

from . import postgres_schema
from .disk import StoreUnusableError
from .file_lock import LockedError
from .held_file import TakenOverError
from .postgres_address import Address
from .postgres_connection import SILENT_S, Context, PostgresConnection

OLDEST_VERSION = 14
#: How long to wait for a connection.
CONNECT_S = 5
#: The lock of a process that has ended goes within this time, where the engine is not busy.
LET_GO_S = 0.5
#: A statement or a lock takes no longer than this, and no transaction of ours stays open for longer without a word.
STATEMENT_S, LOCK_S, IDLE_S = 60, 10, 60
#: How soon a connection that nothing comes over counts as lost: pause, then so many questions every so many seconds.
KEEPALIVES: dict[str, Any] = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
#: Each query goes along the index that suits it, row by row; see also `postgres_schema`.
SESSION = {
    "statement_timeout": f"{STATEMENT_S}s",
    "lock_timeout": f"{LOCK_S}s",
    "idle_in_transaction_session_timeout": f"{IDLE_S}s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
#: What a session of ours is marked with. A new one that has that mark was somebody's before: then settings, locks and
#: prepared statements come and go with each transaction.
_SESSION = "guarded.session"
_MIXED = (
    "the pooler before it gives one session to several connections; PgBouncer must have pool_mode = session, and its "
    "server_reset_query"
)
#: The advisory lock of a store, in its schema: "guar" in ASCII.
LOCK = 0x67756172


class HeldDatabase:
    """One thread at a time calls it, the one that writes; but any may connect."""

    #: What takes the lock: no other session has it meanwhile.
    _LOCKING = "pg_try_advisory_lock"
    #: What else the writer's session is set to.
    _WRITER: ClassVar[Mapping[str, str]] = {}
    #: How its connections are made besides.
    _OPTIONS: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, address: Address) -> None:
        self.address = address
        #: This process's name, in `epoch` and to the engine.
        self.name = secrets.token_hex(8)
        #: The number of its last commit, or attempt at one.
        self.commits = 0
        #: It has written once.
        self.is_signed = False
        #: Counts how often the one that writes has connected: see :meth:`is_of_today`.
        self._opened = 0

    def open(self) -> tuple[PostgresConnection, int]:
        """Connect, lock, and bring the tables to today's; also return the number of this process's last commit, or -1.

        Raises:
            LockedError: another process uses it.
            TakenOverError: another process has used it since this one did.
            StoreTooNewError, StoreUnusableError, psycopg.Error: it cannot be used.
        """
        db = self.connect(**self._WRITER)
        self._opened += 1
        try:
            find_fault(db.raw)
            self.connect().close()  # a pooler that mixes sessions gives it the one above
            self._lock(db.raw)
            postgres_schema.prepare(db.raw)
            return db, self._read_last_commit(db.raw)
        except BaseException:
            db.close()
            raise

    def connect(self, silent_s: float | None = None, /, **session: str) -> PostgresConnection:
        """`silent_s`: see :class:`.Statements`."""
        raw = psycopg.connect(
            self.address.conninfo,
            autocommit=True,
            cursor_factory=RawCursor,
            context=Context(),
            connect_timeout=CONNECT_S,
            application_name=f"comfyui-guarded {self.name}",
            client_encoding="utf8",
            **KEEPALIVES,
            **self._OPTIONS,
        )
        raw.prepare_threshold = None  # it would drop what others have prepared wherever it rolls back
        wanted = {**SESSION, **session, _SESSION: self.name}
        sets = ", ".join(f"set_config(${2 * n + 1}, ${2 * n + 2}, false)" for n in range(len(wanted)))
        told = raw.execute(
            f"SELECT current_setting('{_SESSION}', true), {sets}", [part for item in wanted.items() for part in item]
        )
        if (told.fetchone() or ("",))[0]:
            raw.execute(f"SELECT set_config('{_SESSION}', '', false)")
            raw.close()
            raise StoreUnusableError(_MIXED)
        return PostgresConnection(raw, self._opened, SILENT_S if silent_s is None else silent_s)

    def is_of_today(self, db: PostgresConnection) -> bool:
        """Whether it was made since the one that writes connected last. Another engine may have taken over by then: an
        older one is to one that is behind, and may be so for good."""
        return db.opened == self._opened

    def describe(self, error: BaseException) -> str:
        shown = self.address.shown
        if isinstance(error, LockedError):
            return f"another server uses the job database {shown}; give this one its own database or schema"
        return f"the job database {shown} cannot be used: {self.address.hide(error)}"

    def _lock(self, raw: psycopg.Connection[Any]) -> None:
        """Keep other processes out, until this connection is gone."""
        query = f"SELECT {self._LOCKING}({LOCK}, hashtext(current_schema()))"
        until_s = time.monotonic() + LET_GO_S
        # A lost connection of our own may still be at a commit. And of a process's end the engine may not know yet.
        while self._end_own(raw) or raw.execute(query).fetchone() != (True,):
            if time.monotonic() > until_s:
                raise LockedError("another process holds the lock")
            time.sleep(0.02)

    def _end_own(self, raw: psycopg.Connection[Any]) -> bool:
        """End the connections with the lock that this process has lost. Whether there were any."""
        ended = raw.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid) "
            f"WHERE locktype = 'advisory' AND classid = {LOCK} AND application_name = $1 "
            "AND objid = (hashtext(current_schema())::bigint & 4294967295)::oid AND pid <> pg_backend_pid()",
            [f"comfyui-guarded {self.name}"],
        )
        return ended.fetchone() is not None

    def _read_last_commit(self, raw: psycopg.Connection[Any]) -> int:
        """The number of this process's last commit. Raises TakenOverError where another has written since."""
        (writer,) = raw.execute("SELECT writer FROM epoch").fetchone() or ("",)
        name, _, number = writer.partition(":")
        if name == self.name:
            return int(number)
        if self.is_signed:
            raise TakenOverError(f"another process has used the job database {self.address.shown} meanwhile")
        return -1

    def sign(self, db: PostgresConnection) -> None:
        self.commits += 1
        db.execute("UPDATE epoch SET writer = ?", (f"{self.name}:{self.commits}",))

    def note_commit(self) -> None:
        """The transaction that was signed last is on disk."""


def find_fault(raw: psycopg.Connection[Any]) -> None:
    """Raises StoreUnusableError where this engine would not keep what a store promises."""
    [row] = raw.execute(
        "SELECT current_setting('server_version_num')::int, current_setting('server_version'), "
        "current_setting('fsync'), current_setting('synchronous_commit'), pg_is_in_recovery(), "
        "current_setting('server_encoding'), current_schema()"
    )
    number, version, fsync, synchronous, is_standby, encoding, schema = row
    if number < OLDEST_VERSION * 10000:
        raise StoreUnusableError(f"PostgreSQL {OLDEST_VERSION} or newer is needed, this is {version}")
    if fsync == "off" or synchronous == "off":
        name = "fsync" if fsync == "off" else "synchronous_commit"
        raise StoreUnusableError(f"{name} is off: a crash would lose jobs and verdicts that were told")
    if is_standby:
        raise StoreUnusableError("it is a standby, which only reads")
    if encoding != "UTF8":
        raise StoreUnusableError(f"its encoding is {encoding}, and must be UTF8")
    if schema is None:
        raise StoreUnusableError("there is no schema for the tables; make one, or set search_path for this user")
