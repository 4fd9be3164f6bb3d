"""Decide which results to put where, with which headers, and when to try again. The store keeps them."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

from ..clock import Clock
from ..job import Job
from ..settings import Settings
from ..store import Due, PutDelivery
from .attempts import Attempt, Attempts, draw_pause_s
from .webhook_rules import Rules

#: An address with a session's token in it is longer than others.
LONGEST = 8192
#: The last attempt is made so long before the address expires.
_BEFORE_END_MS = 5000


class Records(Protocol):
    """What this asks of the job store: see :class:`guard.store.Store`."""

    def find_due_puts(
        self, now_ms: int, limit: int, *, under_way: Collection[int], full: Collection[str]
    ) -> Future[Due[PutDelivery]]: ...
    def record_put(self, after: PutDelivery) -> Future[None]: ...


class Puts(Attempts[PutDelivery]):
    """The results that are still to be put to addresses. Event loop."""

    WHAT = "results"
    LOG = logging.getLogger("guarded.puts")

    def __init__(self, settings: Settings, store: Records, clock: Clock) -> None:
        super().__init__(clock)
        self._first_retry_s = settings.webhooks.first_retry_s
        self._max_age_s = settings.results.put_max_age_s
        self._store = store
        self.rules = Rules(settings.webhooks)

    def follow(self, job: Job) -> None:
        """A new state is durable. The store's thread."""
        if job.puts and job.state.settled:
            self.filled()

    def has_expired(self, put: PutDelivery) -> bool:
        """Whether its address takes nothing more."""
        return put.expires_at_ms is not None and self._clock.now_ms() >= put.expires_at_ms

    def _find(
        self, now_ms: int, limit: int, under_way: Collection[int], full: Collection[str]
    ) -> Future[Due[PutDelivery]]:
        return self._store.find_due_puts(now_ms, limit, under_way=under_way, full=full)

    def _write(self, after: PutDelivery) -> Future[None]:
        return self._store.record_put(after)

    def _retry_at_ms(self, delivery: PutDelivery, attempt: Attempt, now_ms: int) -> int | None:
        if attempt.final:
            return None
        ends_ms = delivery.since_ms + int(self._max_age_s * 1000)
        if delivery.expires_at_ms is not None:
            ends_ms = min(ends_ms, delivery.expires_at_ms - _BEFORE_END_MS)
        pause_s = draw_pause_s(self._first_retry_s, attempt, delivery.attempts + 1)
        at_ms = min(now_ms + int(pause_s * 1000), ends_ms)
        return at_ms if at_ms > now_ms else None

    def _describe_end(self, delivery: PutDelivery) -> str:
        return f"job {delivery.job_id}: artifact {delivery.artifact} is not put to its address"


def make_headers(put: PutDelivery, mime: str, size: int) -> Mapping[str, str]:
    """The headers of an attempt: the caller's own win, since the address may be signed with them."""
    own: dict[str, str] = json.loads(put.headers)
    headers = {"content-length": str(size), "user-agent": "ComfyUI-Guarded"}
    query = dict(parse_qsl(urlsplit(put.url).query, keep_blank_values=True))
    # Signatures of AWS' and Google's second version always cover the type: none, unless the caller has named one.
    if not ("Signature" in query and "Expires" in query):
        headers["content-type"] = mime
    if "sig" in query and "sv" in query:  # Azure wants to know what the blob shall be
        headers["x-ms-blob-type"] = "BlockBlob"
    return {**headers, **own}
