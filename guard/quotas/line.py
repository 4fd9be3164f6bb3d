"""A line of those who wait for one of a number of turns, first come first served. Event loop only."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field


@dataclass
class Line:
    """The turns of one kind: how many are taken, and the requests that wait for one."""

    taken: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)

    async def wait_for_turn(self, at_once: int, within_s: float) -> bool:
        """Wait until there are less than `at_once`; False where that takes longer than `within_s`."""
        if self.taken < at_once:
            self.taken += 1
            return True
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(place)
        try:
            await asyncio.wait((place,), timeout=within_s)
        except asyncio.CancelledError:
            if place.done():
                self.pass_on()
            raise
        finally:
            if not place.done():
                self.waiting.remove(place)
        return place.done()

    def pass_on(self) -> None:
        """Give a turn that has come free to the first that waits."""
        if self.waiting:
            self.waiting.popleft().set_result(None)
        else:
            self.taken -= 1
