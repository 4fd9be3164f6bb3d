"""The database in PostgreSQL as one of several boxes holds it: they write one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import psycopg

from .claiming import Signature
from .database import Database, Rows
from .members import Member
from .postgres_address import Address
from .postgres_connection import PostgresConnection
from .postgres_held import HeldDatabase

#: A box that stops in the middle of a transaction holds up the others; the engine ends its connection after this.
STOPPED_S = 5
#: What was sent and is not even received after this has lost its connection.
UNHEARD_S = 10


class SharedDatabase(HeldDatabase):
    """The lock keeps out only servers that want the database for themselves.

    Each transaction that writes begins with :meth:`ask_for_turn`. A row of `writers` has this process's last commit.
    """

    _LOCKING = "pg_try_advisory_lock_shared"
    _WRITER: ClassVar[Mapping[str, str]] = {"idle_in_transaction_session_timeout": f"{STOPPED_S}s"}
    _OPTIONS: ClassVar[Mapping[str, Any]] = {"tcp_user_timeout": UNHEARD_S * 1000}

    def __init__(self, address: Address, member: Member) -> None:
        super().__init__(address)
        self._member = member
        member.process = self.name
        #: The last commit of any box that was followed, whose it was and its number; and the one that was seen last.
        self._followed = self._seen = ""

    def describe(self, error: BaseException) -> str:
        told = super().describe(error)
        return told.replace("give this one its own database or schema", "set fleet.enabled for that one, too")

    def ask_for_turn(self, db: Database) -> Rows:
        """Wait until no other box writes: none does until this transaction ends. For :meth:`has_news`."""
        return db.execute("SELECT writer FROM epoch FOR UPDATE")

    def ask_who_wrote(self, db: Database) -> Rows:
        """For :meth:`has_news`."""
        return db.execute("SELECT writer FROM epoch")

    def has_news(self, asked: Rows) -> bool:
        """Whether another box has written since the last time."""
        (self._seen,) = asked.fetchone()
        return self._seen != self._followed

    def note_followed(self) -> None:
        """What had been written when that was asked is known."""
        self._followed = self._seen

    @property
    def last_known(self) -> str:
        """The last commit of any box of which all is known here."""
        return self._followed

    def make_signature(self) -> Signature:
        """Of the next commit, whose statement signs it by itself."""
        self.commits += 1
        return Signature(self.name, self.commits)

    def sign(self, db: PostgresConnection) -> None:
        self.commits += 1
        db.execute(
            "WITH signed AS (UPDATE epoch SET writer = ?) UPDATE writers SET commits = ? WHERE name = ?",
            (f"{self.name}:{self.commits}", self.commits, self.name),
        )

    def note_commit(self) -> None:
        self._followed = f"{self.name}:{self.commits}"

    def _read_last_commit(self, raw: psycopg.Connection[Any]) -> int:
        self._followed = ""
        raw.execute("INSERT INTO writers VALUES ($1, $2, 0) ON CONFLICT DO NOTHING", [self.name, self._member.box])
        [(commits,)] = raw.execute("SELECT commits FROM writers WHERE name = $1", [self.name])
        return int(commits) or -1
