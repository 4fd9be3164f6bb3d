"""Find jobs by what they are like. However many there are, one search looks at so many of them."""

from __future__ import annotations

import json
from typing import Any

from ..job import Job, JobState
from .database import Database, look_up, snapshot
from .facts import Found, Wanted
from .listed import Page
from .rows import COLUMNS, match_owner, select_by_state
from .times import EARLIEST_MS

#: A search looks at so many jobs, and at so many bytes of metadata.
LOOKED_AT = 1000
METADATA_BYTES = 4 * 2**20
#: A shorter text is not taken for how a job's id begins.
ID_CHARS = 8


def search(db: Database, owner: str | None, wanted: Wanted, limit: int, before: int | None) -> Found:
    with snapshot(db):
        return _search(db, owner, wanted, limit, before)


def _search(db: Database, owner: str | None, wanted: Wanted, limit: int, before: int | None) -> Found:
    jobs: list[Job] = []
    bytes_left = METADATA_BYTES
    page, before_this = Page(), before
    candidates = _find_id(db, owner, wanted.text, before)
    if not candidates:
        query, values = _select(owner, wanted, before)
        candidates = db.execute(query, values).fetchall()
    looks = look_up(db, f"{_LOOKED_AT}, length(metadata)", "jobs", "number", [number for number, _place in candidates])
    for looked_at, ((number, place), row) in enumerate(zip(candidates, looks, strict=True), start=1):
        if _is_older(row, wanted):
            return Found(tuple(jobs), None)
        if _fits(row, wanted) and _has_text(db, number, wanted.text) and _has_metadata(db, number, wanted):
            found = db.execute(f"SELECT {COLUMNS} FROM jobs WHERE number = ?", (number,)).fetchone()
            if (job := page.take(found)) is None:
                return Found(tuple(jobs), before_this)
            jobs.append(job)
        if wanted.metadata or wanted.text is not None:
            bytes_left -= row[-1]
        before_this = place
        is_last = looked_at == len(candidates)
        if (len(jobs) == limit or bytes_left <= 0) and not is_last:
            return Found(tuple(jobs), place)
        if is_last and len(candidates) == LOOKED_AT:
            return Found(tuple(jobs), place)
    return Found(tuple(jobs), None)


_LOOKED_AT = "state, template, user_id, idempotency_key, created_at_ms, settled_at_ms, code"


def _find_id(db: Database, owner: str | None, text: str | None, before: int | None) -> list[tuple[int, int]]:
    """The job of that whole id, as `_select` would have it: nothing else can be meant."""
    whose, of_owner = match_owner(owner)
    query = f"SELECT number, number FROM jobs WHERE job_id = ? AND {whose}"
    found = db.execute(query, [text, *of_owner]).fetchall() if text is not None else []
    return [place for place in found if before is None or place[0] < before]


def _select(owner: str | None, wanted: Wanted, before: int | None) -> tuple[str, list[Any]]:
    """A query for (number, place) of the first `LOOKED_AT` jobs to look at, along the index that leaves out the most.

    `place` is the number, and for what has settled the number of that change.
    """
    values: list[Any] = [before] if before is not None else []
    if wanted.settled_after_ms is not None:
        bound = "AND event_id < ?" if before is not None else ""
        whose, of_owner = match_owner(owner)
        index = "jobs_ended" if owner is None else "jobs_of_owner_ended"
        query = f"SELECT number, event_id FROM jobs INDEXED BY {index} WHERE {whose} AND settled_at_ms IS NOT NULL"
        return f"{query} {bound} ORDER BY event_id DESC LIMIT ?", [*of_owner, *values, LOOKED_AT]
    bound = "AND number < ?" if before is not None else ""
    if owner is not None and wanted.idempotency_key is not None:
        some = (
            "SELECT number FROM jobs INDEXED BY jobs_of_key WHERE owner = ? AND idempotency_key = ? "
            f"AND idempotency_key IS NOT NULL {bound}"
        )
        values = [owner, wanted.idempotency_key, *values]
    elif owner is not None and wanted.user:
        states = sorted(wanted.states if wanted.states is not None else JobState)
        one = (
            "SELECT number FROM (SELECT number FROM jobs INDEXED BY jobs_of_user_by_state WHERE owner = ? "
            f"AND user_id = ? AND user_id <> '' AND state = ? {bound} ORDER BY number DESC LIMIT ?) AS part"
        )
        some = " UNION ALL ".join([one] * len(states))
        values = [value for state in states for value in (owner, wanted.user, state.value, *values, LOOKED_AT)]
    elif owner is None and wanted.code is not None:
        some = f"SELECT number FROM jobs INDEXED BY jobs_by_code WHERE code = ? AND code IS NOT NULL {bound}"
        values = [wanted.code, *values]
    elif wanted.states is not None:
        some, values = select_by_state("jobs", owner, wanted.states, LOOKED_AT, before=before)
    else:
        whose, of_owner = match_owner(owner)
        some, values = f"SELECT number FROM jobs WHERE {whose} {bound}", [*of_owner, *values]
    return f"SELECT number, number FROM ({some}) AS found ORDER BY number DESC LIMIT ?", [*values, LOOKED_AT]


def _is_older(row: tuple[Any, ...], wanted: Wanted) -> bool:
    """Whether this job, and so every one after it, is older than what is wanted.

    Times never go back along the numbers: see `times.clamp`. Those of a clock that had not been set say nothing.
    """
    created_at_ms, settled_at_ms = row[4:6]
    if wanted.settled_after_ms is not None:
        return settled_at_ms is not None and EARLIEST_MS <= settled_at_ms < wanted.settled_after_ms
    return wanted.created_after_ms is not None and EARLIEST_MS <= created_at_ms < wanted.created_after_ms


def _fits(row: tuple[Any, ...], wanted: Wanted) -> bool:
    state, template, user, key, created_at_ms, settled_at_ms, code, _metadata = row
    return (
        (wanted.states is None or state in wanted.states)
        and wanted.code in (None, code)
        and wanted.template in (None, template)
        and wanted.user in (None, user)
        and wanted.idempotency_key in (None, key)
        and (wanted.created_after_ms is None or created_at_ms >= wanted.created_after_ms)
        and (wanted.created_before_ms is None or created_at_ms < wanted.created_before_ms)
        and (
            wanted.settled_after_ms is None or (settled_at_ms is not None and settled_at_ms >= wanted.settled_after_ms)
        )
    )


def _has_text(db: Database, number: int, text: str | None) -> bool:
    if text is None:
        return True
    query = "SELECT job_id, idempotency_key, client_id, metadata FROM jobs WHERE number = ?"
    job_id, key, client_id, metadata = db.execute(query, (number,)).fetchone()
    return (
        text in (job_id, key, client_id)
        or (len(text) >= ID_CHARS and job_id.startswith(text))
        or (metadata != "{}" and text in map(_write, json.loads(metadata).values()))
    )


def _has_metadata(db: Database, number: int, wanted: Wanted) -> bool:
    if not wanted.metadata:
        return True
    (stored,) = db.execute("SELECT metadata FROM jobs WHERE number = ?", (number,)).fetchone()
    metadata = json.loads(stored)
    return all(name in metadata and _write(metadata[name]) == text for name, text in wanted.metadata.items())


def _write(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
