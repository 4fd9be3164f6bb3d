"""Give up what hardly moves: a body that comes in a few bytes now and then, and an answer that nobody takes.

Either would hold a connection, and what is in memory for it, for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from array import array
from types import TracebackType

from aiohttp import hdrs, web

if sys.platform.startswith("linux"):
    import fcntl
    import termios

#: Slower than this over `limits.body_timeout_s`, and the connection is closed.
_SLOWEST_BYTES_PER_S = 1024
#: An answer is handed to the socket in pieces: what is not taken is in memory once, and nobody waits for a copy.
PIECE_BYTES = 2**17
#: A file's pieces are smaller at first, and no more than this share of what the client has taken of it: one that reads
#: nothing, of hundreds, must hold little.
_FIRST_BYTES, _SHARE = 2**14, 4
#: What is no larger the transport keeps for a client that has taken all before, so nobody waits for it. asyncio's bound
#: is 64 KiB; headers come on top.
_KEPT_BYTES = 2**15
#: What aiohttp sends by itself, a file of the page's, shows no progress. It has so many times as long.
_UNSEEN = 10


class Coming:
    """Stops reading a body that hardly comes in: its reader gets a TimeoutError."""

    def __init__(self, request: web.Request, timeout_s: float) -> None:
        self.too_slow = False
        self._content = request.content
        self._timeout_s = timeout_s
        self._seen = 0
        self._timer: asyncio.TimerHandle | None = None
        if not self._content.is_eof():
            self._wait()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._look)

    def _look(self) -> None:
        if self._content.is_eof():
            return
        came = self._content.total_bytes - self._seen
        self._seen += came
        if came >= _SLOWEST_BYTES_PER_S * self._timeout_s:
            self._wait()
        else:
            self.too_slow = True
            self._content.set_exception(asyncio.TimeoutError())


class Going:
    """Closes the connection of a client that hardly takes what is sent to it in the block: `with Going(…) as going`."""

    def __init__(self, request: web.Request, timeout_s: float, *, given: int = 0, unseen: bool = False) -> None:
        """`given`: what is sent by other means than `write`; `unseen`: nobody knows how much that is."""
        self._transport = request.transport
        self._writer = request.writer
        self._timeout_s = timeout_s * (_UNSEEN if unseen else 1)
        self._slowest = 0 if unseen else _SLOWEST_BYTES_PER_S * timeout_s
        self._given, self._seen = given, 0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Going:
        self._wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def write(self, response: web.StreamResponse, data: bytes) -> None:
        """Send a part of an answer. Raises ConnectionError where the connection is lost, or closed by this."""
        view = memoryview(data)
        for at in range(0, len(data), PIECE_BYTES):
            piece = view[at : at + PIECE_BYTES]
            self._given += len(piece)
            await response.write(piece if len(data) > PIECE_BYTES else data)
            if self._transport is None or self._transport.is_closing():
                raise ConnectionResetError("the client is gone, or has stopped reading")

    def choose_piece(self) -> int:
        """How much of a file to read next."""
        taken = self._count_taken(self._transport) if self._transport is not None else 0
        return max(_FIRST_BYTES, min(PIECE_BYTES, taken // _SHARE))

    async def let_out(self) -> None:
        """Wait until no more than the next piece is left in the transport of what was written."""
        most = self.choose_piece()
        if self._transport is None or self._transport.get_write_buffer_size() <= most:
            return
        self._transport.set_write_buffer_limits(high=most)
        try:
            await self._writer.drain()
        finally:
            self._transport.set_write_buffer_limits()

    def _count_taken(self, transport: asyncio.WriteTransport) -> int:
        return self._given - transport.get_write_buffer_size() - _count_unacknowledged(transport)

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._look)

    def _look(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        taken = self._count_taken(transport)
        if self._slowest and taken - self._seen >= self._slowest:
            self._seen = taken
            self._wait()
        else:
            transport.abort()  # to close it would wait for what nobody takes


def _count_unacknowledged(transport: asyncio.WriteTransport) -> int:
    """What the system holds for the client: megabytes, of which it takes nothing more before a third of them has gone.

    Linux tells; elsewhere it counts as taken.
    """
    link = transport.get_extra_info("socket")
    if link is None or not sys.platform.startswith("linux"):
        return 0
    count = array("i", [0])
    # A closed socket has the number -1.
    with contextlib.suppress(OSError, ValueError):
        fcntl.ioctl(link.fileno(), termios.TIOCOUTQ, count)
    return count[0]


def has_room(request: web.Request, size: int = 0) -> bool:
    """Whether so much can be sent now without a wait: nothing of what was sent before is left in the transport."""
    if size > _KEPT_BYTES:
        return False
    transport = request.transport
    return transport is not None and transport.get_write_buffer_size() == 0


async def write_part(request: web.Request, response: web.StreamResponse, data: bytes, timeout_s: float) -> None:
    """Send a part of an answer. Raises ConnectionError as `Going.write` does."""
    if has_room(request, len(data)):
        await response.write(data)
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client is gone")
        return
    with Going(request, timeout_s) as going:
        await going.write(response, data)


async def write_out(request: web.Request, response: web.StreamResponse, timeout_s: float) -> None:
    """Send an answer whole, unless its handler has.

    Raises ConnectionError where the client is gone, or hardly takes it for `timeout_s`.
    """
    if response.prepared:
        return
    whole = response if type(response) is web.Response else None
    body = whole.body if whole is not None and not whole.compression and request.method != hdrs.METH_HEAD else None
    if isinstance(body, bytes) and has_room(request, len(body)):
        await response.prepare(request)
        await response.write_eof()
        return
    with Going(request, timeout_s, unseen=whole is None) as going:
        await response.prepare(request)
        if whole is not None and isinstance(body, bytes) and len(body) > PIECE_BYTES:
            await going.write(whole, body)
            await web.StreamResponse.write_eof(whole)  # the response's own would send its body, too
            # aiohttp keeps the response until the next request of the connection, if ever one comes.
            whole.body = None
        else:
            await response.write_eof()
