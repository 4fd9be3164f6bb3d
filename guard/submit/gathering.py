"""Let what comes in at the same time go on together, once nothing more comes.

The store's thread and the event loop share Python's lock, and would hand it to and fro at each statement: it is cheaper
for both if the store begins when the loop has done its part. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: What comes in without a pause goes on after so many turns of the loop: so many requests begin in each
#: (`server_routes/evenly.py`) that these make a batch of the store.
TURNS = 8


class Gathering:
    """Calls `let_go` as soon as a turn of the loop adds nothing, or for a single one after a turn; at once where the
    loop has nothing else to do."""

    def __init__(self, let_go: Callable[[], object]) -> None:
        self._let_go = let_go
        self._added = self._seen = self._turns = 0

    def add(self) -> None:
        """One more waits to be let go."""
        self._added += 1
        if self._added > 1:
            return
        loop = asyncio.get_running_loop()
        if getattr(loop, "_ready", True):  # what asyncio's own has still to do in this turn
            loop.call_soon(self._look)
        else:
            self._added = 0
            self._let_go()

    def _look(self) -> None:
        self._turns += 1
        is_alone = self._added == 1
        if not is_alone and self._added > self._seen and self._turns < TURNS:
            self._seen = self._added
            asyncio.get_running_loop().call_soon(self._look)
            return
        self._added = self._seen = self._turns = 0
        self._let_go()
