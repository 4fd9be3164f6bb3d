"""Decide which webhooks to send, sign them, and say when to try again. The store keeps them."""

from __future__ import annotations

import base64
import contextlib
import logging
import random
import secrets
from asyncio import wrap_future
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from .. import private_files
from ..client import Client
from ..clock import Clock
from ..errors import ForbiddenError, NotFoundError
from ..job import Job
from ..settings import WebhooksSettings
from ..signal import Signal
from ..store import Delivery, DeliveryState, Due
from .webhook_rules import Rules

log = logging.getLogger("guarded.webhooks")

SECRET_FILE = "webhook.secret"

#: The pause between two attempts doubles, from `webhooks.first_retry_s` up to this.
RETRY_AT_MOST_S = 3600.0
#: A receiver may ask for a longer pause (Retry-After), up to this.
ASKED_AT_MOST_S = 3600.0

#: The secret that signs an owner's webhooks; None for an owner that may not send any (any more).
SecretOf = Callable[[str], "str | None"]


# When to try again. ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """How one attempt went. `status` is the receiver's answer; None where it gave none."""

    status: int | None = None
    error: str | None = None
    retry_after_s: float = 0.0
    hopeless: bool = False

    @property
    def outcome(self) -> str:
        """The outcome in a word, for the metrics."""
        if self.status is None:
            return "refused" if self.hopeless else "unreachable"
        return "delivered" if self.delivered else "gone" if self.status == 410 else "failed"

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def final(self) -> bool:
        """Whether another attempt is of no use: delivered, not allowed, or no longer wanted by the receiver (410)."""
        return self.delivered or self.hopeless or self.status == 410


def retry_at_ms(settings: WebhooksSettings, attempt: Attempt, attempts: int, since_ms: int, now_ms: int) -> int | None:
    """When to try again after `attempts` attempts; None to give up.

    The pause doubles. Half of it is random, so that not everything reaches a receiver at once when it comes back.
    """
    if attempt.final:
        return None
    pause_s = min(settings.first_retry_s * 2 ** min(attempts - 1, 30), RETRY_AT_MOST_S) * random.uniform(0.5, 1.0)
    pause_s = max(pause_s, min(attempt.retry_after_s, ASKED_AT_MOST_S))
    at_ms = now_ms + int(pause_s * 1000)
    return at_ms if at_ms <= since_ms + settings.max_age_s * 1000 else None


class Deliveries(Protocol):
    """What the outbox asks of the job store: see :class:`guard.store.Store`."""

    def find_due_deliveries(
        self, now_ms: int, limit: int, *, under_way: Collection[int], full: Collection[str]
    ) -> Future[Due]: ...
    def record_attempt(
        self, number: int, state: DeliveryState, next_at_ms: int, status: int | None, error: str | None
    ) -> Future[None]: ...
    def list_deliveries(
        self, owner: str | None, states: frozenset[DeliveryState], limit: int, before: int | None = None
    ) -> Future[list[Delivery]]: ...
    def redeliver(self, webhook_id: str, owner: str | None) -> Future[Delivery | None]: ...


class Outbox:
    """The webhooks that are still to be sent: the store puts them in, and a sender takes them out. Event loop."""

    def __init__(self, settings: WebhooksSettings, store: Deliveries, secret_of: SecretOf, clock: Clock) -> None:
        self._settings = settings
        self._store = store
        self._secret_of = secret_of
        self._clock = clock
        self.rules = Rules(settings)
        #: There is something new to send. Called on any thread.
        self.filled: Signal[[]] = Signal()
        #: Nobody will try that delivery again: the delivery, and why. Called on the event loop.
        self.given_up: Signal[[Delivery, str]] = Signal()

    def follow(self, job: Job) -> None:
        """A new state is durable, together with its webhook. The store's thread."""
        if job.webhook is not None:
            self.filled()

    async def find_due(
        self, limit: int, *, under_way: Collection[int], full: Collection[str]
    ) -> tuple[list[Delivery], float | None]:
        """Deliveries to try now, and in how many seconds the next one will be due (None: none is waiting)."""
        now_ms = self._clock.now_ms()
        due = await wrap_future(self._store.find_due_deliveries(now_ms, limit, under_way=under_way, full=full))
        return due.deliveries, None if due.next_at_ms is None else max(due.next_at_ms - now_ms, 0) / 1000

    def sign(self, delivery: Delivery) -> Mapping[str, str]:
        """The signed headers for an attempt now.

        Raises:
            GuardError: the webhook may not be sent (any more).
        """
        self.rules.check(delivery.url)  # the settings may have changed since its job was admitted
        secret = self._secret_of(delivery.owner)
        if secret is None:
            raise ForbiddenError("Its owner has no key any more that could sign it.")
        return make_headers(secret, delivery.webhook_id, delivery.payload, self._clock.now_ms())

    async def record_attempt(self, delivery: Delivery, attempt: Attempt) -> None:
        """Write down how an attempt ended. Raises GuardError where the store cannot."""
        now_ms = self._clock.now_ms()
        next_at_ms = retry_at_ms(self._settings, attempt, delivery.attempts + 1, delivery.since_ms, now_ms)
        if attempt.delivered:
            state = DeliveryState.DELIVERED
        elif next_at_ms is None:
            state = DeliveryState.DEAD
        else:
            state = DeliveryState.PENDING
        await wrap_future(
            self._store.record_attempt(delivery.number, state, next_at_ms or now_ms, attempt.status, attempt.error)
        )
        if state is DeliveryState.DEAD:
            why = attempt.error or "?"
            log.warning(
                "webhook %s of job %s is given up: %s",
                delivery.webhook_id,
                delivery.job_id,
                why,
                extra={"job_id": delivery.job_id},
            )
            self.given_up(delivery, why)

    async def list_deliveries(
        self, client: Client, states: frozenset[DeliveryState], limit: int, before: int | None
    ) -> list[Delivery]:
        """The client's deliveries in those states, newest first; everybody's, for an operator."""
        return await wrap_future(self._store.list_deliveries(client.sees_only, states, limit, before))

    async def redeliver(self, webhook_id: str, client: Client) -> Delivery:
        """Send it again from now on, under its old id, whether it was delivered or not.

        Raises:
            NotFoundError: there is none, or none that the client may see.
        """
        delivery = await wrap_future(self._store.redeliver(webhook_id, client.sees_only))
        if delivery is None:
            raise NotFoundError(f"There is no webhook {webhook_id[:64]}.")
        self.filled()
        return delivery


# The signature. ----------------------------------------------------------------------------------------------


def read_or_make_secret(own: Path) -> str:
    """The secret that signs webhooks of the owner `local`; made at the first call. Blocks. Raises OSError."""
    path = own / SECRET_FILE
    with contextlib.suppress(FileNotFoundError):
        if secret := path.read_text(encoding="ascii").strip():
            return secret
    secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
    private_files.write(path, f"{secret}\n".encode())
    return secret


def make_headers(secret: str, webhook_id: str, body: str, now_ms: int) -> Mapping[str, str]:
    """The headers, signed as Standard Webhooks prescribes, with the time of the attempt."""
    from standardwebhooks import Webhook

    at = datetime.fromtimestamp(now_ms // 1000, timezone.utc)
    return {
        "Content-Type": "application/json",
        "User-Agent": "ComfyUI-Guarded",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(now_ms // 1000),
        "webhook-signature": Webhook(secret).sign(webhook_id, at, body),
    }
