"""Serves the MCP server under ComfyUI's own: the package's transport speaks ASGI, and this passes requests to it.

It runs on a thread with an event loop of its own. So nothing of the package's (its imports take a second, its models
check every message) holds up ComfyUI's event loop, and no second port, process or certificate is needed. It keeps no
sessions: each request is whole, and stands for nobody but its own caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from typing import Any

from aiohttp import web

from ..guard.errors import GuardError, InvalidRequestError, PayloadTooLargeError
from .api import Reach
from .messages import find_fault

log = logging.getLogger("guarded.mcp")

THREAD = "guarded-mcp"
#: Where a request keeps whom to ask, and as whom.
_REACH = "guarded.reach"
#: What says who the caller is.
_CREDENTIALS = ("Authorization", "X-API-Key", "Cookie")
#: Let a reader go that takes nothing for so long.
_STALLED_S = 60.0

_Message = MutableMapping[str, Any]
_Serve = Callable[[dict[str, Any], Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Any]


class MissingPackageError(Exception):
    """The optional package is not installed, or too old; the message says what to do."""


class Bridge:
    """The MCP server of this process. It begins with the first request."""

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._lock = threading.Lock()
        self._started: Future[tuple[asyncio.AbstractEventLoop, _Serve]] | None = None

    async def answer(self, request: web.Request, raw: bytes, message: Any) -> web.StreamResponse:
        """Pass a request on, and its answer back; `message` is what its body says. Event loop.

        Raises:
            MissingPackageError: there is no package that could answer.
            GuardError: the package refuses the request, and not as JSON.
        """
        loop, serve = await asyncio.shield(asyncio.wrap_future(self._start()))
        if (fault := find_fault(message)) is not None:
            return web.json_response(fault, status=400)
        here = asyncio.get_running_loop()
        messages: asyncio.Queue[_Message | None] = asyncio.Queue()

        def pass_back(message: _Message | None) -> None:
            with contextlib.suppress(RuntimeError):  # our loop is closed: the server ends
                here.call_soon_threadsafe(messages.put_nowait, message)

        serving = asyncio.run_coroutine_threadsafe(_serve(serve, _make_scope(request), raw, pass_back), loop)
        serving.add_done_callback(lambda _done: pass_back(None))
        try:
            return await _write_answer(request, messages)
        finally:
            serving.cancel()

    def _start(self) -> Future[tuple[asyncio.AbstractEventLoop, _Serve]]:
        with self._lock:
            if self._started is None:
                self._started = Future()
                threading.Thread(target=self._run, args=(self._started,), name=THREAD, daemon=True).start()
            return self._started

    def _run(self, started: Future[tuple[asyncio.AbstractEventLoop, _Serve]]) -> None:
        """The thread."""
        try:
            from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

            from .server import make_server
        except ImportError as error:
            started.set_exception(MissingPackageError(explain_missing(error)))
            return
        logging.getLogger("mcp").setLevel(logging.WARNING)  # it tells of every request

        async def main() -> None:
            server = make_server(lambda request: _read_reach(request.scope))
            manager = StreamableHTTPSessionManager(server, stateless=True, max_request_body_size=self._max_body_bytes)
            async with manager.run():
                started.set_result((asyncio.get_running_loop(), manager.handle_request))
                await asyncio.Event().wait()

        try:
            asyncio.run(main())
        except Exception as error:
            log.exception("MCP is off")
            if not started.done():
                started.set_exception(error)


def explain_missing(error: ImportError) -> str:
    """What to say where the package cannot be used."""
    return (
        f"MCP is off here: the package mcp, 2.3 or newer, is not installed ({error}). With ComfyUI's own Python: "
        "-m pip install -r requirements-mcp.txt"
    )


def _read_reach(scope: MutableMapping[str, Any]) -> Reach:
    reach = scope[_REACH]
    assert isinstance(reach, Reach)
    return reach


def _find_reach(request: web.Request) -> Reach:
    """This server itself, at the address that the caller has reached, as that caller.

    What the caller has sent for a key goes along. Who sends none and was let in is this machine; so are we.
    """
    assert request.transport is not None
    address, port = request.transport.get_extra_info("sockname")[:2]
    name = f"[{address}]" if ":" in address else address
    secure = request.transport.get_extra_info("sslcontext") is not None
    headers = {each: request.headers[each] for each in _CREDENTIALS if each in request.headers}
    # Many clients say `*`: an agent then reads English, whatever the server's users read.
    headers["Accept-Language"] = ", ".join(("en;q=0.001", *request.headers.getall("Accept-Language", ())))
    return Reach(f"{'https' if secure else 'http'}://{name}:{port}", headers, check_tls=False)


def _make_scope(request: web.Request) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.raw_path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.raw_headers],
        "client": None,
        "server": None,
        _REACH: _find_reach(request),
    }


async def _serve(serve: _Serve, scope: dict[str, Any], raw: bytes, pass_back: Callable[[_Message], None]) -> None:
    """The bridge's own loop. Cancelled once the caller has its answer, or has gone."""
    bodies: list[_Message] = [{"type": "http.request", "body": raw, "more_body": False}]

    async def receive() -> _Message:
        if bodies:
            return bodies.pop()
        await asyncio.Event().wait()  # until we are cancelled: nothing more comes
        raise AssertionError

    async def send(message: _Message) -> None:
        pass_back(message)

    await serve(scope, receive, send)


async def _write_answer(request: web.Request, messages: asyncio.Queue[_Message | None]) -> web.StreamResponse:
    start = await _next(request, messages)
    if start is None:
        raise RuntimeError("the MCP package has answered nothing")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
    for name in [name for name in headers if name.lower() in ("content-length", "connection")]:
        del headers[name]
    is_stream = any(
        name.lower() == "content-type" and value.startswith("text/event-stream") for name, value in headers.items()
    )
    if not is_stream:
        body = bytearray()
        while (message := await _next(request, messages)) is not None:
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if start["status"] >= 400 and not headers.get("content-type", "").startswith("application/json"):
            raise _make_refusal(start["status"], bytes(body))
        return web.Response(status=start["status"], body=bytes(body), headers=headers)
    response = web.StreamResponse(status=start["status"], headers={**headers, "X-Accel-Buffering": "no"})
    await response.prepare(request)
    while (message := await _next(request, messages)) is not None:
        if chunk := message.get("body", b""):
            await asyncio.wait_for(response.write(chunk), _STALLED_S)
        if not message.get("more_body"):
            break
    await response.write_eof()
    return response


def _make_refusal(status: int, body: bytes) -> GuardError:
    """Our refusal, for the one that the package has in words of its own, or in none."""
    why = body.decode("utf-8", "replace")[:200] or f"HTTP {status}"
    message = (
        f"This is no request of the protocol ({why}): it takes and accepts application/json and text/event-stream."
    )
    return PayloadTooLargeError(why) if status == 413 else InvalidRequestError(message)


async def _next(request: web.Request, messages: asyncio.Queue[_Message | None]) -> _Message | None:
    """The next message; None once there is none. Raises ConnectionResetError where the caller has gone."""
    while True:
        try:
            return await asyncio.wait_for(messages.get(), 1)
        except asyncio.TimeoutError:
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("the caller has gone") from None
