"""The job store of a box that shares a PostgreSQL database with others."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

import psycopg

from ..clock import Clock
from ..errors import GuardError
from ..job import Job, JobState, NewJob
from ..quotas import Taking
from . import buckets, claiming, depot_files, forks, key_rows, members, queries, sign_ins, starting, submitting
from .buckets import At, Levels
from .claiming import Signature
from .database import Database
from .database import Rows as Answer
from .facts import Bounds, Claimed, IdempotencyKey, Recovery, Submitted
from .key_rows import Edit, Rows
from .members import Beat, Box, Member
from .outbox import Delivery, Due
from .placing import Refused
from .postgres_address import Address
from .postgres_connection import PostgresConnection
from .postgres_shared import SharedDatabase
from .postgres_shared_engine import AtOnce, SharedEngine
from .postgres_upkeep import PostgresUpkeep
from .puts import PutDelivery
from .rows import find_job
from .shared import SharedTransitions
from .slices import Limits
from .submitting import Planned
from .table_store import TableStore
from .threads import Operation
from .upkeep import Upkeep

T = TypeVar("T")

#: How long a box that ends tries to say so.
LEAVE_S = 3.0
#: A beat takes no longer than this.
BEAT_S = 5


class FleetStore(TableStore):
    """See :mod:`.members` and :mod:`.shared`."""

    _engine: SharedEngine
    _transitions: SharedTransitions

    def __init__(
        self, address: Address, clock: Clock, member: Member, limits: Limits | None = None, *, open_now: bool = True
    ) -> None:
        """As :class:`.postgres.PostgresStore`; it becomes a box with :meth:`serve`."""
        self.member = member
        upkeep = PostgresUpkeep(clock, limits or Limits())
        super().__init__(clock, upkeep, SharedTransitions(clock, upkeep.take, member))
        self._held = SharedDatabase(address, member)
        self._engine = SharedEngine(
            self._held,
            self._transitions.load,
            self._transitions.ask,
            self._transitions.follow,
            self._publish,
            self._keep_changes,
            self._forget_kept,
            upkeep,
        )
        self._max_attempts = 1
        #: Whether this box looks after what one box is enough for. Any thread.
        self.is_keeper = False
        self._beats: PostgresConnection | None = None
        forks.watch(self)
        self._begin(open_now)

    def leave_to_parent(self) -> None:
        """See :mod:`.forks`."""
        if self._beats is not None:
            forks.keep_for_ever(self._beats)

    def serve(self, holder: str, max_attempts: int, lived_until_ms: int | None = None) -> None:
        self._max_attempts = max_attempts

        def join(db: Database) -> tuple[str, Recovery]:
            now_ms, own_ms = members.tell_time(db), self._clock.now_ms()
            self._clock.follow(now_ms)
            lived_ms = None if lived_until_ms is None else lived_until_ms + now_ms - own_ms
            newest = db.execute("SELECT created_at_ms FROM jobs ORDER BY number DESC LIMIT 1").fetchone()
            self._clock.compare(newest[0] if newest is not None else 0)
            return self._transitions.join(db, max_attempts, lived_ms)

        def tell(joined: tuple[str, Recovery]) -> None:
            self.member.epoch, recovery = joined
            self._note_counts(self._transitions.line.turns)
            self.opened(recovery)

        self._engine.serve(join, tell)

    # Any thread. -----------------------------------------------------------------------------------------------

    def find_token(self, job_id: str) -> str | None:
        return self._transitions.tokens.get(job_id, "")

    def join(self) -> Future[tuple[str, Recovery]]:
        """Become a box again, once nothing of the time before is left here: the epoch, and what was left in the tables.

        It is one once `member.epoch` is set to that.
        """
        return self._engine.write(lambda db: self._transitions.join(db, self._max_attempts), durable=True)

    def reap(self) -> Future[dict[str, Recovery]]:
        """Take back what boxes have whose lease is over: their names, and what became of it."""
        return self._engine.write(lambda db: self._transitions.reap(db, self._max_attempts), durable=True)

    def has_open(self, owner: str | None) -> Future[bool]:
        known = super().has_open(owner)
        return known if known.result() else self._engine.read(lambda db: queries.has_open(db, owner))

    def list_runs(self, limit: int) -> Future[list[tuple[str, Job]]]:
        """What the boxes have under way, each job with its box, by when it began."""
        return self._engine.read(lambda db: members.list_runs(db, limit))

    def find_places(self, job_ids: Sequence[str]) -> Future[dict[str, str]]:
        """Which boxes have these jobs under way, by job."""
        return self._engine.read(lambda db: members.find_places(db, job_ids))

    def leave(self) -> Future[Recovery]:
        """Be a box no more: others may have what is under way here at once."""
        leaving = self._engine.write(lambda db: self._transitions.leave(db, self._max_attempts), durable=True)
        leaving.add_done_callback(lambda _done: setattr(self.member, "epoch", None))
        return leaving

    # What holds on all boxes. See :class:`.key_rows.KeyTable`. ---------------------------------------------------

    def read_keys(self, known: int | None) -> Future[tuple[int, Rows] | None]:
        return self._engine.read(lambda db: key_rows.read(db, known))

    def change_keys(self, edit: Edit[T]) -> Future[T]:
        return self._engine.write(lambda db: key_rows.change(db, edit), durable=True)

    def use_sign_in(self, digest: str) -> Future[bool]:
        """Use up a link that signs a browser in, and say whether it was good."""
        return self._engine.write(lambda db: sign_ins.use(db, digest), durable=True)

    def agree_on_depot(self, place: str, mark: str) -> Future[str]:
        """The mark of the folder that the boxes use there: this one, unless it is empty or one has said another."""
        return self._engine.write(lambda db: depot_files.agree_on_mark(db, place, mark), durable=True)

    def read_buckets(self, places: Sequence[At]) -> Future[Levels]:
        """What is left of limits that the boxes share."""
        return self._engine.read(lambda db: buckets.read(db, places))

    def add_takings(self, takings: Sequence[Taking]) -> Future[None]:
        """Note what this box has let its callers take of them."""
        return self._engine.write(lambda db: buckets.add(db, takings), urgent=False)

    def forget_full_buckets(self) -> Future[None]:
        return self._engine.write(buckets.forget_full, urgent=False)

    def _make_submit(self, new: NewJob, key: IdempotencyKey | None, bounds: Bounds) -> Operation[Submitted]:
        return _Submit(self._transitions, self._upkeep, self._held, new, key, bounds)

    def claim(self, holder: str, max_jobs: int) -> Future[Claimed | None]:
        return self._engine.write(_Claim(self._transitions, holder, max_jobs), ask=self._foresee_next(with_body=True))

    def start(self, job_id: str) -> Future[Job | None]:
        return self._engine.write(_Start(self._transitions, job_id), ask=self._foresee_run(job_id))

    def put_back(self, job_id: str, token: str, refused: Refused) -> Future[bool]:
        """Let a job that this box could not run wait again for one that can. False: there is none; nothing changed."""
        return self._engine.write(lambda db: self._transitions.put_back(db, job_id, token, refused), durable=True)

    # One box sends what all have to send. ----------------------------------------------------------------------

    def find_due_deliveries(
        self, now_ms: int, limit: int, *, under_way: Collection[int], full: Collection[str]
    ) -> Future[Due[Delivery]]:
        if not self.is_keeper:
            return _find_nothing()
        return super().find_due_deliveries(now_ms, limit, under_way=under_way, full=full)

    def find_due_puts(
        self, now_ms: int, limit: int, *, under_way: Collection[int], full: Collection[str]
    ) -> Future[Due[PutDelivery]]:
        if not self.is_keeper:
            return _find_nothing()
        return super().find_due_puts(now_ms, limit, under_way=under_way, full=full)

    def close(self) -> None:
        if self.member.epoch is not None:
            with contextlib.suppress(GuardError, FutureTimeoutError):  # the others notice once the lease is over
                self.leave().result(LEAVE_S)
        super().close()
        self.drop_beats()

    # The thread that beats. ------------------------------------------------------------------------------------

    def beat(self) -> Beat | None:
        """Say that this box lives, over a connection of its own. None: it is no box any more. Raises what fails."""
        try:
            if self._beats is not None and not self._held.is_of_today(self._beats):
                self.drop_beats()
            if self._beats is None:
                self._beats = self._held.connect(BEAT_S + 2, synchronous_commit="off", statement_timeout=f"{BEAT_S}s")
            beat = members.beat(self._beats, self.member)
            self.is_keeper = beat is not None and beat.is_keeper
            if beat is not None and beat.finds_ahead:
                members.shorten_leases(self._beats, self.member)
            return beat
        except BaseException:
            self.drop_beats()
            raise

    def list_boxes(self, known: Sequence[Box] = ()) -> list[Box]:
        """See :func:`.members.list_boxes`; none where there is no connection. Raises what fails."""
        try:
            return [] if self._beats is None else members.list_boxes(self._beats, self.member.lease_ms, known)
        except BaseException:
            self.drop_beats()
            raise

    def is_displaced(self) -> bool:
        """Whether another process has this box's name now. After a beat without an answer."""
        return self._beats is not None and members.is_taken(self._beats, self.member)

    def drop_beats(self) -> None:
        beats, self._beats = self._beats, None
        if beats is not None:
            beats.close()

    # The writer's thread. --------------------------------------------------------------------------------------

    def _publish(self) -> None:
        self._publish_arrived()
        super()._publish()

    def _publish_arrived(self) -> None:
        for job in self._transitions.take_found():
            self.found(job)
        arrived = self._transitions.take_arrived()
        self._note_counts({job.owner for job in arrived})
        for job in arrived:
            self.arrived(job)

    def _keep_changes(self) -> Callable[[bool], None]:
        announce = super()._keep_changes()
        self._transitions.kept = frozenset(job.event_id for job in self._transitions.changed)

        def tell(is_late: bool) -> None:
            self._publish_arrived()  # what came before; the rest comes after
            announce(is_late)
            self._forget_kept()

        return tell

    def _forget_kept(self) -> None:
        self._transitions.kept = frozenset()


class _Claim(AtOnce):
    """A claim, which the engine makes by itself where it is of the plain case: see :mod:`.claiming`."""

    def __init__(self, transitions: SharedTransitions, holder: str, max_jobs: int) -> None:
        self._transitions, self._holder, self._max_jobs = transitions, holder, max_jobs
        self._token = secrets.token_hex(8)

    def __call__(self, db: Database) -> Claimed | None:
        return self._transitions.claim(db, self._holder, self._max_jobs)

    def is_plain(self) -> bool:
        return self._transitions.has_plain_claims(self._max_jobs)

    def ask(self, db: Database, signature: Signature) -> Answer:
        return self._transitions.ask_to_claim(db, self._token, signature)

    def take(self, _db: Database, told: Answer) -> tuple[bool, Claimed | None]:
        waits, taken = claiming.read(told)
        if taken is None:
            return not waits, None
        return True, self._transitions.take_claimed(taken, self._token)

    def find(self, db: Database) -> Claimed | None:
        found = claiming.find(db, self._transitions.box, self._token)
        return None if found is None else self._transitions.keep_claimed(*found, self._token)


class _Start(AtOnce):
    """The start of a run, which the engine writes by itself where it is of the plain case: see :mod:`.starting`."""

    #: ComfyUI's worker waits for it.
    goes_first = True

    def __init__(self, transitions: SharedTransitions, job_id: str) -> None:
        self._transitions, self._job_id = transitions, job_id

    def __call__(self, db: Database) -> Job | None:
        return self._transitions.advance(db, self._job_id, JobState.RUNNING)

    def is_plain(self) -> bool:
        return self._job_id in self._transitions.tokens

    def ask(self, db: Database, signature: Signature) -> Answer:
        return self._transitions.ask_to_start(db, self._job_id, signature)

    def take(self, _db: Database, told: Answer) -> tuple[bool, Job | None]:
        started = starting.read(told)
        return (False, None) if started is None else (True, self._transitions.take_started(started))

    def find(self, db: Database) -> Job | None:
        return starting.find(db, self._job_id, self._transitions.tokens.get(self._job_id, ""))


class _Submit(AtOnce):
    """A submit, which one statement makes where nobody else has written meanwhile: see :mod:`.submitting`."""

    needs_turn = False

    def __init__(
        self,
        transitions: SharedTransitions,
        upkeep: Upkeep,
        held: SharedDatabase,
        new: NewJob,
        key: IdempotencyKey | None,
        bounds: Bounds,
    ) -> None:
        self._transitions, self._upkeep, self._held = transitions, upkeep, held
        self._new, self._key, self._bounds = new, key, bounds
        self._planned: Planned | None = None

    def __call__(self, db: Database) -> Submitted:
        return self._transitions.submit(db, self._new, self._key, self._bounds)

    def is_plain(self) -> bool:
        if not submitting.is_plain(self._new, self._bounds) or not self._upkeep.has_room(len(self._new.body)):
            return False
        with contextlib.suppress(GuardError):  # told in the other way, by what is true then
            self._planned = self._transitions.plan_submit(self._new, self._key, self._bounds)
        return self._planned is not None

    def ask(self, db: Database, signature: Signature) -> Answer:
        assert self._planned is not None
        return submitting.ask(db, self._planned, self._held.last_known, signature)

    def take(self, db: Database, told: Answer) -> tuple[bool, Submitted | None]:
        round_ = submitting.read(told)
        if round_ is None:
            return False, None
        assert self._planned is not None
        self._upkeep.count(len(self._new.body))
        job = self._transitions.take_submitted(self._planned, round_)
        try:
            return True, self._transitions.locate(db, job, self._planned.order)
        except psycopg.Error:  # it is in the queue all the same
            return True, Submitted(job, None)

    def find(self, db: Database) -> Submitted | None:
        job = find_job(db, self._new.job_id)
        return None if job is None else self._transitions.locate(db, job)


def _find_nothing() -> Future[Due[Any]]:
    nothing: Future[Due[Any]] = Future()
    nothing.set_result(Due([], None))
    return nothing
