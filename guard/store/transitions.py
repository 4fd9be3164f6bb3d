"""Let jobs in and change their state, with all that depends on it: the queue's order, webhooks, result files."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..clock import Clock
from ..errors import ConflictError, InternalError, QueueFullError, ServerRestartedError
from ..job import TRANSITIONS, WAITING, Job, JobState, NewJob, Result, Verdict
from ..outgoing import Put
from ..quotas import Taking, check_open_bytes
from . import depot_files, outbox, puts, result_files, spending, times
from .database import Database, Foreseeing
from .facts import Bounds, Claimed, IdempotencyKey, Recovery, Settled, Submitted
from .line import LAST_ROUND, QUEUED_OF_USER, Line, is_under_way
from .outbox import DeliveryState
from .puts import PutDelivery
from .queries import FIND_KEY, replay
from .recent import Recent
from .rows import COLUMNS, FIND_RETRY, IS_OPEN, IS_THERE, find_job, find_retry, insert_job, read_job, update_job


class Transitions:
    """Changes jobs inside the engine's transactions. The writer's thread; others may read `line`.

    Attributes:
        line: the queue's order as the transaction leaves it; other threads may see it before the commit.
        changed: jobs as they are after each change of state in this transaction, to be announced after the commit.
        touched: the same jobs as this transaction leaves them; None for those that it has deleted.
        recent: the jobs that changed last, as the commits before this transaction have left them.
        held_back: owners whose jobs are given no slot. Any thread may put others in their place.
    """

    def __init__(self, clock: Clock, take_room: Callable[[str, int], None] = lambda _owner, _bytes: None) -> None:
        """`take_room` counts a body that an owner writes, or refuses it."""
        self._clock = clock
        self._take_room = take_room
        self.line = Line()
        self.changed: list[Job] = []
        self.touched: dict[str, Job | None] = {}
        self.recent = Recent()
        self.held_back: frozenset[str] = frozenset()
        #: Endings that are on disk, and of which nobody was told that they succeeded: the answer was lost.
        self.unanswered: dict[str, Verdict] = {}

    def load(self, db: Database) -> None:
        """Read the line from the tables, at the start and after a rollback."""
        self.changed.clear()
        self.touched.clear()
        self.recent.clear()
        self.line = Line.read(db)

    def take_changes(self) -> list[Job]:
        """Remember what this transaction, which is on disk now, has changed; returns what to announce."""
        self.recent.update(self.touched)
        self.touched.clear()
        changed, self.changed = self.changed, []
        return changed

    def recover(self, db: Database, holder: str, max_attempts: int, lived_until_ms: int | None = None) -> Recovery:
        times.clamp(db, self._clock.now_ms())
        self.recent.clear()
        rows = db.execute(
            f"SELECT {COLUMNS} FROM jobs WHERE {IS_OPEN} AND state IN ('dispatched', 'running', 'validating')"
        ).fetchall()
        secretive = db.execute(f"SELECT {COLUMNS} FROM jobs WHERE state = 'queued' AND has_secrets <> 0").fetchall()
        recovery = self._take_up(db, list(map(read_job, [*rows, *secretive])), max_attempts, lived_until_ms)
        db.execute("DELETE FROM leases WHERE holder = ?", (holder,))
        self.line = Line.read(db)
        return recovery

    def _take_up(self, db: Database, jobs: Sequence[Job], max_attempts: int, lived_until_ms: int | None) -> Recovery:
        """Let the open jobs of a process that is gone wait again, or end them."""
        # Their prompts were being validated for dispatch, and the process may have died of that. The other dispatched
        # jobs merely waited in the host's queue.
        validated = {job_id for (job_id,) in db.execute("SELECT job_id FROM leases WHERE handed_over = 0")}
        requeued, settled = 0, []
        for job in jobs:
            was_begun = job.state in (JobState.RUNNING, JobState.VALIDATING)
            if job.state is JobState.RUNNING and job.started_at_ms is not None and lived_until_ms is not None:
                # Whoever ran it did not live to tell what that took.
                took_ms = max(lived_until_ms - job.started_at_ms, 0)
                spending.add(db, lived_until_ms, (job.owner, job.user, job.template), took_ms, 0)
            if job.state is JobState.DISPATCHED and job.job_id in validated:
                job = job.evolve(attempts=job.attempts + 1)
                was_begun = True
            is_used_up = was_begun and job.attempts >= max_attempts
            if job.has_secrets or is_used_up:
                error = ServerRestartedError(
                    "The server restarted while the job ran or was about to."
                    if is_used_up
                    else "The server restarted, and the job's API credentials are kept in memory only."
                )
                settled.append(self._end(db, job, Verdict.of(error), None))
            else:
                self._move(db, job, JobState.QUEUED)
                requeued += 1
        return Recovery(requeued, tuple(settled))

    def submit(self, db: Database, new: NewJob, key: IdempotencyKey | None, bounds: Bounds) -> Submitted:
        if key is not None and (earlier := replay(db, self.line, new.owner, key, by_submit=True)):
            return earlier
        if new.retry_of is not None and (job := find_retry(db, new.retry_of)) is not None:
            return Submitted(job, None, replayed=True)
        self._check(new, bounds)
        if new.user and (of_user := bounds.max_queued_of_user) is not None:
            queued = self.line.count_queued_of_user(db, new.owner, new.user, of_user)
            if queued >= of_user:
                raise QueueFullError.with_waiting(queued, of_user, of="user")
        self._take_room(new.owner, len(new.body))
        self._take(db, bounds.takings)
        job = self._insert(db, new, key)
        if key is not None:
            db.execute(
                "INSERT INTO idempotency (owner, key, body_digest, job_id, created_at_ms) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (owner, key) DO UPDATE SET body_digest = excluded.body_digest, job_id = excluded.job_id, "
                "created_at_ms = excluded.created_at_ms",
                (new.owner, key.key, key.body_digest, new.job_id, new.created_at_ms),
            )
        return Submitted(job, self.line.locate(db, job, by_submit=True, place=find_place(new, job.number)))

    def _check(self, new: NewJob, bounds: Bounds) -> None:
        """Raises QueueFullError or QuotaExceededError where one more job may not wait."""
        if (queued := self.line.queued) >= bounds.max_queued:
            raise QueueFullError.with_waiting(queued, bounds.max_queued)
        own, of_owner = self.line.count_queued(new.owner), bounds.max_queued_of_owner
        if of_owner is not None and own >= of_owner:
            raise QueueFullError.with_waiting(own, of_owner, of="client")
        if bounds.max_bytes_of_owner is not None:
            check_open_bytes(self.line.count_open_bytes(new.owner), len(new.body), bounds.max_bytes_of_owner)

    def foresee_submit(self, db: Foreseeing, new: NewJob, key: IdempotencyKey | None, bounds: Bounds) -> None:
        """Ask for what :meth:`submit` will read, before others of the same commit: then nobody waits for it alone."""
        db.foresee(IS_THERE, (new.job_id,))
        if key is not None:
            db.foresee(FIND_KEY, (new.owner, key.key))
        if new.retry_of is not None:
            db.foresee(FIND_RETRY, (new.retry_of,))
        if new.user and not new.front:
            db.foresee(LAST_ROUND, (new.owner, new.user, new.priority))
        if new.user and bounds.max_queued_of_user is not None:
            db.foresee(QUEUED_OF_USER, (new.owner, new.user, new.user, bounds.max_queued_of_user))

    def foresee_next(self, db: Foreseeing, *, with_body: bool) -> None:
        """The same for :meth:`claim`, and without the body for :meth:`begin`."""

    def foresee_run(self, db: Foreseeing, job_id: str) -> None:
        """The same for what a run of the job writes."""

    def _take(self, db: Database, takings: Sequence[Taking]) -> None:
        """Take a job out of limits that boxes share. Raises RateLimitedError, having written nothing."""

    def claim(self, db: Database, holder: str, max_jobs: int) -> Claimed | None:
        while (job := self._find_next(db, max_jobs)) is not None:
            body = self._find_body(db, job)
            if body is not None:
                return Claimed(self._lease(db, job, holder), body)
            error = InternalError("The job's prompt is no longer in the database.")
            self._end(db, job, Verdict.of(error), None)
        return None

    def _find_body(self, db: Database, job: Job) -> bytes | None:
        row = db.execute("SELECT body FROM bodies WHERE number = ?", (job.number,)).fetchone()
        return None if row is None else row[0]

    def begin(self, db: Database, holder: str, max_jobs: int, is_ready: Callable[[str], bool]) -> Job | None:
        job = self._find_next(db, max_jobs)
        if job is None or not is_ready(job.job_id):
            return None
        # Nobody reads the row in between, so it is written once.
        return self._move(db, self._lease(db, job, holder, writes=False), JobState.RUNNING)

    def _find_next(self, db: Database, max_jobs: int) -> Job | None:
        """Find the job that may have a slot now. Nothing else decides whose turn it is."""
        if len(self.line.leases) >= max_jobs or self.line.alone is not None:
            return None
        job = self._find_first(db)
        return None if job is not None and job.attempts and self.line.under_way_here else job

    def _find_first(self, db: Database) -> Job | None:
        """Find the job whose turn it is."""
        if (owner := self.line.pick_owner(self.held_back)) is None:
            return None
        (job_id,) = db.execute(
            "SELECT job_id FROM jobs INDEXED BY jobs_queued WHERE owner = ? AND state = 'queued' "
            "ORDER BY priority DESC, round, place, number LIMIT 1",
            (owner,),
        ).fetchone()
        return self._find(db, job_id)

    def _lease(self, db: Database, job: Job, holder: str, *, writes: bool = True) -> Job:
        """Give the job a slot. `writes` False: the caller moves it on, and writes the row then."""
        job = self._move(db, job, JobState.DISPATCHED, writes=writes)
        self._serve(db, job)
        # Nothing reads the deadline: the next start frees what this process leaves.
        db.execute("INSERT INTO leases (job_id, holder, deadline_ms) VALUES (?, ?, 0)", (job.job_id, holder))
        self.line.leases.add(job.job_id)
        if job.attempts:
            self.line.alone = job.job_id
        return job

    def _serve(self, db: Database, job: Job) -> None:
        """Note that the job's owner has had its turn."""
        self.line.serve(db, job)

    def hand_over(self, db: Database, job_id: str) -> None:
        if self._ask_for_run(db, job_id)():
            db.execute("UPDATE leases SET handed_over = 1 WHERE job_id = ?", (job_id,))

    def advance(self, db: Database, job_id: str, state: JobState) -> Job | None:
        has_run = self._ask_for_run(db, job_id)
        job = self._find(db, job_id)
        if job is None or job.state.settled or not has_run():
            return None
        return self._move(db, job, state)

    def _ask_for_run(self, db: Database, job_id: str, token: str | None = None) -> Callable[[], bool]:
        """Ask whether the run of the job, of that token if it has one, is still this process's."""
        return lambda: True

    def settle(
        self,
        db: Database,
        job_id: str,
        verdict: Verdict,
        result: Result | None,
        only_waiting: bool,
        token: str | None = None,
    ) -> Settled | None:
        has_run = self._ask_for_run(db, job_id, token) if token is not None else None
        job = self._find_written(db, job_id)
        if job is None:
            return None
        if job.state.settled or (only_waiting and job.state not in WAITING):
            lost = self.unanswered.pop(job_id, None)
            return Settled(job, won=lost is not None and (lost.state, lost.code) == (verdict.state, verdict.code))
        if has_run is not None and not has_run():
            return Settled(job, won=False)  # it was taken from that run
        try:
            return Settled(self._end(db, job, verdict, result), won=True)
        except (TypeError, ValueError, RecursionError, sqlite3.DataError) as error:
            message = f"{type(error).__name__}: {error}"
            raise InternalError(f"The ending of job {job_id} cannot be written.", details=message) from error

    def record_put(self, db: Database, after: PutDelivery) -> None:
        job = puts.record_attempt(db, self._find(db, after.job_id), after)
        if job is not None:
            self.touched[job.job_id] = job
        if after.state is DeliveryState.DELIVERED:
            result_files.mark_fetched(db, after.job_id, after.artifact)

    def release(self, db: Database, job_id: str) -> None:
        db.execute("DELETE FROM leases WHERE job_id = ?", (job_id,))
        self.line.leases.discard(job_id)

    def _make_job(self, new: NewJob, key: IdempotencyKey | None, round_: int) -> Job:
        """The next job, as it is when it has come in."""
        return Job(
            job_id=new.job_id,
            number=self.line.number + 1,
            owner=new.owner,
            state=JobState.QUEUED,
            priority=new.priority,
            attempts=0,
            created_at_ms=new.created_at_ms,
            started_at_ms=None,
            settled_at_ms=None,
            timeout_s=float(new.timeout_s),  # as the column has it
            locale=new.locale,
            client_id=new.client_id,
            shape=new.shape,
            template=new.template,
            parameters=new.parameters,
            outputs_to_execute=new.outputs_to_execute,
            metadata=new.metadata,
            has_secrets=new.has_secrets,
            converted=new.converted,
            event_id=self.line.event_id + 1,
            webhook=new.webhook,
            user=new.user,
            round=round_,
            idempotency_key=key.key if key is not None else None,
            body_bytes=len(new.body),
            retry_of=new.retry_of,
            results=new.results,
            puts=tuple(Put(put.artifact) for put in new.puts),
        )

    def _insert(self, db: Database, new: NewJob, key: IdempotencyKey | None) -> Job:
        job = self._make_job(new, key, self.line.find_round(db, new))
        order = find_place(new, job.number)
        if not insert_job(db, new, job, order):
            there = find_job(db, new.job_id)
            facts = {"job_id": new.job_id} if there is not None and there.owner == new.owner else {}
            raise ConflictError(f"There is a job {new.job_id} already.", extra_info=facts)
        self._record_change(db, new.job_id, new.created_at_ms, JobState.QUEUED)
        self.line.number = job.number
        self.line.add_queued(db, job, +1)
        self.line.turns[job.owner].note_place(job.priority, job.round, order)
        self.line.add_open_bytes(job.owner, job.body_bytes)
        if new.puts:
            puts.add(db, new)
        if new.inputs:
            depot_files.note_uploads(db, new.owner, new.inputs, new.created_at_ms)
        outbox.put(db, job, new.created_at_ms)
        self._note(job)
        return job

    def _find_written(self, db: Database, job_id: str) -> Job | None:
        """The job as the tables have it. An ending is told, so it must be on disk."""
        return find_job(db, job_id)

    def _find(self, db: Database, job_id: str) -> Job | None:
        """The job as this transaction has it."""
        if job_id in self.touched:
            return self.touched[job_id]
        return self.recent.get(job_id) or find_job(db, job_id)

    def _note(self, job: Job) -> None:
        """Note how this transaction leaves the job."""
        self.changed.append(job)
        self.touched[job.job_id] = job

    def _move(self, db: Database, job: Job, state: JobState, *, writes: bool = True, **changes: Any) -> Job:
        """Change a job's state. Nothing else does."""
        if state not in TRANSITIONS[job.state]:
            raise InternalError(f"job {job.job_id} cannot go from {job.state.value} to {state.value}")
        now_ms = self._clock.now_ms()
        if state is JobState.RUNNING:
            changes.update(started_at_ms=now_ms, attempts=job.attempts + 1)
        elif state is JobState.QUEUED:
            changes.update(started_at_ms=None)
        elif state.settled:
            changes.update(settled_at_ms=now_ms)
            self.line.add_open_bytes(job.owner, -job.body_bytes)
        moved = job.evolve(state=state, event_id=self._record_change(db, job.job_id, now_ms, state), **changes)
        if writes:
            self._update(db, moved)
        outbox.put(db, moved, now_ms)
        if JobState.QUEUED in (job.state, state):
            self.line.add_queued(db, job, +1 if state is JobState.QUEUED else -1)
        if change := is_under_way(state) - is_under_way(job.state):
            self.line.add_under_way(job.owner, change)
            if change < 0:
                self.line.forget_here(job.job_id)
            elif self.line.here is not None:
                self.line.here.add(job.job_id)
        self._note(moved)
        return moved

    def _update(self, db: Database, job: Job) -> None:
        """Write what a change of state changes."""
        update_job(db, job)

    def _end(self, db: Database, job: Job, verdict: Verdict, result: Result | None) -> Job:
        if verdict.details:  # what is told now must be what the tables will say: a tuple is a list there
            verdict = replace(verdict, details=json.loads(json.dumps(verdict.details)))
        changes: dict[str, Any] = {"verdict": verdict, "result": result or Result()}
        if job.puts:
            changes["puts"] = puts.settle(db, job, verdict.state, self._clock.now_ms())
        settled = self._move(db, job, verdict.state, **changes)
        if job.client_id is not None:
            db.execute(
                "INSERT INTO unheard VALUES (?, ?, ?, ?)",
                (job.job_id, job.owner, job.client_id, settled.settled_at_ms),
            )
        if settled.state is JobState.SUCCEEDED:
            result_files.record(db, settled)
            if settled.result.unstored or settled.result.stored:
                depot_files.note_results(db, settled, self._clock.now_ms())
        return settled

    def _record_change(self, db: Database, job_id: str, at_ms: int, state: JobState) -> int:
        """Write down a change of state; return its number."""
        self.line.event_id += 1
        db.execute("INSERT INTO transitions VALUES (?, ?, ?, ?)", (self.line.event_id, job_id, at_ms, state.value))
        return self.line.event_id


def find_place(new: NewJob, number: int) -> float:
    """The place of a new job of that number among those of its priority and round."""
    return new.order if new.order is not None else float(-number if new.front else number)
