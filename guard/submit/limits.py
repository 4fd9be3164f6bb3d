"""Limit how much a client may ask for in a time: token buckets, one per owner or user of one, and one for all.

A bucket holds as much as may be asked for at once, and refills steadily. Event loop only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..client import Client
from ..clock import Clock
from ..errors import PayloadTooLargeError, RateLimitedError
from ..settings import LimitsSettings

#: Adding up fractions may lose this much.
_EPSILON = 1e-6

_Whose = tuple[str, ...]


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


class _Bucket:
    """What one owner, or everybody together, has left; full at first."""

    def __init__(self, quota: Quota, now_s: float) -> None:
        self.left = quota.units
        self._at_s = now_s

    def fill(self, quota: Quota, now_s: float) -> float:
        """Add what has come since the last look, up to the quota. Returns what is in it now."""
        self.left = min(self.left + max(now_s - self._at_s, 0) * quota.per_s, quota.units)
        self._at_s = now_s
        return self.left

    def wait_s(self, quota: Quota, units: float, now_s: float) -> float:
        """Seconds until `units` are in it; 0 where they are."""
        missing = units - self.fill(quota, now_s)
        return missing / quota.per_s if missing > _EPSILON else 0


#: Of so many buckets, those that are full again are forgotten: a client may name as many users as it likes.
_BUCKETS = 10_000


class Limits:
    """What each owner has left, and each user of one."""

    def __init__(self, settings: LimitsSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        #: By what is counted and whose: `()` is everybody, `(owner,)` a client, `(owner, user)` a user of one.
        self._buckets: dict[tuple[str, _Whose], _Bucket] = {}
        self._forget_above = _BUCKETS

    def max_queued(self, client: Client) -> int | None:
        """How many of the client's jobs may wait at once; None for as many as there is room for."""
        own = client.limits.max_queued
        return (self._settings.max_queued if own is None else own) or None

    def take_job(self, client: Client) -> None:
        """Count one job. The caller gives it back where no job comes of it.

        Raises:
            RateLimitedError: it is one too many, and was not counted.
        """
        everybodys = _per_minute(self._settings.total_jobs_per_minute)
        self._take("jobs", [((client.owner,), self._job_quota(client)), ((), everybodys)], 1)

    def give_job_back(self, client: Client) -> None:
        for whose, quota in (((client.owner,), self._job_quota(client)), ((), self._settings.total_jobs_per_minute)):
            if quota:
                self._give_back(whose)

    @property
    def max_queued_of_user(self) -> int | None:
        """How many jobs of a client's user may wait at once."""
        return self._settings.user_max_queued or None

    def take_job_of_user(self, client: Client, user: str) -> None:
        """Count one job for the client's user, as `take_job` does for the client. Raises RateLimitedError."""
        self._take("jobs", [((client.owner, user), _per_minute(self._settings.user_jobs_per_minute))], 1)

    def give_job_of_user_back(self, client: Client, user: str) -> None:
        self._give_back((client.owner, user))

    def _give_back(self, whose: _Whose) -> None:
        if (bucket := self._buckets.get(("jobs", whose))) is not None:
            bucket.left += 1  # `fill` cuts off what is more than the quota

    def take_upload(self, client: Client, size: int) -> None:
        """Count the bytes of an upload.

        Raises:
            RateLimitedError: too many within the hour; nothing was counted.
            PayloadTooLargeError: more than a whole hour's quota.
        """
        rates: dict[_Whose, int] = {
            (client.owner,): self._settings.upload_bytes_per_hour,
            (): self._settings.total_upload_bytes_per_hour,
        }
        quotas = [(whose, Quota(rate, 3600) if rate else None) for whose, rate in rates.items()]
        for _whose, quota in quotas:
            if quota is not None and size > quota.units:
                raise PayloadTooLargeError(
                    f"{size} bytes are more than may be uploaded in an hour.", extra_info={"max_bytes": quota.units}
                )
        self._take("bytes", quotas, size)

    def header_fields(self, client: Client) -> dict[str, str]:
        """The header fields that tell a client what it has left (draft-ietf-httpapi-ratelimit-headers-10).

        The client may ask for `r` jobs now, and for all `q` again after `t` seconds. Empty where jobs are not limited.
        """
        quota = self._job_quota(client)
        if quota is None:
            return {}
        now_s = self._clock.monotonic_s()
        bucket = self._buckets.get(("jobs", (client.owner,)))
        left = quota.units if bucket is None else bucket.fill(quota, now_s)
        full_s = 0 if bucket is None else bucket.wait_s(quota, quota.units, now_s)
        return {
            "RateLimit-Policy": f'"jobs";q={int(quota.units)};w={max(round(quota.window_s), 1)}',
            "RateLimit": f'"jobs";r={int(max(left + _EPSILON, 0))};t={math.ceil(full_s - _EPSILON)}',
        }

    def _job_quota(self, client: Client) -> Quota | None:
        own = client.limits.jobs_per_minute
        return _per_minute(self._settings.jobs_per_minute if own is None else own)

    def _take(self, what: str, quotas: Sequence[tuple[_Whose, Quota | None]], units: float) -> None:
        now_s = self._clock.monotonic_s()
        taken = []
        for whose, quota in quotas:
            if quota is None:
                continue
            if len(self._buckets) > self._forget_above and len(whose) == 2:
                self._forget_full(quota, now_s)
            bucket = self._buckets.setdefault((what, whose), _Bucket(quota, now_s))
            wait_s = bucket.wait_s(quota, units, now_s)
            if wait_s:
                allowed = ("this server takes", "you may ask for", "one user may ask for")[len(whose)]
                raise RateLimitedError(
                    f"That is more than {allowed}: {quota.units:g} {what} in {quota.window_s:g} s.",
                    retry_after_s=wait_s,
                    extra_info={
                        "limit": quota.units,
                        "window_s": quota.window_s,
                        "of": what,
                        "scope": ("server", "client", "user")[len(whose)],
                    },
                )
            taken.append(bucket)
        for bucket in taken:
            bucket.left -= units

    def _forget_full(self, quota: Quota, now_s: float) -> None:
        """Forget the users who may ask for all that there is again: a new bucket is full, too."""
        for at, bucket in list(self._buckets.items()):
            if len(at[1]) == 2 and bucket.fill(quota, now_s) >= quota.units:
                del self._buckets[at]
        self._forget_above = max(2 * len(self._buckets), _BUCKETS)


def _per_minute(rate: float) -> Quota | None:
    return Quota.per_minute(rate) if rate else None
