"""Let every connection have a little of each turn of the event loop, however much has come in on it.

What has come in is read, and worked on, without a look at anybody else as long as nothing has to be waited for: the
thousands of pings, or the requests one behind the other, that fit into one read of the socket. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from aiohttp import WSCloseCode, web

#: So many requests begin in one turn of the loop.
BEGUN_AT_ONCE = 8
#: So many pings of a websocket are answered in one turn of the loop, …
_PINGS_AT_ONCE = 16
#: … and so many in so long a time. Clients ping every few seconds at most.
PINGS_AT_MOST, _PINGS_S = 500, 10.0

_PINGS = "guarded_pings"


class Turns:
    """Lets things happen in the order in which they come, some in each turn of the loop."""

    def __init__(self, at_once: int) -> None:
        self._at_once = self._left = at_once
        self._waiting: deque[asyncio.Future[None] | Callable[[], None]] = deque()
        self._is_counting = False

    async def wait(self) -> None:
        """Wait for one's turn: none where few have come before."""
        if self._left > 0 and not self._waiting:
            self._left -= 1
            if self._left < self._at_once / 2:  # until then what came in earlier turns counts, too: that takes less
                self._count()
            return
        self._count()
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        await place

    def call(self, function: Callable[[], None]) -> None:
        """Call it in a later turn."""
        self._waiting.append(function)
        self._count()

    def _count(self) -> None:
        if not self._is_counting:
            self._is_counting = True
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._left, waiting = self._at_once, len(self._waiting)
        while waiting and self._left > 0:
            waiting -= 1  # what they let wait again comes in another turn
            place = self._waiting.popleft()
            if not isinstance(place, asyncio.Future):
                place()
            elif place.done():  # its client has gone
                continue
            else:
                place.set_result(None)
            self._left -= 1
        self._is_counting = bool(self._waiting)
        if self._is_counting:
            asyncio.get_running_loop().call_soon(self._begin_turn)


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
