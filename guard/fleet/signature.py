"""Sign what one box asks of another, with a key that only the boxes have.

A signature names both boxes, what is asked, and when: it is good for that box and for a minute, and for nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping

from ..clock import Clock
from ..store.members import Member

#: The header of a request that a box has signed.
HEADER = "X-Guarded-Box"
#: So far apart the clocks of two boxes may be; both follow the database's.
GOOD_FOR_MS = 60_000


class Signatures:
    """This box's own, and those of others. Any thread."""

    def __init__(self, key: bytes, member: Member, clock: Clock) -> None:
        self._key = key
        self._member = member
        self._clock = clock

    def sign(self, asked: str, box: str) -> dict[str, str]:
        """The headers of what this box asks of that one."""
        now_ms = self._clock.now_ms()
        return {HEADER: f"{self._member.box} {now_ms} {self._make(asked, box, self._member.box, now_ms)}"}

    def read_asker(self, headers: Mapping[str, str], asked: str) -> str | None:
        """The box that asks that of this one; None: none does, or not now."""
        parts = headers.get(HEADER, "").split(" ")
        if len(parts) != 3 or not (parts[1].isascii() and parts[1].isdigit() and len(parts[1]) < 16):
            return None
        asker, at_ms, given = parts[0], int(parts[1]), parts[2]
        expected = self._make(asked, self._member.box, asker, at_ms)
        is_good = hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace"))
        return asker if is_good and abs(self._clock.now_ms() - at_ms) <= GOOD_FOR_MS else None

    def _make(self, asked: str, box: str, asker: str, at_ms: int) -> str:
        message = json.dumps([asked, box, asker, at_ms]).encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()
