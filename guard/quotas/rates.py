"""How much may be asked for in a time: a bucket holds as much as may come at once, and refills steadily."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import RateLimitedError

#: Adding up fractions may lose this much.
EPSILON = 1e-6

#: Whose a bucket is: `()` is everybody, `(owner,)` a client, `(owner, user)` a user of one.
Whose = tuple[str, ...]


@dataclass(frozen=True)
class Quota:
    """`units` in `window_s` seconds; all of them may come at once."""

    units: float
    window_s: float

    @staticmethod
    def per_minute(rate: float) -> Quota:
        """A rate below one a minute becomes one in more than a minute."""
        units = max(math.floor(rate), 1)
        return Quota(units, units * 60 / rate)

    @property
    def per_s(self) -> float:
        return self.units / self.window_s

    def fill(self, left: float, passed_s: float) -> float:
        """What is in a bucket that had so much left then."""
        return min(left + max(passed_s, 0) * self.per_s, self.units)

    def find_wait_s(self, left: float, units: float) -> float:
        """Seconds until `units` are in a bucket that has so much left now; 0 where they are."""
        missing = units - left
        return missing / self.per_s if missing > EPSILON else 0


@dataclass(frozen=True)
class Taking:
    """What is to be taken out of a bucket that servers share. `what` is counted in `units`."""

    what: str
    whose: Whose
    quota: Quota
    units: float


def make_refusal(what: str, whose: Whose, quota: Quota, wait_s: float) -> RateLimitedError:
    allowed = ("this server takes", "you may ask for", "one user may ask for")[len(whose)]
    return RateLimitedError(
        f"That is more than {allowed}: {quota.units:g} {what} in {quota.window_s:g} s.",
        retry_after_s=wait_s,
        extra_info={
            "limit": quota.units,
            "window_s": quota.window_s,
            "of": what,
            "scope": ("server", "client", "user")[len(whose)],
        },
    )
