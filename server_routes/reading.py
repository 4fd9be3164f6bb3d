"""Hand what comes in on a connection to aiohttp a little at a time; what is long to take apart waits behind the rest.

asyncio reads 256 KiB at once, and aiohttp takes all of it apart before anybody else has a turn. How long that takes,
the sender chooses: as a body in chunks of one byte, 256 KiB take 50 ms. All of this is the event loop's.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable

from aiohttp import StreamReader, web
from aiohttp.client_proto import ResponseHandler
from aiohttp.web_protocol import RequestHandler

from ..guard.errors import InvalidRequestError
from .evenly import Turns

#: Read at once, of heads and of whatever has no declared length: of one-byte chunks, a millisecond's work …
READ_BYTES = 2**12
#: … of chunks that have been no work, …
_CHUNKS_BYTES = 2**14
#: … and of a body of a declared length, which is only passed on.
_DECLARED_BYTES = 2**16
#: Reading and taking apart that takes no longer is nobody's concern. A request's head takes a quarter of it.
_FREE_S = 0.0002
#: So little takes no longer. Twice to ask for the time takes a twentieth of what a submit does.
_UNTIMED_BYTES = 2**10
#: All that takes longer gets this part of the loop's time, …
_SHARE = 0.25
#: … and what new connections took of it makes the waiting ones wait for no longer than this.
_AHEAD_S = 0.25
#: For so long a connection is held to what it took.
_FORGET_S = 10.0

#: On the wire a body may be so many times as large as what it brings, beyond as much as anybody may waste. Chunks of
#: one byte are six times as large; an encoder that writes JSON word by word comes to three.
FRAMED_TIMES = 4
FRAMED_FREE_BYTES = 2**16

#: What this thread works, not what it waits for; Windows counts that in steps of 16 ms.
_count_work_s = time.perf_counter if time.get_clock_info("thread_time").resolution > _FREE_S else time.thread_time

#: Read at once of a websocket: some hundred frames, as clients have little to say. Their messages are gone through
#: without a look at anybody else.
SOCKET_READ_BYTES = 2**10
#: So many websockets are read on in one turn of the loop, of those that have more to read.
SOCKETS_AT_ONCE = 2

#: One for all: what is read is passed on before anybody else reads.
_BUFFER = memoryview(bytearray(_DECLARED_BYTES))


class Line:
    """Where connections wait that were long to take apart: who has taken least goes first."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Reading]] = []
        self._count = itertools.count()
        self._free_at_s = 0.0
        self._is_timed = False

    def wait(self, reading: Reading, took_s: float, taken_s: float) -> None:
        """Let `reading` go on in its turn. It took so much now, and so much of late."""
        now_s = asyncio.get_running_loop().time()
        self._free_at_s = min(max(self._free_at_s, now_s) + took_s * (1 / _SHARE - 1), now_s + _AHEAD_S)
        heapq.heappush(self._waiting, (taken_s, next(self._count), reading))
        self._time()

    def _time(self) -> None:
        if not self._is_timed and self._waiting:
            self._is_timed = True
            asyncio.get_running_loop().call_at(self._free_at_s, self._go_on)

    def _go_on(self) -> None:
        self._is_timed = False
        if asyncio.get_running_loop().time() >= self._free_at_s:
            # It reads before the next one's time comes, and adds to that what it takes.
            heapq.heappop(self._waiting)[2].go_on()
            asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, self._time)
        else:
            self._time()


class Reading(asyncio.BufferedProtocol):
    """Stands between a connection, with TLS or without, and aiohttp."""

    def __init__(
        self,
        handler: RequestHandler | ResponseHandler,
        transport: asyncio.Transport,
        line: Line,
        sockets: Turns,
        count_s: Callable[[], float] = _count_work_s,
    ) -> None:
        """`sockets`: where websockets wait that have more to read."""
        self._handler = handler
        self._transport = transport
        self._line = line
        self._sockets = sockets
        self._count_s = count_s
        self._at_once = READ_BYTES
        self._taken_s, self._taken_at_s = 0.0, 0.0
        self._is_socket = False
        self._is_waiting = False
        #: What came although nothing was to be read: aiohttp has resumed it, or the transport had it already.
        self._kept = b""
        #: The body that comes in now, what it has been on the wire, and what is left of it where it says its length.
        self._content: StreamReader | None = None
        self._wire = 0
        self._left = 0
        self._is_answered = False
        #: Why nobody will see the rest of the body.
        self.refusal: InvalidRequestError | None = None

    def expect(self, request: web.Request) -> None:
        """A request's body comes in from now on, but for what of it came with its head."""
        self._content, self._wire, self._left, self._is_answered = None, 0, 0, False
        if request.content.is_eof():
            return
        self._content = request.content
        declared = request.content_length
        # Of a compressed body nobody knows what has come in: it is read in small pieces.
        is_plain = declared is not None and "Content-Encoding" not in request.headers
        self._left = declared - request.content.total_bytes if is_plain and declared is not None else 0

    def end(self) -> None:
        """The request has been answered. aiohttp reads on where its body has not come in whole."""
        self._is_answered = True

    def begin_socket(self) -> None:
        """The connection is a websocket's from now on."""
        self._is_socket, self._content, self._left = True, None, 0
        self._at_once = SOCKET_READ_BYTES
        # What came in before the websocket was answered: aiohttp would go through all of it at once.
        if tail := getattr(self._handler, "_message_tail", b""):
            setattr(self._handler, "_message_tail", b"")  # noqa: B010 (no type has it)
            self._kept = tail + self._kept
            self._wait(0.0)

    def get_buffer(self, _sizehint: int) -> memoryview:
        return _BUFFER[: min(self._left, _DECLARED_BYTES) if self._left > self._at_once else self._at_once]

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(_BUFFER[:nbytes])
        if self._is_waiting:
            self._kept += data
            self._transport.pause_reading()
        else:
            self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        if self.refusal is not None:
            return
        took_s = self._take(data)
        is_full = len(data) == self._at_once
        if self._is_socket:
            if is_full:
                self._wait(took_s)
            return
        if self._left > 0:
            self._left -= len(data)
        elif took_s > _FREE_S:
            self._at_once = READ_BYTES
        elif is_full:
            self._at_once = _CHUNKS_BYTES
        self._count(len(data))
        if took_s > _FREE_S:
            self._wait(took_s)

    def _take(self, data: bytes) -> float:
        """Let aiohttp have it; returns how long that took, 0 where it is too little to look at the clock for."""
        if self._is_socket or len(data) < _UNTIMED_BYTES:
            self._handler.data_received(data)
            return 0.0
        began_s = self._count_s()
        self._handler.data_received(data)
        return self._count_s() - began_s

    def _count(self, nbytes: int) -> None:
        if self._content is not None:
            self._judge(self._content, nbytes)

    def _judge(self, content: StreamReader, nbytes: int) -> None:
        if content.is_eof():
            self._content, self._left = None, 0
            return
        self._wire += nbytes
        if self._wire <= FRAMED_FREE_BYTES or self._wire <= FRAMED_TIMES * content.total_bytes:
            return
        self._transport.pause_reading()
        self.refusal = InvalidRequestError(
            "The body comes in too many small pieces.",
            extra_info={"bytes": content.total_bytes, "bytes_on_the_wire": self._wire},
        )
        if self._is_answered:
            self._transport.close()
        else:
            content.set_exception(self.refusal)

    def _wait(self, took_s: float) -> None:
        """Read nothing until it is this connection's turn."""
        self._is_waiting = True
        self._transport.pause_reading()
        if self._is_socket:
            self._sockets.call(self.go_on)
            return
        now_s = asyncio.get_running_loop().time()
        self._taken_s = took_s + (self._taken_s if now_s - self._taken_at_s < _FORGET_S else 0.0)
        self._taken_at_s = now_s
        self._line.wait(self, took_s, self._taken_s)

    def go_on(self) -> None:
        self._is_waiting = False
        if self._kept:
            piece, self._kept = self._kept[: self._at_once], self._kept[self._at_once :]
            self._pass_on(piece)
            if self._kept and not self._is_waiting:
                self._wait(0.0)
        is_held = getattr(self._handler, "_reading_paused", False) or getattr(self._handler, "_buffer_paused", False)
        if not (self._is_waiting or is_held or self.refusal or self._transport.is_closing()):
            self._transport.resume_reading()

    def eof_received(self) -> None:
        self._handler.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._content, self._kept = None, b""
        self._handler.connection_lost(exc)

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()


async def read_sockets_evenly(request: web.Request, response: web.StreamResponse) -> None:
    """Take what comes in on a websocket in small pieces: for `on_response_prepare`."""
    if isinstance(response, web.WebSocketResponse) and request.transport is not None:
        reading = request.transport.get_protocol()
        if isinstance(reading, Reading):
            reading.begin_socket()
