"""Limit how much a client may ask for in a time: token buckets, one per owner and one for all.

A bucket holds as much as may be asked for at once, and refills steadily. Event loop only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..client import Client
from ..clock import Clock
from ..errors import PayloadTooLargeError, RateLimitedError
from ..settings import LimitsSettings

#: Adding up fractions may lose this much.
_EPSILON = 1e-6


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


class Limits:
    """What each owner has left. There are no more buckets than keys."""

    def __init__(self, settings: LimitsSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._buckets: dict[tuple[str, str | None], _Bucket] = {}

    def max_queued(self, client: Client) -> int | None:
        """How many of the client's jobs may wait at once; None for as many as there is room for."""
        own = client.limits.max_queued
        return (self._settings.max_queued if own is None else own) or None

    def take_job(self, client: Client) -> None:
        """Count one job. The caller gives it back where no job comes of it.

        Raises:
            RateLimitedError: it is one too many, and was not counted.
        """
        quotas = [(client.owner, self._job_quota(client)), (None, _per_minute(self._settings.total_jobs_per_minute))]
        self._take("jobs", quotas, 1)

    def give_job_back(self, client: Client) -> None:
        for owner, quota in ((client.owner, self._job_quota(client)), (None, self._settings.total_jobs_per_minute)):
            if quota and (bucket := self._buckets.get(("jobs", owner))) is not None:
                bucket.left += 1  # `fill` cuts off what is more than the quota

    def take_upload(self, client: Client, size: int) -> None:
        """Count the bytes of an upload.

        Raises:
            RateLimitedError: too many within the hour; nothing was counted.
            PayloadTooLargeError: more than a whole hour's quota.
        """
        rates = {client.owner: self._settings.upload_bytes_per_hour, None: self._settings.total_upload_bytes_per_hour}
        quotas = [(owner, Quota(rate, 3600) if rate else None) for owner, rate in rates.items()]
        for _owner, quota in quotas:
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
        bucket = self._buckets.get(("jobs", client.owner))
        left = quota.units if bucket is None else bucket.fill(quota, now_s)
        full_s = 0 if bucket is None else bucket.wait_s(quota, quota.units, now_s)
        return {
            "RateLimit-Policy": f'"jobs";q={int(quota.units)};w={max(round(quota.window_s), 1)}',
            "RateLimit": f'"jobs";r={int(max(left + _EPSILON, 0))};t={math.ceil(full_s - _EPSILON)}',
        }

    def _job_quota(self, client: Client) -> Quota | None:
        own = client.limits.jobs_per_minute
        return _per_minute(self._settings.jobs_per_minute if own is None else own)

    def _take(self, what: str, quotas: list[tuple[str | None, Quota | None]], units: float) -> None:
        now_s = self._clock.monotonic_s()
        taken = []
        for owner, quota in quotas:
            if quota is None:
                continue
            bucket = self._buckets.setdefault((what, owner), _Bucket(quota, now_s))
            wait_s = bucket.wait_s(quota, units, now_s)
            if wait_s:
                allowed = "this server takes" if owner is None else "you may ask for"
                raise RateLimitedError(
                    f"That is more than {allowed}: {quota.units:g} {what} in {quota.window_s:g} s.",
                    retry_after_s=wait_s,
                    extra_info={
                        "limit": quota.units,
                        "window_s": quota.window_s,
                        "of": what,
                        "scope": "server" if owner is None else "client",
                    },
                )
            taken.append(bucket)
        for bucket in taken:
            bucket.left -= units


def _per_minute(rate: float) -> Quota | None:
    return Quota.per_minute(rate) if rate else None
