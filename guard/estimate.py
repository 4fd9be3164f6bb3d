"""How long until a waiting job begins: the median of recent run times, or nothing rather than a guess."""

from __future__ import annotations

import statistics
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

#: Run times remembered, and how many make a median worth saying.
RECENT = 20
ENOUGH = 3


def shape(prompt: Mapping[str, Any]) -> str:
    """A short name for prompts made of the same node classes, whatever their values."""
    classes = "\n".join(sorted(node["class_type"] for node in prompt.values()))
    return f"{zlib.crc32(classes.encode('utf-8', 'replace')):08x}"


class Estimates:
    """The run times of the last successes. Any thread."""

    def __init__(self, run_times_ms: Iterable[int] = ()) -> None:
        self._lock = threading.Lock()
        self._recent = deque(run_times_ms, maxlen=RECENT)

    def add(self, run_ms: int) -> None:
        with self._lock:
            self._recent.append(run_ms)

    def starts_in_s(self, position: int) -> float | None:
        """When the job at `position` in the queue may begin, if those before it are like those of late.

        The one that runs now counts as half done. None where too few have run.
        """
        with self._lock:
            seen = list(self._recent)
        if len(seen) < ENOUGH:
            return None
        return round(statistics.median(seen) / 1000 * (position - 0.5), 1)
