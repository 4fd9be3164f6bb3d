"""One websocket of a caller's, and what waits to be sent on it. Event loop."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..client import Client

log = logging.getLogger("guarded.sockets")

#: A socket is closed when more than this waits to be sent on it: its client cannot keep up.
OUTBOX_BYTES = 16 * 2**20
OUTBOX_MESSAGES = 2_000
#: … and, the fullest one, when more than this waits on all sockets of its owner.
OWNER_BYTES = 64 * 2**20
#: So much is sent at once, where so much waits.
AT_ONCE_CHARS = 2**14
#: A feature of clients: previews with metadata. The others get bare pictures, which newer editors do not show.
PREVIEW_METADATA = "supports_preview_metadata"


@dataclass(frozen=True)
class Message:
    """One frame: text, or a binary preview. `verdict_of`: the id of the job whose end it tells."""

    content: str | bytes
    verdict_of: str | None = None


#: After what waits, the connection is closed: the server goes, and the client is to connect again.
GOODBYE = Message("")


class Socket:
    """One open websocket: who listens, and what is still to be sent. Event loop.

    `abort` closes the connection. It is called once at most: when too much waits to be sent, or when the client's key
    has ended. A socket that `resumes` gets the jobs' events from :meth:`Sockets.resume`.
    """

    def __init__(
        self,
        client: Client,
        client_id: str,
        sid: str,
        abort: Callable[[], None],
        resumes: bool = False,
        waiting: Waiting | None = None,
    ) -> None:
        self.resumes = resumes
        self.client = client
        self.client_id = client_id
        self.sid = sid
        #: The count of jobs that it was told last.
        self.remaining: int | None = None
        self.first_word = True
        #: By prompt, the ends that come while the missed verdicts are read, which go first; then None.
        self.ends: dict[str, list[tuple[Message, bool]]] | None = {}
        #: The jobs whose end it heard by `catch_up`.
        self.caught_up: set[str] = set()
        self._waiting = waiting or Waiting()
        self._abort: Callable[[], None] | None = abort
        self._outbox: deque[Message] = deque()
        #: Of what waits, and of what is being sent.
        self.bytes = 0
        self._sending = 0
        self._filled = asyncio.Event()
        self._taken = asyncio.Event()

    def put(self, message: Message) -> None:
        """Send the message after those that wait already."""
        if self._abort is None:
            return
        self._outbox.append(message)
        self._count(len(message.content))
        if self.bytes > OUTBOX_BYTES or len(self._outbox) > OUTBOX_MESSAGES:
            self.give_up()
        self._filled.set()

    def give_up(self) -> None:
        """Close the connection: its client cannot keep up."""
        log.warning("a websocket of %s cannot keep up and is closed", self.client.owner)
        self.hang_up()

    def _count(self, change: int) -> None:
        self.bytes += change
        self._waiting.count(self, change)

    def hang_up(self) -> None:
        """Send nothing more, and close the connection."""
        if self._abort is not None:
            abort, self._abort = self._abort, None
            self._outbox.clear()
            self._count(-self.bytes)
            self._sending = 0
            abort()

    def drop(self) -> None:
        """The connection has closed: what waits counts for nothing."""
        self._waiting.count(self, -self.bytes)
        self._waiting = Waiting()

    def say(self, event: str, data: Any, verdict_of: str | None = None) -> None:
        """Send an event as ComfyUI would: `{type, data}`."""
        self.put(Message(json.dumps({"type": event, "data": data}), verdict_of))

    async def next(self) -> Message:
        """Wait for the next message to send."""
        self._count(-self._sending)
        self._sending = 0
        self._taken.set()
        while not self._outbox:
            self._filled.clear()
            await self._filled.wait()
        message = self._outbox.popleft()
        self._sending = len(message.content)
        self._taken.set()
        return message

    def take_more(self) -> list[Message]:
        """What waits behind the message of :meth:`next` and may be sent together with it."""
        more: list[Message] = []
        while self._outbox and self._outbox[0] is not GOODBYE:
            size = len(self._outbox[0].content)
            if self._sending + size > AT_ONCE_CHARS:
                break
            self._sending += size
            more.append(self._outbox.popleft())
        return more

    async def wait_for_room(self) -> None:
        """Wait until less than half of what may wait is waiting."""
        while len(self._outbox) > OUTBOX_MESSAGES // 2 or self.bytes > OUTBOX_BYTES // 2:
            self._taken.clear()
            await self._taken.wait()


class Waiting:
    """What waits on all sockets, by owner. Of an owner with too much, the fullest socket is closed."""

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()
        self._sockets: dict[str, dict[Socket, int]] = {}

    def count(self, socket: Socket, change: int) -> None:
        owner = socket.client.owner
        sockets = self._sockets.setdefault(owner, {})
        sockets[socket] = sockets.get(socket, 0) + change
        if not sockets[socket]:
            del sockets[socket]
        self._bytes[owner] += change
        if not sockets:
            del self._sockets[owner], self._bytes[owner]
        elif self._bytes[owner] > OWNER_BYTES:
            max(sockets, key=lambda one: sockets[one]).give_up()
