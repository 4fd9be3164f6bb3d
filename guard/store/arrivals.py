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
    """What was asked of the engine and not read yet: the jobs that have changed, all their changes, the turns since."""

    after: int
    changes: Rows
    jobs: Rows
    turns: Rows


def ask(db: Database, after: int) -> Asked:
    """Ask for the next changes after that number, all at once: within a pipeline nothing is waited for.

    Call it with everything of one snapshot, or where nobody else commits.
    """
    some = after, AT_ONCE
    return Asked(
        after,
        db.execute(f"SELECT job_id, event_id, at_ms, state FROM transitions WHERE {_JOBS} ORDER BY event_id", some),
        db.execute(f"SELECT place, {COLUMNS} FROM jobs WHERE {_JOBS}", some),
        db.execute(
            f"SELECT owner, served, NULL, NULL FROM turns WHERE user_id = '' AND {_OWNERS} "
            f"UNION ALL SELECT owner, NULL, priority, round FROM rounds WHERE {_OWNERS}",
            (*some, *some),
        ),
    )


def read(asked: Asked) -> News:
    states: dict[str, list[tuple[int, int, str]]] = {}
    numbers = []
    for job_id, event_id, at_ms, state in asked.changes.fetchall():
        states.setdefault(job_id, []).append((event_id, at_ms, state))
        if event_id > asked.after:
            numbers.append(event_id)
    # Those jobs may have changed again, behind what others have done.
    del numbers[AT_ONCE:]
    arrivals: dict[int, Arrival] = {}
    for place, *row in asked.jobs.fetchall():  # some may have been forgotten
        job = read_job(tuple(row))
        arrivals.update(_follow(job, place, states[job.job_id]))
    found = [arrivals[event_id] for event_id in numbers if event_id in arrivals]
    up_to = numbers[-1] if numbers else asked.after
    turns = asked.turns.fetchall()
    served = {owner: round_ for owner, round_, *_rest in turns if round_ is not None}
    rounds = [(owner, priority, last) for owner, _served, priority, last in turns if priority is not None]
    return News(found, up_to, len(numbers) == AT_ONCE, served, rounds)


def _follow(job: Job, place: float, changes: Sequence[tuple[Any, ...]]) -> dict[int, Arrival]:
    """The job's arrivals by the numbers of the changes."""
    before: JobState | None = None
    arrivals = {}
    for event_id, then in replay_states(job, changes).items():
        arrivals[event_id] = Arrival(then, before, place)
        before = then.state
    return arrivals
