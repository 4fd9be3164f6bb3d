"""ComfyUI's websocket, limited to the caller."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import Mapping

from aiohttp import WSCloseCode, WSMsgType, web

from ...guard.callers.socket import GOODBYE, Message, Socket
from ..about import About, Schema
from ..events import LAST_EVENT_ID, STALLED_S, read_last_event_id
from ..pace import Going, has_room
from ..table import Call, Route

log = logging.getLogger("guarded.sockets")

#: Ping so often; a peer that does not answer within half of this is gone.
HEARTBEAT_S = 30.0
#: Clients say little: their feature flags.
MAX_MESSAGE_BYTES = 2**16
_AT_ONCE = contextlib.nullcontext()


async def get_ws(call: Call) -> web.StreamResponse:
    """ComfyUI's websocket, with the caller's own events, and `guarded` ones among them."""
    after = read_last_event_id(call)
    with call.services.quotas.stream(call.client):
        call.turn.close()  # it counts as a stream
        return await _serve(call, after)


async def _serve(call: Call, after: int | None) -> web.StreamResponse:
    # Uncompressed: with thousands of idle sockets, a compressor of some 250 KiB for each would take most of the memory.
    ws = web.WebSocketResponse(heartbeat=HEARTBEAT_S, compress=False, max_msg_size=MAX_MESSAGE_BYTES)
    sockets = call.services.sockets
    has_open = await sockets.has_open(call.client)  # before it is connected, and would miss what is told meanwhile
    await ws.prepare(call.request)
    client_id = call.request.query.get("clientId", "")
    resumes = after is not None
    socket = sockets.open(call.client, client_id, lambda: _abort(call.request), resumes=resumes, has_open=has_open)
    tasks = [asyncio.create_task(_write(call, ws, socket))]
    if after is not None:
        tasks.append(asyncio.create_task(sockets.resume(socket, after)))
    try:
        await sockets.catch_up(socket)
        async for message in ws:
            if message.type is WSMsgType.TEXT:
                sockets.hear(socket, message.data)
    except Exception:
        log.exception("a websocket failed")  # which is no request any more: no answer could be given
        await ws.close(code=WSCloseCode.INTERNAL_ERROR)
    finally:
        sockets.close(socket)
        for task in tasks:
            task.cancel()
    return ws


async def _write(call: Call, ws: web.WebSocketResponse, socket: Socket) -> None:
    """Each socket has such a task, so a client that does not read holds up nobody but itself."""
    with contextlib.suppress(ConnectionError):
        while True:
            message = await socket.next()
            if message is GOODBYE:
                await ws.close(code=WSCloseCode.SERVICE_RESTART, message=b"connect again")
                return
            if more := socket.take_more():
                await _write_all(call, ws, [message, *more])
                continue
            size = len(message.content)
            # A text may have four bytes for each character. Most are short, and their client has taken all before.
            may_wait = not has_room(call.request, 4 * size)
            with Going(call.request, STALLED_S, given=size) if may_wait else _AT_ONCE:
                await _send(ws, message)
            call.services.sockets.mark_sent(message)


async def _write_all(call: Call, ws: web.WebSocketResponse, messages: list[Message]) -> None:
    """Send several short messages. In one call of the system, where the client has taken all before: it costs most."""
    frames = b"".join(_frame(message.content) for message in messages)
    transport = call.request.transport
    if transport is None or transport.is_closing() or ws.closed:
        raise ConnectionResetError("the websocket is closed")
    if has_room(call.request, len(frames)):
        transport.write(frames)
    else:
        with Going(call.request, STALLED_S, given=len(frames)):
            for message in messages:
                await _send(ws, message)
    for message in messages:
        call.services.sockets.mark_sent(message)


async def _send(ws: web.WebSocketResponse, message: Message) -> None:
    if isinstance(message.content, str):
        await ws.send_str(message.content)
    else:
        await ws.send_bytes(message.content)


def _frame(content: str | bytes) -> bytes:
    """A whole message as a server sends it uncompressed (RFC 6455, 5.2): aiohttp has no way to send several at once."""
    data, kind = (content.encode(), WSMsgType.TEXT) if isinstance(content, str) else (content, WSMsgType.BINARY)
    final, size = 0x80 | kind, len(data)
    if size < 126:
        return struct.pack("!BB", final, size) + data
    if size < 2**16:
        return struct.pack("!BBH", final, 126, size) + data
    return struct.pack("!BBQ", final, 127, size) + data


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


_QUERY: Mapping[str, Schema] = {"clientId": {"type": "string"}, "last_event_id": LAST_EVENT_ID}

ROUTES = [Route("GET", "/ws", get_ws, about=About({101: None}, query=_QUERY))]
