"""Read jobs: the queries behind the methods of :class:`.protocol.Store` that change nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from ..errors import ConflictError
from ..job import OPEN, Job, JobState, Kind, Result
from .facts import Changes, Counts, Ended, Entry, IdempotencyKey, Listing, Page, Run, Submitted
from .line import Line
from .rows import COLUMNS, IS_OPEN, count, find_job, marks, match_owner, read_job

#: Bytes of bodies in one queue or history; the remaining jobs come without theirs.
ENTRIES_BYTES = 64 * 2**20
#: Changes of state read at once for one reader.
CHANGES = 2000
#: Bytes of bodies read at once. A single body may have `policy.max_body_bytes`.
BODIES_BYTES = 4 * 2**20

_WORKFLOW_ID = (
    "CASE WHEN json_valid(CAST(body AS TEXT)) "
    "THEN json_extract(CAST(body AS TEXT), '$.extra_data.extra_pnginfo.workflow.id') END"
)


def replay(db: sqlite3.Connection, line: Line, owner: str, key: IdempotencyKey) -> Submitted | None:
    row = db.execute(
        "SELECT body_digest, job_id FROM idempotency WHERE owner = ? AND key = ? AND created_at_ms >= ?",
        (owner, key.key, key.since_ms),
    ).fetchone()
    if row is None:
        return None
    body_digest, job_id = row
    if body_digest != key.body_digest:
        raise ConflictError("This idempotency key came with another body before.", extra_info={"job_id": job_id})
    job = find_job(db, job_id)
    if job is None:
        return None
    return Submitted(job, line.locate(db, job) if job.state is JobState.QUEUED else None, replayed=True)


def list_jobs(
    db: sqlite3.Connection, owner: str | None, states: frozenset[JobState] | None, limit: int, before: int | None
) -> list[Job]:
    index = ""
    where: list[str] = ["1"]
    values: list[Any] = []
    if owner is not None:
        where.append("owner = ?")
        values.append(owner)
    if states is not None:
        if states and states <= OPEN:
            index, where[0] = "INDEXED BY jobs_open", IS_OPEN
        where.append(f"state IN ({marks(states)})")
        values += [state.value for state in states]
    if before is not None:
        where.append("number < ?")
        values.append(before)
    query = f"SELECT {COLUMNS} FROM jobs {index} WHERE {' AND '.join(where)} ORDER BY number DESC LIMIT ?"
    return [read_job(row) for row in db.execute(query, [*values, limit])]


def list_missed(db: sqlite3.Connection, owner: str, client_id: str, since_ms: int, limit: int) -> list[Job]:
    query = (
        f"SELECT {COLUMNS} FROM jobs WHERE job_id IN (SELECT job_id FROM unheard WHERE owner = ? "
        "AND client_id = ? AND settled_at_ms >= ? ORDER BY settled_at_ms DESC LIMIT ?) "
        "ORDER BY settled_at_ms, number"
    )
    return [read_job(row) for row in db.execute(query, (owner, client_id, since_ms, limit))]


def list_overdue(db: sqlite3.Connection, created_before_ms: int) -> list[Job]:
    query = (
        f"SELECT {COLUMNS} FROM jobs WHERE {IS_OPEN} AND state IN ('queued', 'dispatched') AND created_at_ms < ? "
        "ORDER BY number LIMIT 1000"
    )
    return [read_job(row) for row in db.execute(query, (created_before_ms,))]


# Changes of state. -------------------------------------------------------------------------------------------


def read_changes(db: sqlite3.Connection, after: int, owner: str | None, job_id: str | None) -> Changes:
    db.execute("BEGIN")  # so that all queries see the same state of the tables
    try:
        head = Line.last_number(db, "transitions")
        # Count everybody's changes: a reader far behind must not hold up the others.
        up_to = head if job_id is not None else min(head, after + CHANGES)
        where, values = ("job_id = ? AND ", (job_id,)) if job_id is not None else ("", ())
        rows = db.execute(
            f"SELECT job_id, event_id FROM transitions WHERE {where} event_id > ? AND event_id <= ? ORDER BY event_id",
            (*values, after, up_to),
        ).fetchall()
        jobs: dict[int, Job] = {}
        for changed in dict.fromkeys(changed for changed, _event_id in rows):
            job = find_job(db, changed)
            if job is not None and owner in (None, job.owner):
                jobs.update(_replay_states(db, job))
    finally:
        db.execute("ROLLBACK")
    return Changes([jobs[event_id] for _changed, event_id in rows if event_id in jobs], up_to, head)


def _replay_states(db: sqlite3.Connection, job: Job) -> dict[int, Job]:
    """The job as it was after each of its changes of state, by the numbers of those."""
    attempts, started_at_ms = 0, None
    states = {}
    for event_id, at_ms, value in db.execute(
        "SELECT event_id, at_ms, state FROM transitions WHERE job_id = ? ORDER BY event_id", (job.job_id,)
    ):
        state = JobState(value)
        if state is JobState.RUNNING:
            attempts, started_at_ms = attempts + 1, at_ms
        elif state is JobState.QUEUED:
            started_at_ms = None
        states[event_id] = job.evolve(
            state=state,
            event_id=event_id,
            attempts=attempts,
            started_at_ms=started_at_ms,
            settled_at_ms=at_ms if state.settled else None,
            verdict=job.verdict if state.settled else None,
            result=job.result if state.settled else Result(),
        )
    return states


# What the facade shows as ComfyUI's. -------------------------------------------------------------------------


def find_entry(db: sqlite3.Connection, job_id: str) -> Entry | None:
    query = f"SELECT {COLUMNS}, body FROM jobs JOIN bodies USING (number) WHERE job_id = ? AND hidden = 0"
    row = db.execute(query, (job_id,)).fetchone()
    return Entry(read_job(row[:-1]), row[-1]) if row is not None else None


def list_queue(db: sqlite3.Connection, owner: str | None) -> list[Entry]:
    where, values = match_owner(owner)
    query = f"SELECT {COLUMNS} FROM jobs INDEXED BY jobs_open WHERE {IS_OPEN} AND {where} ORDER BY number"
    return _add_bodies(db, db.execute(query, values).fetchall())


def list_history(db: sqlite3.Connection, owner: str | None, limit: int, offset: int | None) -> list[Entry]:
    where, values = match_owner(owner)
    way = "DESC" if offset is None else "ASC"
    query = (
        f"SELECT {COLUMNS} FROM jobs WHERE {where} AND settled_at_ms IS NOT NULL AND hidden = 0 "
        f"ORDER BY settled_at_ms {way}, number {way} LIMIT ? OFFSET ?"
    )
    entries = _add_bodies(db, db.execute(query, [*values, limit, offset or 0]).fetchall())
    return entries if offset is not None else entries[::-1]


def _add_bodies(db: sqlite3.Connection, rows: list[Any]) -> list[Entry]:
    """Add their bodies to jobs; the later ones come without, where the bodies are too large together."""
    entries, left = [], ENTRIES_BYTES
    for job in map(read_job, rows):
        query = "SELECT CASE WHEN length(body) <= ? THEN body END FROM bodies WHERE number = ?"
        row = db.execute(query, (left, job.number)).fetchone()
        if row is not None:  # otherwise the job was just forgotten
            left -= len(row[0] or b"")
            entries.append(Entry(job, row[0] or b"{}"))
    return entries


def find_page(db: sqlite3.Connection, owner: str | None, asked: Listing) -> Page:
    where, values = match_owner(owner)
    where += f" AND hidden = 0 AND state IN ({marks(asked.states)})"
    values += [state.value for state in asked.states]
    of = "jobs"
    if asked.workflow_id is not None:
        of += " JOIN bodies USING (number)"
        where += f" AND {_WORKFLOW_ID} = ?"
        values.append(asked.workflow_id)
    order = "coalesce(settled_at_ms - started_at_ms, 0)" if asked.by_run_time else "created_at_ms"
    way = "ASC" if asked.ascending else "DESC"
    order = f"ORDER BY {order} {way}, number {way}"
    # Read no other bodies: there may be gigabytes of them.
    shown = f"SELECT number FROM {of} WHERE {where} {order} LIMIT ? OFFSET ?"
    query = f"SELECT {COLUMNS}, {_WORKFLOW_ID} FROM jobs JOIN bodies USING (number) WHERE number IN ({shown}) {order}"
    limit = -1 if asked.limit is None else asked.limit
    rows = db.execute(query, [*values, limit, asked.offset]).fetchall()
    total = count(db, f"SELECT count(*) FROM {of} WHERE {where}", values)
    return Page(tuple((read_job(row[:-1]), row[-1]) for row in rows), total)


# Figures. ----------------------------------------------------------------------------------------------------


def list_recent_runs(db: sqlite3.Connection, limit: int) -> list[Run]:
    query = (
        "SELECT template, shape, settled_at_ms - started_at_ms FROM jobs WHERE state = 'succeeded' "
        "AND started_at_ms IS NOT NULL ORDER BY number DESC LIMIT ?"
    )
    return [Run(Kind(*row[:2]), row[2]) for row in db.execute(query, (limit,)).fetchall()][::-1]


def count_jobs(db: sqlite3.Connection, owner: str | None) -> Counts:
    mine, whose = ("", ()) if owner is None else (" AND owner = ?", (owner,))
    queued = f"SELECT count(*) FROM jobs INDEXED BY jobs_queued WHERE state = 'queued'{mine}"
    # CROSS keeps the order of the join: from the few leases to their jobs.
    leased = f"SELECT count(*) FROM leases{mine and ' CROSS JOIN jobs USING (job_id) WHERE owner = ?'}"
    running = (
        f"SELECT count(*) FROM jobs INDEXED BY jobs_open WHERE {IS_OPEN} AND state IN ('running', 'validating'){mine}"
    )
    return Counts(*(count(db, query, whose) for query in (queued, leased, running)))


def count_endings(db: sqlite3.Connection, from_ms: int, before_ms: int) -> list[Ended]:
    query = (
        "SELECT owner, code, count(*), count(started_at_ms), "
        "coalesce(sum(settled_at_ms - started_at_ms), 0) FROM jobs INDEXED BY jobs_settled "
        "WHERE settled_at_ms >= ? AND settled_at_ms < ? GROUP BY owner, code"
    )
    return [Ended(*row) for row in db.execute(query, (from_ms, before_ms))]


def list_template_runs_ms(
    db: sqlite3.Connection, owner: str | None, limit: int, since_ms: int
) -> list[tuple[str, int]]:
    mine, whose = ("", ()) if owner is None else ("INDEXED BY jobs_of_owner WHERE owner = ?", (owner,))
    query = (
        "SELECT template, settled_at_ms - started_at_ms FROM "
        f"(SELECT state, template, started_at_ms, settled_at_ms FROM jobs {mine} ORDER BY number DESC LIMIT ?) "
        "WHERE state = 'succeeded' AND started_at_ms IS NOT NULL AND settled_at_ms >= ?"
    )
    return db.execute(query, (*whose, limit, since_ms)).fetchall()


# What the janitor asks. --------------------------------------------------------------------------------------


def list_open_numbers(db: sqlite3.Connection) -> list[int]:
    return [number for (number,) in db.execute(f"SELECT number FROM jobs WHERE {IS_OPEN}")]


def read_bodies(db: sqlite3.Connection, numbers: Sequence[int]) -> tuple[list[bytes], int]:
    bodies: list[bytes] = []
    size = dealt = 0
    for number in numbers:
        if size >= BODIES_BYTES:
            break
        row = db.execute("SELECT body FROM bodies WHERE number = ?", (number,)).fetchone()
        dealt += 1
        if row is not None:
            bodies.append(row[0])
            size += len(row[0])
    return bodies, dealt
