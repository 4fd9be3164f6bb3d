"""Hand what other servers answer to aiohttp a little at a time, and no more of it than brings something.

Callers name some of these servers. aiohttp takes apart whatever they send, a quarter of a megabyte at once, and waits
for the end of an answer: of one that says `100 Continue` for ever, or comes in chunks of one byte, that is the event
loop's time, for each webhook that is under way.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from ..guard.errors import InvalidRequestError
from .evenly import Turns
from .reading import FRAMED_FREE_BYTES, FRAMED_TIMES, SOCKETS_AT_ONCE, Line, Reading

_lines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Line] = weakref.WeakKeyDictionary()


class ScatteredError(aiohttp.ClientPayloadError):
    """An answer that is much longer than what it says."""

    def __init__(self) -> None:
        super().__init__("the answer comes in too many small pieces")


def make_connector(**options: Any) -> aiohttp.TCPConnector:
    """Make a pool of connections that are all read so. In the event loop."""
    connector = aiohttp.TCPConnector(**options)
    made = functools.partial(_Handler, loop=asyncio.get_running_loop())
    connector._factory = made  # type: ignore[assignment]
    return connector


class _Handler(ResponseHandler):
    """aiohttp's end of one connection."""

    _hearing: Hearing | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        line = _lines.setdefault(self._loop, Line())
        self._hearing = Hearing(self, transport, line, Turns(SOCKETS_AT_ONCE))
        transport.set_protocol(self._hearing)

    def set_response_params(self, **params: Any) -> None:
        if self._hearing is not None:
            self._hearing.begin()
        super().set_response_params(**params)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._hearing = None
        super().connection_lost(exc)


class Hearing(Reading):
    """Stands between a connection that we made and aiohttp."""

    _handler: ResponseHandler

    def begin(self) -> None:
        """A request is sent: what comes in from now on is its answer."""
        self._wire = 0

    def _count(self, nbytes: int) -> None:
        if self._handler.upgraded or getattr(self._handler, "_payload_parser", None) is not None:
            return  # a websocket's, of another box
        self._wire += nbytes
        payload = getattr(self._handler, "_payload", None)
        brought = payload.total_bytes if payload is not None else 0
        if self._wire <= max(FRAMED_FREE_BYTES, FRAMED_TIMES * brought):
            return
        self.refusal = InvalidRequestError("The answer comes in too many small pieces.")
        error = ScatteredError()
        self._handler.set_exception(error)
        if payload is not None:
            payload.set_exception(error)
        self._transport.abort()
