"""Decide which webhooks to send, sign them, and say when to try again. The store keeps them."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import secrets
from asyncio import wrap_future
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from ...own_files import FileError, MalformedFileError, read_text
from .. import private_files
from ..client import Client
from ..clock import Clock
from ..errors import ForbiddenError, NotFoundError
from ..job import Job
from ..settings import WebhooksSettings
from ..store import Delivery, DeliveryState, Due
from .attempts import Attempt, Attempts, draw_pause_s
from .webhook_rules import Rules

log = logging.getLogger("guarded.webhooks")

SECRET_FILE = "webhook.secret"

#: The secret that signs an owner's webhooks; None for an owner that may not send any (any more).
SecretOf = Callable[[str], "str | None"]


def retry_at_ms(settings: WebhooksSettings, attempt: Attempt, attempts: int, since_ms: int, now_ms: int) -> int | None:
    """When to try again after `attempts` attempts; None to give up."""
    if attempt.final:
        return None
    at_ms = now_ms + int(draw_pause_s(settings.first_retry_s, attempt, attempts) * 1000)
    return at_ms if at_ms <= since_ms + settings.max_age_s * 1000 else None


class Deliveries(Protocol):
    """What the outbox asks of the job store: see :class:`guard.store.Store`."""

    def find_due_deliveries(
        self, now_ms: int, limit: int, *, under_way: Collection[int], full: Collection[str]
    ) -> Future[Due[Delivery]]: ...
    def record_attempt(self, after: Delivery) -> Future[None]: ...
    def list_deliveries(
        self, owner: str | None, states: frozenset[DeliveryState], limit: int, before: int | None = None
    ) -> Future[list[Delivery]]: ...
    def redeliver(self, webhook_id: str, owner: str | None) -> Future[Delivery | None]: ...


class Outbox(Attempts[Delivery]):
    """The webhooks that are still to be sent. Event loop."""

    WHAT = "webhooks"

    def __init__(self, settings: WebhooksSettings, store: Deliveries, secret_of: SecretOf, clock: Clock) -> None:
        super().__init__(clock)
        self._settings = settings
        self._store = store
        self._secret_of = secret_of
        self.rules = Rules(settings)

    def follow(self, job: Job) -> None:
        """A new state is durable, together with its webhook. The store's thread."""
        if job.webhook is not None:
            self.filled()

    def _find(
        self, now_ms: int, limit: int, under_way: Collection[int], full: Collection[str]
    ) -> Future[Due[Delivery]]:
        return self._store.find_due_deliveries(now_ms, limit, under_way=under_way, full=full)

    def _write(self, after: Delivery) -> Future[None]:
        return self._store.record_attempt(after)

    def _retry_at_ms(self, delivery: Delivery, attempt: Attempt, now_ms: int) -> int | None:
        return retry_at_ms(self._settings, attempt, delivery.attempts + 1, delivery.since_ms, now_ms)

    def sign(self, delivery: Delivery, payload: str) -> Mapping[str, str]:
        """The signed headers for an attempt now to send that payload.

        Raises:
            GuardError: the webhook may not be sent (any more).
        """
        self.rules.check(delivery.url)  # the settings may have changed since its job was admitted
        secret = self._secret_of(delivery.owner)
        if secret is None:
            raise ForbiddenError("Its owner has no key any more that could sign it.")
        return make_headers(secret, delivery.webhook_id, payload, self._clock.wall_ms())

    def _describe_end(self, delivery: Delivery) -> str:
        return f"webhook {delivery.webhook_id} of job {delivery.job_id} is given up"

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

    Raises FileError where it cannot be read, or is none.
    """
    path = own / SECRET_FILE
    with contextlib.suppress(FileNotFoundError):
        if secret := read_text(path).strip():
            try:
                base64.b64decode(secret.removeprefix("whsec_").encode("ascii"), validate=True)
            except ValueError:
                raise MalformedFileError(path, "it is no secret of webhooks (whsec_…)", 1) from None
            return secret
    secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
    private_files.write_if_possible(path, f"{secret}\n".encode())
    return secret


def choose_secret(own: Path, key: bytes | None) -> str:
    """As :func:`read_or_make_secret`; in a fleet its `key` decides, and the file only tells people. Blocks."""
    if key is None:
        return read_or_make_secret(own)
    secret = f"whsec_{base64.b64encode(key).decode()}"
    path = own / SECRET_FILE
    try:
        if read_text(path).strip() == secret:
            return secret
        os.replace(path, own / f"{SECRET_FILE}.before")
        log.warning("webhooks of `local` are signed with the fleet's secret now; %s.before was the one before", path)
    except FileNotFoundError:
        pass
    except (OSError, FileError) as error:
        log.warning("%s cannot be used, and is not needed: %s", path, error)
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
