"""Decide which webhooks to send, sign them, and say when to try again. The store keeps them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import random
import secrets
from asyncio import wrap_future
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from .. import private_files
from ..client import Client
from ..clock import Clock
from ..errors import ForbiddenError, GuardError, NotFoundError
from ..job import Job
from ..settings import WebhooksSettings
from ..signal import Signal
from ..store import Delivery, DeliveryState, Due
from ..store.outbox import PAUSE_AT_MOST_S
from .webhook_rules import Rules

log = logging.getLogger("guarded.webhooks")

SECRET_FILE = "webhook.secret"

#: So many attempts may be waiting to be written down, or be under way; beyond that, nothing else is sent.
UNWRITTEN_AT_MOST = 500
#: The pause before the store, which could not write an attempt down, is asked to again.
WRITE_AGAIN_S = 5.0

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

    The pause doubles from `webhooks.first_retry_s` up to an hour. Half of it is random, so that not everything reaches
    a receiver at once when it comes back. A receiver may ask for a longer one (Retry-After), up to an hour too.
    """
    if attempt.final:
        return None
    pause_s = min(settings.first_retry_s * 2 ** min(attempts - 1, 30), PAUSE_AT_MOST_S) * random.uniform(0.5, 1.0)
    pause_s = max(pause_s, min(attempt.retry_after_s, PAUSE_AT_MOST_S))
    at_ms = now_ms + int(pause_s * 1000)
    return at_ms if at_ms <= since_ms + settings.max_age_s * 1000 else None


class Deliveries(Protocol):
    """What the outbox asks of the job store: see :class:`guard.store.Store`."""

    def find_due_deliveries(
        self, now_ms: int, limit: int, *, under_way: Collection[int], full: Collection[str]
    ) -> Future[Due]: ...
    def record_attempt(self, after: Delivery) -> Future[None]: ...
    def list_deliveries(
        self, owner: str | None, states: frozenset[DeliveryState], limit: int, before: int | None = None
    ) -> Future[list[Delivery]]: ...
    def redeliver(self, webhook_id: str, owner: str | None) -> Future[Delivery | None]: ...


class Outbox:
    """The webhooks that are still to be sent: the store puts them in, and a sender takes them out. Event loop.

    How an attempt ended counts from that moment. The store is handed it at once, and again and again where it cannot
    write: a full disk must not send twice what was received, or try anew without the pause.
    """

    def __init__(self, settings: WebhooksSettings, store: Deliveries, secret_of: SecretOf, clock: Clock) -> None:
        self._settings = settings
        self._store = store
        self._secret_of = secret_of
        self._clock = clock
        #: Deliveries as their last attempt has left them, by number, that are not on disk like that yet.
        self._unwritten: dict[int, Delivery] = {}
        #: Those of them that the store has in hand.
        self._handed_in: set[int] = set()
        self._again: asyncio.TimerHandle | None = None
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
        again = [
            delivery
            for delivery in self._unwritten.values()
            if delivery.state is DeliveryState.PENDING
            and delivery.number not in under_way
            and delivery.target not in full
        ]
        due = [delivery for delivery in again if delivery.next_at_ms <= now_ms][:limit]
        known = {*under_way, *self._unwritten}
        room = max(min(limit - len(due), UNWRITTEN_AT_MOST - len(known)), 0)
        stored = await wrap_future(self._store.find_due_deliveries(now_ms, room, under_way=known, full=full))
        next_ms = [delivery.next_at_ms for delivery in again if delivery.next_at_ms > now_ms]
        if stored.next_at_ms is not None:
            next_ms.append(stored.next_at_ms)
        return [*due, *stored.deliveries], max(min(next_ms) - now_ms, 0) / 1000 if next_ms else None

    def sign(self, delivery: Delivery) -> Mapping[str, str]:
        """The signed headers for an attempt now.

        Raises:
            GuardError: the webhook may not be sent (any more).
        """
        self.rules.check(delivery.url)  # the settings may have changed since its job was admitted
        secret = self._secret_of(delivery.owner)
        if secret is None:
            raise ForbiddenError("Its owner has no key any more that could sign it.")
        return make_headers(secret, delivery.webhook_id, delivery.payload, self._clock.wall_ms())

    def record_attempt(self, delivery: Delivery, attempt: Attempt) -> None:
        """Note how an attempt ended; waits for nothing."""
        now_ms = self._clock.now_ms()
        attempts = delivery.attempts + 1
        next_at_ms = retry_at_ms(self._settings, attempt, attempts, delivery.since_ms, now_ms)
        if attempt.delivered:
            state = DeliveryState.DELIVERED
        elif next_at_ms is None:
            state = DeliveryState.DEAD
        else:
            state = DeliveryState.PENDING
        self._unwritten[delivery.number] = replace(
            delivery,
            state=state,
            attempts=attempts,
            next_at_ms=next_at_ms or now_ms,
            ended_at_ms=None if state is DeliveryState.PENDING else now_ms,
            last_status=attempt.status,
            last_error=attempt.error,
        )
        self._hand_in(delivery.number)

    def _hand_in(self, number: int) -> None:
        """Have the store write down how that delivery's last attempt ended, unless it is about to."""
        if number not in self._handed_in:
            after = self._unwritten[number]
            self._handed_in.add(number)
            wrap_future(self._store.record_attempt(after)).add_done_callback(
                lambda written: self._finish(after, written)
            )

    def _finish(self, after: Delivery, written: asyncio.Future[None]) -> None:
        """The store has written that, or cannot."""
        self._handed_in.discard(after.number)
        error = None if written.cancelled() else written.exception()
        is_newest = self._unwritten.get(after.number) is after
        if written.cancelled() or error is not None:
            if is_newest:  # another one is tried next
                self._unwritten[after.number] = self._unwritten.pop(after.number)
            if self._again is None:
                log.error(
                    "%d attempts to deliver webhooks cannot be written down: %s",
                    len(self._unwritten),
                    error,
                    exc_info=None if isinstance(error, GuardError) else error,
                )
                self._again = asyncio.get_running_loop().call_later(WRITE_AGAIN_S, self._write_again)
            return
        if is_newest:
            del self._unwritten[after.number]
            if after.state is DeliveryState.DEAD:
                self._give_up(after)
        # It can write again.
        for number in list(self._unwritten):
            self._hand_in(number)
        self.filled()  # the job's next webhook may be due now

    def _write_again(self) -> None:
        """Try with one; where that succeeds, the others follow."""
        self._again = None
        waiting = [number for number in self._unwritten if number not in self._handed_in]
        if waiting:
            self._hand_in(waiting[0])

    def _give_up(self, delivery: Delivery) -> None:
        why = delivery.last_error or "?"
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
        earlier = self._unwritten.get(delivery.number)
        if earlier is not None and earlier.since_ms != delivery.since_ms:
            del self._unwritten[delivery.number]
        self.filled()
        return delivery


# The signature. ----------------------------------------------------------------------------------------------


def read_or_make_secret(own: Path) -> str:
    """The secret that signs webhooks of the owner `local`; made at the first call. Blocks.

    Raises OSError where it cannot be read.
    """
    path = own / SECRET_FILE
    with contextlib.suppress(FileNotFoundError):
        if secret := path.read_text(encoding="ascii").strip():
            return secret
    secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
    private_files.write_if_possible(path, f"{secret}\n".encode())
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
