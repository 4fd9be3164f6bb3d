"""What ComfyUI sends over its websockets, passed on to sockets that ComfyUI does not know.

ComfyUI sends to its sockets one after the other, and keeps one for each client id: a slow socket holds up all others,
and an old one that closes takes the new one's place with it. What is passed on here waits for none of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from ...guard.host import SocketListener

try:
    from comfy_api import feature_flags
except ImportError:  # an older ComfyUI
    feature_flags = None

log = logging.getLogger("guarded.sockets")


class Passing:
    """Stands beside `PromptServer.send_sync`."""

    def __init__(self, prompt_server: Any) -> None:
        self._server = prompt_server
        self._listener: SocketListener | None = None
        self._passed: asyncio.Queue[tuple[Any, Any, str | None]]
        self._task: asyncio.Task[None] | None = None

    def listen(self, listener: SocketListener) -> None:
        self._listener = listener

    def send(self, native: Any, event: Any, data: Any, sid: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Any thread. To ComfyUI's sockets, and to the listener's."""
        if self._listener is not None and self._listener.wants(sid):
            self._server.loop.call_soon_threadsafe(self._take, event, data, sid)
            if isinstance(data, tuple) and sid is not None and sid not in self._server.sockets:
                return None  # a picture, which would be encoded for nobody
        return native(event, data, sid, *args, **kwargs)

    def executing(self, sid: str) -> str | None:
        """The node that runs for that client id, as ComfyUI tells it to a socket that reconnects."""
        return self._server.last_node_id if self._server.client_id == sid else None

    def negotiate(self, sid: str, flags: Any) -> dict[str, Any] | None:
        """Note what a client can do, where ComfyUI's nodes look; what the server can do, if it says so at all."""
        known = getattr(self._server, "sockets_metadata", None)
        if known is None or feature_flags is None:
            return None
        known[sid] = {"feature_flags": flags if isinstance(flags, dict) else {}}
        features: dict[str, Any] = feature_flags.get_server_features()
        return features

    def left(self, sid: str) -> None:
        """No socket of ours has that client id any more."""
        if sid not in self._server.sockets:
            getattr(self._server, "sockets_metadata", {}).pop(sid, None)

    def _take(self, event: Any, data: Any, sid: str | None) -> None:
        """Event loop."""
        if self._task is None:
            self._passed = asyncio.Queue()
            self._task = asyncio.get_running_loop().create_task(self._pass_on(), name="guarded-sockets")
        self._passed.put_nowait((event, data, sid))

    async def _pass_on(self) -> None:
        while True:
            event, data, sid = await self._passed.get()
            assert self._listener is not None
            try:
                self._listener.passed(event, data, sid, await self._encoded(event, data))
            except Exception:  # packs send what they like; nobody would hear anything any more
                log.debug("event %r cannot be sent", event, exc_info=True)

    async def _encoded(self, event: Any, data: Any) -> str | bytes:
        """As ComfyUI would send it: JSON text, or the bytes of a preview."""
        if isinstance(event, str) and isinstance(data, dict):
            return json.dumps({"type": event, "data": data})
        recorder = _Recorder(self._server)
        await type(self._server).send(recorder, event, data)
        return recorder.message


class _Recorder:
    """A server that ComfyUI's own code sends one message with, and whose only socket is our ear."""

    message: str | bytes = b""

    def __init__(self, prompt_server: Any) -> None:
        self._server = prompt_server

    async def send_bytes(self, event: Any, data: Any, sid: Any = None) -> None:
        self.message = bytes(self._server.encode_bytes(event, data))

    async def send_json(self, event: Any, data: Any, sid: Any = None) -> None:
        self.message = json.dumps({"type": event, "data": data})

    def __getattr__(self, name: str) -> Any:
        method = getattr(type(self._server), name)
        return method.__get__(self)
