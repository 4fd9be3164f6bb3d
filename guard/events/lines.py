"""Keep what each websocket hears in the order of the jobs, while the end of one cannot be told yet.

Clients of ComfyUI take any `execution_success` for that of their own job, and previews name no job at all. So whatever
is meant for a client id waits behind the end of that client's job before.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

log = logging.getLogger("guarded.host")

#: Event, data and client id, as the host sends them; packs send what they like.
Message = tuple[Any, Any, Any]

#: Previews that wait in one line; older ones go. Each may hold a picture of the size of the result.
PREVIEWS = 4


class End:
    """The place in the line where the end of a run will be told, once `tell` is there."""

    def __init__(self) -> None:
        self.tell: Callable[[], None] | None = None


class Lines:
    """By client id: what waits behind the end of a job. Any thread."""

    def __init__(self, send: Callable[[Message], object]) -> None:
        """`send` sends one message at once; it must not block."""
        self._send = send
        #: Held while messages are sent, so that none overtakes another. Whoever tells an end may send, too.
        self._lock = threading.RLock()
        self._lines: dict[str, deque[Message | End]] = {}

    def put_off(self, message: Message) -> bool:
        """Put a message into its line, where there is one; otherwise the caller sends it at once."""
        sid = message[2]
        if not isinstance(sid, str):
            return False  # to everybody: `status`
        with self._lock:
            line = self._lines.get(sid)
            if line is None:
                return False
            line.append(message)
            if _is_preview(message):
                previews = [waiting for waiting in line if isinstance(waiting, tuple) and _is_preview(waiting)]
                if len(previews) > PREVIEWS:
                    self._lines[sid] = deque(waiting for waiting in line if waiting is not previews[0])
            return True

    def add_end(self, sid: str) -> End:
        """From now on, let everything for `sid` wait until this end has been told."""
        end = End()
        with self._lock:
            self._lines.setdefault(sid, deque()).append(end)
        return end

    def tell(self, sid: str, end: End, tell: Callable[[], None]) -> None:
        """Call `tell` as soon as every end before this one has been told, then send what waits behind it."""
        with self._lock:
            end.tell = tell
            line = self._lines.get(sid, deque())
            while line:
                first = line[0]
                if isinstance(first, End) and first.tell is None:
                    return
                line.popleft()
                try:
                    if isinstance(first, End):
                        assert first.tell is not None
                        first.tell()
                    else:
                        self._send(first)
                except BaseException:  # a pack's SystemExit would leave what follows waiting for ever
                    log.exception("what waited for the end of a job could not be sent")
            self._lines.pop(sid, None)


def _is_preview(message: Message) -> bool:
    """Whether it is a picture: `(type, picture, longer side)`, or that and facts about it."""
    return isinstance(message[1], tuple)
