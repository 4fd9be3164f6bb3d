"""Bound the large requests of all owners together: each may hold some ten MiB, and there is no bound to the owners.

Whoever takes a large answer slowly keeps its turn for as long. So while others wait, the turn that has been held for
the longest ends, with its connection, if it has been for half a minute. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..errors import ServerUnavailableError
from .line import Line

#: So many at once: of eight owners who do not read their answers.
LARGE_AT_ONCE = 32
#: A request waits for its turn for so long, …
WITHIN_S = 60.0
#: … and may keep it for so long while others wait.
KEPT_S = 30.0


class Large:
    """Who has a turn, and who waits for one, in the order in which they came. An owner has a few places at most."""

    def __init__(self) -> None:
        #: Since when, and what ends it: the oldest first.
        self._held: dict[object, tuple[float, Callable[[], object]]] = {}
        self._line = Line()
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, holder: object, end: Callable[[], object]) -> None:
        """Wait for a turn; `end` closes the holder's connection.

        Raises ServerUnavailableError where it does not come within a minute.
        """
        loop = asyncio.get_running_loop()
        if self._line.taken >= LARGE_AT_ONCE:
            loop.call_soon(self._look)  # it waits by then
        if not await self._line.wait_for_turn(LARGE_AT_ONCE, WITHIN_S):
            raise ServerUnavailableError(
                "The server is at as many large requests as it can be.",
                extra_info={"of": "large_requests"},
                retry_after_s=5,
            )
        self._held[holder] = loop.time(), end

    def give_back(self, holder: object) -> None:
        if self._held.pop(holder, None) is not None:
            self._line.pass_on()

    def _look(self) -> None:
        """End turns that have been held for too long, as many as there are waiting; and look again while any are."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        too_old = loop.time() - KEPT_S
        for since_s, end in list(self._held.values())[: len(self._line.waiting)]:
            if since_s <= too_old:
                end()  # its request gives the turn back once it hears of that
        if self._line.waiting:
            self._timer = loop.call_later(1.0, self._look)
