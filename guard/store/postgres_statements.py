"""Statements to PostgreSQL, sent in one piece, and their answers.

psycopg's own pipeline sends each statement by itself, and takes some 50 µs of the processor for each: three times what
a submit has to do besides. This goes by its wrapper of libpq (`psycopg.pq`), with its way to write and read values.
"""

from __future__ import annotations

import select
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg import pq
from psycopg.abc import Transformer as Values
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result

#: So many statements are kept prepared in the engine. One is prepared when it comes for the second time.
PREPARED = 1000

#: What the engine need not think about, so that it is not prepared.
_UNPLANNED = "BEGIN", "COMMIT", "ROLLBACK"
_DONE = pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK
_FAILED = pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE
_NO_RESULT = psycopg.InterfaceError("the statement was not executed: one before it has failed")


class SilentError(psycopg.OperationalError):
    """The engine has said nothing for so long that it counts as gone; its machine may still be there."""


class Answer:
    """What a statement has found. Whoever reads it waits for it, and for all that was sent."""

    __slots__ = ("_at", "_result", "_statements", "_transformer")

    def __init__(self, statements: Statements, transformer: Values) -> None:
        self._statements = statements
        self._transformer = transformer
        self._result: pq.abc.PGresult | None = None
        self._at = 0

    def take(self, result: pq.abc.PGresult) -> None:
        """This is it."""
        self._result = result
        if result.status == pq.ExecStatus.TUPLES_OK:
            self._transformer.set_pgresult(result, set_loaders=True, format=pq.Format.BINARY)

    @property
    def rowcount(self) -> int:
        return self._wait().command_tuples or 0

    @property
    def command(self) -> bytes:
        """What the engine calls it: `COMMIT`, say."""
        return self._wait().command_status or b""

    def fetchone(self) -> Any:
        if self._at >= self._wait().ntuples:
            return None
        self._at += 1
        return self._transformer.load_row(self._at - 1, tuple)

    def fetchall(self) -> list[Any]:
        first, self._at = self._at, self._wait().ntuples
        return self._transformer.load_rows(first, self._at, tuple) if first < self._at else []

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row

    def _wait(self) -> pq.abc.PGresult:
        if self._result is None:
            self._statements.exchange()
            if self._result is None:
                raise _NO_RESULT
        return self._result


class Statements:
    """Of one connection; one thread at a time uses it.

    Between :meth:`begin` and :meth:`end` they are sent as soon as somebody reads an answer, and an error of one is
    raised by whoever waits next. Otherwise each is sent, and waited for, by itself.
    """

    def __init__(self, raw: psycopg.Connection[Any], silent_s: float) -> None:
        """`silent_s`: after so long without a word from the engine the connection is lost, and `SilentError` raised."""
        self._raw = raw
        self._connection = raw.pgconn
        self._silent_s = silent_s
        self._poll = select.poll()
        self._is_begun = False
        #: What was sent and not answered: the answer, or the key of what is to be prepared.
        self._pending: list[Answer | tuple[Any, ...]] = []
        #: By statement and types: the name under which it is prepared; None where it came once.
        self._names: OrderedDict[tuple[Any, ...], bytes | None] = OrderedDict()
        self._count = 0

    @property
    def is_begun(self) -> bool:
        return self._is_begun

    def begin(self) -> None:
        self._connection.enter_pipeline_mode()
        self._is_begun = True

    def end(self) -> None:
        """Wait for what was sent, and raise what it has met."""
        if not self._is_begun:
            return
        try:
            if self._pending:
                self.exchange()
        finally:
            self._is_begun = False
            if self._connection.status == pq.ConnStatus.OK:
                self._connection.exit_pipeline_mode()

    def send(self, query: str, values: Sequence[Any] = ()) -> Answer:
        """A statement in PostgreSQL's words, with `$1` for values."""
        if self._is_begun:
            return self._send(query, values)
        self.begin()
        try:
            return self._send(query, values)
        finally:
            self.end()

    def exchange(self) -> None:
        """Send what there is, and wait for the answers. Raises the first error among them."""
        pending, self._pending = self._pending, []
        connection = self._connection
        connection.pipeline_sync()
        self._flush()
        failed: pq.abc.PGresult | None = None
        for each in pending:
            while (result := self._read()) is not None:
                status = result.status
                if status in _DONE:
                    if isinstance(each, Answer):
                        each.take(result)
                    continue
                if status in _FAILED:
                    failed = failed or result
                if not isinstance(each, Answer):
                    self._names.pop(each, None)  # it is not prepared
        # The transaction of statements outside of any other ends with them, and may fail then.
        while (result := self._read()) is None or result.status != pq.ExecStatus.PIPELINE_SYNC:
            if result is not None and result.status in _FAILED:
                failed = failed or result
            if connection.status != pq.ConnStatus.OK:
                break
        if failed is not None:
            raise error_from_result(failed, self._raw.info.encoding)
        if connection.status != pq.ConnStatus.OK:
            raise psycopg.OperationalError("the connection is lost")

    def _send(self, query: str, values: Sequence[Any]) -> Answer:
        transformer = Transformer(self._raw)
        written = transformer.dump_sequence(values, [PyFormat.AUTO] * len(values)) if values else None
        types, formats = (transformer.types, transformer.formats) if values else (None, None)
        key = query, types
        name = self._names.get(key)
        if name is None:
            name = self._get_name(key)
        else:
            self._names.move_to_end(key)
        if name is None:
            self._connection.send_query_params(query.encode(), written, types, formats, pq.Format.BINARY)
        else:
            self._connection.send_query_prepared(name, written, formats, pq.Format.BINARY)
        answer = Answer(self, transformer)
        self._pending.append(answer)
        return answer

    def _get_name(self, key: tuple[Any, ...]) -> bytes | None:
        """Prepare what comes for the second time; None: it is the first one."""
        query, types = key
        if query.startswith(_UNPLANNED):
            return None
        if key not in self._names:
            self._names[key] = None
            if len(self._names) > PREPARED:
                self._forget()
            return None
        self._count += 1
        name = self._names[key] = b"guarded_%d" % self._count
        self._connection.send_prepare(name, query.encode(), types)
        self._pending.append(key)
        return name

    def _forget(self) -> None:
        """Forget what has not come for the longest time."""
        _key, name = self._names.popitem(last=False)
        if name is not None:
            self._connection.send_query_params(b"DEALLOCATE " + name, None)
            self._pending.append(Answer(self, Transformer(self._raw)))

    # The socket. ---------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        while self._connection.flush():
            if self._wait_for(select.POLLIN | select.POLLOUT) & ~select.POLLOUT:
                self._connection.consume_input()  # the engine may not read on before

    def _read(self) -> pq.abc.PGresult | None:
        while self._connection.is_busy():
            self._wait_for(select.POLLIN)
            self._connection.consume_input()
        return self._connection.get_result()

    def _wait_for(self, events: int) -> int:
        self._poll.register(self._connection.socket, events)
        # Once more without waiting: this process may have been stopped meanwhile.
        if not (found := self._poll.poll(self._silent_s * 1000) or self._poll.poll(0)):
            self._raw.close()
            raise SilentError(f"the engine has not answered for {self._silent_s:g} s")
        [(_socket, happened)] = found
        return happened
