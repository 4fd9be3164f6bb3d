"""Jobs as rows: the columns, and how a job is written into them and read from them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Sequence
from enum import Enum
from typing import Any

from ..job import Artifact, Job, JobState, NewJob, Result, Verdict, Webhook
from ..outgoing import AS_IT_COMES, Converted, Put, ResultOptions
from ..spent import NodeTime, Spent
from .database import Database

COLUMNS = (
    "number, job_id, owner, state, priority, attempts, created_at_ms, started_at_ms, settled_at_ms, timeout_s, "
    "locale, client_id, shape, template, parameters, outputs_to_execute, metadata, has_secrets, event_id, webhook, "
    "user_id, round, idempotency_key, verdict, result, converted, body_bytes, retry_of, results, puts"
)

#: The condition of the index `jobs_open`, word for word, as SQLite uses the index only then. Without it, each query
#: about the few open jobs reads all jobs that ever settled.
IS_OPEN = "state IN ('queued', 'dispatched', 'running', 'validating')"


#: Questions that are asked before their answers are wanted: see `Transitions.foresee_submit`.
FIND_JOB = f"SELECT {COLUMNS} FROM jobs WHERE job_id = ?"
FIND_RETRY = f"SELECT {COLUMNS} FROM jobs WHERE retry_of = ?"
IS_THERE = "SELECT 1 FROM jobs WHERE job_id = ?"


def read_job(row: tuple[Any, ...]) -> Job:
    (number, job_id, owner, state, priority, attempts, created, started, ended, timeout_s) = row[:10]
    (locale, client_id, shape, template, parameters, outputs, metadata, has_secrets, *rest) = row[10:]
    event_id, webhook, user, round_, idempotency_key, verdict, result, converted, body_bytes, retry_of, *rest = rest
    results, puts = rest
    return Job(
        job_id=job_id,
        number=number,
        owner=owner,
        state=JobState(state),
        priority=priority,
        attempts=attempts,
        created_at_ms=created,
        started_at_ms=started,
        settled_at_ms=ended,
        timeout_s=timeout_s,
        locale=locale,
        client_id=client_id,
        shape=shape,
        template=template,
        parameters=json.loads(parameters),
        outputs_to_execute=tuple(json.loads(outputs)),
        metadata=json.loads(metadata),
        has_secrets=bool(has_secrets),
        converted=bool(converted),
        event_id=event_id,
        webhook=_read_webhook(json.loads(webhook)) if webhook else None,
        user=user,
        round=round_,
        idempotency_key=idempotency_key,
        body_bytes=body_bytes,
        retry_of=retry_of,
        results=ResultOptions(**json.loads(results)) if results else AS_IT_COMES,
        puts=tuple(Put(**put) for put in json.loads(puts)) if puts else (),
        verdict=_read_verdict(json.loads(verdict)) if verdict else None,
        result=_read_result(json.loads(result)) if result else Result(),
    )


#: How `read_job` reads the columns that it cannot take as they stand; the last three may hold nothing.
_READERS: dict[str, Callable[[Any], object]] = {
    "state": JobState,
    "parameters": json.loads,
    "outputs_to_execute": lambda text: tuple(json.loads(text)),
    "metadata": json.loads,
    "webhook": lambda text: _read_webhook(json.loads(text)) if text else None,
    "verdict": lambda text: _read_verdict(json.loads(text)) if text else None,
    "result": lambda text: _read_result(json.loads(text)) if text else None,
}


class RowCheck:
    """Says whether `read_job` can read rows, without making jobs of them: many rows have most texts in common."""

    _REMEMBERED = 1000

    def __init__(self, columns: Sequence[str]) -> None:
        """`columns`: of the rows. Those that are not among them are not looked at."""
        self._readers = [(columns.index(name), read, set[Any]()) for name, read in _READERS.items() if name in columns]

    def check(self, row: Sequence[Any]) -> None:
        """Raises what `read_job` would."""
        for column, read, right in self._readers:
            value = row[column]
            if value not in right:
                read(value)
                if len(right) < self._REMEMBERED:
                    right.add(value)


def _read_webhook(stored: dict[str, Any]) -> Webhook:
    return Webhook(stored["url"], tuple(stored["events"]))


def _read_verdict(stored: dict[str, Any]) -> Verdict:
    return Verdict(JobState(stored["state"]), stored["code"], stored["message"], stored["details"])


def _read_result(stored: dict[str, Any]) -> Result:
    artifacts = tuple(map(_read_artifact, stored["artifacts"]))
    return Result(stored["outputs"], artifacts, _read_spent(stored.get("spent")))


def _read_artifact(stored: dict[str, Any]) -> Artifact:
    made = stored.get("converted")
    return Artifact(
        **{**stored, "warnings": tuple(stored["warnings"]), "converted": Converted(**made) if made else None}
    )


def _read_spent(stored: dict[str, Any] | None) -> Spent | None:
    return Spent(**{**stored, "nodes": tuple(NodeTime(**node) for node in stored["nodes"])}) if stored else None


def _dump_result(result: Result) -> str:
    # `asdict` would copy all that nodes reported, which takes longer than to write it.
    spent = result.spent
    dumped: dict[str, Any] = {"outputs": result.outputs, "artifacts": list(map(_dump_artifact, result.artifacts))}
    if spent is not None:
        dumped["spent"] = {**vars(spent), "nodes": [vars(node) for node in spent.nodes]}
    return json.dumps(dumped)


def _dump_artifact(file: Artifact) -> dict[str, Any]:
    return vars(file) if file.converted is None else {**vars(file), "converted": vars(file.converted)}


def dump_puts(job: Job) -> str | None:
    return json.dumps([vars(put) for put in job.puts]) if job.puts else None


def insert_job(db: Database, new: NewJob, job: Job, order: float) -> bool:
    """Write a new job and its body. False: its id is taken, or what it repeats is repeated already."""
    is_sqlite = isinstance(db, sqlite3.Connection)
    # Elsewhere a statement that fails spoils the transaction.
    if not is_sqlite and db.execute(IS_THERE, (new.job_id,)).fetchone() is not None:
        return False
    try:
        _insert_job(db, new, job, order)
    except sqlite3.IntegrityError:
        return False
    return True


#: What a new job's row has, in the order of `dump_new`.
NEW_COLUMNS = (
    "number, job_id, owner, state, priority, place, created_at_ms, timeout_s, locale, client_id, shape, template, "
    "parameters, outputs_to_execute, metadata, has_secrets, event_id, webhook, user_id, round, idempotency_key, "
    "converted, body_bytes, retry_of, results, puts, needs, models, min_vram_mb"
)


def dump_new(new: NewJob, job: Job, order: float) -> tuple[Any, ...]:
    """The values of a new job's row."""
    return (
        job.number,
        new.job_id,
        new.owner,
        job.state.value,
        new.priority,
        order,
        new.created_at_ms,
        new.timeout_s,
        new.locale,
        new.client_id,
        new.shape,
        new.template,
        json.dumps(new.parameters),
        json.dumps(new.outputs_to_execute),
        json.dumps(new.metadata),
        int(new.has_secrets),
        job.event_id,
        json.dumps(vars(new.webhook)) if new.webhook else None,
        job.user,
        job.round,
        job.idempotency_key,
        int(new.converted),
        job.body_bytes,
        new.retry_of,
        json.dumps(vars(job.results)) if job.results != AS_IT_COMES else None,
        dump_puts(job),
        new.placement.needs,
        json.dumps(new.placement.models) if new.placement.models else None,
        new.placement.min_vram_mb,
    )


_INSERT = f"INSERT INTO jobs ({NEW_COLUMNS}) VALUES ({', '.join('?' * len(NEW_COLUMNS.split(', ')))})"


def _insert_job(db: Database, new: NewJob, job: Job, order: float) -> None:
    db.execute(_INSERT, dump_new(new, job, order))
    db.execute("INSERT INTO bodies VALUES (?, ?)", (job.number, new.body))
    if new.workflow_id is not None:
        db.execute("INSERT INTO workflows VALUES (?, ?, ?)", (job.number, new.job_id, new.workflow_id))


_CHANGED = (
    "UPDATE jobs SET state = ?, attempts = ?, started_at_ms = ?, settled_at_ms = ?, event_id = ?, code = ?, "
    "verdict = ?, result = ?, puts = ?"
)


def update_job(db: Database, job: Job, given: tuple[str, str] | None = None) -> None:
    """Write the columns that a change of state may change; `given`: also to which box it is given, and the token."""
    db.execute(
        f"{_CHANGED} WHERE number = ?" if given is None else f"{_CHANGED}, box = ?, token = ? WHERE number = ?",
        (
            job.state.value,
            job.attempts,
            job.started_at_ms,
            job.settled_at_ms,
            job.event_id,
            job.verdict.code if job.verdict else None,
            json.dumps(vars(job.verdict)) if job.verdict else None,
            _dump_result(job.result) if job.state.settled else None,
            dump_puts(job),
            *(given or ()),
            job.number,
        ),
    )


def find_job(db: Database, job_id: str) -> Job | None:
    row = db.execute(FIND_JOB, (job_id,)).fetchone()
    return read_job(row) if row else None


def find_retry(db: Database, job_id: str) -> Job | None:
    """The job that repeats that one."""
    row = db.execute(FIND_RETRY, (job_id,)).fetchone()
    return read_job(row) if row else None


def match_owner(owner: str | None) -> tuple[str, list[Any]]:
    """A condition for the owner's rows (None: everybody's), and its values."""
    return ("1 = 1", []) if owner is None else ("owner = ?", [owner])


def select_by_state(
    table: str,
    owner: str | None,
    states: Collection[Enum],
    limit: int,
    *,
    before: int | None = None,
    after: int | None = None,
    newest: bool = True,
) -> tuple[str, list[Any]]:
    """A query for the numbers of rows in these states, and its values: the first `limit` of each state.

    `table` has indexes that begin with the owner and the state, and with the state, and go on with the number. For
    several states at once SQLite would read all rows of each, to sort them.
    """
    index = f"{table}_by_state" if owner is None else f"{table}_of_owner_by_state"
    where, values = match_owner(owner)
    for bound, operator in ((before, "<"), (after, ">")):
        if bound is not None:
            where, values = f"{where} AND number {operator} ?", [*values, bound]
    one = (
        f"SELECT number FROM (SELECT number FROM {table} INDEXED BY {index} WHERE state = ? AND {where} "
        f"ORDER BY number {'DESC' if newest else 'ASC'} LIMIT ?) AS part"
    )
    if not states:
        return f"SELECT number FROM {table} WHERE 1 = 0", []
    each = [[state.value, *values, limit] for state in states]
    return " UNION ALL ".join([one] * len(each)), [value for some in each for value in some]


def marks(values: Collection[object]) -> str:
    """As many `?` as there are values, for `IN (…)`."""
    return ", ".join("?" * len(values))


def pragma(db: sqlite3.Connection, name: str) -> int:
    """What SQLite says of the file: `page_count`, say."""
    (number,) = db.execute(f"PRAGMA {name}").fetchone()
    return int(number)
