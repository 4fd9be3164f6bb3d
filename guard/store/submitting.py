"""A submit in one statement, for which its box has not waited for its turn: it holds only if nobody has written since.

What a box knows of the queue is exact as long as the last commit is one that it knows of. So it decides by itself, as
:meth:`.transitions.Transitions.submit` does, and the engine writes nothing if there was another commit meanwhile, or if
the job's id or key is known. Then, and where it is not the plain case, the submit is left to that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ..job import Job, JobState, NewJob
from .claiming import Signature
from .database import Database, Rows
from .facts import Bounds, IdempotencyKey
from .line import LAST_ROUND, ROUNDS
from .rows import NEW_COLUMNS, dump_new

_COLUMNS = NEW_COLUMNS.split(", ")
_ROUND = f"coalesce((SELECT least(greatest(?, round + 1), ?) FROM ({LAST_ROUND}) AS last), ?)"


@lru_cache
def _write(has_key: bool, has_rounds: bool, has_workflow: bool, is_served: bool) -> str:
    """The statement, as those of both engines are written, with nothing that its job does not need: each part takes the
    engine its time.

    `epoch` names the last commit: its row is locked by whoever has the turn, and looked at once that has gone.
    """
    values = ", ".join(_ROUND if has_rounds and name == "round" else "?" for name in _COLUMNS)
    parts = [
        "signed AS (UPDATE epoch SET writer = ? WHERE writer = ? AND NOT EXISTS (SELECT 1 FROM jobs WHERE job_id = ?)"
        + (" AND NOT EXISTS (SELECT 1 FROM idempotency WHERE owner = ? AND key = ?)" if has_key else "")
        + " RETURNING writer)",
        "noted AS (UPDATE writers SET commits = ? WHERE name = ? AND EXISTS (SELECT 1 FROM signed))",
        f"job AS (INSERT INTO jobs ({NEW_COLUMNS}) SELECT {values} FROM signed RETURNING *)",
        "body AS (INSERT INTO bodies SELECT number, ? FROM job)",
        "changed AS (INSERT INTO transitions SELECT event_id, job_id, created_at_ms, state FROM job)",
    ]
    if has_key:
        parts.append(
            "keyed AS (INSERT INTO idempotency (owner, key, body_digest, job_id, created_at_ms) "
            "SELECT owner, idempotency_key, ?, job_id, created_at_ms FROM job)"
        )
    if has_workflow:
        parts.append("drawn AS (INSERT INTO workflows SELECT number, job_id, ? FROM job)")
    if is_served:
        parts.append(
            "served AS (INSERT INTO turns (owner, user_id, served) SELECT owner, '', ?::bigint FROM job "
            "ON CONFLICT (owner, user_id) DO UPDATE SET served = excluded.served)"
        )
    return f"WITH {', '.join(parts)} SELECT round FROM job"


@dataclass(frozen=True)
class Planned:
    """A submit of the plain case, decided by what its box knows.

    Attributes:
        job: its round is the first one that it may have; where it is of a user, the engine finds the right one.
        order: its place among those of its priority and round.
        served: when its owner was served last, where that changes.
    """

    new: NewJob
    key: IdempotencyKey | None
    job: Job
    order: float
    served: int | None


def is_plain(new: NewJob, bounds: Bounds) -> bool:
    """Whether it reads and writes nothing but what the statement does."""
    hears = new.webhook is not None and JobState.QUEUED.value in new.webhook.events
    is_counted = bounds.takings or (new.user and bounds.max_queued_of_user is not None)
    return not (hears or is_counted or new.retry_of or new.has_secrets or new.puts or new.inputs)


def ask(db: Database, planned: Planned, last: str, signature: Signature) -> Rows:
    """Ask for it; `last`: the last commit that its box knows of. What comes with it signs the commit."""
    new, job, key, served = planned.new, planned.job, planned.key, planned.served
    has_rounds = bool(job.user) and not new.front
    row: list[object] = []
    for name, value in zip(_COLUMNS, dump_new(new, job, planned.order), strict=True):
        if has_rounds and name == "round":
            row += [job.round, job.round + ROUNDS, job.owner, job.user, job.priority]
        row.append(value)
    values = [
        *(signature.writer, last, job.job_id),
        *((job.owner, key.key) if key is not None else ()),
        *(signature.commits, signature.name, *row, new.body),
        *((key.body_digest,) if key is not None else ()),
        *((new.workflow_id,) if new.workflow_id is not None else ()),
        *((served,) if served is not None else ()),
    ]
    query = _write(key is not None, has_rounds, new.workflow_id is not None, served is not None)
    return db.execute(query, values)


def read(asked: Rows) -> int | None:
    """The job's round; None: nothing was written."""
    row = asked.fetchone()
    return None if row is None else int(row[0])
