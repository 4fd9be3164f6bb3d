"""Reach the event loop from any thread: call a function on it, or wake the task that waits there.

To wake the loop costs a system call and, as the two threads then want Python's lock, more than most calls themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

#: What a thread inside :func:`together` has yet to call on the loop.
_held = threading.local()


@contextmanager
def together() -> Iterator[None]:
    """What this thread calls on the loop in here comes there at the end, in order, and wakes it once."""
    if getattr(_held, "calls", None) is not None:
        yield
        return
    calls: list[tuple[asyncio.AbstractEventLoop, Callable[[], object]]] = []
    _held.calls = calls
    try:
        yield
    finally:
        _held.calls = None
        for loop in dict.fromkeys(loop for loop, _function in calls):
            functions = [function for other, function in calls if other is loop]
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_call_all, loop, functions)


def _call_all(loop: asyncio.AbstractEventLoop, functions: list[Callable[[], object]]) -> None:
    """Event loop. In one turn of it; what one raises takes none of the others with it."""
    for at, function in enumerate(functions):
        try:
            function()
        except (SystemExit, KeyboardInterrupt):  # end the loop, as they would from a call of their own
            loop.call_soon(_call_all, loop, functions[at + 1 :])
            raise
        except BaseException as error:
            loop.call_exception_handler({"message": f"Exception in {function!r}", "exception": error})


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Any thread but the loop's."""
    calls = getattr(_held, "calls", None)
    if calls is not None:
        calls.append((loop, function))
        return
    with contextlib.suppress(RuntimeError):  # the loop has closed: the process ends
        loop.call_soon_threadsafe(function)


def wrap_future(future: Future[T]) -> asyncio.Future[T]:
    """Like asyncio's, but the loop is woken as for any other call, see :func:`together`. Event loop."""
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    waiting: asyncio.Future[T] = loop.create_future()

    # It is handed on and not held, or there would be a circle: what was read, of any size, would be kept until Python's
    # collector comes, which counts objects and not bytes.
    def done(ended: Future[T]) -> None:
        if threading.get_ident() == thread:
            _copy(ended, waiting)
        else:
            _call(loop, lambda: _copy(ended, waiting))

    def take_back(_waiting: asyncio.Future[T]) -> None:
        if waiting.cancelled():
            future.cancel()

    waiting.add_done_callback(take_back)
    future.add_done_callback(done)
    return waiting


def _copy(ended: Future[T], waiting: asyncio.Future[T]) -> None:
    if waiting.done():
        return
    if ended.cancelled():
        waiting.cancel()
    elif (error := ended.exception()) is not None:
        waiting.set_exception(error)
    else:
        waiting.set_result(ended.result())


class LoopCaller:
    """Calls functions on the event loop. Calls before :meth:`bind`, and after the loop has closed, do nothing."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def bind(self) -> None:
        """Use the running loop from now on. Event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def call(self, function: Callable[[], object]) -> None:
        """Have the loop call `function` soon. Any thread; does not wait."""
        if self._loop is None:
            return
        if threading.get_ident() == self._thread:
            with contextlib.suppress(RuntimeError):  # the loop has closed: the process ends
                self._loop.call_soon(function)  # nobody needs to wake it
        else:
            _call(self._loop, function)


class Wake:
    """Wakes one task on the event loop. A :meth:`set` while the task works, or before it starts, is not lost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._caller: LoopCaller | None = None
        self._event = asyncio.Event()
        #: Whether the event is set, or about to be: waking the loop once is enough.
        self._is_set = False

    def set(self) -> None:
        """Let the task's next wait, or the one that it is in, return. Any thread; does not wait."""
        with self._lock:
            if self._is_set:
                return
            self._is_set = True
            if self._caller is not None:
                self._caller.call(self._event.set)
            else:
                self._event.set()  # no loop knows the event yet

    async def wait(self, timeout_s: float | None = None) -> None:
        """Return once :meth:`set` was called since the last wait, or after `timeout_s`. Event loop."""
        with self._lock:
            if self._caller is None:
                self._caller = LoopCaller()
                self._caller.bind()
        # Not asyncio.wait_for, which before Python 3.12 swallows a cancel that comes together with the event.
        timer = asyncio.get_running_loop().call_later(timeout_s, self._event.set) if timeout_s is not None else None
        try:
            await self._event.wait()
        finally:
            if timer is not None:
                timer.cancel()
        with self._lock:
            self._event.clear()
            self._is_set = False
