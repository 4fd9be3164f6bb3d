"""Threads that work beside ComfyUI's worker: on each thing once the worker has gone on, or a moment later.

Both would want Python's lock, and the GPU waits for the worker alone. To wake a thread costs as much as a small check,
so one that has just worked looks for more by itself for a while, and the worker wakes it once, by going on.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

log = logging.getLogger("guarded.queue")

T = TypeVar("T")

#: How long a thing waits at most until the worker goes on.
AHEAD_S = 0.02
#: A thread looks for more by itself for so long after it has worked, every `AHEAD_S`.
LOOKS_S = 1.0


class _Handed(NamedTuple):
    """`gone_on` is set once the worker goes on; None: it has, or nobody need wait longer."""

    thing: object
    due_s: float
    gone_on: threading.Event | None = None


class Beside(Generic[T]):
    """At most so many threads, which last: to start one takes longer than to check a small picture."""

    def __init__(self, name: str, work: Callable[[T], object], most: int) -> None:
        self._name = name
        self._work = work
        self._most = most
        self._threads = 0
        #: How many things were put that nobody is done with.
        self._under_way = 0
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[_Handed] = queue.SimpleQueue()
        #: What threads that look for it by themselves will find, the oldest first; and how many look.
        self._held: deque[_Handed] = deque()
        self._looking = 0
        #: For those that were woken before the worker goes on.
        self._early: list[threading.Event] = []

    def put(self, thing: T) -> bool:
        """Have a thread work on it; False where there is none and none can be started. The worker's thread."""
        with self._lock:
            self._under_way += 1
            is_short = self._threads < min(self._under_way, self._most)
        if is_short:
            try:
                threading.Thread(target=self._loop, name=self._name, daemon=True).start()
                self._threads += 1
            except RuntimeError:  # no more threads, or the interpreter ends
                if not self._threads:
                    self._under_way -= 1
                    return False
        due_s = time.monotonic() + AHEAD_S
        with self._lock:
            if self._looking > len(self._held):
                self._held.append(_Handed(thing, due_s))
                return True
            gone_on = threading.Event()
            self._early.append(gone_on)
        self._inbox.put(_Handed(thing, due_s, gone_on))
        return True

    def go_on(self) -> None:
        """The worker goes on: what was put before begins. The worker's thread."""
        with self._lock:
            held, early = [*self._held], self._early
            self._held.clear()
            self._early = []
        for gone_on in early:
            gone_on.set()
        for handed in held:
            self._inbox.put(handed)

    def _loop(self) -> None:
        while True:
            thing = self._wait()
            try:
                self._work(thing)
            except Exception:
                log.exception("the end of a job could not be handed on")
            del thing  # what it holds is as large as the job
            with self._lock:
                self._under_way -= 1

    def _wait(self) -> T:
        handed = self._look() or self._inbox.get()
        if handed.gone_on is not None:
            handed.gone_on.wait(max(handed.due_s - time.monotonic(), 0))
        thing: T = handed.thing  # type: ignore[assignment]
        return thing

    def _look(self) -> _Handed | None:
        """Wait for a while without having to be woken."""
        ends_s = time.monotonic() + LOOKS_S
        with self._lock:
            self._looking += 1
        handed: _Handed | None = None
        while handed is None:
            try:
                handed = self._inbox.get(timeout=AHEAD_S)
            except queue.Empty:
                with self._lock:
                    now_s = time.monotonic()
                    if self._held and self._held[0].due_s <= now_s:
                        handed = self._held.popleft()
                    elif not self._held and now_s >= ends_s:
                        self._looking -= 1
                        return None
        with self._lock:
            self._looking -= 1
        return handed
