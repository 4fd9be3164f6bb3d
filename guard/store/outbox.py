"""The outbox: webhooks that wait to be delivered, written in one commit with the change of state that they tell of."""

from __future__ import annotations

import enum
import json
import secrets
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from ..job import Job


class DeliveryState(str, enum.Enum):
    """Where a delivery is."""

    PENDING = "pending"  # to be tried, or tried again
    DELIVERED = "delivered"  # the receiver has answered 2xx
    DEAD = "dead"  # given up


@dataclass(frozen=True)
class Delivery:
    """One webhook in the outbox.

    Attributes:
        webhook_id: the receiver's `webhook-id`, the same at every attempt.
        type, payload: what is sent.
        target: scheme, host and port of `url`.
        attempts: so many have ended. `since_ms`: from when its age counts (a redelivery begins anew).
        last_status: of the receiver's last answer; `last_error`: what went wrong last.
    """

    number: int
    webhook_id: str
    type: str
    job_id: str
    owner: str
    url: str
    target: str
    payload: str
    state: DeliveryState
    attempts: int
    created_at_ms: int
    since_ms: int
    next_at_ms: int
    ended_at_ms: int | None
    last_status: int | None
    last_error: str | None

    def body(self) -> dict[str, Any]:
        """As callers see it."""
        return {
            "id": self.webhook_id,
            "type": self.type,
            "job_id": self.job_id,
            "owner": self.owner,
            "url": self.url,
            "state": self.state.value,
            "attempts": self.attempts,
            "created_at_ms": self.created_at_ms,
            "next_at_ms": self.next_at_ms if self.state is DeliveryState.PENDING else None,
            "ended_at_ms": self.ended_at_ms,
            "last_status": self.last_status,
            "last_error": self.last_error,
        }


@dataclass(frozen=True)
class Due:
    """Deliveries to try now, and when the next one will be due (None: none is waiting for its time)."""

    deliveries: list[Delivery]
    next_at_ms: int | None


def payload(job: Job, at_ms: int) -> str:
    """What is sent, as JSON: it stays the same however often it is tried."""
    at = datetime.fromtimestamp(at_ms / 1000, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"type": type_of(job), "timestamp": at, "data": job.body()})


def type_of(job: Job) -> str:
    return f"job.{job.state.value}"


def new_id() -> str:
    """For the header `webhook-id`."""
    return f"msg_{secrets.token_hex(16)}"
