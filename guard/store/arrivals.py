"""What other boxes have changed, read in the order of their commits.

Boxes commit one after the other, so a change's number tells its place among the changes of all, and none appears later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..job import Job, JobState
from .database import Database, Rows
from .facts import Arrival
from .queries import replay_states
from .rows import COLUMNS, read_job

#: So many changes are read at once.
AT_ONCE = 64

_NEXT = "SELECT event_id, job_id FROM transitions WHERE event_id > ? ORDER BY event_id LIMIT ?"
_JOBS = f"job_id = ANY(ARRAY(SELECT job_id FROM ({_NEXT}) AS next))"
_OWNERS = f"owner = ANY(ARRAY(SELECT owner FROM jobs WHERE {_JOBS}))"


@dataclass(frozen=True)
class News:
    """The next changes, and whose turn it is since.

    Attributes:
        up_to: the number of the last change that was looked at.
        is_more: there may be more after it.
        served, rounds: see :meth:`.line.Line.take_turns`, of the owners of these jobs.
    """

    arrivals: list[Arrival]
    up_to: int
    is_more: bool
    served: dict[str, int]
    rounds: list[tuple[str, int, int]]


@dataclass(frozen=True)
class Asked:
    """What was asked of the engine, and not read yet."""

    after: int
    changes: Rows
    states: Rows
    jobs: Rows
    served: Rows
    rounds: Rows


def ask(db: Database, after: int) -> Asked:
    """Ask for the next changes after that number, all at once: within a pipeline nothing is waited for.

    Call it with everything of one snapshot, or where nobody else commits.
    """
    some = after, AT_ONCE
    query = f"SELECT job_id, event_id, at_ms, state FROM transitions WHERE {_JOBS} ORDER BY job_id, event_id"
    return Asked(
        after,
        db.execute(_NEXT, some),
        db.execute(query, some),
        db.execute(f"SELECT place, {COLUMNS} FROM jobs WHERE {_JOBS}", some),
        db.execute(f"SELECT owner, served FROM turns WHERE user_id = '' AND {_OWNERS}", some),
        db.execute(f"SELECT owner, priority, round FROM rounds WHERE {_OWNERS}", some),
    )


def read(asked: Asked) -> News:
    rows = asked.changes.fetchall()
    states: dict[str, list[tuple[int, int, str]]] = {}
    for job_id, *change in asked.states.fetchall():
        states.setdefault(job_id, []).append((change[0], change[1], change[2]))
    arrivals: dict[int, Arrival] = {}
    for place, *row in asked.jobs.fetchall():  # some may have been forgotten
        job = read_job(tuple(row))
        arrivals.update(_follow(job, place, states[job.job_id]))
    found = [arrivals[event_id] for event_id, _job_id in rows if event_id in arrivals]
    up_to = rows[-1][0] if rows else asked.after
    served, rounds = dict(asked.served.fetchall()), asked.rounds.fetchall()
    return News(found, up_to, len(rows) == AT_ONCE, served, rounds)


def _follow(job: Job, place: float, changes: Sequence[tuple[Any, ...]]) -> dict[int, Arrival]:
    """The job's arrivals by the numbers of the changes."""
    before: JobState | None = None
    arrivals = {}
    for event_id, then in replay_states(job, changes).items():
        arrivals[event_id] = Arrival(then, before, place)
        before = then.state
    return arrivals
