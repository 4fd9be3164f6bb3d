"""What other boxes have changed, read in the order of their commits.

Boxes commit one after the other, so a change's number tells its place among the changes of all, and none appears later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..job import Job, JobState
from .database import Database, look_up
from .facts import Arrival
from .queries import replay_states
from .rows import COLUMNS, read_job

#: So many changes are read at once.
AT_ONCE = 200


def read(db: Database, after: int) -> tuple[list[Arrival], int, bool]:
    """Read the next changes after that number; also the last number that was looked at, and whether there may be more.

    Call it with everything from one snapshot, or where nobody else commits.
    """
    rows = db.execute(
        "SELECT event_id, job_id FROM transitions WHERE event_id > ? ORDER BY event_id LIMIT ?", (after, AT_ONCE)
    ).fetchall()
    if not rows:
        return [], after, False
    ids = list(dict.fromkeys(job_id for _event_id, job_id in rows))
    states: dict[str, list[tuple[int, int, str]]] = {job_id: [] for job_id in ids}
    query = "SELECT job_id, event_id, at_ms, state FROM transitions WHERE job_id = ANY(?) ORDER BY job_id, event_id"
    for job_id, *change in db.execute(query, (ids,)).fetchall():
        states[job_id].append((change[0], change[1], change[2]))
    arrivals: dict[int, Arrival] = {}
    for job_id, row in zip(ids, look_up(db, f"place, {COLUMNS}", "jobs", "job_id", ids), strict=True):
        if row is not None:  # it may have been forgotten
            arrivals.update(_follow(read_job(row[1:]), row[0], states[job_id]))
    found = [arrivals[event_id] for event_id, _job_id in rows if event_id in arrivals]
    return found, rows[-1][0], len(rows) == AT_ONCE


def _follow(job: Job, place: float, changes: Sequence[tuple[Any, ...]]) -> dict[int, Arrival]:
    """The job's arrivals by the numbers of the changes."""
    before: JobState | None = None
    arrivals = {}
    for event_id, then in replay_states(job, changes).items():
        arrivals[event_id] = Arrival(then, before, place)
        before = then.state
    return arrivals


def read_turns(db: Database, owners: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, int, int]]]:
    """When each of the owners was served last, and which round of each priority."""
    served = "SELECT owner, served FROM turns WHERE user_id = '' AND owner = ANY(?)"
    rounds = "SELECT owner, priority, round FROM rounds WHERE owner = ANY(?)"
    return dict(db.execute(served, (list(owners),)).fetchall()), db.execute(rounds, (list(owners),)).fetchall()
