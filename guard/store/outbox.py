"""The outbox: webhooks to deliver, each written in the same commit as the change of state that it reports."""

from __future__ import annotations

import enum
import json
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from typing_extensions import TypedDict

from ..job import Job
from .database import Database
from .rows import marks, select_by_state

T = TypeVar("T")

#: The longest pause between two attempts.
PAUSE_AT_MOST_S = 3600.0


class DeliveryState(str, enum.Enum):
    """How far a delivery has come."""

    PENDING = "pending"  # to be tried, for the first time or again
    DELIVERED = "delivered"  # the receiver answered 2xx
    DEAD = "dead"  # given up


class DeliveryBody(TypedDict):
    """One webhook in the outbox. `next_at_ms` is null unless it is to be tried again."""

    id: str
    type: str
    job_id: str
    owner: str
    url: str
    state: DeliveryState
    attempts: int
    created_at_ms: int
    next_at_ms: int | None
    ended_at_ms: int | None
    last_status: int | None
    last_error: str | None


@dataclass(frozen=True)
class Delivery:
    """One webhook in the outbox.

    Attributes:
        webhook_id: the receiver's `webhook-id`, the same at every attempt.
        type, payload: what is sent.
        target: scheme, host and port of `url`.
        attempts: so many have ended. `since_ms`: from when its age counts (a redelivery begins anew, and has a later
            one than before).
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

    @property
    def shares(self) -> tuple[str, ...]:
        return self.target, self.owner

    def body(self) -> DeliveryBody:
        """As callers see it."""
        return {
            "id": self.webhook_id,
            "type": self.type,
            "job_id": self.job_id,
            "owner": self.owner,
            "url": self.url,
            "state": self.state,
            "attempts": self.attempts,
            "created_at_ms": self.created_at_ms,
            "next_at_ms": self.next_at_ms if self.state is DeliveryState.PENDING else None,
            "ended_at_ms": self.ended_at_ms,
            "last_status": self.last_status,
            "last_error": self.last_error,
        }


@dataclass(frozen=True)
class Due(Generic[T]):
    """Deliveries to try now, and when the next one will be due (None: none is waiting for its time)."""

    deliveries: list[T]
    next_at_ms: int | None


_NAMES = tuple(field.name for field in fields(Delivery))
_COLUMNS = ", ".join(_NAMES)


def put(db: Database, job: Job, now_ms: int) -> None:
    """Add a delivery for the job's new state, if its webhook asks for that."""
    if job.webhook is None or job.state.value not in job.webhook.events:
        return
    parts = urlsplit(job.webhook.url)
    db.execute(
        "INSERT INTO webhooks (webhook_id, type, job_id, owner, url, target, payload, state, attempts, "
        "created_at_ms, since_ms, next_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, 'pending', 0, ?, ?, ?)",
        (
            f"msg_{secrets.token_hex(16)}",
            f"job.{job.state.value}",
            job.job_id,
            job.owner,
            job.webhook.url,
            f"{parts.scheme}://{parts.netloc}".lower(),
            _payload(job, now_ms),
            *(now_ms, now_ms, now_ms),
        ),
    )


def _payload(job: Job, at_ms: int) -> str:
    """What is sent, as JSON: the same at every attempt."""
    at = datetime.fromtimestamp(at_ms / 1000, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"type": f"job.{job.state.value}", "timestamp": at, "data": job.body()})


def find_due(db: Database, now_ms: int, limit: int, under_way: Collection[int], full: Collection[str]) -> Due[Delivery]:
    # Only the first pending delivery of each job, so that they arrive in order.
    first = (
        "state = 'pending' AND NOT EXISTS (SELECT 1 FROM webhooks AS earlier WHERE "
        "earlier.job_id = webhooks.job_id AND earlier.state = 'pending' AND earlier.number < webhooks.number)"
    )
    rows, next_at_ms = select_due(
        db,
        _COLUMNS,
        f"webhooks INDEXED BY webhooks_pending WHERE {first}",
        now_ms,
        limit,
        under_way,
        full,
        shares=("target", "owner"),
    )
    return Due(list(map(_read, rows)), next_at_ms)


def select_due(
    db: Database,
    columns: str,
    waiting: str,
    now_ms: int,
    limit: int,
    under_way: Collection[int],
    full: Collection[str],
    waiting_for: Sequence[Any] = (),
    shares: Sequence[str] = ("target",),
) -> tuple[list[Any], int | None]:
    """Select the first rows of what is `waiting` (a table and its condition, with `waiting_for` as its values) that are
    due now, and when the next is.

    Leaves out those whose number is `under_way`, and those with one of the `shares`, columns, in `full`.
    """
    values = (*waiting_for, *under_way, *(each for _share in shares for each in full))
    for column, left_out in (("number", under_way), *((share, full) for share in shares)):
        if left_out:
            waiting += f" AND {column} NOT IN ({marks(left_out)})"
    rows = db.execute(
        f"SELECT {columns} FROM {waiting} AND next_at_ms <= ? ORDER BY next_at_ms, number LIMIT ?",
        (*values, now_ms, limit),
    ).fetchall()
    (next_at_ms,) = db.execute(
        f"SELECT min(next_at_ms) FROM {waiting} AND next_at_ms > ?", (*values, now_ms)
    ).fetchone()
    return rows, next_at_ms


def record_attempt(db: Database, after: Delivery) -> None:
    # An attempt that began before a redelivery was asked for does not count as one of that.
    db.execute(
        "UPDATE webhooks SET state = ?, attempts = ?, next_at_ms = ?, ended_at_ms = ?, "
        "last_status = ?, last_error = ? WHERE number = ? AND since_ms = ?",
        (
            *(after.state.value, after.attempts, after.next_at_ms, after.ended_at_ms),
            *(after.last_status, after.last_error, after.number, after.since_ms),
        ),
    )


def redeliver(db: Database, webhook_id: str, owner: str | None, now_ms: int) -> Delivery | None:
    query = f"SELECT {_COLUMNS} FROM webhooks WHERE webhook_id = ?"
    row = db.execute(query, (webhook_id,)).fetchone()
    if row is None or owner not in (None, _read(row).owner):
        return None
    db.execute(
        "UPDATE webhooks SET state = 'pending', attempts = 0, next_at_ms = ?, ended_at_ms = NULL, "
        "since_ms = CASE WHEN since_ms >= ? THEN since_ms + 1 ELSE ? END WHERE webhook_id = ?",
        (now_ms, now_ms, now_ms, webhook_id),
    )
    return _read(db.execute(query, (webhook_id,)).fetchone())


def list_of_job(db: Database, job_id: str, limit: int) -> list[Delivery]:
    # The index goes on with the state, so the newest of each are read.
    one = (
        "SELECT number FROM (SELECT number FROM webhooks INDEXED BY webhooks_of_job WHERE job_id = ? AND state = ? "
        "ORDER BY number DESC LIMIT ?) AS newest"
    )
    some = " UNION ALL ".join([one] * len(DeliveryState))
    values = [value for state in DeliveryState for value in (job_id, state.value, limit)]
    query = f"SELECT {_COLUMNS} FROM webhooks WHERE number IN ({some}) ORDER BY number DESC LIMIT ?"
    return list(map(_read, db.execute(query, [*values, limit])))[::-1]


def list_deliveries(
    db: Database, owner: str | None, states: frozenset[DeliveryState], limit: int, before: int | None
) -> list[Delivery]:
    some, values = select_by_state("webhooks", owner, states, limit, before=before)
    query = f"SELECT {_COLUMNS} FROM webhooks WHERE number IN ({some}) ORDER BY number DESC LIMIT ?"
    return list(map(_read, db.execute(query, [*values, limit])))


def _read(row: tuple[Any, ...]) -> Delivery:
    stored = dict(zip(_NAMES, row, strict=True))
    return Delivery(**{**stored, "state": DeliveryState(stored["state"])})
