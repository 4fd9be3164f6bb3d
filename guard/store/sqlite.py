"""The job store on SQLite: one writer thread that commits whatever has come in together, one reader thread.

WAL with `synchronous=NORMAL`: a commit survives the death of the process (SIGKILL included); the last ones before
a power cut may be lost, the file stays whole.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import posixpath
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from ..clock import Clock
from ..errors import (
    ConflictError,
    DiskFullError,
    GuardError,
    QueueFullError,
    ServerRestartedError,
    ServerUnavailableError,
)
from ..job import OPEN, TRANSITIONS, WAITING, Artifact, Job, JobState, Kind, NewJob, Result, Verdict, Webhook
from ..settings import SettingsError
from . import outbox
from .facts import (
    Changes,
    Claimed,
    Counts,
    Ended,
    Entry,
    IdempotencyKey,
    Listing,
    Page,
    Recovery,
    Run,
    Settled,
    Standing,
    Submitted,
    Waiting,
)
from .line import Line, Turn
from .outbox import Delivery, DeliveryState, Due
from .schema import MIGRATIONS

log = logging.getLogger("guarded.store")

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]

#: Operations in one commit. 32 clients at once share one; more would only make the first of them wait.
BATCH = 256
#: After so many commits the log is worked into the database, on a thread of its own: that waits for the disk for
#: some 10 ms, which by default some unlucky commit would do.
TIDY_COMMITS = 250
#: Pages (of 4 KiB) in the log at which a commit does it after all.
LOG_PAGES = 25_000
#: How often the writer looks whether its file is still there.
LOOK_S = 1.0
#: Files up to this size are checked page by page when they are opened (64 MiB take some 0.2 s).
CHECKED_BYTES = 64 * 2**20
#: Bodies shown in one queue or history; the jobs beyond are there without theirs.
ENTRIES_BYTES = 64 * 2**20
#: So many jobs ahead of one, of so many owners, are looked up to see how long they will take.
LOOKED_UP = 200
LOOKED_UP_OWNERS = 50
#: Changes of state looked through together for one reader.
CHANGES = 2000
#: Bodies handed out together. One alone may have `policy.max_body_bytes`.
BODIES_BYTES = 4 * 2**20

_COLUMNS = (
    "number, job_id, owner, state, priority, attempts, created_at_ms, started_at_ms, settled_at_ms, timeout_s, "
    "locale, client_id, shape, template, parameters, outputs_to_execute, metadata, has_secrets, event_id, webhook, "
    "verdict, result"
)

#: As the index `jobs_open` has it, word for word: only then does SQLite see that it may be used. Without it, each
#: question about the few open jobs reads through all that ever settled.
_OPEN = "state IN ('queued', 'dispatched', 'running', 'validating')"


_DELIVERY = ", ".join(field.name for field in fields(Delivery))
_ENTRY = f"{_COLUMNS}, body FROM jobs JOIN bodies USING (number)"
_WORKFLOW_ID = (
    "CASE WHEN json_valid(CAST(body AS TEXT)) "
    "THEN json_extract(CAST(body AS TEXT), '$.extra_data.extra_pnginfo.workflow.id') END"
)


class StoreLockedError(Exception):
    """Another process has this database open."""


class StoreUnusableError(Exception):
    """The database can be neither opened nor made: a read-only or full disk, or no rights."""


class StoreTooNewError(Exception):
    """A later version of this package has written this database."""


class SqliteStore:
    """See :class:`guard.store.Store`, which says what each method does."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Open or create the database; blocks, so call it before the event loop serves.

        Raises:
            StoreLockedError, StoreTooNewError: the file is another's; it is left untouched.
            StoreUnusableError: the disk does not let us.
        """
        self.path = path
        self._clock = clock
        self._listeners: list[Callable[[Job], None]] = []
        self._changed: list[Job] = []
        self._commits = 0
        self._lock = FileLock(f"{path}.lock", thread_local=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreLockedError(f"another server has {path} open; give this one its own user directory") from None
        except OSError as error:
            raise StoreUnusableError(f"the job database {path} cannot be used: {error}") from error
        try:
            db = _opened(path)
            self._line, self._line_read = Line.read(db), True
            self.queued, self.leased = self._line.queued, self._line.leased
            self._identity = _identity(path)
            self._looked_s = time.monotonic()
            self._writer = _Thread("guarded-store", db, self._commit, self._look)
            self._reader = _Thread("guarded-store-reader", _connected(path), _read)
            self._tidier = _Thread("guarded-store-tidier", _connected(path), _read)
        except sqlite3.OperationalError as error:
            self._lock.release()
            raise StoreUnusableError(f"the job database {path} cannot be used: {error}") from error
        except BaseException:
            self._lock.release()
            raise

    def open(self, owner: str | None) -> int:
        return self._line.open(owner)

    def on_change(self, listener: Callable[[Job], None]) -> None:
        self._listeners.append(listener)

    def close(self) -> None:
        self._writer.close()
        self._reader.close()
        self._tidier.close()
        self._lock.release()

    # What changes something: the writer's thread. ------------------------------------------------------------

    def recover(self, holder: str, max_attempts: int) -> Future[Recovery]:
        def operation(db: sqlite3.Connection) -> Recovery:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM jobs WHERE {_OPEN} AND state IN ('dispatched', 'running', 'validating')"
            ).fetchall()
            secretive = db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE state = 'queued' AND has_secrets").fetchall()
            requeued, settled = 0, []
            for job in map(_job, [*rows, *secretive]):
                begun = job.state is not JobState.DISPATCHED and job.attempts >= max_attempts
                if job.has_secrets or begun:
                    error = ServerRestartedError(
                        "The server restarted while the job ran."
                        if begun
                        else "The server restarted, and the job's API credentials are kept in memory only."
                    )
                    settled.append(self._settled(db, job, Verdict.of(error), None))
                else:
                    self._move(db, job, JobState.QUEUED)
                    requeued += 1
            db.execute("DELETE FROM leases WHERE holder = ?", (holder,))
            self._line = Line.read(db)
            return Recovery(requeued, tuple(settled))

        return self._writer.run(operation)

    def queued_of(self, owner: str) -> int:
        return self._line.turns.get(owner, Turn()).queued

    def submit(
        self,
        new: NewJob,
        max_queued: int,
        key: IdempotencyKey | None = None,
        *,
        max_queued_of_owner: int | None = None,
    ) -> Future[Submitted]:
        def operation(db: sqlite3.Connection) -> Submitted:
            if key is not None and (earlier := _replayed(db, new.owner, key)):
                return self._placed(db, earlier)
            if (queued := self._line.queued) >= max_queued:
                raise QueueFullError.with_waiting(queued, max_queued)
            own = self.queued_of(new.owner)
            if max_queued_of_owner is not None and own >= max_queued_of_owner:
                raise QueueFullError.with_waiting(own, max_queued_of_owner, of_owner=True)
            job = self._inserted(db, new)
            if key is not None:
                db.execute(
                    "INSERT OR REPLACE INTO idempotency (owner, key, body_digest, job_id, created_at_ms) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (new.owner, key.key, key.body_digest, new.job_id, new.created_at_ms),
                )
            self._changed.append(job)
            return Submitted(job, self._waiting(db, job))

        return self._writer.run(operation)

    def claim(self, holder: str, max_jobs: int, deadline_ms: int) -> Future[Claimed | None]:
        def operation(db: sqlite3.Connection) -> Claimed | None:
            owner = self._line.next_owner()
            if owner is None or self._line.leased >= max_jobs:
                return None
            row = db.execute(
                f"SELECT {_COLUMNS} FROM jobs INDEXED BY jobs_queued WHERE owner = ? AND state = 'queued' "
                "ORDER BY priority DESC, place, number LIMIT 1",
                (owner,),
            ).fetchone()
            job = self._move(db, _job(row), JobState.DISPATCHED)
            self._line.serve(owner)
            db.execute("INSERT INTO leases VALUES (?, ?, ?)", (job.job_id, holder, deadline_ms))
            self._line.leased += 1
            (body,) = db.execute("SELECT body FROM bodies WHERE number = ?", (job.number,)).fetchone()
            return Claimed(job, body)

        return self._writer.run(operation)

    def requeue(self, job_id: str) -> Future[Job | None]:
        def operation(db: sqlite3.Connection) -> Job | None:
            self._free(db, job_id)
            return self._advance(db, job_id, JobState.QUEUED)

        return self._writer.run(operation)

    def start(self, job_id: str) -> Future[Job | None]:
        return self._writer.run(lambda db: self._advance(db, job_id, JobState.RUNNING))

    def validate(self, job_id: str) -> Future[Job | None]:
        return self._writer.run(lambda db: self._advance(db, job_id, JobState.VALIDATING))

    def settle(
        self, job_id: str, verdict: Verdict, result: Result | None = None, *, only_waiting: bool = False
    ) -> Future[Settled | None]:
        def operation(db: sqlite3.Connection) -> Settled | None:
            job = _found(db, job_id)
            if job is None:
                return None
            if job.state.settled or (only_waiting and job.state not in WAITING):
                return Settled(job, won=False)
            return Settled(self._settled(db, job, verdict, result), won=True)

        return self._writer.run(operation)

    def release(self, job_id: str) -> Future[None]:
        return self._writer.run(lambda db: self._free(db, job_id))

    def fetched(self, job_id: str, artifact: int) -> Future[None]:
        def operation(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM unread WHERE job_id = ? AND artifact = ?", (job_id, artifact))

        return self._writer.run(operation)

    def heard(self, job_id: str) -> Future[None]:
        def operation(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM unheard WHERE job_id = ?", (job_id,))

        return self._writer.run(operation)

    def attempted(
        self, number: int, state: DeliveryState, next_at_ms: int, status: int | None, error: str | None
    ) -> Future[None]:
        def operation(db: sqlite3.Connection) -> None:
            ended_at_ms = None if state is DeliveryState.PENDING else self._clock.now_ms()
            db.execute(
                "UPDATE webhooks SET state = ?, attempts = attempts + 1, next_at_ms = ?, ended_at_ms = ?, "
                "last_status = ?, last_error = ? WHERE number = ?",
                (state.value, next_at_ms, ended_at_ms, status, error, number),
            )

        return self._writer.run(operation)

    def redeliver(self, webhook_id: str, owner: str | None) -> Future[Delivery | None]:
        def operation(db: sqlite3.Connection) -> Delivery | None:
            query = f"SELECT {_DELIVERY} FROM webhooks WHERE webhook_id = ?"
            row = db.execute(query, (webhook_id,)).fetchone()
            if row is None or owner not in (None, _delivery(row).owner):
                return None
            now_ms = self._clock.now_ms()
            db.execute(
                "UPDATE webhooks SET state = 'pending', attempts = 0, since_ms = ?, next_at_ms = ?, "
                "ended_at_ms = NULL WHERE webhook_id = ?",
                (now_ms, now_ms, webhook_id),
            )
            return _delivery(db.execute(query, (webhook_id,)).fetchone())

        return self._writer.run(operation)

    def forget(self, settled_before_ms: int, limit: int) -> Future[int]:
        def operation(db: sqlite3.Connection) -> int:
            # A settled job keeps its lease while the worker has not let go of it.
            rows = db.execute(
                "SELECT number, job_id FROM jobs INDEXED BY jobs_settled WHERE settled_at_ms < ? "
                "AND job_id NOT IN (SELECT job_id FROM leases) ORDER BY settled_at_ms LIMIT ?",
                (settled_before_ms, limit),
            ).fetchall()
            for table in ("transitions", "idempotency", "unread", "unheard", "webhooks", "made"):
                db.executemany(f"DELETE FROM {table} WHERE job_id = ?", [(job_id,) for _number, job_id in rows])
            for table in ("bodies", "jobs"):
                db.executemany(f"DELETE FROM {table} WHERE number = ?", [(number,) for number, _job_id in rows])
            return len(rows)

        return self._writer.run(operation)

    def hide(self, owner: str | None, job_ids: Sequence[str] | None) -> Future[None]:
        where, values = _of_owner(owner)
        update = f"UPDATE jobs SET hidden = 1 WHERE {where} AND settled_at_ms IS NOT NULL AND hidden = 0"

        def operation(db: sqlite3.Connection) -> None:
            if job_ids is None:
                db.execute(update, values)
            else:
                db.executemany(f"{update} AND job_id = ?", [(*values, job_id) for job_id in job_ids])

        return self._writer.run(operation)

    # What only looks: the reader's thread, so that a long list holds up no commit. ---------------------------

    def replay(self, owner: str, key: IdempotencyKey) -> Future[Submitted | None]:
        def operation(db: sqlite3.Connection) -> Submitted | None:
            earlier = _replayed(db, owner, key)
            return self._placed(db, earlier) if earlier is not None else None

        return self._reader.run(operation)

    def get(self, job_id: str) -> Future[Job | None]:
        return self._reader.run(lambda db: _found(db, job_id))

    def waiting(self, job_id: str) -> Future[Waiting | None]:
        def operation(db: sqlite3.Connection) -> Waiting | None:
            job = _found(db, job_id)
            return self._waiting(db, job) if job is not None and job.state is JobState.QUEUED else None

        return self._reader.run(operation)

    def jobs(
        self, owner: str | None, states: frozenset[JobState] | None, limit: int, before: int | None = None
    ) -> Future[list[Job]]:
        index = ""
        where: list[str] = ["1"]
        values: list[Any] = []
        if owner is not None:
            where.append("owner = ?")
            values.append(owner)
        if states is not None:
            if states and states <= OPEN:
                index, where[0] = "INDEXED BY jobs_open", _OPEN
            where.append(f"state IN ({', '.join('?' for _ in states)})")
            values += [state.value for state in states]
        if before is not None:
            where.append("number < ?")
            values.append(before)
        query = f"SELECT {_COLUMNS} FROM jobs {index} WHERE {' AND '.join(where)} ORDER BY number DESC LIMIT ?"
        return self._reader.run(lambda db: [_job(row) for row in db.execute(query, [*values, limit])])

    def missed(self, owner: str, client_id: str, since_ms: int, limit: int) -> Future[list[Job]]:
        query = (
            f"SELECT {_COLUMNS} FROM jobs WHERE job_id IN (SELECT job_id FROM unheard WHERE owner = ? "
            "AND client_id = ? AND settled_at_ms >= ? ORDER BY settled_at_ms DESC LIMIT ?) "
            "ORDER BY settled_at_ms, number"
        )
        values = (owner, client_id, since_ms, limit)
        return self._reader.run(lambda db: [_job(row) for row in db.execute(query, values)])

    def changes(self, after: int, *, owner: str | None = None, job_id: str | None = None) -> Future[Changes]:
        def operation(db: sqlite3.Connection) -> Changes:
            db.execute("BEGIN")  # so that all looks are at the same state of the tables
            try:
                head = Line.last(db, "transitions")
                # So many at once, whoever's they are: a reader far behind must not hold up the others.
                up_to = head if job_id is not None else min(head, after + CHANGES)
                where, values = ("job_id = ? AND ", (job_id,)) if job_id is not None else ("", ())
                rows = db.execute(
                    f"SELECT job_id, event_id FROM transitions WHERE {where} event_id > ? AND event_id <= ? "
                    "ORDER BY event_id",
                    (*values, after, up_to),
                ).fetchall()
                told: dict[int, Job] = {}
                for changed in dict.fromkeys(changed for changed, _event_id in rows):
                    job = _found(db, changed)
                    if job is not None and owner in (None, job.owner):
                        told.update(_lived(db, job))
            finally:
                db.execute("ROLLBACK")
            return Changes([told[event_id] for _changed, event_id in rows if event_id in told], up_to, head)

        return self._reader.run(operation)

    def entry(self, job_id: str) -> Future[Entry | None]:
        query = f"SELECT {_ENTRY} WHERE job_id = ? AND hidden = 0"

        def operation(db: sqlite3.Connection) -> Entry | None:
            row = db.execute(query, (job_id,)).fetchone()
            return _entry(row) if row is not None else None

        return self._reader.run(operation)

    def queue(self, owner: str | None) -> Future[list[Entry]]:
        where, values = _of_owner(owner)
        query = f"SELECT {_COLUMNS} FROM jobs INDEXED BY jobs_open WHERE {_OPEN} AND {where} ORDER BY number"
        return self._reader.run(lambda db: _entries(db, db.execute(query, values).fetchall()))

    def history(self, owner: str | None, limit: int, offset: int | None) -> Future[list[Entry]]:
        where, values = _of_owner(owner)
        way = "DESC" if offset is None else "ASC"
        query = (
            f"SELECT {_COLUMNS} FROM jobs WHERE {where} AND settled_at_ms IS NOT NULL AND hidden = 0 "
            f"ORDER BY settled_at_ms {way}, number {way} LIMIT ? OFFSET ?"
        )

        def operation(db: sqlite3.Connection) -> list[Entry]:
            found = _entries(db, db.execute(query, [*values, limit, offset or 0]).fetchall())
            return found if offset is not None else found[::-1]

        return self._reader.run(operation)

    def listing(self, owner: str | None, asked: Listing) -> Future[Page]:
        where, values = _of_owner(owner)
        where += f" AND hidden = 0 AND state IN ({', '.join('?' for _ in asked.states)})"
        values += [state.value for state in asked.states]
        of = "jobs"
        if asked.workflow_id is not None:
            of += " JOIN bodies USING (number)"
            where += f" AND {_WORKFLOW_ID} = ?"
            values.append(asked.workflow_id)
        order = "coalesce(settled_at_ms - started_at_ms, 0)" if asked.by_run_time else "created_at_ms"
        way = "ASC" if asked.ascending else "DESC"
        order = f"ORDER BY {order} {way}, number {way}"
        # Of all the others the bodies are not read: there may be gigabytes of them.
        shown = f"SELECT number FROM {of} WHERE {where} {order} LIMIT ? OFFSET ?"
        query = (
            f"SELECT {_COLUMNS}, {_WORKFLOW_ID} FROM jobs JOIN bodies USING (number) WHERE number IN ({shown}) {order}"
        )
        limit = -1 if asked.limit is None else asked.limit

        def operation(db: sqlite3.Connection) -> Page:
            rows = db.execute(query, [*values, limit, asked.offset]).fetchall()
            total = _count(db, f"SELECT count(*) FROM {of} WHERE {where}", values)
            return Page(tuple((_job(row[:-1]), row[-1]) for row in rows), total)

        return self._reader.run(operation)

    def made(self, kind: str, path: str) -> Future[tuple[Job, int] | None]:
        def operation(db: sqlite3.Connection) -> tuple[Job, int] | None:
            query = "SELECT job_id, artifact FROM made WHERE type = ? AND path = ?"
            row = db.execute(query, (kind, _path_key(path))).fetchone()
            job = _found(db, row[0]) if row is not None else None
            return (job, row[1]) if job is not None else None

        return self._reader.run(operation)

    def overdue(self, created_before_ms: int) -> Future[list[Job]]:
        query = (
            f"SELECT {_COLUMNS} FROM jobs WHERE {_OPEN} AND state IN ('queued', 'dispatched') AND created_at_ms < ? "
            "ORDER BY number LIMIT 1000"
        )
        return self._reader.run(lambda db: [_job(row) for row in db.execute(query, (created_before_ms,))])

    def line(self) -> Future[list[Standing]]:
        def operation(db: sqlite3.Connection) -> list[Standing]:
            turns = dict(self._line.turns)
            found, own, last = [], 0, None
            for owner, *facts in db.execute(
                "SELECT owner, job_id, client_id, locale, template, shape FROM jobs INDEXED BY jobs_queued "
                "WHERE state = 'queued' ORDER BY owner, priority DESC, place, number"
            ):
                own, last = (own + 1 if owner == last else 0), owner
                found.append((own, turns.get(owner, Turn()).served, owner, facts))
            found.sort(key=lambda row: row[:3])
            return [
                Standing(job_id, owner, client_id, locale, Kind(template, shape))
                for _own, _served, owner, (job_id, client_id, locale, template, shape) in found
            ]

        # Not the reader's thread: 10,000 jobs take it some 50 ms, and so long every other look would wait.
        return self._tidier.run(operation)

    def recent_runs(self, limit: int) -> Future[list[Run]]:
        query = (
            "SELECT template, shape, settled_at_ms - started_at_ms FROM jobs WHERE state = 'succeeded' "
            "AND started_at_ms IS NOT NULL ORDER BY number DESC LIMIT ?"
        )
        return self._reader.run(
            lambda db: [Run(Kind(*row[:2]), row[2]) for row in db.execute(query, (limit,)).fetchall()][::-1]
        )

    def counts(self, owner: str | None = None) -> Future[Counts]:
        mine, whose = ("", ()) if owner is None else (" AND owner = ?", (owner,))
        queued = f"SELECT count(*) FROM jobs INDEXED BY jobs_queued WHERE state = 'queued'{mine}"
        # CROSS keeps the order: from the few leases to their jobs.
        leased = f"SELECT count(*) FROM leases{mine and ' CROSS JOIN jobs USING (job_id) WHERE owner = ?'}"
        running = (
            f"SELECT count(*) FROM jobs INDEXED BY jobs_open WHERE {_OPEN} AND state IN ('running', 'validating'){mine}"
        )
        return self._reader.run(lambda db: Counts(*(_count(db, query, whose) for query in (queued, leased, running))))

    def ended(self, from_ms: int, before_ms: int) -> Future[list[Ended]]:
        query = (
            "SELECT owner, code, count(*), count(started_at_ms), "
            "coalesce(sum(settled_at_ms - started_at_ms), 0) FROM jobs INDEXED BY jobs_settled "
            "WHERE settled_at_ms >= ? AND settled_at_ms < ? GROUP BY owner, code"
        )
        return self._reader.run(lambda db: [Ended(*row) for row in db.execute(query, (from_ms, before_ms))])

    def template_runs_ms(self, owner: str | None, limit: int, since_ms: int) -> Future[list[tuple[str, int]]]:
        mine, whose = ("", ()) if owner is None else ("INDEXED BY jobs_of_owner WHERE owner = ?", (owner,))
        query = (
            "SELECT template, settled_at_ms - started_at_ms FROM "
            f"(SELECT state, template, started_at_ms, settled_at_ms FROM jobs {mine} ORDER BY number DESC LIMIT ?) "
            "WHERE state = 'succeeded' AND started_at_ms IS NOT NULL AND settled_at_ms >= ?"
        )
        return self._reader.run(lambda db: db.execute(query, (*whose, limit, since_ms)).fetchall())

    def due_deliveries(
        self, now_ms: int, limit: int, *, under_way: Collection[int], full: Collection[str]
    ) -> Future[Due]:
        # Of each job the first that is still to be delivered, so that they come in order.
        first = (
            "state = 'pending' AND NOT EXISTS (SELECT 1 FROM webhooks AS earlier WHERE "
            "earlier.job_id = webhooks.job_id AND earlier.state = 'pending' AND earlier.number < webhooks.number) "
            f"AND number NOT IN ({_places(under_way)}) AND target NOT IN ({_places(full)})"
        )
        values = (*under_way, *full)

        def operation(db: sqlite3.Connection) -> Due:
            rows = db.execute(
                f"SELECT {_DELIVERY} FROM webhooks INDEXED BY webhooks_pending WHERE {first} AND next_at_ms <= ? "
                "ORDER BY next_at_ms, number LIMIT ?",
                (*values, now_ms, limit),
            ).fetchall()
            (next_at_ms,) = db.execute(
                f"SELECT min(next_at_ms) FROM webhooks INDEXED BY webhooks_pending WHERE {first} AND next_at_ms > ?",
                (*values, now_ms),
            ).fetchone()
            return Due(list(map(_delivery, rows)), next_at_ms)

        return self._reader.run(operation)

    def deliveries(
        self, owner: str | None, states: frozenset[DeliveryState], limit: int, before: int | None = None
    ) -> Future[list[Delivery]]:
        where = [f"state IN ({_places(states)})"]
        values: list[Any] = [state.value for state in states]
        if owner is not None:
            where.append("owner = ?")
            values.append(owner)
        if before is not None:
            where.append("number < ?")
            values.append(before)
        query = f"SELECT {_DELIVERY} FROM webhooks WHERE {' AND '.join(where)} ORDER BY number DESC LIMIT ?"
        return self._reader.run(lambda db: list(map(_delivery, db.execute(query, [*values, limit]))))

    def open_numbers(self) -> Future[list[int]]:
        query = "SELECT number FROM jobs WHERE state IN ('queued', 'dispatched', 'running', 'validating')"
        return self._reader.run(lambda db: [number for (number,) in db.execute(query)])

    def bodies(self, numbers: Sequence[int]) -> Future[tuple[list[bytes], int]]:
        def operation(db: sqlite3.Connection) -> tuple[list[bytes], int]:
            found: list[bytes] = []
            size = dealt = 0
            for number in numbers:
                if size >= BODIES_BYTES:
                    break
                row = db.execute("SELECT body FROM bodies WHERE number = ?", (number,)).fetchone()
                dealt += 1
                if row is not None:
                    found.append(row[0])
                    size += len(row[0])
            return found, dealt

        return self._reader.run(operation)

    def unread(self, kind: str, paths: Sequence[str], since_ms: int) -> Future[frozenset[str]]:
        def operation(db: sqlite3.Connection) -> frozenset[str]:
            by_key = {_path_key(path): path for path in paths}
            found: list[str] = []
            keys = list(by_key)
            for start in range(0, len(keys), 500):
                some = keys[start : start + 500]
                places = ", ".join("?" * len(some))
                query = f"SELECT path FROM unread WHERE type = ? AND since_ms >= ? AND path IN ({places})"
                rows = db.execute(query, (kind, since_ms, *some))
                found += [by_key[bytes(key)] for (key,) in rows]
            return frozenset(found)

        return self._reader.run(operation)

    def all_unread(self, since_ms: int, at_most: int) -> Future[dict[str, frozenset[str]] | None]:
        def operation(db: sqlite3.Connection) -> dict[str, frozenset[str]] | None:
            query = "SELECT type, path FROM unread WHERE since_ms >= ? LIMIT ?"
            found: dict[str, set[str]] = {}
            rows = db.execute(query, (since_ms, at_most + 1)).fetchall()
            for kind, path in rows:
                found.setdefault(kind, set()).add(path.decode("utf-8", "surrogatepass"))
            return {kind: frozenset(paths) for kind, paths in found.items()} if len(rows) <= at_most else None

        return self._reader.run(operation)

    # The writer's own helpers. -------------------------------------------------------------------------------

    def _commit(self, db: sqlite3.Connection, batch: list[tuple[Operation[Any], Future[Any]]]) -> None:
        """One transaction for a batch; an operation that refuses takes nothing of its neighbours down."""
        refused: list[tuple[Future[Any], GuardError]] = []
        try:
            if self._is_gone():
                db = self._restored(db)
            if not self._line_read:
                self._take_back(db)
            done = None
            while done is None:
                done = self._attempt(db, batch, refused)
                if done is None:
                    self._take_back(db)
                    gone = {future for future, _error in refused}
                    batch = [item for item in batch if item[1] not in gone]
            db.execute("COMMIT")
        except BaseException as error:
            # Nothing of the batch is durable, so nobody may be told that it is.
            with contextlib.suppress(sqlite3.Error):
                self._take_back(db)
            failure = _failure(error)
            for _operation, future in batch:
                future.set_exception(failure)
            for future, refusal in refused:
                if not future.done():
                    future.set_exception(refusal)
            return
        self._commits += 1
        if self._commits % TIDY_COMMITS == 0:
            self._tidier.run(lambda db: db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall())
        changed, self._changed = self._changed, []
        self.queued, self.leased = self._line.queued, self._line.leased
        for job in changed:
            for listener in self._listeners:
                try:
                    listener(job)
                except Exception:
                    log.exception("a listener failed on job %s", job.job_id, extra={"job_id": job.job_id})
        for future, refusal in refused:
            future.set_exception(refusal)
        for future, result in done:
            future.set_result(result)

    def _attempt(
        self,
        db: sqlite3.Connection,
        batch: list[tuple[Operation[Any], Future[Any]]],
        refused: list[tuple[Future[Any], GuardError]],
    ) -> list[tuple[Future[Any], Any]] | None:
        """Begin a transaction and do the batch in it; those that refuse go to `refused`.

        None: one has refused after it had written, and all must be done again without it. (They look before they
        write, so that hardly ever happens, and spares every one of them a savepoint.)
        """
        db.execute("BEGIN IMMEDIATE")
        done = []
        for operation, future in batch:
            writes = db.total_changes
            try:
                done.append((future, operation(db)))
            except sqlite3.OperationalError:
                raise
            except Exception as error:
                refused.append((future, error if isinstance(error, GuardError) else _failure(error)))
                if db.total_changes != writes:
                    return None
        return done

    def _take_back(self, db: sqlite3.Connection) -> None:
        self._changed.clear()
        self._line_read = False
        if db.in_transaction:
            db.execute("ROLLBACK")
        self._line, self._line_read = Line.read(db), True

    def _free(self, db: sqlite3.Connection, job_id: str) -> None:
        self._line.leased -= db.execute("DELETE FROM leases WHERE job_id = ?", (job_id,)).rowcount

    def _waiting(self, db: sqlite3.Connection, job: Job) -> Waiting:
        """Where a queued job stands if every owner goes on taking turns. The writer's thread, or the reader's."""
        line = self._line
        last = job.number == line.number and not line.reordered
        queued = line.turns.get(job.owner, Turn()).queued
        # The reader's view of the table may be a commit older than the line.
        ahead = line.ahead(job.owner, max(queued - 1 - (0 if last else _behind(db, job)), 0))
        count = sum(ahead.values())
        return Waiting(1 + count, line.leased, self._kinds(db, job, ahead, count))

    def _kinds(self, db: sqlite3.Connection, job: Job, ahead: dict[str, int], count: int) -> dict[Kind, float]:
        """What the jobs before this one are. Looked up one by one only where they are few."""
        kinds: dict[Kind, float] = {**self._line.kinds}
        total = sum(kinds.values())
        if count >= total - 1:
            kinds[job.kind] = kinds.get(job.kind, 0) - 1
            return {kind: number for kind, number in kinds.items() if number > 0}
        if count > LOOKED_UP or len(ahead) > LOOKED_UP_OWNERS:
            return {kind: number * count / total for kind, number in kinds.items()}
        found: dict[Kind, float] = {}
        for owner, number in ahead.items():
            if number:
                for template, shape, several in db.execute(
                    "SELECT template, shape, count(*) FROM (SELECT template, shape FROM jobs INDEXED BY jobs_queued "
                    "WHERE owner = ? AND state = 'queued' ORDER BY priority DESC, place, number LIMIT ?) GROUP BY 1, 2",
                    (owner, number),
                ):
                    found[Kind(template, shape)] = found.get(Kind(template, shape), 0) + several
        return found

    def _placed(self, db: sqlite3.Connection, earlier: Submitted) -> Submitted:
        if earlier.job.state is not JobState.QUEUED:
            return earlier
        return replace(earlier, waiting=self._waiting(db, earlier.job))

    def _look(self, db: sqlite3.Connection) -> None:
        """Nothing has been handed in for a while: what has happened to the file must not wait for the next job."""
        if self._is_gone():
            self._restored(db)

    def _is_gone(self) -> bool:
        """Whether the file under our name is no longer the one we write to: someone has deleted or replaced it.

        SQLite would go on writing to the nameless file, and all of it would be lost with the process.
        """
        now_s = time.monotonic()
        if now_s < self._looked_s + LOOK_S:
            return False
        self._looked_s = now_s
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return True
        return (status.st_dev, status.st_ino) != self._identity

    def _restored(self, db: sqlite3.Connection) -> sqlite3.Connection:
        """Write everything out again under the old name, and go on there."""
        log.error("the job database %s was deleted or replaced under the running server; writing it anew", self.path)
        self._looked_s = 0.0  # until it has succeeded, every commit tries again
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first: it may be cut off by a full disk or a kill.
        fresh_path = self.path.with_name(f"{self.path.name}.restored")
        fresh_path.unlink(missing_ok=True)
        db.execute("VACUUM INTO ?", (str(fresh_path),))
        if self.path.exists():
            os.replace(self.path, _unused(self.path.with_name(f"{self.path.name}.foreign")))
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        os.replace(fresh_path, self.path)
        fresh = _connected(self.path)
        self._writer.swap(fresh)
        self._reader.swap(_connected(self.path))
        self._tidier.swap(_connected(self.path))
        self._identity = _identity(self.path)
        return fresh

    def _inserted(self, db: sqlite3.Connection, new: NewJob) -> Job:
        number = self._line.number + 1
        place = new.order if new.order is not None else float(-number if new.front else number)
        try:
            db.execute(
                "INSERT INTO jobs (number, job_id, owner, state, priority, place, created_at_ms, timeout_s, locale, "
                "client_id, shape, template, parameters, outputs_to_execute, metadata, has_secrets, event_id, webhook) "
                "VALUES (?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    number,
                    new.job_id,
                    new.owner,
                    new.priority,
                    place,
                    new.created_at_ms,
                    new.timeout_s,
                    new.locale,
                    new.client_id,
                    new.shape,
                    new.template,
                    json.dumps(new.parameters),
                    json.dumps(new.outputs_to_execute),
                    json.dumps(new.metadata),
                    new.has_secrets,
                    self._line.event_id + 1,
                    json.dumps(asdict(new.webhook)) if new.webhook else None,
                ),
            )
        except sqlite3.IntegrityError:
            raise ConflictError(f"There is a job {new.job_id} already.", extra_info={"job_id": new.job_id}) from None
        db.execute("INSERT INTO bodies VALUES (?, ?)", (number, new.body))
        event_id = self._wrote(db, new.job_id, new.created_at_ms, JobState.QUEUED)
        self._line.number = number
        self._line.reordered = self._line.reordered or new.priority != 0 or place != number
        self._line.waits(new.owner, Kind(new.template, new.shape), +1)
        job = Job(
            job_id=new.job_id,
            number=number,
            owner=new.owner,
            state=JobState.QUEUED,
            priority=new.priority,
            attempts=0,
            created_at_ms=new.created_at_ms,
            started_at_ms=None,
            settled_at_ms=None,
            timeout_s=new.timeout_s,
            locale=new.locale,
            client_id=new.client_id,
            shape=new.shape,
            template=new.template,
            parameters=new.parameters,
            outputs_to_execute=new.outputs_to_execute,
            metadata=new.metadata,
            has_secrets=new.has_secrets,
            event_id=event_id,
            webhook=new.webhook,
        )
        self._announce(db, job, new.created_at_ms)
        return job

    def _wrote(self, db: sqlite3.Connection, job_id: str, at_ms: int, state: JobState) -> int:
        """Put down a change of state; its number."""
        self._line.event_id += 1
        db.execute("INSERT INTO transitions VALUES (?, ?, ?, ?)", (self._line.event_id, job_id, at_ms, state.value))
        return self._line.event_id

    def _announce(self, db: sqlite3.Connection, job: Job, now_ms: int) -> None:
        """Put into the outbox what somebody wants to be told of the job's new state."""
        if job.webhook is None or job.state.value not in job.webhook.events:
            return
        parts = urlsplit(job.webhook.url)
        db.execute(
            "INSERT INTO webhooks (webhook_id, type, job_id, owner, url, target, payload, state, attempts, "
            "created_at_ms, since_ms, next_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, 'pending', 0, ?, ?, ?)",
            (
                outbox.new_id(),
                outbox.type_of(job),
                job.job_id,
                job.owner,
                job.webhook.url,
                f"{parts.scheme}://{parts.netloc}".lower(),
                outbox.payload(job, now_ms),
                *(now_ms, now_ms, now_ms),
            ),
        )

    def _advance(self, db: sqlite3.Connection, job_id: str, state: JobState) -> Job | None:
        job = _found(db, job_id)
        return None if job is None or job.state.settled else self._move(db, job, state)

    def _move(self, db: sqlite3.Connection, job: Job, state: JobState, **changes: Any) -> Job:
        """The only place where a job changes its state."""
        if state not in TRANSITIONS[job.state]:
            raise ServerUnavailableError(f"job {job.job_id} cannot go from {job.state.value} to {state.value}")
        now_ms = self._clock.now_ms()
        if state is JobState.RUNNING:
            changes.update(started_at_ms=now_ms, attempts=job.attempts + 1)
        elif state is JobState.QUEUED:
            changes.update(started_at_ms=None)
        elif state.settled:
            changes.update(settled_at_ms=now_ms)
        moved = job.evolve(state=state, event_id=self._wrote(db, job.job_id, now_ms, state), **changes)
        db.execute(
            "UPDATE jobs SET state = ?, attempts = ?, started_at_ms = ?, settled_at_ms = ?, event_id = ?, code = ?, "
            "verdict = ?, result = ? WHERE number = ?",
            (
                state.value,
                moved.attempts,
                moved.started_at_ms,
                moved.settled_at_ms,
                moved.event_id,
                moved.verdict.code if moved.verdict else None,
                json.dumps(asdict(moved.verdict)) if moved.verdict else None,
                json.dumps(asdict(moved.result)) if state.settled else None,
                job.number,
            ),
        )
        self._announce(db, moved, now_ms)
        if JobState.QUEUED in (job.state, state):
            self._line.waits(job.owner, job.kind, +1 if state is JobState.QUEUED else -1)
        if change := _begun(state) - _begun(job.state):
            self._line.begins(job.owner, change)
        self._changed.append(moved)
        return moved

    def _settled(self, db: sqlite3.Connection, job: Job, verdict: Verdict, result: Result | None) -> Job:
        settled = self._move(db, job, verdict.state, verdict=verdict, result=result or Result())
        if job.client_id is not None:
            db.execute(
                "INSERT INTO unheard VALUES (?, ?, ?, ?)",
                (job.job_id, job.owner, job.client_id, settled.settled_at_ms),
            )
        if settled.state is JobState.SUCCEEDED:
            files = [
                (found.type, _path_key(f"{found.subfolder}/{found.filename}"), job.job_id, found.index)
                for found in settled.result.artifacts
            ]
            # A file of the same name is another one by now; only the newest can still be fetched.
            db.executemany("INSERT OR REPLACE INTO made VALUES (?, ?, ?, ?)", files)
            db.executemany(
                "INSERT OR REPLACE INTO unread VALUES (?, ?, ?, ?, ?)",
                [(*file, settled.settled_at_ms) for file in files],
            )
        return settled


class _Thread:
    """A thread that owns a connection and works off what is handed to it, in order."""

    def __init__(
        self,
        name: str,
        db: sqlite3.Connection,
        work: Callable[[sqlite3.Connection, list[tuple[Operation[Any], Future[Any]]]], None],
        idle: Callable[[sqlite3.Connection], None] | None = None,
    ) -> None:
        """`idle` is called every `LOOK_S` while there is no work."""
        self._db = db
        self._work = work
        self._idle = idle
        self._inbox: queue.SimpleQueue[tuple[Operation[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._closed = False
        self._thread.start()

    def run(self, operation: Operation[T]) -> Future[T]:
        future: Future[T] = Future()
        if self._closed:
            future.set_exception(ServerUnavailableError("The job store is closed."))
        else:
            self._inbox.put((operation, future))
        return future

    def swap(self, db: sqlite3.Connection) -> None:
        """Go on with another connection, from the next batch on; the old one is closed when its batch is through."""
        old, self._db = self._db, db
        self.run(lambda _db: old.close())

    def close(self) -> None:
        self._closed = True
        self._inbox.put(None)
        self._thread.join()

    def _loop(self) -> None:
        open_ = True
        while open_:
            try:
                batch = [self._inbox.get(timeout=LOOK_S if self._idle is not None else None)]
            except queue.Empty:
                self._look()
                continue
            while len(batch) < BATCH:
                try:
                    batch.append(self._inbox.get_nowait())
                except queue.Empty:
                    break
            open_ = None not in batch
            # A caller that has gone away (a cancelled request) has taken its operation back.
            work = [item for item in batch if item is not None and item[1].set_running_or_notify_cancel()]
            if work:
                try:
                    self._work(self._db, work)
                except BaseException as error:
                    # A fault of ours: whoever waits must hear of it, and the thread must live.
                    failure = _failure(error)
                    for _operation, future in work:
                        if not future.done():
                            future.set_exception(failure)
        self._db.close()

    def _look(self) -> None:
        try:
            if self._idle is not None:
                self._idle(self._db)
        except Exception as error:
            _failure(error)


def _read(db: sqlite3.Connection, batch: list[tuple[Operation[Any], Future[Any]]]) -> None:
    for operation, future in batch:
        try:
            future.set_result(operation(db))
        except GuardError as error:
            future.set_exception(error)
        except BaseException as error:
            future.set_exception(_failure(error))


def _failure(error: BaseException) -> GuardError:
    """What a caller hears when the database fails; the log has the rest."""
    log.error("the job store failed: %s", error, exc_info=not isinstance(error, sqlite3.Error))
    if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
        return DiskFullError("The disk with the job database is full.", retry_after_s=60)
    return ServerUnavailableError("The job database cannot be used now.", details=str(error), retry_after_s=10)


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5, cached_statements=256)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
    except BaseException:
        db.close()
        raise
    return db


def database(url: str, own: Path) -> Path:
    """The SQLite file of `store.url`. Raises SettingsError for what this version cannot use."""
    if not url:
        return own / "guarded.db"
    parts = urlsplit(url)
    path = Path(parts.path.removeprefix("/") if os.name == "nt" else parts.path)
    if parts.scheme != "sqlite" or parts.netloc or not path.is_absolute():
        raise SettingsError(f"store.url: sqlite:///<absolute path> is what this version can use, got {url!r}")
    return path


def _path_key(path: str) -> bytes:
    """A path below a root, as `unread` has it."""
    slashed = path.replace("\\", "/") if os.name == "nt" else path
    return posixpath.normpath(slashed.lstrip("/")).encode("utf-8", "surrogatepass")


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _unused(path: Path) -> Path:
    """`path`, or with a number behind it where that name is taken."""
    number = 1
    found = path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def _opened(path: Path) -> sqlite3.Connection:
    """The database, migrated. A file that SQLite cannot read is set aside, never written over."""
    try:
        return _migrated(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise  # locked, read-only, no room: the file itself may be well
        aside = _unused(path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}"))
        for suffix in ("", "-wal", "-shm"):
            if (part := Path(f"{path}{suffix}")).exists():
                os.replace(part, f"{aside}{suffix}")
        log.error(
            "the job database %s cannot be read (%s); it was set aside as %s and a new one begun. "
            "Jobs that waited in it are not in the queue any more.",
            path,
            " ".join(str(error).split()),
            aside.name,
        )
        return _migrated(path)


def _migrated(path: Path) -> sqlite3.Connection:
    db = _connected(path)
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StoreTooNewError(f"{path} was written by a later version of this package (schema {version})")
        if path.stat().st_size <= CHECKED_BYTES:
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            db.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")
    except BaseException:
        db.close()
        raise
    return db


def _begun(state: JobState) -> bool:
    """Whether a job in that state has left the line and not ended."""
    return state is not JobState.QUEUED and not state.settled


def _job(row: tuple[Any, ...]) -> Job:
    (number, job_id, owner, state, priority, attempts, created, started, ended, timeout_s) = row[:10]
    (locale, client_id, shape, template, parameters, outputs, metadata, has_secrets, *rest) = row[10:]
    event_id, webhook, verdict, result = rest
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
        event_id=event_id,
        webhook=_webhook(json.loads(webhook)) if webhook else None,
        verdict=_verdict(json.loads(verdict)) if verdict else None,
        result=_result(json.loads(result)) if result else Result(),
    )


def _webhook(stored: dict[str, Any]) -> Webhook:
    return Webhook(stored["url"], tuple(stored["events"]))


def _delivery(row: tuple[Any, ...]) -> Delivery:
    stored = dict(zip(_DELIVERY.split(", "), row, strict=True))
    return Delivery(**{**stored, "state": DeliveryState(stored["state"])})


def _verdict(stored: dict[str, Any]) -> Verdict:
    return Verdict(JobState(stored["state"]), stored["code"], stored["message"], stored["details"])


def _result(stored: dict[str, Any]) -> Result:
    artifacts = tuple(Artifact(**{**item, "warnings": tuple(item["warnings"])}) for item in stored["artifacts"])
    return Result(stored["outputs"], artifacts)


def _entries(db: sqlite3.Connection, rows: list[Any]) -> list[Entry]:
    """The jobs with their bodies, the first ones before the others while these are not too much together."""
    found, left = [], ENTRIES_BYTES
    for job in map(_job, rows):
        query = "SELECT CASE WHEN length(body) <= ? THEN body END FROM bodies WHERE number = ?"
        row = db.execute(query, (left, job.number)).fetchone()
        if row is not None:  # else the job has just been forgotten
            left -= len(row[0] or b"")
            found.append(Entry(job, row[0] or b"{}"))
    return found


def _entry(row: tuple[Any, ...]) -> Entry:
    return Entry(_job(row[:-1]), row[-1])


def _of_owner(owner: str | None) -> tuple[str, list[Any]]:
    """A condition, and its values."""
    return ("1", []) if owner is None else ("owner = ?", [owner])


def _found(db: sqlite3.Connection, job_id: str) -> Job | None:
    row = db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
    return _job(row) if row else None


def _lived(db: sqlite3.Connection, job: Job) -> dict[int, Job]:
    """The job as it was after each of its changes of state, by their numbers."""
    attempts, started_at_ms = 0, None
    told = {}
    for event_id, at_ms, value in db.execute(
        "SELECT event_id, at_ms, state FROM transitions WHERE job_id = ? ORDER BY event_id", (job.job_id,)
    ):
        state = JobState(value)
        if state is JobState.RUNNING:
            attempts, started_at_ms = attempts + 1, at_ms
        elif state is JobState.QUEUED:
            started_at_ms = None
        told[event_id] = job.evolve(
            state=state,
            event_id=event_id,
            attempts=attempts,
            started_at_ms=started_at_ms,
            settled_at_ms=at_ms if state.settled else None,
            verdict=job.verdict if state.settled else None,
            result=job.result if state.settled else Result(),
        )
    return told


def _places(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))


def _count(db: sqlite3.Connection, query: str, values: Sequence[Any] = ()) -> int:
    (count,) = db.execute(query, values).fetchone()
    return cast(int, count)


def _behind(db: sqlite3.Connection, job: Job) -> int:
    """How many of the owner's waiting jobs come after this one. Counted from behind: new jobs stand at the end."""
    (place,) = db.execute("SELECT place FROM jobs WHERE number = ?", (job.number,)).fetchone()
    mine = "SELECT count(*) FROM jobs INDEXED BY jobs_queued WHERE owner = ? AND state = 'queued' AND "
    line = (job.owner, job.priority)
    (later,) = db.execute(mine + "priority = ? AND (place, number) > (?, ?)", (*line, place, job.number)).fetchone()
    (lower,) = db.execute(mine + "priority < ?", line).fetchone()
    return cast(int, later + lower)


def _replayed(db: sqlite3.Connection, owner: str, key: IdempotencyKey) -> Submitted | None:
    row = db.execute(
        "SELECT body_digest, job_id FROM idempotency WHERE owner = ? AND key = ? AND created_at_ms >= ?",
        (owner, key.key, key.since_ms),
    ).fetchone()
    if row is None:
        return None
    if row[0] != key.body_digest:
        raise ConflictError("This idempotency key came with another body before.", extra_info={"job_id": row[1]})
    job = _found(db, row[1])
    if job is None:
        return None
    return Submitted(job, None, replayed=True)
