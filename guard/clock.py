"""Tell the time in a way that does not jump when somebody sets the machine's clock."""

from __future__ import annotations

import time

#: A clock that is so far ahead of the newest record may be wrong, …
AHEAD_MS = 30 * 86_400_000
#: … so nothing ages for so long, in which an operator hears of it.
DOUBTED_S = 3600.0


class Clock:
    """Reads the wall clock once, at the start, and goes on by the monotonic clock.

    So a wall clock that jumps (NTP after boot, an operator with `date -s`) neither ends a job early nor lets one run
    for ever. After a restart the wall clock is read again.
    """

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()
        #: The time by which things age meanwhile, and until when.
        self._doubted: tuple[int, float] | None = None

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

    def follow(self, now_ms: int) -> None:
        """Go by another clock, which says `now_ms`: that of the database where several servers share one."""
        self._offset_s = now_ms / 1000 - time.monotonic()

    def compare(self, newest_ms: int) -> None:
        """Doubt this clock for an hour where it is far ahead of the newest record. At a start."""
        if newest_ms and self.now_ms() - newest_ms > AHEAD_MS:
            self._doubted = newest_ms, self.monotonic_s() + DOUBTED_S

    @property
    def is_doubted(self) -> bool:
        return self._doubted is not None and self.monotonic_s() < self._doubted[1]

    def aging_ms(self) -> int:
        """The time by which things age: that of the newest record while the clock is doubted. Any thread."""
        doubted = self._doubted
        return doubted[0] if doubted is not None and self.monotonic_s() < doubted[1] else self.now_ms()
