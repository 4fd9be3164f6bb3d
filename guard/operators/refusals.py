"""Count the prompts that are refused at the door, by code, over the last hour, day and week."""

from __future__ import annotations

from collections import defaultdict

from ..clock import Clock

#: The counts are kept for each part of an hour of this length, so a window begins up to so much too early.
PART_MS = 300_000
KEPT_MS = 7 * 24 * 3_600_000
#: So many owners have counts of their own in each part. What those after them are refused counts for everybody.
OWNERS = 200

#: By owner (None: everybody together) and code.
_Part = dict["str | None", dict[str, int]]


class Refusals:
    """How often each code was given, in memory: the counts begin with the server. Event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._parts: dict[int, _Part] = {}
        self.since_ms = clock.now_ms()

    def count(self, code: str, owner: str) -> None:
        """Count a refusal; `owner` is empty where nobody knows who asks."""
        now_ms = self._clock.now_ms()
        number = now_ms // PART_MS
        if number not in self._parts:
            oldest = (now_ms - KEPT_MS) // PART_MS
            self._parts = {known: part for known, part in self._parts.items() if known >= oldest}
            self._parts[number] = {}
        part = self._parts[number]
        for who in (None, owner) if owner in part or len(part) <= OWNERS else (None,):
            codes = part.setdefault(who, {})
            codes[code] = codes.get(code, 0) + 1

    def by_code(self, owner: str | None, ms: int) -> dict[str, int]:
        """How often each code was given to the owner (None: to anybody) in the last `ms`, the most frequent first."""
        first = (self._clock.now_ms() - ms) // PART_MS
        codes: dict[str, int] = defaultdict(int)
        for number, part in self._parts.items():
            if number >= first:
                for code, times in part.get(owner, {}).items():
                    codes[code] += times
        return dict(sorted(codes.items(), key=lambda item: (-item[1], item[0])))
