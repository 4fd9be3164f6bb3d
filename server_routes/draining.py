"""Answer a request whose body nobody will read: tell the answer, and take the rest off the connection as it comes.

aiohttp reads on for ten seconds after such an answer, and unpacks what it reads; whether it unpacks is settled for the
connection as a whole. So once the answer is written, the connection gets another protocol, which counts bytes and
forgets them. All of that is asyncio's and aiohttp's public interface.
"""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import web

from .pace import write_out

#: So much is taken of what a client still sends, and so long does it have to notice its answer.
DRAINED_BYTES = 2**20
DRAINED_S = 1.0


async def answer_unread(request: web.Request, response: web.StreamResponse, timeout_s: float) -> None:
    """Answer; and if the request's body is not there whole, drain and close.

    Raises ConnectionError where the client is gone, or hardly takes its answer for `timeout_s`.
    """
    transport = request.transport
    if request.content.is_eof() or transport is None or transport.is_closing():
        await write_out(request, response, timeout_s)
        return
    if not response.prepared:
        response.force_close()
        await write_out(request, response, timeout_s)
    await response.write_eof()
    if not transport.is_closing():
        original = request.protocol
        sink = _Sink(original, transport)
        transport.set_protocol(sink)
        if transport.can_write_eof():
            with contextlib.suppress(OSError):  # it has just gone, which the sink hears of
                transport.write_eof()  # most clients then close at once
        transport.resume_reading()
        try:
            await asyncio.wait([sink.over], timeout=DRAINED_S)
        finally:
            if not sink.lost:
                transport.set_protocol(original)
                original.force_close()


class _Sink(asyncio.Protocol):
    """Takes what still comes, and forgets it, until it is enough. `over` is done when nothing more will come.

    A client that goes on has its time all the same: if the connection were closed as soon as it has sent enough, it
    would hear of that before it has read its answer.
    """

    def __init__(self, original: asyncio.Protocol, transport: asyncio.Transport) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = False
        self._original = original
        self._transport = transport
        self._left = DRAINED_BYTES

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left <= 0:
            self._transport.pause_reading()

    def eof_received(self) -> None:
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._original.connection_lost(exc)
        self._end()

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)
