"""How many connections the server holds: some less than the process may have open files, and the idlest go first.

Without a bound, connections that say nothing take every file descriptor, and then neither the job database nor an
operator gets one. aiohttp has no such bound, so this hears of each connection where aiohttp's server does.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_protocol import RequestHandler

from ..guard.errors import GuardError
from ..guard.journal import Throttle
from .draining import answer_unread
from .evenly import BEGUN_AT_ONCE, Turns
from .reading import SOCKETS_AT_ONCE, Line, Reading

log = logging.getLogger("guarded.http")

#: So many requests of a connection may have come in behind the one that is answered.
WAITING_AT_MOST = 2
#: Connections beyond the bound, for operators: an answer tells everybody else to come back later.
FOR_OPERATORS = 16
#: Files that the process needs for itself: the job database, models, uploads, results.
_OWN_FILES = 128
#: Of waiting connections 128 are accepted at once (aiohttp's backlog), before the first of them is heard of; and as
#: many again in the turn of the event loop in which those that had to go for them give back their files.
_BURST = 256


def find_bound(wanted: int, open_files: int | None = None) -> int:
    """How many connections there may be; `open_files` (`ulimit -n`) is asked of the system where it is not given."""
    limit = _read_open_files() if open_files is None else open_files
    room = limit - max(_OWN_FILES, limit // 4) - _BURST - FOR_OPERATORS
    return max(min(wanted, room), 1)


def _read_open_files() -> int:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 2**31
    limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit if limit != resource.RLIM_INFINITY else 2**31


class Connections:
    """The open connections of one application, the idlest first. Event loop."""

    def __init__(self, application: web.Application, bound: int) -> None:
        self.bound = bound
        self._application = application
        #: That have sent no whole request yet, the oldest first: slow senders and those that say nothing.
        self._silent: dict[RequestHandler, None] = {}
        #: Between two requests, those that have been for the longest first.
        self._idle: dict[RequestHandler, None] = {}
        self._busy: dict[RequestHandler, None] = {}
        #: Strangers' whose answer is not sent yet, those that take none for the longest first.
        self._unsent: dict[RequestHandler, None] = {}
        self._throttle = Throttle()

    def __len__(self) -> int:
        return len(self._busy) + len(self._idle) + len(self._silent) + len(self._unsent)

    @property
    def _kinds(self) -> tuple[dict[RequestHandler, None], ...]:
        return self._unsent, self._silent, self._idle, self._busy

    @property
    def full(self) -> bool:
        return len(self) > self.bound

    def watch(self) -> None:
        """Hear of every connection that the application's server gets or loses."""
        made, lost = web.Server.connection_made, web.Server.connection_lost
        line, sockets = Line(), Turns(SOCKETS_AT_ONCE)

        def connection_made(server: Any, handler: Any, transport: Any) -> None:
            made(server, handler, transport)
            if self._is_ours(server):
                self._open(handler)
                _read_little_ahead(handler)
                transport.set_protocol(Reading(handler, transport, line, sockets))

        def connection_lost(server: Any, handler: Any, exc: BaseException | None = None) -> None:
            if self._is_ours(server):
                self._forget(handler)
            lost(server, handler, exc)

        web.Server.connection_made = connection_made  # type: ignore[method-assign, assignment]
        web.Server.connection_lost = connection_lost  # type: ignore[method-assign, assignment]

    def answer_unreadable(self, refuse: Callable[[web.Request, str], web.Response]) -> None:
        """Answer with `refuse` what cannot be read as HTTP, or not in the encoding that it names.

        aiohttp finds that before it knows a route, so no middleware hears of it; its own answer is a line of text, and
        a traceback in the log for everything that a stranger sends.
        """
        usual = RequestHandler.handle_error

        def handle_error(
            handler: Any, request: Any, status: int = 500, exc: BaseException | None = None, message: str | None = None
        ) -> web.StreamResponse:
            if status != 400 or handler not in self or request.writer.output_size > 0:
                return usual(handler, request, status, exc, message)
            response = refuse(request, " ".join((message or str(exc)).split())[:200])
            response.force_close()
            return response

        RequestHandler.handle_error = handle_error  # type: ignore[method-assign, assignment]

    def __contains__(self, handler: RequestHandler) -> bool:
        return any(handler in kind for kind in self._kinds)

    def begin(self, handler: RequestHandler) -> None:
        """A request has come in whole, but for its body."""
        if handler in self._idle:  # nearly always
            del self._idle[handler]
        else:
            self._forget(handler)
        self._busy[handler] = None

    def send_to_stranger(self, handler: RequestHandler) -> None:
        """The answer is there, and goes to nobody whom we know."""
        if handler in self._busy:
            del self._busy[handler]
            self._unsent[handler] = None

    def end(self, handler: RequestHandler) -> None:
        if handler in self._busy:
            del self._busy[handler]
        elif handler in self._unsent:
            del self._unsent[handler]
        else:
            return  # the connection is lost
        self._idle[handler] = None

    def _is_ours(self, server: Any) -> bool:
        return getattr(server.request_handler, "__self__", None) is self._application

    def _open(self, handler: RequestHandler) -> None:
        if len(self) >= self.bound:
            # Most answers are in the socket's buffer at once: an unsent one is not taken.
            idlest = next((handler for kind in self._kinds[:-1] for handler in kind), None)
            if idlest is not None:
                self._close(idlest, "the idlest")
            elif len(self) >= self.bound + FOR_OPERATORS:
                self._close(handler, "a new one")
                return
        self._silent[handler] = None

    def _close(self, handler: RequestHandler, which: str) -> None:
        if handler in self._unsent and handler.transport is not None:
            handler.transport.abort()  # to close it would wait for what nobody takes
        self._forget(handler)
        handler.force_close()
        if (skipped := self._throttle.take("full")) is not None:
            log.warning("all %d connections are taken: %s is closed (%d more before it)", self.bound, which, skipped)

    def _forget(self, handler: RequestHandler) -> None:
        for kind in self._kinds:
            kind.pop(handler, None)


def _read_little_ahead(handler: Any) -> None:
    """Let few requests wait behind the one that is answered: aiohttp (from 3.14 on) takes 32, each with up to 2 MB of
    headers, from whoever reads no answer."""
    if hasattr(handler, "_max_msg_queue_size"):
        handler._max_msg_queue_size = WAITING_AT_MOST
        handler._msg_queue_resume_size = WAITING_AT_MOST - 1


def watch_requests(
    connections: Connections,
    refuse_full: Callable[[web.Request], web.Response | None],
    refuse_body: Callable[[web.Request, GuardError], web.Response],
    timeout_s: float,
) -> Middleware:
    """Make the outermost middleware, which changes no answer of anybody's.

    Args:
        refuse_full: the answer to a request for which there is no connection left; None where it is an operator's.
        refuse_body: the answer to a request of which no more is read.
        timeout_s: a client that hardly takes an answer of ours for so long is cut off.
    """

    beginnings = Turns(BEGUN_AT_ONCE)

    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        reading = request.transport.get_protocol() if request.transport is not None else None
        if not isinstance(reading, Reading):  # the connection is lost, say
            return await handler(request)
        reading.expect(request)
        try:
            response = await handler(request)
            if reading.refusal is None or response.prepared or request.get(ANSWERED_BY_US):
                return response
        except Exception:
            if reading.refusal is None:
                raise
        finally:
            reading.end()
        return refuse_body(request, reading.refusal)

    @web.middleware
    async def watched(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = request.protocol
        connections.begin(connection)
        try:
            await beginnings.wait()
            with contextlib.ExitStack() as until_sent:
                request[UNTIL_SENT] = until_sent
                if connections.full and (refusal := refuse_full(request)) is not None:
                    response: web.StreamResponse = refusal
                    response.force_close()
                else:
                    response = await answer(request, handler)
                    if not request.get(ANSWERED_BY_US):
                        return response
                if not request.get(OWNER):
                    connections.send_to_stranger(connection)
                try:
                    await answer_unread(request, response, timeout_s)
                except ConnectionError as error:
                    # Whoever has gone, or was cut off, needs no answer, and aiohttp finds out by itself. But the error
                    # is kept by what its traceback leads to, and so would be the whole answer, until Python's collector
                    # runs: it counts objects, not bytes, and seldom comes.
                    error.__traceback__ = None
                return response
        finally:
            connections.end(connection)

    return watched


#: Set on requests that we answer. How others treat the bodies of theirs is their own affair.
ANSWERED_BY_US = "guarded_answered"
#: Where a request keeps the owner of its jobs.
OWNER = "guarded.owner"
#: Where a request keeps what ends with it once its answer has been sent: an ExitStack.
UNTIL_SENT = "guarded_until_sent"
