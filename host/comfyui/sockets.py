"""Relay what ComfyUI sends over its websockets to sockets that ComfyUI does not know.

ComfyUI sends to its sockets one after the other, and keeps one for each client id: a slow socket holds up all others,
and an old one that closes takes the new one's place with it. The relay waits for no socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from ...guard.host import SocketListener
from ...guard.wake import Wake
from .patching import Native

try:
    from comfy_api import feature_flags
except ImportError:  # an older ComfyUI
    feature_flags = None

log = logging.getLogger("guarded.sockets")

#: What tells how far a run is may wait for so long, so that the loop is woken once for several of them.
LATER_S = 0.02
LATER = frozenset({"status", "executing", "progress", "progress_state", "execution_start", "execution_cached"})
#: After so many events in a row the loop does something else.
AT_ONCE = 100
#: So many messages of other servers wait for ComfyUI's own sockets; older ones go.
FAR_MESSAGES = 2_000
#: The methods through which ComfyUI's events go to its sockets.
SENDING = ("send_sync", "send", "send_json", "send_bytes")


class SocketRelay:
    """Pass events to ComfyUI's sockets and to the listener's."""

    def __init__(self, prompt_server: Any) -> None:
        """`prompt_server` is ComfyUI's own, untyped object."""
        self._server = prompt_server
        self._listener: SocketListener | None = None
        #: Event, data and client id of what the listener has yet to get.
        self._events: deque[tuple[Any, Any, str | None]] = deque()
        self._wake = Wake()
        #: Whether the loop is, or will be, woken later.
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        #: Our own wrappers of ComfyUI's methods.
        self._wrappers: dict[str, Any] = {}
        #: What ComfyUI's own sockets have yet to hear of jobs that run on other servers.
        self._far: deque[tuple[str, str | bytes]] = deque()
        self._telling: asyncio.Task[None] | None = None

    def note_wrappers(self) -> None:
        """ComfyUI's methods have got our wrappers, just now."""
        self._wrappers = {name: vars(self._server).get(name) for name in SENDING}

    def listen(self, listener: SocketListener) -> None:
        """Pass events to `listener` too, from now on."""
        self._listener = listener

    def send(self, native: Native, event: Any, data: Any, sid: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Send an event; `native` is ComfyUI's own `send_sync`. Any thread."""
        if self._listener is not None and self._listener.wants(sid, isinstance(data, tuple)):
            self._events.append((event, data, sid))
            if self._task is None:
                self._server.loop.call_soon_threadsafe(self._begin)
            if not _may_wait(event, data):
                self._wake.set()
            elif not self._is_due:
                self._is_due = True
                with contextlib.suppress(RuntimeError):  # the loop has closed: the process ends
                    self._server.loop.call_soon_threadsafe(self._wake_later)
            if isinstance(data, tuple) and sid is not None and sid not in self._server.sockets:
                return None  # a picture; ComfyUI would encode it for nobody
        if self._is_for_nobody(sid) and self._is_comfyuis_own(native):
            return None  # it would wake the loop for it all the same
        return native(event, data, sid, *args, **kwargs)

    def _is_for_nobody(self, sid: Any) -> bool:
        """Whether ComfyUI has no socket for that client id (None: none at all)."""
        sockets = self._server.sockets
        return not sockets or (isinstance(sid, str) and sid not in sockets)

    def _is_comfyuis_own(self, native: Native) -> bool:
        """Whether nothing but ComfyUI's sockets hears what ComfyUI sends: packs put theirs in front, to hear it all."""
        kind, ours = type(self._server), vars(self._server)
        code = vars(sys.modules[kind.__module__])
        for name in SENDING:  # for each event: no generators
            if ours.get(name) is not self._wrappers.get(name):
                return False
            if getattr(getattr(kind, name, None), "__globals__", None) is not code:
                return False
        return getattr(native, "__func__", None) is kind.send_sync

    def find_executing(self, sid: str) -> str | None:
        """The node that runs for that client id, as ComfyUI tells it to a socket that reconnects. Event loop."""
        return self._server.last_node_id if self._server.client_id == sid else None

    def negotiate(self, sid: str, flags: Any) -> dict[str, Any] | None:
        """Note what a client can do where ComfyUI's nodes look for it; gives what ComfyUI can do, if it says so."""
        metadata = getattr(self._server, "sockets_metadata", None)
        if metadata is None or feature_flags is None:
            return None
        metadata[sid] = {"feature_flags": flags if isinstance(flags, dict) else {}}
        features: dict[str, Any] = feature_flags.get_server_features()
        return features

    def find_flags(self, sid: str) -> Mapping[str, Any]:
        """What the client can do that has that id, as ComfyUI's nodes see it."""
        known = getattr(self._server, "sockets_metadata", {}).get(sid)
        flags = known.get("feature_flags") if isinstance(known, dict) else None
        return flags if isinstance(flags, dict) else {}

    def tell_native(self, sid: str, messages: Iterable[str | bytes]) -> None:
        """Send to ComfyUI's own socket of that client id what another server's ComfyUI has made. Event loop."""
        if sid not in self._server.sockets:
            return
        self._far.extend((sid, message) for message in messages)
        while len(self._far) > FAR_MESSAGES:
            self._far.popleft()
        if self._telling is None and self._far:
            self._telling = asyncio.get_running_loop().create_task(self._tell_natives(), name="guarded-far-messages")

    async def _tell_natives(self) -> None:
        """One after the other, as ComfyUI does."""
        while self._far:
            sid, message = self._far.popleft()
            socket = self._server.sockets.get(sid)
            try:
                if socket is not None:
                    await (socket.send_str(message) if isinstance(message, str) else socket.send_bytes(message))
            except Exception as error:  # closed meanwhile
                log.debug("a message of another box cannot be sent: %s", error)
        self._telling = None

    def forget(self, sid: str) -> None:
        """No socket of the listener's has that client id any more."""
        if sid not in self._server.sockets:
            getattr(self._server, "sockets_metadata", {}).pop(sid, None)

    def _begin(self) -> None:
        """Event loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._pass_on(), name="guarded-sockets")

    def _wake_later(self) -> None:
        """Event loop."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LATER_S, self._wake.set)

    async def _pass_on(self) -> None:
        """Event loop, for as long as the server runs."""
        assert self._listener is not None
        while True:
            await self._wake.wait()
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._is_due = None, False  # before the events are taken: what comes later is due anew
            taken = 0
            while self._events:
                event, data, sid = self._events.popleft()
                try:
                    self._listener.passed(event, data, sid, await self._encode(event, data))
                except Exception:  # packs send what they like, and this task must outlive it
                    log.debug("event %r cannot be sent", event, exc_info=True)
                taken += 1
                if taken % AT_ONCE == 0:
                    await asyncio.sleep(0)

    async def _encode(self, event: Any, data: Any) -> str | bytes:
        """Make what ComfyUI would send: JSON text, or the bytes of a preview."""
        if isinstance(event, str) and isinstance(data, dict):
            return json.dumps({"type": event, "data": data})
        recorder = _Recorder(self._server)
        await type(self._server).send(recorder, event, data)
        return recorder.message


def _may_wait(event: Any, data: Any) -> bool:
    """Whether an event tells neither of a result nor of an end."""
    return (
        isinstance(event, str)
        and event in LATER
        and not (event == "executing" and isinstance(data, dict) and data.get("node") is None)
    )


class _Recorder:
    """Stand in for the server while ComfyUI's own code sends one message, and keep that message."""

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
