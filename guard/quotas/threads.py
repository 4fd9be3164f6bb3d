"""Threads that all owners share, for work that one request can make long: in turns of owners, and none has them all."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from ..wake import LoopCaller, wrap_future

T = TypeVar("T")


class SharedThreads:
    """Event loop, except for the work itself.

    An owner has one thread less than there are at most (one of one), however long others have nothing to do: what it
    has begun may take minutes, and cannot be stopped for whoever comes then. Where several wait, the owners take turns.
    """

    def __init__(self, count: int, name: str) -> None:
        """`name`: of the threads, in logs and stacks."""
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._loop = LoopCaller()
        self._free = count
        self._most = max(count - 1, 1)
        self._taken: Counter[str] = Counter()
        #: By owner, in the order of their turns.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def run(self, owner: str, work: Callable[..., T], *arguments: Any) -> T:
        """Do it on one of the threads. Who goes away before it has begun gives up its place."""
        await self._wait(owner)
        self._loop.bind()
        future = self._threads.submit(work, *arguments)
        # Not when this task ends: it may be cancelled, and the thread goes on.
        future.add_done_callback(lambda _done: self._loop.call(partial(self._leave, owner)))
        return await wrap_future(future)

    async def _wait(self, owner: str) -> None:
        if self._may_begin(owner) and owner not in self._waiting:
            self._take(owner)
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self._leave(owner)
            raise

    def _may_begin(self, owner: str) -> bool:
        return self._free > 0 and self._taken[owner] < self._most

    def _take(self, owner: str) -> None:
        self._free -= 1
        self._taken[owner] += 1

    def _leave(self, owner: str) -> None:
        self._free += 1
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]
        while (following := next(filter(self._may_begin, self._waiting), None)) is not None:
            places = self._waiting.pop(following)
            place = places.popleft()
            if places:
                self._waiting[following] = places  # behind the others
            if not place.done():  # its client has gone
                self._take(following)
                place.set_result(None)
