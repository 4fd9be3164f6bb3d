"""Work on some of an owner's requests at a time; the others wait for their turn, in order. Event loop only."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

#: A request waits for its turn for so long.
TURN_WITHIN_S = 60.0


class Turn:
    """One request's share of its owner's. Without an owner it counts for nothing."""

    def __init__(self, requests: Requests | None = None, on_last: Callable[[], object] = lambda: None) -> None:
        self._requests = requests
        self._on_last = on_last
        self.works = False

    def rest(self) -> None:
        """The request is not worked on any more: what it waits for, or sends, takes its time."""
        if self._requests is not None and self.works:
            self.works = False
            self._requests.pass_on()

    def close(self) -> None:
        """The request has been answered."""
        self.rest()
        if self._requests is not None:
            requests, self._requests = self._requests, None
            requests.held -= 1
            if not requests.held:
                self._on_last()


@dataclass
class Requests:
    """An owner's requests: how many there are, how many are worked on, and those that wait for their turn."""

    held: int = 0
    working: int = 0
    line: deque[asyncio.Future[None]] = field(default_factory=deque)

    def take_up(self, on_last: Callable[[], object]) -> Turn:
        """Count one more request, until its turn is closed; `on_last` is called where no other is left then."""
        self.held += 1
        return Turn(self, on_last)

    async def wait_for_turn(self, turn: Turn, at_once: int) -> bool:
        """Wait until the request may be worked on, with `at_once` at most; False where that takes too long."""
        if self.working < at_once:
            self.working += 1
            turn.works = True
        else:
            turn.works = await self._stand_in_line()
        return turn.works

    async def _stand_in_line(self) -> bool:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.line.append(place)
        try:
            await asyncio.wait((place,), timeout=TURN_WITHIN_S)
        except asyncio.CancelledError:
            if place.done():
                self.pass_on()
            raise
        finally:
            if not place.done():
                self.line.remove(place)
        return place.done()

    def pass_on(self) -> None:
        """Give a turn that has come free to the first that waits."""
        if self.line:
            self.line.popleft().set_result(None)
        else:
            self.working -= 1
