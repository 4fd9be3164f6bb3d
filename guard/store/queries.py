"""Read jobs: the queries behind the methods of :class:`.protocol.Store` that change nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import ConflictError
from ..job import OPEN, TERMINAL, Job, JobState, Kind, Result
from . import listed
from .database import Database, last_number, look_up, snapshot
from .facts import Changes, Counts, Ended, Entry, Head, IdempotencyKey, Listing, Page, Run, Submitted
from .line import Line
from .rows import COLUMNS, IS_OPEN, find_job, marks, read_job, select_by_state

#: The most jobs in one answer, whatever its caller asks for.
PAGE = 1000
#: History and listing show so many of the jobs that have ended, the last ones (as many as ComfyUI keeps), and the
#: listing so many of those that have not.
SHOWN = 10_000
#: The most states of a job that are told.
STATES = 100
#: The most overdue jobs in one look.
OVERDUE = 1000
#: So many jobs in one queue or history come with their bodies, where a page has room for them, and none of more than so
#: many bytes: all threads wait while it is parsed.
WHOLE = 200
ENTRY_BYTES = 2**20
#: Changes of state looked through at once for one reader …
CHANGES = 2000
#: … and so many of them read: hundreds of readers may be far behind at once, and Python's collector holds everybody up
#: while it goes through what they have been given.
READ_CHANGES = 100
#: Bytes of bodies read at once. A single body may have `policy.max_body_bytes`.
BODIES_BYTES = 4 * 2**20

FIND_KEY = "SELECT body_digest, job_id, created_at_ms FROM idempotency WHERE owner = ? AND key = ?"
_OWNER = COLUMNS.split(", ").index("owner")
#: Up to which change of state the owner of a row of `jobs` has cleared its history.
_CLEARED = "coalesce((SELECT up_to FROM cleared WHERE cleared.owner = jobs.owner), 0)"


def replay(db: Database, line: Line, owner: str, key: IdempotencyKey, *, by_submit: bool = False) -> Submitted | None:
    row = db.execute(FIND_KEY, (owner, key.key)).fetchone()
    if row is None or row[2] < key.since_ms:
        return None
    body_digest, job_id, _created_at_ms = row
    if body_digest != key.body_digest:
        raise ConflictError("This idempotency key came with another body before.", extra_info={"job_id": job_id})
    job = find_job(db, job_id)
    if job is None:
        return None
    waiting = line.locate(db, job, by_submit=by_submit) if job.state is JobState.QUEUED else None
    return Submitted(job, waiting, replayed=True)


def _read_jobs(rows: Iterable[Any]) -> list[Job]:
    # Of a cursor: SQLite lets other threads have the interpreter at each of its rows.
    return [read_job(row) for row in rows]


def _read_numbers(db: Database, query: str, values: Sequence[Any]) -> list[int]:
    return [row[0] for row in db.execute(query, values)]


def list_jobs(
    db: Database, owner: str | None, states: frozenset[JobState] | None, limit: int, before: int | None
) -> list[Job]:
    limit = min(limit, PAGE)
    values: list[Any] = []
    if states is None:
        where, order = "1 = 1", "ORDER BY number DESC"
        if owner is not None:
            where, values = "owner = ?", [owner]
        if before is not None:
            where, values = f"{where} AND number < ?", [*values, before]
    else:
        some, values = select_by_state("jobs", owner, states, limit, before=before)
        where, order = f"number IN ({some})", "ORDER BY number DESC"
    query = f"SELECT {COLUMNS} FROM jobs WHERE {where} {order} LIMIT ?"
    return _read_jobs(db.execute(query, [*values, limit]))


def list_missed(db: Database, owner: str, client_id: str, since_ms: int, limit: int) -> list[Job]:
    query = (
        "SELECT number FROM jobs WHERE job_id IN (SELECT job_id FROM unheard WHERE owner = ? "
        "AND client_id = ? AND settled_at_ms >= ? ORDER BY settled_at_ms DESC LIMIT ?) "
        "ORDER BY settled_at_ms, number"
    )
    return listed.Page().read(db, _read_numbers(db, query, (owner, client_id, since_ms, limit)))


def list_overdue(db: Database, created_before_ms: int) -> list[Job]:
    oldest = (
        f"SELECT number FROM (SELECT number FROM jobs INDEXED BY jobs_open WHERE {IS_OPEN} AND state = ? "
        "AND created_at_ms < ? ORDER BY created_at_ms LIMIT ?) AS oldest"
    )
    query = f"SELECT {COLUMNS} FROM jobs WHERE number IN ({oldest} UNION ALL {oldest}) ORDER BY number"
    values = [value for state in ("queued", "dispatched") for value in (state, created_before_ms, OVERDUE)]
    return _read_jobs(db.execute(query, values))


# Changes of state. -------------------------------------------------------------------------------------------


def read_changes(db: Database, after: int, owner: str | None, job_id: str | None) -> Changes:
    with snapshot(db):
        head = last_number(db, "transitions")
        # Count everybody's changes: a reader far behind must not hold up the others.
        up_to = head if job_id is not None else min(head, after + CHANGES)
        where, values = ("job_id = ? AND ", (job_id,)) if job_id is not None else ("", ())
        rows = db.execute(
            f"SELECT job_id, event_id FROM transitions WHERE {where} event_id > ? AND event_id <= ? ORDER BY event_id",
            (*values, after, up_to),
        ).fetchall()
        jobs: dict[int, Job] = {}
        page = listed.Page(listed.CHANGES_BYTES)
        first_events: dict[str, int] = {}
        for changed, event_id in rows:
            first_events.setdefault(changed, event_id)
        found = look_up(db, COLUMNS, "jobs", "job_id", list(first_events))
        for event_id, row in zip(first_events.values(), found, strict=False):
            if row is None or owner not in (None, row[_OWNER]):
                continue
            if job_id is not None:
                job: Job | None = read_job(row)
            else:
                job = page.take(row) if len(jobs) < READ_CHANGES else None
            if job is None:
                up_to = event_id - 1
                break
            jobs.update(_replay_states(db, job))
    changes = [jobs[event_id] for _changed, event_id in rows if event_id in jobs and event_id <= up_to]
    return Changes(changes, up_to, head)


def _replay_states(db: Database, job: Job) -> dict[int, Job]:
    """The job as it was after each of its changes of state, by the numbers of those."""
    query = "SELECT event_id, at_ms, state FROM transitions WHERE job_id = ? ORDER BY event_id"
    return replay_states(job, db.execute(query, (job.job_id,)))


def replay_states(job: Job, changes: Iterable[tuple[int, int, str]]) -> dict[int, Job]:
    """The job as it was after each of these changes, by their numbers: number, time and state of each, all of them."""
    attempts, started_at_ms = 0, None
    states = {}
    for event_id, at_ms, value in changes:
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


def list_states(db: Database, job_id: str) -> list[tuple[JobState, int]]:
    query = "SELECT state, at_ms FROM transitions WHERE job_id = ? ORDER BY event_id DESC LIMIT ?"
    return [(JobState(state), at_ms) for state, at_ms in db.execute(query, (job_id, STATES))][::-1]


# What the facade shows as ComfyUI's. -------------------------------------------------------------------------


def find_entry(db: Database, job_id: str) -> Entry | None:
    query = (
        f"SELECT {COLUMNS}, body FROM jobs LEFT JOIN bodies USING (number) WHERE job_id = ? AND hidden = 0 AND NOT "
        f"(settled_at_ms IS NOT NULL AND event_id <= {_CLEARED})"
    )
    row = db.execute(query, (job_id,)).fetchone()
    return Entry(read_job(row[:-1]), row[-1]) if row is not None else None


def has_open(db: Database, owner: str | None) -> bool:
    return db.execute(*select_by_state("jobs", owner, OPEN, 1)).fetchone() is not None


def find_body(db: Database, job_id: str) -> tuple[bytes | None, int | None]:
    query = "SELECT body, body_gone_at_ms FROM jobs LEFT JOIN bodies USING (number) WHERE job_id = ?"
    body, gone_at_ms = db.execute(query, (job_id,)).fetchone() or (None, None)
    return body, gone_at_ms


def list_queue(db: Database, owner: str | None) -> list[Entry]:
    begun, waiting = (
        select_by_state("jobs", owner, states, PAGE, newest=False)
        for states in (OPEN - {JobState.QUEUED}, [JobState.QUEUED])
    )
    query = f"SELECT number FROM jobs WHERE number IN ({begun[0]} UNION ALL {waiting[0]}) ORDER BY number"
    return _add_bodies(db, _read_numbers(db, query, [*begun[1], *waiting[1]]))


def list_history(db: Database, owner: str | None, limit: int, offset: int | None) -> list[Entry]:
    shown, values = _select_shown(owner)
    limit = min(limit, PAGE)
    skipped = 0
    if offset is not None:
        (total,) = db.execute(f"SELECT count(*) FROM ({shown}) AS shown", values).fetchone()
        limit = max(min(limit, total - offset), 0)
        skipped = max(total - offset - limit, 0)
    some = f"SELECT number FROM ({shown}) AS shown ORDER BY event_id DESC LIMIT ? OFFSET ?"
    way = "DESC" if offset is None else "ASC"
    query = f"SELECT number FROM jobs WHERE number IN ({some}) ORDER BY event_id {way}"
    entries = _add_bodies(db, _read_numbers(db, query, [*values, limit, skipped]))
    return entries if offset is not None else entries[::-1]


def _select_shown(owner: str | None) -> tuple[str, list[Any]]:
    """A query for the last jobs that ended and are not hidden, and its values.

    Of everybody's jobs, those that their owners have cleared count among the last `SHOWN`, but are not shown.
    """
    columns = "number, event_id, owner, state, coalesce(settled_at_ms - started_at_ms, 0) AS run_ms"
    where = "settled_at_ms IS NOT NULL AND hidden = 0"
    if owner is None:
        last = f"SELECT {columns} FROM jobs INDEXED BY jobs_shown WHERE {where} ORDER BY event_id DESC LIMIT ?"
        return f"SELECT * FROM ({last}) AS jobs WHERE event_id > {_CLEARED}", [SHOWN]
    whose = f"owner = ? AND event_id > coalesce((SELECT up_to FROM cleared WHERE owner = ?), 0) AND {where}"
    query = f"SELECT {columns} FROM jobs INDEXED BY jobs_history WHERE {whose} ORDER BY event_id DESC LIMIT ?"
    return query, [owner, owner, SHOWN]


def _add_bodies(db: Database, numbers: list[int]) -> list[Entry]:
    """The first jobs of these numbers, as far as a page has room, and then the bodies of the first ones of them."""
    page = listed.Page()
    jobs = page.read(db, numbers)
    left, whole, kept = page.left, [], set()
    sizes = look_up(db, "length(body)", "bodies", "number", [job.number for job in jobs])
    for place, (job, row) in enumerate(zip(jobs, sizes, strict=True)):
        if row is None:
            continue
        kept.add(job.number)
        if place < WHOLE and row[0] <= min(left, ENTRY_BYTES):
            whole.append(job.number)
            left -= row[0]
    found = zip(whole, look_up(db, "body", "bodies", "number", whole), strict=True)
    bodies: dict[int, bytes | None] = {number: row and row[0] for number, row in found}
    return [Entry(job, bodies.get(job.number, b"{}") if job.number in kept else None) for job in jobs]


def find_page(db: Database, owner: str | None, asked: Listing) -> Page:
    parts: list[tuple[str, list[Any]]] = []
    if ended := asked.states & TERMINAL:
        shown, values = _select_shown(owner)
        some = f"SELECT number, run_ms FROM ({shown}) AS shown WHERE state IN ({marks(ended)})"
        parts.append((some, [*values, *(state.value for state in ended)]))
    if still_open := asked.states & OPEN:
        newest, values = select_by_state("jobs", owner, still_open, SHOWN)
        parts.append((f"SELECT number, 0 AS run_ms FROM ({newest}) AS newest", values))
    if not parts:
        return Page((), 0)
    found = " UNION ALL ".join(part for part, _values in parts)
    values = [value for _part, some_values in parts for value in some_values]
    if asked.workflow_id is not None:
        found = f"SELECT found.* FROM ({found}) AS found CROSS JOIN workflows USING (number) WHERE workflow_id = ?"
        values.append(asked.workflow_id)
    way = "ASC" if asked.ascending else "DESC"
    order = f"ORDER BY {'run_ms' if asked.by_run_time else 'created_at_ms'} {way}, number {way}"
    # By the order of arrival, which is that of the times, unless somebody has set the clock.
    first = f"ORDER BY {f'run_ms {way}, ' if asked.by_run_time else ''}number {way}"
    query = (
        f"WITH found AS ({found}), "
        f"page AS (SELECT number, run_ms FROM found {first} LIMIT ? OFFSET ?) "
        "SELECT number, (SELECT workflow_id FROM workflows WHERE workflows.number = jobs.number), "
        "(SELECT count(*) FROM found) "
        f"FROM page CROSS JOIN jobs USING (number) {order}"
    )
    limit = PAGE if asked.limit is None else min(asked.limit, PAGE)
    rows = db.execute(query, [*values, limit, asked.offset]).fetchall()
    total = rows[0][-1] if rows else 0
    if not rows and asked.offset:
        (total,) = db.execute(f"SELECT count(*) FROM ({found}) AS found", values).fetchone()
    workflows: dict[int, str | None] = {number: workflow_id for number, workflow_id, _total in rows}
    jobs = listed.Page().read(db, workflows)
    return Page(tuple((job, workflows[job.number]) for job in jobs), total)


def find_workflows(db: Database, below: int, count: int) -> list[tuple[int, str]]:
    """Find the workflows' ids in the bodies of the `count` jobs before the one of number `below`."""
    query = (
        "SELECT number, workflow_id FROM (SELECT number, CASE WHEN json_valid(CAST(body AS TEXT)) THEN "
        "json_extract(CAST(body AS TEXT), '$.extra_data.extra_pnginfo.workflow.id') END AS workflow_id "
        "FROM bodies WHERE number < ? AND number >= ?) WHERE typeof(workflow_id) = 'text'"
    )
    return db.execute(query, (below, below - count)).fetchall()


# Figures. ----------------------------------------------------------------------------------------------------


def list_recent_runs(db: Database, limit: int) -> list[Run]:
    query = (
        "SELECT template, shape, settled_at_ms - started_at_ms FROM jobs INDEXED BY jobs_by_state "
        "WHERE state = 'succeeded' "
        "AND started_at_ms IS NOT NULL ORDER BY number DESC LIMIT ?"
    )
    return [Run(Kind(*row[:2]), row[2]) for row in db.execute(query, (limit,)).fetchall()][::-1]


def count_jobs(db: Database, owner: str | None, queued: int) -> Counts:
    """`queued` is kept in memory; the other two are few."""
    mine, whose = ("", ()) if owner is None else (" AND owner = ?", (owner,))
    # From the few leases to their jobs.
    of_owner = " WHERE (SELECT owner FROM jobs WHERE jobs.job_id = leases.job_id) = ?"
    leased = f"SELECT count(*) FROM leases{mine and of_owner}"
    mine = mine.replace("owner", "owner || ''")  # not by an index of the owner's: PostgreSQL knows no INDEXED BY
    running = (
        f"SELECT count(*) FROM jobs INDEXED BY jobs_open WHERE {IS_OPEN} AND state IN ('running', 'validating'){mine}"
    )
    (leases,), (runs,) = (db.execute(query, whose).fetchone() for query in (leased, running))
    return Counts(queued, leases, runs)


def count_endings(db: Database, from_ms: int, before_ms: int) -> list[Ended]:
    query = (
        "SELECT owner, code, count(*), count(started_at_ms), "
        "coalesce(sum(settled_at_ms - started_at_ms), 0) FROM jobs INDEXED BY jobs_settled "
        "WHERE settled_at_ms >= ? AND settled_at_ms < ? GROUP BY owner, code"
    )
    return [Ended(*row) for row in db.execute(query, (from_ms, before_ms))]


def list_template_runs_ms(db: Database, owner: str | None, limit: int, since_ms: int) -> list[tuple[str, int]]:
    mine, whose = ("", ()) if owner is None else ("INDEXED BY jobs_of_owner WHERE owner = ?", (owner,))
    query = (
        "SELECT template, settled_at_ms - started_at_ms FROM "
        f"(SELECT state, template, started_at_ms, settled_at_ms FROM jobs {mine} ORDER BY number DESC LIMIT ?) AS last "
        "WHERE state = 'succeeded' AND started_at_ms IS NOT NULL AND settled_at_ms >= ?"
    )
    return db.execute(query, (*whose, limit, since_ms)).fetchall()


def list_heads(db: Database, after: int, limit: int) -> list[tuple[str, Head]]:
    some, values = select_by_state("jobs", None, OPEN, limit, after=after, newest=False)
    query = (
        "SELECT job_id, number, created_at_ms, client_id, outputs_to_execute, owner FROM jobs "
        f"WHERE number IN ({some}) ORDER BY number LIMIT ?"
    )
    return [
        (job_id, (number, created_at_ms, client_id, tuple(json.loads(outputs)), owner))
        for job_id, number, created_at_ms, client_id, outputs, owner in db.execute(query, [*values, limit])
    ]


# What the janitor asks. --------------------------------------------------------------------------------------


def list_open_numbers(db: Database, after: int, limit: int) -> list[int]:
    some, values = select_by_state("jobs", None, OPEN, limit, after=after, newest=False)
    query = f"SELECT number FROM ({some}) AS open ORDER BY number LIMIT ?"
    return [number for (number,) in db.execute(query, [*values, limit])]


def read_bodies(db: Database, numbers: Sequence[int]) -> tuple[list[bytes], int]:
    bodies: list[bytes] = []
    size = dealt = 0
    for row in look_up(db, "body", "bodies", "number", numbers):
        dealt += 1
        if row is not None:
            bodies.append(row[0])
            size += len(row[0])
        if size >= BODIES_BYTES:
            break
    return bodies, dealt
