"""Let other threads have the interpreter while one of them works through something long."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

#: After so long the thread pauses so long. By itself Python makes a thread give way only after 5 ms, and then whoever
#: has waited gives way in turn at each look at a socket or a database: a look-up, which takes several of those, would
#: wait for tens of milliseconds.
WORK_S = 0.001
PAUSE_S = 0.001


def interleave(items: Iterable[T]) -> Iterator[T]:
    """The items, with pauses. Not on the event loop."""
    began_s = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - began_s > WORK_S:
            time.sleep(PAUSE_S)
            began_s = time.perf_counter()
