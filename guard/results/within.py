"""Run something on another thread, for so long at most.

To start a thread takes longer than to check a small picture. So each thread that asks keeps one that works for it, and
leaves it behind only where it hangs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import ResultCorruptError

T = TypeVar("T")

_kept = threading.local()


def run_within(timeout_s: float, work: Callable[[], T]) -> T:
    """Run `work` on a thread of its own and return its result, or raise what it raised.

    Raises:
        ResultCorruptError: it took longer than `timeout_s`; the thread is left to end by itself. The checks keep to a
            :class:`.budget.Budget` that ends earlier, so this is for a single call into C that does not return.
    """
    hand: _Hand | None = getattr(_kept, "hand", None)
    if hand is None:
        hand = _Hand()
    _kept.hand = None  # until it is done
    result: T
    result, failure = hand.run(timeout_s, work)
    _kept.hand = hand
    hand = None  # the failure holds on to this frame
    if failure is not None:
        raise failure
    return result


class _Hand:
    """A thread that works for one other. It ends with it, or once it is left behind."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        # Not a method, which would keep this object for ever.
        threading.Thread(target=_loop, args=(self._work, self._done), name="guarded-checks", daemon=True).start()

    def __del__(self) -> None:
        self._work.put(None)

    def run(self, timeout_s: float, work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        self._work.put(work)
        try:
            return self._done.get(timeout=timeout_s)
        except queue.Empty:
            self._work.put(None)
            raise ResultCorruptError(f"The result could not be checked within {timeout_s:g} s.") from None


def _loop(
    handed: queue.SimpleQueue[Callable[[], Any] | None], done: queue.SimpleQueue[tuple[Any, BaseException | None]]
) -> None:
    while (work := handed.get()) is not None:
        try:
            done.put((work(), None))
        except BaseException as failure:
            done.put((None, failure))
        del work  # what it holds is as large as the job
