# Over 400 lines: a method for each operation of the store, most of them one line.
"""The job store on tables: which thread does what, and what is announced. Its engine is SQLite, or another one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path

from ..clock import Clock
from ..errors import DiskFullError
from ..job import Job, JobState, NewJob, Result, Verdict
from ..quotas import Taking
from ..signal import Signal
from ..spent import Spent
from . import alarms as alarm_rows
from . import outbox, puts, queries, records, result_files, search, spending
from .alarms import Alarm, NewAlarm
from .database import Database, keep_last_numbers
from .depot_store import DepotTables
from .facts import (
    Bounds,
    Changes,
    Claimed,
    Counts,
    Ended,
    Entry,
    Found,
    Head,
    IdempotencyKey,
    Listing,
    Page,
    Recovery,
    Run,
    Settled,
    Size,
    Standing,
    Submitted,
    Waiting,
    Wanted,
)
from .outbox import Delivery, DeliveryState, Due
from .protocol import Store
from .puts import PutDelivery
from .rows import find_job, find_retry, match_owner
from .spending import Spending
from .store_engine import StoreEngine
from .threads import Ask, Operation
from .transitions import Transitions
from .upkeep import Upkeep

#: Bodies that are looked through at once for what earlier versions have not noted.
WORKFLOWS_AT_ONCE = 200


class TableStore(DepotTables, Store):
    """See :class:`guard.store.Store`, which says what each method does."""

    _engine: StoreEngine

    def __init__(self, clock: Clock, upkeep: Upkeep, transitions: Transitions | None = None) -> None:
        """A subclass sets `_engine` next, and then calls `_begin`."""
        self._clock = clock
        self.changed: Signal[[Job]] = Signal()
        self.arrived: Signal[[Job]] = Signal()
        self.found: Signal[[Job]] = Signal()
        self.opened: Signal[[Recovery]] = Signal()
        self._upkeep = upkeep
        self._transitions = transitions or Transitions(clock, upkeep.take)
        upkeep.forgotten.subscribe(lambda ids: self._transitions.recent.update(dict.fromkeys(ids)))
        #: By owner: how many jobs are open, as of the last commit.
        self._open: dict[str, int] = {}

    def _begin(self, open_now: bool) -> None:
        if open_now:
            self._engine.open()
        self._note_counts(self._transitions.line.turns)
        if open_now:
            self._list_workflows()

    def serve(self, holder: str, max_attempts: int, lived_until_ms: int | None = None) -> None:
        """Open the database now or, where it cannot be used, as soon as it can: see `trouble` and `opened`. Blocks.

        What `holder` left open is taken up in the same transaction: see :meth:`recover`. Of that, `changed` announces
        the jobs that have ended. `lived_until_ms`: when the process before this one lived last.
        """

        def recover(db: Database) -> Recovery:
            newest = db.execute("SELECT created_at_ms FROM jobs ORDER BY number DESC LIMIT 1").fetchone()
            self._clock.compare(newest[0] if newest is not None else 0)
            recovery = self._transitions.recover(db, holder, max_attempts, lived_until_ms)
            self._transitions.changed = list(recovery.settled)
            return recovery

        def tell(recovery: Recovery) -> None:
            self._note_counts(self._transitions.line.turns)
            self.opened(recovery)
            self._list_workflows()

        self._engine.serve(recover, tell)

    @property
    def path(self) -> Path | None:
        """The file, where it is one of this machine."""
        return None

    #: A server alone looks after everything.
    is_keeper = True

    @property
    def queued(self) -> int:
        return self._queued

    def count_queued(self, owner: str) -> int:
        return self._transitions.line.count_queued(owner)

    def count_open_bytes(self, owner: str) -> int:
        return self._transitions.line.count_open_bytes(owner)

    @property
    def leased(self) -> int:
        return len(self._leases)

    @property
    def leases(self) -> frozenset[str]:
        return self._leases

    def find_token(self, job_id: str) -> str | None:
        return None

    @property
    def under_way(self) -> int:
        return self._transitions.line.under_way_here

    def count_open(self, owner: str | None) -> int:
        # Not the line's own: it counts an end before that is on disk.
        return sum(list(self._open.values())) if owner is None else self._open.get(owner, 0)

    def has_open(self, owner: str | None) -> Future[bool]:
        known: Future[bool] = Future()
        known.set_result(self.count_open(owner) > 0)
        return known

    @property
    def trouble(self) -> str | None:
        return self._engine.trouble

    @property
    def failing(self) -> str | None:
        return self._engine.failing

    @property
    def silent_s(self) -> float:
        return self._engine.silent_s

    @property
    def lacks_readers(self) -> bool:
        return self._engine.lacks_readers

    @property
    def unreadable_s(self) -> float:
        return self._engine.unreadable_s

    @property
    def size(self) -> Size:
        return self._upkeep.size

    @property
    def max_bytes(self) -> int:
        return self._upkeep.limits.max_bytes

    @property
    def thinned(self) -> tuple[int, int]:
        return self._upkeep.thinned

    def full(self) -> DiskFullError | None:
        return self._upkeep.find_refusal()

    def relieve(self, wanted_bytes: int) -> None:
        self._upkeep.relieve(wanted_bytes)

    def flush(self, timeout_s: float) -> bool:
        done, _waiting = wait([future := self._engine.write(lambda _db: None, durable=True)], timeout_s)
        return bool(done) and future.exception() is None

    def close(self) -> None:
        self._engine.close()

    def _publish(self) -> None:
        """Announce what a commit has made durable. The writer's thread."""
        changed = self._transitions.take_changes()  # first: whoever is told may ask
        self._note_counts(job.owner for job in changed)
        for job in changed:
            self.changed(job)

    def _keep_changes(self) -> Callable[[bool], None]:
        """Take the changes of a commit that may have succeeded; return what announces them. The writer's thread."""
        changed = list(self._transitions.changed)

        def announce(is_late: bool) -> None:
            self._note_counts({*self._open, *self._transitions.line.turns})
            if is_late:  # whoever ended a job will hand that in again
                ended = {job.job_id: job.verdict for job in changed if job.verdict is not None}
                self._transitions.unanswered.update(ended)
            for job in changed:
                self.changed(job)

        return announce

    def _note_counts(self, owners: Iterable[str]) -> None:
        """Note what the tables hold now; of these owners, how many jobs are open."""
        line = self._transitions.line
        self._queued, self._leases = line.queued, frozenset(line.leases)
        self._open.update((owner, line.count_open(owner)) for owner in owners)

    # On the writer's thread. ---------------------------------------------------------------------------------

    def recover(self, holder: str, max_attempts: int, lived_until_ms: int | None = None) -> Future[Recovery]:
        return self._engine.write(
            lambda db: self._transitions.recover(db, holder, max_attempts, lived_until_ms), durable=True
        )

    def submit(
        self,
        new: NewJob,
        max_queued: int,
        key: IdempotencyKey | None = None,
        *,
        max_queued_of_owner: int | None = None,
        max_queued_of_user: int | None = None,
        max_bytes_of_owner: int | None = None,
        takings: Sequence[Taking] = (),
        held: bool = False,
    ) -> Future[Submitted]:
        bounds = Bounds(max_queued, max_queued_of_owner, max_queued_of_user, max_bytes_of_owner, takings)
        return self._engine.write(
            self._make_submit(new, key, bounds),
            durable=True,
            held=held,
            ask=lambda db: self._transitions.foresee_submit(db, new, key, bounds),
        )

    def _make_submit(self, new: NewJob, key: IdempotencyKey | None, bounds: Bounds) -> Operation[Submitted]:
        return lambda db: self._transitions.submit(db, new, key, bounds)

    def let_go(self) -> None:
        self._engine.let_go()

    def remind(self) -> None:
        self._engine.remind()

    def hold_back(self, owners: frozenset[str]) -> None:
        self._transitions.held_back = owners

    def claim(self, holder: str, max_jobs: int) -> Future[Claimed | None]:
        return self._engine.write(
            lambda db: self._transitions.claim(db, holder, max_jobs), ask=self._foresee_next(with_body=True)
        )

    def begin(self, holder: str, max_jobs: int, is_ready: Callable[[str], bool]) -> Future[Job | None]:
        return self._engine.write_here(
            lambda db: self._transitions.begin(db, holder, max_jobs, is_ready), ask=self._foresee_next(with_body=False)
        )

    def _foresee_next(self, *, with_body: bool) -> Ask:
        return lambda db: self._transitions.foresee_next(db, with_body=with_body)

    def _foresee_run(self, job_id: str) -> Ask:
        return lambda db: self._transitions.foresee_run(db, job_id)

    def hand_over(self, job_id: str) -> Future[None]:
        return self._engine.write(
            lambda db: self._transitions.hand_over(db, job_id), urgent=False, ask=self._foresee_run(job_id)
        )

    def start(self, job_id: str) -> Future[Job | None]:
        return self._engine.write(
            lambda db: self._transitions.advance(db, job_id, JobState.RUNNING), ask=self._foresee_run(job_id)
        )

    def validate(self, job_id: str, held: bool = False) -> Future[Job | None]:
        # Most checks take no longer than a commit: then their verdict shares it.
        return self._engine.write(
            lambda db: self._transitions.advance(db, job_id, JobState.VALIDATING),
            urgent=False,
            held=held,
            ask=self._foresee_run(job_id),
        )

    def settle(
        self,
        job_id: str,
        verdict: Verdict,
        result: Result | None = None,
        *,
        only_waiting: bool = False,
        token: str | None = None,
        here: bool = False,
    ) -> Future[Settled | None]:
        write = self._engine.write_here if here else self._engine.write
        return write(
            lambda db: self._transitions.settle(db, job_id, verdict, result, only_waiting, token),
            durable=True,
            ask=self._foresee_run(job_id),
        )

    def release(self, job_id: str, held: bool = False) -> Future[None]:
        # The worker begins the next job right after: then both share a commit.
        return self._engine.write(lambda db: self._transitions.release(db, job_id), urgent=False, held=held)

    def mark_fetched(self, job_id: str, artifact: int) -> Future[None]:
        return self._engine.write(lambda db: result_files.mark_fetched(db, job_id, artifact))

    def mark_heard(self, job_id: str) -> Future[None]:
        def operation(db: Database) -> None:
            db.execute("DELETE FROM unheard WHERE job_id = ?", (job_id,))

        return self._engine.write(operation, urgent=False)

    def record_attempt(self, after: Delivery) -> Future[None]:
        return self._engine.write(lambda db: outbox.record_attempt(db, after))

    def record_put(self, after: PutDelivery) -> Future[None]:
        return self._engine.write(lambda db: self._transitions.record_put(db, after))

    def redeliver(self, webhook_id: str, owner: str | None) -> Future[Delivery | None]:
        return self._engine.write(lambda db: outbox.redeliver(db, webhook_id, owner, self._clock.now_ms()))

    def spend(self, job: Job, spent: Spent, held: bool = False) -> Future[None]:
        whose = job.owner, job.user, job.template
        return self._engine.write(
            lambda db: spending.add(db, spent.ended_at_ms, whose, spent.run_ms, spent.load_ms),
            urgent=False,
            held=held,
            ask=lambda db: spending.foresee(db, spent.ended_at_ms, whose),
        )

    def put_alarms(self, alarms: Sequence[NewAlarm]) -> Future[None]:
        return self._engine.write(lambda db: alarm_rows.put(db, alarms), urgent=False)

    def mark_alarms_seen(self, numbers: Sequence[int], up_to: int) -> Future[int]:
        return self._engine.write(lambda db: alarm_rows.mark_seen(db, numbers, up_to, self._clock.now_ms()))

    def forget(self, settled_before_ms: int, limit: int) -> Future[int]:
        def operation(db: Database) -> int:
            # A settled job keeps its lease until ComfyUI's worker lets go of it.
            rows = db.execute(
                "SELECT number, job_id FROM jobs INDEXED BY jobs_settled WHERE settled_at_ms < ? "
                "AND job_id NOT IN (SELECT job_id FROM leases) ORDER BY settled_at_ms LIMIT ?",
                (settled_before_ms, limit),
            ).fetchall()
            keep_last_numbers(db)
            records.forget(db, rows)
            self._transitions.touched.update((job_id, None) for _number, job_id in rows)
            return len(rows)

        return self._engine.write(operation)

    def hide(self, owner: str | None, job_ids: Sequence[str]) -> Future[None]:
        where, values = match_owner(owner)
        # Not by an index of the owner's: see `INDEXED BY` elsewhere, which PostgreSQL does not know.
        where = where.replace("owner", "owner || ''")
        update = f"UPDATE jobs SET hidden = 1 WHERE {where} AND settled_at_ms IS NOT NULL AND hidden = 0 AND job_id = ?"

        def operation(db: Database) -> None:
            db.executemany(update, [(*values, job_id) for job_id in job_ids])

        return self._engine.write(operation)

    def clear_history(self, owner: str) -> Future[None]:
        def operation(db: Database) -> None:
            upsert = "INSERT INTO cleared VALUES (?, ?) ON CONFLICT (owner) DO UPDATE SET up_to = excluded.up_to"
            db.execute(upsert, (owner, self._transitions.line.event_id))

        return self._engine.write(operation)

    def _list_workflows(self) -> None:
        """Look for workflows in the bodies that earlier versions left, some at a time. The next start goes on."""

        def find(db: Database) -> tuple[int, list[tuple[int, str]]]:
            row = db.execute("SELECT below FROM unlisted").fetchone()
            below = row[0] if row is not None else 0
            return below, queries.find_workflows(db, below, WORKFLOWS_AT_ONCE) if below > 1 else []

        def write(db: Database, below: int, found: list[tuple[int, str]]) -> None:
            insert = "INSERT INTO workflows SELECT number, job_id, ? FROM jobs WHERE number = ? ON CONFLICT DO NOTHING"
            db.executemany(insert, [(workflow_id, number) for number, workflow_id in found])
            db.execute("UPDATE unlisted SET below = ?", (max(below - WORKFLOWS_AT_ONCE, 0),))

        def go_on(done: Future[None]) -> None:
            if done.exception() is None:
                self._list_workflows()

        def take_up(done: Future[tuple[int, list[tuple[int, str]]]]) -> None:
            if done.exception() is None and done.result()[0] > 1:
                self._engine.write(lambda db: write(db, *done.result())).add_done_callback(go_on)

        self._engine.read_slowly(find).add_done_callback(take_up)

    # On the readers' threads, so that a long list holds up no commit and no look-up. ----------------------------

    def replay(self, owner: str, key: IdempotencyKey) -> Future[Submitted | None]:
        return self._engine.read(lambda db: queries.replay(db, self._transitions.line, owner, key))

    def recall(self, job_id: str) -> Job | None:
        # What cannot be read is not told from memory either: another process may have taken over. And a list may have
        # told of a commit that memory comes to know in a moment.
        if not self._engine.is_readable or job_id in self._transitions.touched:
            return None
        return self._transitions.recent.get(job_id)

    def get(self, job_id: str) -> Future[Job | None]:
        if (known := self.recall(job_id)) is None:
            return self._engine.read(lambda db: find_job(db, job_id))
        future: Future[Job | None] = Future()
        future.set_result(known)
        return future

    def find_retry(self, job_id: str) -> Future[Job | None]:
        return self._engine.read(lambda db: find_retry(db, job_id))

    def find_body(self, job_id: str) -> Future[tuple[bytes | None, int | None]]:
        return self._engine.read(lambda db: queries.find_body(db, job_id))

    def locate(self, job_id: str) -> Future[Waiting | None]:
        def operation(db: Database) -> Waiting | None:
            job = find_job(db, job_id)
            return self._transitions.line.locate(db, job) if job is not None and job.state is JobState.QUEUED else None

        return self._engine.read(operation)

    def list_jobs(
        self, owner: str | None, states: frozenset[JobState] | None, limit: int, before: int | None = None
    ) -> Future[list[Job]]:
        return self._engine.read_list(lambda db: queries.list_jobs(db, owner, states, limit, before))

    def search(self, owner: str | None, wanted: Wanted, limit: int, before: int | None = None) -> Future[Found]:
        return self._engine.read_list(lambda db: search.search(db, owner, wanted, limit, before))

    def list_missed(self, owner: str, client_id: str, since_ms: int, limit: int) -> Future[list[Job]]:
        return self._engine.read_list(lambda db: queries.list_missed(db, owner, client_id, since_ms, limit))

    def read_changes(self, after: int, *, owner: str | None = None, job_id: str | None = None) -> Future[Changes]:
        return self._engine.read_list(lambda db: queries.read_changes(db, after, owner, job_id))

    def list_states(self, job_id: str) -> Future[list[tuple[JobState, int]]]:
        return self._engine.read(lambda db: queries.list_states(db, job_id))

    def list_deliveries_of(self, job_id: str, limit: int) -> Future[list[Delivery]]:
        return self._engine.read(lambda db: outbox.list_of_job(db, job_id, limit))

    def find_entry(self, job_id: str) -> Future[Entry | None]:
        return self._engine.read(lambda db: queries.find_entry(db, job_id))

    def list_queue(self, owner: str | None) -> Future[list[Entry]]:
        return self._engine.read_list(lambda db: queries.list_queue(db, owner))

    def list_history(self, owner: str | None, limit: int, offset: int | None) -> Future[list[Entry]]:
        return self._engine.read_list(lambda db: queries.list_history(db, owner, limit, offset))

    def find_page(self, owner: str | None, asked: Listing) -> Future[Page]:
        return self._engine.read_list(lambda db: queries.find_page(db, owner, asked))

    def find_maker(self, kind: str, path: str) -> Future[tuple[Job, int] | None]:
        return self._engine.read(lambda db: result_files.find_maker(db, kind, path))

    def list_made(self, kind: str, after: str, limit: int) -> Future[list[str]]:
        return self._engine.read_list(lambda db: result_files.list_made(db, kind, after, limit))

    def select_made(self, kind: str, paths: Sequence[str]) -> Future[frozenset[str]]:
        return self._engine.read_list(lambda db: result_files.select_made(db, kind, paths))

    def list_overdue(self, created_before_ms: int) -> Future[list[Job]]:
        return self._engine.read_list(lambda db: queries.list_overdue(db, created_before_ms))

    def list_standings(self) -> Future[list[Standing]]:
        # 10,000 jobs take about 50 ms, for which other lists would wait.
        return self._engine.read_slowly(lambda db: self._transitions.line.list_standings(db))

    def list_recent_runs(self, limit: int) -> Future[list[Run]]:
        return self._engine.read_list(lambda db: queries.list_recent_runs(db, limit))

    def count_jobs(self, owner: str | None = None) -> Future[Counts]:
        queued = self._queued if owner is None else self.count_queued(owner)
        return self._engine.read(lambda db: queries.count_jobs(db, owner, queued))

    def count_endings(self, from_ms: int, before_ms: int) -> Future[list[Ended]]:
        return self._engine.read_list(lambda db: queries.count_endings(db, from_ms, before_ms))

    def list_template_runs_ms(self, owner: str | None, limit: int, since_ms: int) -> Future[list[tuple[str, int]]]:
        return self._engine.read_list(lambda db: queries.list_template_runs_ms(db, owner, limit, since_ms))

    def find_due_deliveries(
        self, now_ms: int, limit: int, *, under_way: Collection[int], full: Collection[str]
    ) -> Future[Due[Delivery]]:
        numbers, targets = tuple(under_way), tuple(full)
        return self._engine.read(lambda db: outbox.find_due(db, now_ms, limit, numbers, targets))

    def find_due_puts(
        self, now_ms: int, limit: int, *, under_way: Collection[int], full: Collection[str]
    ) -> Future[Due[PutDelivery]]:
        numbers, targets = tuple(under_way), tuple(full)
        return self._engine.read(lambda db: puts.find_due(db, now_ms, limit, numbers, targets))

    def list_deliveries(
        self, owner: str | None, states: frozenset[DeliveryState], limit: int, before: int | None = None
    ) -> Future[list[Delivery]]:
        return self._engine.read_list(lambda db: outbox.list_deliveries(db, owner, states, limit, before))

    def list_alarms(self, limit: int, before: int | None = None) -> Future[list[Alarm]]:
        return self._engine.read_list(lambda db: alarm_rows.list_newest(db, limit, before))

    def count_unseen_alarms(self) -> Future[int]:
        return self._engine.read(alarm_rows.count_unseen)

    def read_spending(self, owner: str | None, first: str, last: str, limit: int) -> Future[list[Spending]]:
        return self._engine.read_list(lambda db: spending.read(db, owner, first, last, limit))

    def list_heads(self, after: int, limit: int) -> Future[list[tuple[str, Head]]]:
        return self._engine.read_list(lambda db: queries.list_heads(db, after, limit))

    def list_open_numbers(self, after: int, limit: int) -> Future[list[int]]:
        return self._engine.read_list(lambda db: queries.list_open_numbers(db, after, limit))

    def read_bodies(self, numbers: Sequence[int]) -> Future[tuple[list[bytes], int]]:
        return self._engine.read_list(lambda db: queries.read_bodies(db, numbers))

    def select_unread(self, kind: str, paths: Sequence[str], since_ms: int) -> Future[frozenset[str]]:
        return self._engine.read_list(lambda db: result_files.select_unread(db, kind, paths, since_ms))

    def list_unread(self, since_ms: int, at_most: int) -> Future[dict[str, frozenset[str]] | None]:
        return self._engine.read_list(lambda db: result_files.list_unread(db, since_ms, at_most))
