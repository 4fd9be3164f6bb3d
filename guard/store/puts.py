"""Results to be put to addresses: written with the job, due once it has succeeded, and gone once they are there.

An address is a secret as long as it is valid, so it is nowhere but here. How far each put has come is kept with its
job, which everybody may see who may see the job.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

from ..job import Job, JobState, NewJob
from ..outgoing import Put
from .database import Database
from .outbox import DeliveryState, Due, select_due
from .rows import dump_puts

_WORDS = {DeliveryState.PENDING: "waiting", DeliveryState.DELIVERED: "stored", DeliveryState.DEAD: "given_up"}


@dataclass(frozen=True)
class PutDelivery:
    """A file on its way to an address.

    Attributes:
        place: which of the job's puts it is.
        target: of what not too many may be under way at once: the owner.
        attempts: so many have ended. `since_ms`: from when its age counts.
        last_status: of the receiver's last answer; `last_error`: what went wrong last, without the address.
    """

    number: int
    job_id: str
    place: int
    artifact: int
    target: str
    url: str = field(repr=False)
    headers: str = field(repr=False)
    expires_at_ms: int | None
    attempts: int
    since_ms: int
    next_at_ms: int
    state: DeliveryState = DeliveryState.PENDING
    ended_at_ms: int | None = None
    last_status: int | None = None
    last_error: str | None = None

    @property
    def shares(self) -> tuple[str, ...]:
        return (self.target,)

    def put(self) -> Put:
        """As the job shows it."""
        return Put(
            artifact=self.artifact,
            state=_WORDS[self.state],  # type: ignore[arg-type]
            attempts=self.attempts,
            next_at_ms=self.next_at_ms if self.state is DeliveryState.PENDING else None,
            ended_at_ms=self.ended_at_ms,
            status=self.last_status,
            error=self.last_error,
        )


_NAMES = tuple(field.name for field in fields(PutDelivery))[:11]
_COLUMNS = ", ".join(_NAMES)


def add(db: Database, new: NewJob) -> None:
    """Write down what a new job asks for. It is not due before the job has succeeded."""
    db.executemany(
        "INSERT INTO puts (job_id, place, artifact, target, url, headers, expires_at_ms, attempts, since_ms, "
        "next_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, NULL)",
        [
            (
                *(new.job_id, place, put.artifact, new.owner, put.url),
                *(json.dumps(put.headers), put.expires_at_ms, new.created_at_ms),
            )
            for place, put in enumerate(new.puts)
        ],
    )


def settle(db: Database, job: Job, state: JobState, now_ms: int) -> tuple[Put, ...]:
    """Make the puts of a job that ends due, or drop them where it has not succeeded. Returns them as they are then."""
    if state is JobState.SUCCEEDED:
        db.execute("UPDATE puts SET since_ms = ?, next_at_ms = ? WHERE job_id = ?", (now_ms, now_ms, job.job_id))
        return tuple(Put(put.artifact, next_at_ms=now_ms) for put in job.puts)
    db.execute("DELETE FROM puts WHERE job_id = ?", (job.job_id,))
    why = "the job has not succeeded"
    return tuple(Put(put.artifact, "given_up", ended_at_ms=now_ms, error=why) for put in job.puts)


def find_due(
    db: Database, now_ms: int, limit: int, under_way: Collection[int], full: Collection[str]
) -> Due[PutDelivery]:
    waiting = "puts INDEXED BY puts_due WHERE next_at_ms IS NOT NULL"
    rows, next_at_ms = select_due(db, _COLUMNS, waiting, now_ms, limit, under_way, full)
    return Due([_read(row) for row in rows], next_at_ms)


def record_attempt(db: Database, job: Job | None, after: PutDelivery) -> Job | None:
    """Note how an attempt ended; returns the job as it is then, None where it is gone. An address that takes nothing
    more is deleted."""
    if after.state is DeliveryState.PENDING:
        db.execute(
            "UPDATE puts SET attempts = ?, next_at_ms = ? WHERE number = ?",
            (after.attempts, after.next_at_ms, after.number),
        )
    else:
        db.execute("DELETE FROM puts WHERE number = ?", (after.number,))
    if job is None or after.place >= len(job.puts):
        return None
    puts = list(job.puts)
    puts[after.place] = after.put()
    changed = job.evolve(puts=tuple(puts))
    db.execute("UPDATE jobs SET puts = ? WHERE number = ?", (dump_puts(changed), job.number))
    return changed


def _read(row: tuple[Any, ...]) -> PutDelivery:
    return PutDelivery(**dict(zip(_NAMES, row, strict=True)))
