"""Tell the time in a way that does not jump when somebody sets the machine's clock."""

from __future__ import annotations

import time


class Clock:
    """Reads the wall clock once, at the start, and goes on by the monotonic clock.

    So a wall clock that jumps (NTP after boot, an operator with `date -s`) neither ends a job early nor lets one run
    for ever. After a restart the wall clock is read again.
    """

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return int((time.monotonic() + self._offset_s) * 1000)

    def wall_ms(self) -> int:
        """The wall clock as it stands now, in milliseconds since the epoch, for what others compare with theirs.

        It may jump, so nothing of ours is measured with it. After a suspend, too, only this one is right.
        """
        return int(time.time() * 1000)

    def monotonic_s(self) -> float:
        """Seconds on the monotonic clock."""
        return time.monotonic()
