"""How much a client may ask for in a time: token buckets, one per owner and one for all.

A bucket holds what may be asked for at once and fills up steadily. Event loop only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..client import Client
from ..clock import Clock
from ..errors import PayloadTooLargeError, RateLimitedError
from ..settings import LimitsSettings

#: What adding up fractions may lose.
_EPSILON = 1e-6


@dataclass(frozen=True)
class Quota:
    """`units` in `window_s` seconds, and as many at once."""

    units: float
    window_s: float

    @staticmethod
    def per_minute(rate: float) -> Quota:
        """Less than one a minute is one in more than a minute."""
        units = max(math.floor(rate), 1)
        return Quota(units, units * 60 / rate)

    @property
    def per_s(self) -> float:
        return self.units / self.window_s


class _Bucket:
    """Full at first."""

    def __init__(self, quota: Quota, now_s: float) -> None:
        self.left = quota.units
        self._at_s = now_s

    def filled(self, quota: Quota, now_s: float) -> float:
        """What is in it now."""
        self.left = min(self.left + max(now_s - self._at_s, 0) * quota.per_s, quota.units)
        self._at_s = now_s
        return self.left

    def wait_s(self, quota: Quota, units: float, now_s: float) -> float:
        """How long until `units` are in it."""
        missing = units - self.filled(quota, now_s)
        return missing / quota.per_s if missing > _EPSILON else 0


class Limits:
    """What each owner has left. One bucket for each, of which there are no more than keys."""

    def __init__(self, settings: LimitsSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._buckets: dict[tuple[str, str | None], _Bucket] = {}

    def max_queued(self, client: Client) -> int | None:
        """How many of the client's jobs may wait at once; None: as many as there is room for."""
        own = client.limits.max_queued
        return (self._settings.max_queued if own is None else own) or None

    def take_job(self, client: Client) -> None:
        """Count one job. Whoever does not make it after all gives it back.

        Raises:
            RateLimitedError: it is one too many; nothing was counted.
        """
        quotas = [(client.owner, self._jobs_of(client)), (None, _per_minute(self._settings.total_jobs_per_minute))]
        self._take("jobs", quotas, 1)

    def give_job_back(self, client: Client) -> None:
        for owner, quota in ((client.owner, self._jobs_of(client)), (None, self._settings.total_jobs_per_minute)):
            if quota and (bucket := self._buckets.get(("jobs", owner))) is not None:
                bucket.left += 1  # `filled` cuts what is too much

    def take_upload(self, client: Client, size: int) -> None:
        """Count the bytes of an upload.

        Raises:
            RateLimitedError: too many of late; nothing was counted.
            PayloadTooLargeError: more than would ever be let in at once.
        """
        rates = {client.owner: self._settings.upload_bytes_per_hour, None: self._settings.total_upload_bytes_per_hour}
        quotas = [(owner, Quota(rate, 3600) if rate else None) for owner, rate in rates.items()]
        for _owner, quota in quotas:
            if quota is not None and size > quota.units:
                raise PayloadTooLargeError(
                    f"{size} bytes are more than may be uploaded in an hour.", extra_info={"max_bytes": quota.units}
                )
        self._take("bytes", quotas, size)

    def fields(self, client: Client) -> dict[str, str]:
        """The header fields that tell a client what it has left (draft-ietf-httpapi-ratelimit-headers-10).

        `r` jobs may be asked for now, and after `t` seconds all `q` again. None where jobs are not limited.
        """
        quota = self._jobs_of(client)
        if quota is None:
            return {}
        now_s = self._clock.monotonic_s()
        bucket = self._buckets.get(("jobs", client.owner))
        left = quota.units if bucket is None else bucket.filled(quota, now_s)
        full_s = 0 if bucket is None else bucket.wait_s(quota, quota.units, now_s)
        return {
            "RateLimit-Policy": f'"jobs";q={int(quota.units)};w={max(round(quota.window_s), 1)}',
            "RateLimit": f'"jobs";r={int(max(left + _EPSILON, 0))};t={math.ceil(full_s - _EPSILON)}',
        }

    def _jobs_of(self, client: Client) -> Quota | None:
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
                whose = "this server takes" if owner is None else "you may ask for"
                raise RateLimitedError(
                    f"That is more than {whose}: {quota.units:g} {what} in {quota.window_s:g} s.",
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
