"""Limit how much a client may ask for in a time: token buckets, one per owner or user of one, and one for all.

A bucket holds as much as may be asked for at once, and refills steadily. Event loop only. In a fleet the buckets are in
its database. A job is taken out of them in the transaction that lets it in, and what is here refuses only sooner what
is refused there; of bytes, each box counts its own and hears of the others' once a second (:mod:`.shared_limits`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from ..client import Client
from ..clock import Clock
from ..errors import PayloadTooLargeError
from ..quotas import EPSILON, Quota, Taking, Whose, make_refusal
from ..settings import LimitsSettings

if TYPE_CHECKING:
    from ..store.buckets import At, Levels


class _Bucket:
    """What one owner, or everybody together, has left; full at first."""

    def __init__(self, quota: Quota, now_s: float) -> None:
        self.left = quota.units
        self._at_s = now_s

    def fill(self, quota: Quota, now_s: float) -> float:
        """Add what has come since the last look, up to the quota. Returns what is in it now."""
        self.left = quota.fill(self.left, now_s - self._at_s)
        self._at_s = now_s
        return self.left

    def wait_s(self, quota: Quota, units: float, now_s: float) -> float:
        """Seconds until `units` are in it; 0 where they are."""
        return quota.find_wait_s(self.fill(quota, now_s), units)


#: Of so many buckets, those that are full again are forgotten: a client may name as many users as it likes.
_BUCKETS = 10_000
#: So many buckets are asked for at once.
_PLACES = 1000


class Limits:
    """What each owner has left, and each user of one."""

    def __init__(self, settings: LimitsSettings, clock: Clock, *, is_shared: bool = False) -> None:
        """`is_shared`: with the other boxes of a fleet."""
        self._settings = settings
        self.is_shared = is_shared
        #: Bytes taken here that the other boxes do not know of yet, by whose bucket.
        self._untold: dict[Whose, float] = {}
        #: What each client's bucket of jobs, and everybody's buckets, may hold: as when they were used last.
        self._quotas: dict[tuple[str, Whose], Quota] = {}
        self._clock = clock
        #: By what is counted and whose: `()` is everybody, `(owner,)` a client, `(owner, user)` a user of one.
        self._buckets: dict[tuple[str, Whose], _Bucket] = {}
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

    def list_takings(self, client: Client, user: str | None) -> list[Taking]:
        """What a job takes out of the buckets of the whole fleet; nothing outside of one."""
        if not self.is_shared:
            return []
        everybodys = _per_minute(self._settings.total_jobs_per_minute)
        quotas = [((client.owner,), self._job_quota(client)), ((), everybodys)]
        if user is not None:
            quotas.append(((client.owner, user), _per_minute(self._settings.user_jobs_per_minute)))
        return [Taking("jobs", whose, quota, 1) for whose, quota in quotas if quota is not None]

    def list_untold(self) -> list[Taking]:
        """Bytes that were taken here and that the other boxes do not know of."""
        untold = islice(self._untold.items(), _PLACES)
        return [Taking("bytes", whose, self._quotas["bytes", whose], size) for whose, size in untold]

    def note_told(self, takings: Sequence[Taking]) -> None:
        """They are in the database."""
        for taking in takings:
            left = self._untold[taking.whose] - taking.units
            if left > 0:
                self._untold[taking.whose] = left
            else:
                del self._untold[taking.whose]

    def list_places(self) -> list[At]:
        """Buckets here that other boxes may have taken from, of clients and of everybody: some, then others."""
        places = list(islice(self._quotas, _PLACES))
        for place in places:
            self._quotas[place] = self._quotas.pop(place)  # the next time it is the others' turn
        return places

    def follow(self, places: Sequence[At], levels: Levels) -> None:
        """Know what is left of those buckets, as the database has it."""
        now_s = self._clock.monotonic_s()
        for what, whose in places:
            quota = self._quotas[what, whose]
            bucket = self._buckets[what, whose]
            own = bucket.fill(quota, now_s)
            shared = levels.find(Taking(what, whose, quota, 0))
            # Jobs that are on their way in are taken out here, and not there yet.
            bucket.left = shared - self._untold.get(whose, 0.0) if what == "bytes" else min(own, shared)
            if bucket.left >= quota.units:  # nobody has taken from it for a while
                del self._buckets[what, whose], self._quotas[what, whose]

    def _give_back(self, whose: Whose) -> None:
        if (bucket := self._buckets.get(("jobs", whose))) is not None:
            bucket.left += 1  # `fill` cuts off what is more than the quota

    def take_upload(self, client: Client, size: int) -> None:
        """Count the bytes of an upload.

        Raises:
            RateLimitedError: too many within the hour; nothing was counted.
            PayloadTooLargeError: more than a whole hour's quota.
        """
        rates: dict[Whose, int] = {
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
        if self.is_shared and size:
            for whose, quota in quotas:
                if quota is not None:
                    self._untold[whose] = self._untold.get(whose, 0.0) + size

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
            "RateLimit": f'"jobs";r={int(max(left + EPSILON, 0))};t={math.ceil(full_s - EPSILON)}',
        }

    def _job_quota(self, client: Client) -> Quota | None:
        own = client.limits.jobs_per_minute
        return _per_minute(self._settings.jobs_per_minute if own is None else own)

    def _take(self, what: str, quotas: Sequence[tuple[Whose, Quota | None]], units: float) -> None:
        now_s = self._clock.monotonic_s()
        taken = []
        for whose, quota in quotas:
            if quota is None:
                continue
            if len(self._buckets) > self._forget_above and len(whose) == 2:
                self._forget_full(quota, now_s)
            bucket = self._buckets.setdefault((what, whose), _Bucket(quota, now_s))
            if self.is_shared and len(whose) < 2:
                self._quotas[what, whose] = quota
            if wait_s := bucket.wait_s(quota, units, now_s):
                raise make_refusal(what, whose, quota, wait_s)
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
