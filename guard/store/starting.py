"""The start of a run that the engine writes by itself, in one statement: ComfyUI's worker waits for it.

It does what :meth:`.transitions.Transitions.advance` does, for the plain case. Every other one is left to that. What
counts is the token in the table, as ever: a job that was taken from this box, or has ended, does not start.
"""

from __future__ import annotations

from ..job import Job, JobState
from .arrivals import AT_ONCE
from .claiming import LAST, NEWS, Signature, number_names
from .database import Database, Rows
from .rows import COLUMNS, read_job

#: No webhook wants to hear of it.
_QUIET = "(webhook IS NULL OR webhook NOT LIKE '%\"running\"%')"
_START = f"""
WITH started AS (
    UPDATE jobs SET state = 'running', attempts = attempts + 1, started_at_ms = greatest($at, created_at_ms),
        event_id = {LAST} + 1
    WHERE job_id = $job AND token = $token AND state = 'dispatched' AND {_QUIET}
    AND (SELECT count(*) FROM ({NEWS}) AS news) < {AT_ONCE}
    RETURNING jobs.*
), changed AS (
    INSERT INTO transitions SELECT event_id, job_id, started_at_ms, state FROM started
), signed AS (
    UPDATE epoch SET writer = $writer WHERE EXISTS (SELECT 1 FROM started)
), noted AS (
    UPDATE writers SET commits = $commits WHERE name = $name AND EXISTS (SELECT 1 FROM started)
)
SELECT {COLUMNS} FROM started
"""
_NAMES = "job", "token", "at", "followed", "writer", "commits", "name"
_START = number_names(_START, sorted(_NAMES))
#: As both engines' statements are written.
_FIND = f"SELECT {COLUMNS} FROM jobs WHERE job_id = ? AND token = ?"


def ask(db: Database, job_id: str, token: str, followed: int, now_ms: int, signature: Signature) -> Rows:
    """Ask for the start of the run with that token, in a transaction that has its turn; what comes with it signs the
    commit."""
    values = {
        "job": job_id,
        "token": token,
        "at": now_ms,
        "followed": followed,
        "writer": signature.writer,
        "commits": signature.commits,
        "name": signature.name,
    }
    return db.execute(_START, [values[name] for name in sorted(_NAMES)])


def read(asked: Rows) -> Job | None:
    """The job that has started; None: nothing was written."""
    row = asked.fetchone()
    return None if row is None else read_job(row)


def find(db: Database, job_id: str, token: str) -> Job | None:
    """The job, if the run with that token has started."""
    row = db.execute(_FIND, (job_id, token)).fetchone()
    job = None if row is None else read_job(row)
    return None if job is None or job.state is JobState.DISPATCHED else job
