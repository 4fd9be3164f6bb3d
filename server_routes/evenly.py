"""Let every connection have a little of each turn of the event loop, however much has come in on it.

What has come in is read, and worked on, without a look at anybody else as long as nothing has to be waited for: the
thousands of pings, or the requests one behind the other, that fit into one read of the socket. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections import deque

from aiohttp import WSCloseCode, web
from aiohttp.web_protocol import RequestHandler

#: So many requests begin in one turn of the loop.
BEGUN_AT_ONCE = 8
#: Handed on at once of what comes in on a websocket: some hundred frames, as clients have little to say.
SOCKET_READ_BYTES = 1024
#: So many pings of a websocket are answered in one turn of the loop, …
_PINGS_AT_ONCE = 16
#: … and so many in so long a time. Clients ping every few seconds at most.
PINGS_AT_MOST, _PINGS_S = 500, 10.0

_PINGS = "guarded_pings"


class Beginnings:
    """Lets requests begin in the order in which they come, some in each turn of the loop."""

    def __init__(self) -> None:
        self._left = BEGUN_AT_ONCE
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_counting = False

    async def wait(self) -> None:
        if not self._is_counting:
            self._is_counting = True
            asyncio.get_running_loop().call_soon(self._begin_turn)
        if self._left > 0 and not self._waiting:
            self._left -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        await place

    def _begin_turn(self) -> None:
        self._left = BEGUN_AT_ONCE
        while self._waiting and self._left > 0:
            place = self._waiting.popleft()
            if not place.done():  # else its client has gone
                place.set_result(None)
                self._left -= 1
        self._is_counting = bool(self._waiting)
        if self._is_counting:
            asyncio.get_running_loop().call_soon(self._begin_turn)


async def read_sockets_evenly(request: web.Request, response: web.StreamResponse) -> None:
    """Take what comes in on a websocket in small pieces: for `on_response_prepare`."""
    if isinstance(response, web.WebSocketResponse) and request.transport is not None:
        request.transport.set_protocol(_Pieces(request.protocol, request.transport))


class _Pieces(asyncio.Protocol):
    """Stands between a websocket's connection, with TLS or without, and aiohttp: hands on a piece in each turn of the
    loop, and reads no more until all is handed on."""

    def __init__(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        self._handler = handler
        self._transport = transport
        #: What came in before the websocket was answered: aiohttp would go through all of it at once.
        self._left: bytes = getattr(handler, "_message_tail", b"")
        if self._left:
            setattr(handler, "_message_tail", b"")  # noqa: B010 (no type has it)
            self._wait()

    def data_received(self, data: bytes) -> None:
        if self._left:
            self._left += data
            self._transport.pause_reading()  # aiohttp has resumed it
        elif len(data) > SOCKET_READ_BYTES:
            self._left = data
            self._wait()
        else:
            self._handler.data_received(data)

    def eof_received(self) -> None:
        self._handler.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._left = b""
        self._handler.connection_lost(exc)

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()

    def _wait(self) -> None:
        self._transport.pause_reading()
        asyncio.get_running_loop().call_soon(self._hand_on)

    def _hand_on(self) -> None:
        piece, self._left = self._left[:SOCKET_READ_BYTES], self._left[SOCKET_READ_BYTES:]
        self._handler.data_received(piece)
        if self._left:
            asyncio.get_running_loop().call_soon(self._hand_on)
        elif not getattr(self._handler, "_reading_paused", False) and not self._transport.is_closing():
            self._transport.resume_reading()


def pace_pings() -> None:
    """Answer the pings of each websocket some at a time, and close it where there are too many.

    aiohttp answers them within `receive`, and waits for nothing between two.
    """
    usual = web.WebSocketResponse.pong

    async def pong(ws: web.WebSocketResponse, message: bytes = b"") -> None:
        now_s = asyncio.get_running_loop().time()
        began_s, count = ws.get(_PINGS, (now_s, 0))
        if now_s - began_s > _PINGS_S:
            began_s, count = now_s, 0
        ws[_PINGS] = began_s, count + 1
        if count >= PINGS_AT_MOST:
            await ws.close(code=WSCloseCode.POLICY_VIOLATION, message=b"too many pings")
            return
        if count % _PINGS_AT_ONCE == _PINGS_AT_ONCE - 1:
            await asyncio.sleep(0)
        await usual(ws, message)

    web.WebSocketResponse.pong = pong  # type: ignore[method-assign, assignment]
