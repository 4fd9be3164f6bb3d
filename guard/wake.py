"""Reach the event loop from any thread: call a function on it, or wake the task that waits there."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable


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
        with contextlib.suppress(RuntimeError):  # the loop has closed: the process ends
            if threading.get_ident() == self._thread:
                self._loop.call_soon(function)  # nobody needs to wake it
            else:
                self._loop.call_soon_threadsafe(function)


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
