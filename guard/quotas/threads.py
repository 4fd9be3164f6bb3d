"""Threads that all owners share, for work that one request can make long: in turns of owners, and none has them all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TypeVar

from typing_extensions import ParamSpec

from ..bounds import INLINE_BYTES
from ..wake import LoopCaller, wrap_future
from .places import Places

P = ParamSpec("P")
T = TypeVar("T")

#: Whose request or delivery this task works on; empty: nobody's.
_whose: ContextVar[str] = ContextVar("whose", default="")


#: Whether nobody waits for that any more.
_is_vain: ContextVar[Callable[[], bool]] = ContextVar("is_vain", default=lambda: False)


@contextmanager
def working_for(owner: str, is_vain: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """What the block, and tasks that it begins, hands to shared threads is that owner's.

    `is_vain`: whether nobody waits for it any more, so that what takes long need not begin.
    """
    tokens = _whose.set(owner), _is_vain.set(is_vain)
    try:
        yield
    finally:
        _whose.reset(tokens[0])
        _is_vain.reset(tokens[1])


def find_whose() -> str:
    """The owner of `working_for`."""
    return _whose.get()


class Shares:
    """So many things at once, by turns between owners; of one owner no more than `most`. Event loop."""

    def __init__(self, count: int, most: int) -> None:
        self._count = count
        self._most = most
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._places: Places[asyncio.Future[None]] = Places(self._count, self._most)

    @asynccontextmanager
    async def of(self, owner: str) -> AsyncIterator[None]:
        """One of the owner's places, during the block."""
        await self.take(owner)
        try:
            yield
        finally:
            self.give_back(owner)

    async def take(self, owner: str) -> None:
        """Wait for one of the owner's places. Who goes away before that has none."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # from a loop that has closed nobody comes back
            self._loop = loop
            self._begin_anew()
        if self._places.take(owner):
            return
        place: asyncio.Future[None] = loop.create_future()
        self._places.wait(owner, place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.give_back(owner)
            raise

    def give_back(self, owner: str) -> None:
        """One of the owner's is free; whose turn it is has it."""
        self._places.free(owner)
        while (turn := self._places.find_next()) is not None:
            following, place = turn
            if place.done():  # its client has gone
                self._places.free(following)
            else:
                place.set_result(None)


class SharedThreads:
    """Event loop, except for the work itself.

    An owner has one thread less than there are at most (one of one), however long others have nothing to do: what it
    has begun may take minutes, and cannot be stopped for whoever comes then. Where several wait, the owners take turns.
    """

    def __init__(self, count: int, name: str, most: int | None = None, *, drops_vain: bool = False) -> None:
        """
        Args:
            name: of the threads, in logs and stacks.
            most: an owner has no more than so many.
            drops_vain: what nobody waits for any more, see `working_for`, does not begin.
        """
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._places = Shares(count, most or max(count - 1, 1))
        self._drops_vain = drops_vain

    async def run(self, owner: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do it on one of the threads. Who goes away before it has begun gives up its place.

        Raises ConnectionResetError where it is dropped.
        """
        await self._places.take(owner)
        try:
            if self._drops_vain and _is_vain.get()():
                raise ConnectionResetError("nobody waits for it any more")
            future = self._threads.submit(work, *args, **kwargs)
        except BaseException:  # there can be no more threads, or the interpreter ends
            self._places.give_back(owner)
            raise
        waiting = wrap_future(future)

        def leave(_done: object) -> None:
            if not waiting.cancelled():
                self._places.give_back(owner)
                return
            caller = LoopCaller()
            caller.bind()
            # The thread goes on.
            future.add_done_callback(lambda _ended: caller.call(partial(self._places.give_back, owner)))

        waiting.add_done_callback(leave)
        return await waiting

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


#: For what requests do that blocks for a moment each: the disk. Half of them stay for others.
_BESIDE = SharedThreads(8, "guarded-requests", 4)
#: For bodies, of which few are read at once in any case.
_READING = SharedThreads(4, "guarded-bodies", 2)
#: For texts in which references are looked for: ten seconds of Python for each, as long as anybody waits for that.
_SEARCHING = SharedThreads(2, "guarded-texts", drops_vain=True)
#: For what takes a picture apart, which may take a second or ten, and gigabytes.
_DECODING = SharedThreads(2, "guarded-pictures", drops_vain=True)


async def run_beside(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what blocks for a moment on another thread.

    Not on asyncio's, which all owners' work would wait for first come first served, and all of ComfyUI's with it.
    """
    return await _BESIDE.run(find_whose(), function, *args, **kwargs)


async def search_beside(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what looks through a file that may be one long text."""
    return await _SEARCHING.run(find_whose(), function, *args, **kwargs)


async def decode_beside(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what decodes a picture."""
    return await _DECODING.run(find_whose(), function, *args, **kwargs)


async def work(size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what takes as long as the body of `size` bytes is large: at once, or on another thread."""
    if size > INLINE_BYTES:
        return await _READING.run(find_whose(), function, *args, **kwargs)
    return function(*args, **kwargs)
