"""A connection to PostgreSQL that takes the statements of both engines: see :mod:`.database`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, TypeVar

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.pq import TransactionStatus
from psycopg.types.numeric import Int8BinaryDumper, NumericBinaryLoader
from psycopg.types.string import StrDumperUnknown, TextLoader
from typing_extensions import Self

from .postgres_statements import Answer, Statements

T = TypeVar("T")

#: PostgreSQL's texts cannot hold the character 0. It is written as the first of these followed by the second, and the
#: first one itself as twice itself: both are characters that nobody uses.
_MARK, _ZERO = "\U000f0000", "\U000f0001"
#: An engine that says nothing for so long counts as gone.
SILENT_S = 30.0
#: Rows read at once by their keys: at first, at most, and while what comes is no larger than this.
FIRST_ROWS, MOST_ROWS, ROWS_BYTES = 16, 128, 2**20

#: The columns that number a table's rows, and never twice the same.
NUMBERS = {"jobs": "number", "transitions": "event_id"}

_BEGIN_TO_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"

_MARKED = re.compile(f"{_MARK}(.)", re.DOTALL)
_FOR_SQLITE = re.compile(r" (?:NOT INDEXED|INDEXED BY \w+)")
_ORDERED_JOIN = re.compile(r"CROSS JOIN (\w+) USING")


class _Text(StrDumperUnknown):
    def dump(self, obj: str) -> Any:
        if "\x00" in obj or _MARK in obj:
            obj = obj.replace(_MARK, 2 * _MARK).replace("\x00", _MARK + _ZERO)
        return super().dump(obj)


class _Texts(TextLoader):
    def load(self, data: Any) -> Any:
        text = str(super().load(data))
        return _MARKED.sub(lambda found: "\x00" if found[1] == _ZERO else _MARK, text) if _MARK in text else text


class _TextsBinary(_Texts):
    format = psycopg.pq.Format.BINARY


class _WholeNumber(NumericBinaryLoader):
    """Sums of whole numbers come as numbers with decimals."""

    def load(self, data: Any) -> Any:
        return int(super().load(data))


class Context:
    """What psycopg calls a context: how our connections write and read values."""

    def __init__(self) -> None:
        self.connection = None
        self.adapters = AdaptersMap(psycopg.adapters)
        self.adapters.register_dumper(str, _Text)
        self.adapters.register_dumper(int, Int8BinaryDumper)  # one type, so that each statement is prepared once
        self.adapters.register_loader("text", _Texts)
        self.adapters.register_loader("text", _TextsBinary)
        self.adapters.register_loader("numeric", _WholeNumber)


@lru_cache(maxsize=2000)
def translate(query: str) -> str:
    """The statement as PostgreSQL reads it."""
    parts = _ORDERED_JOIN.sub(r"JOIN \1 USING", _FOR_SQLITE.sub("", query)).split("?")
    return parts[0] + "".join(f"${number}{part}" for number, part in enumerate(parts[1:], start=1))


class PostgresConnection:
    """One thread at a time uses it.

    What is executed within :meth:`begin` and :meth:`commit` is sent without waiting for answers, until somebody reads
    one. An error of a statement is then raised by a later one, at the latest by `commit`.
    """

    def __init__(self, raw: psycopg.Connection[Any], opened: int = 0, silent_s: float = SILENT_S) -> None:
        """`opened`: see :meth:`.postgres_held.HeldDatabase.is_of_today`. `silent_s`: see :class:`.Statements`."""
        self.raw = raw
        self.opened = opened
        #: How many statements that may write were executed.
        self.writes = 0
        #: Answers to questions that were asked before anybody wanted them, within this transaction.
        self._foreseen: dict[tuple[str, tuple[Any, ...]], Answer] = {}
        self._statements = Statements(raw, silent_s)

    @property
    def is_lost(self) -> bool:
        return self.raw.closed

    @property
    def in_transaction(self) -> bool:
        return self.raw.info.transaction_status is not TransactionStatus.IDLE

    # As sqlite3.Connection has it. ---------------------------------------------------------------------------

    def execute(self, query: str, values: Sequence[Any] = (), /) -> Any:
        if query == "BEGIN":
            return self._statements.send(_BEGIN_TO_READ)
        if query == "COMMIT":
            return self.commit()
        if query == "ROLLBACK":
            return self.roll_back()
        if not query.startswith(("SELECT", "WITH")):
            self.writes += 1
        elif self._foreseen and (foreseen := self._foreseen.pop((query, tuple(values)), None)) is not None:
            return foreseen
        return self._statements.send(translate(query), values)

    # What will be asked. -------------------------------------------------------------------------------------

    def foresee(self, query: str, values: Sequence[Any]) -> None:
        """Ask now what `execute` will be asked: then all answers come at once, and nobody waits for each by itself.

        The answer serves once, until the transaction ends. Whoever changes what it depends on calls
        :meth:`forget_foreseen`.
        """
        key = query, tuple(values)
        if key not in self._foreseen:
            self._foreseen[key] = self._statements.send(translate(query), values)

    def take_foreseen(self, query: str, values: Sequence[Any]) -> Answer | None:
        """The answer, if that was foreseen: for what is not asked in any other way."""
        return self._foreseen.pop((query, tuple(values)), None)

    def forget_foreseen(self, beginnings: tuple[str, ...] = ("",)) -> None:
        """Ask anew what is asked by queries that begin so, or everything."""
        if self._foreseen:
            self._foreseen = {key: rows for key, rows in self._foreseen.items() if not key[0].startswith(beginnings)}

    def executemany(self, query: str, values: Iterable[Sequence[Any]], /) -> None:
        for each in values:
            self.execute(query, each)

    def close(self) -> None:
        with suppress(psycopg.Error):
            self._statements.end()
            if not self.raw.closed and not self.in_transaction:
                # The engine hears of the end of a connection a moment later.
                self.raw.execute("SELECT pg_advisory_unlock_all()")
        with suppress(psycopg.Error):
            self.raw.close()

    # Transactions that write. --------------------------------------------------------------------------------

    def begin(self) -> None:
        self._statements.begin()
        self._statements.send("BEGIN")

    def commit(self) -> None:
        """Commit, and wait until that is on the engine's disk.

        Raises what any statement has met; nothing is committed then. Where the connection is lost, nobody knows.
        """
        self._foreseen.clear()
        committed = self._statements.send("COMMIT")
        self._statements.end()
        # Of a transaction in which something has failed, PostgreSQL makes a rollback.
        if committed.command != b"COMMIT":
            raise psycopg.InterfaceError("the transaction did not end")

    def roll_back(self) -> None:
        self._foreseen.clear()
        try:
            self._statements.end()
        except psycopg.Error:
            if self.raw.closed:
                raise
        if self.in_transaction:
            self._statements.send("ROLLBACK")

    def ask_at_once(self, ask: Callable[[Self], T]) -> T:
        """What `ask` executes sees one state of the tables, in one question; what it returns is to be read then."""
        self._statements.begin()
        try:
            self._statements.send(_BEGIN_TO_READ)
            asked = ask(self)
            self._statements.send("COMMIT")
        finally:
            self._statements.end()
        return asked

    # What SQLite answers in another way. ---------------------------------------------------------------------

    def look_up(self, columns: str, table: str, key: str, values: Sequence[Any]) -> Iterator[Any]:
        query = f"SELECT {key}, {columns} FROM {table} WHERE {key} = ANY($1)"
        start, count = 0, FIRST_ROWS
        while start < len(values):
            some = values[start : start + count]
            found = {row[0]: row[1:] for row in self._statements.send(query, [list(some)])}
            yield from map(found.get, some)
            start += count
            size = sum(len(value) for row in found.values() for value in row if isinstance(value, str | bytes))
            count = min(2 * count, MOST_ROWS) if size < ROWS_BYTES else max(count // 4, 1)

    def last_number(self, table: str) -> int:
        query = (
            f"SELECT greatest((SELECT max({NUMBERS[table]}) FROM {table}), "
            "(SELECT last FROM numbers WHERE name = $1), 0)"
        )
        [(number,)] = self._statements.send(query, [table])
        return int(number)

    def keep_last_numbers(self) -> None:
        for table, number in NUMBERS.items():
            self._statements.send(
                f"INSERT INTO numbers SELECT $1, max({number}) FROM {table} HAVING max({number}) IS NOT NULL "
                "ON CONFLICT (name) DO UPDATE SET last = greatest(numbers.last, excluded.last)",
                [table],
            )

    def list_columns(self) -> list[tuple[str, list[str]]]:
        tables: dict[str, list[str]] = {}
        query = (
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema() "
            "ORDER BY ordinal_position"
        )
        for table, column in self._statements.send(query):
            tables.setdefault(table, []).append(column)
        return list(tables.items())
