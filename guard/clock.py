"""Time that a change of the machine's clock cannot bend."""

from __future__ import annotations

import time


class Clock:
    """Milliseconds since the epoch, read once from the wall and then carried on by the monotonic clock.

    Deadlines are compared against it, so a wall clock that jumps (NTP after boot, an operator with `date -s`)
    neither ends a job early nor lets one run for ever; across a restart the wall is read again.
    """

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def now_ms(self) -> int:
        return int((time.monotonic() + self._offset_s) * 1000)

    def monotonic_s(self) -> float:
        return time.monotonic()
