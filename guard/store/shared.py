"""Change jobs where several boxes share the queue: see :mod:`.members`.

Boxes commit one after the other, and each begins its transaction with what the others have changed since its last one.
So the order of the queue, positions, limits and the numbers of changes are exact, as with one server. What a run
writes says the token that its claim has given it: once the job is taken from its box, none of that counts.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any, cast

from ..clock import Clock
from ..job import Job, JobState, NewJob
from ..quotas import Taking
from . import arrivals, buckets, claiming, members, placing, starting
from .arrivals import Asked
from .claiming import Signature, Taken
from .database import Database, Foreseeing, Rows, snapshot
from .facts import Arrival, Bounds, Claimed, IdempotencyKey, Recovery, Submitted
from .line import Line
from .members import Member
from .placing import Choice, Refused
from .recent import Recent
from .rows import COLUMNS, FIND_JOB, find_job, read_job, update_job
from .submitting import Planned
from .transitions import Transitions, find_place

#: What is foreseen of the queue's order.
_OF_QUEUE = placing.FIRST, placing.HEAD, placing.BODY_OF_HEAD


class SharedTransitions(Transitions):
    """The writer's thread; others may read `line`.

    Attributes:
        arrived: jobs as they are after each change that another box has made, to be announced.
        found: what the others ran when this box joined last, to be told before what arrived since.
        followed: the number of the last change that was read or made.
        kept: numbers of own changes that are announced by whoever learns how their commit has ended.
        tokens: what each run here says with what it writes, by job.
    """

    def __init__(self, clock: Clock, take_room: Callable[[str, int], None], member: Member) -> None:
        super().__init__(clock, take_room)
        self._member = member
        self.recent = Recent(0)  # what another box changes, memory would not know at once
        self.arrived: list[Job] = []
        self.found: list[Job] = []
        self.followed: int | None = None
        self.kept: frozenset[int] = frozenset()
        self.tokens: dict[str, str] = {}
        #: What was found for the claim under way, at what time of the engine's.
        self._choice: Choice | None = None
        self._now_ms = 0
        #: When the owner of each job that has a slot here had been served before, and that it was then.
        self._turns: dict[str, tuple[int, int]] = {}
        #: What this box had loaded before each of them.
        self._loaded: dict[str, frozenset[str]] = {}
        #: To which box a job was given in this transaction, with which token, until that is written.
        self._given: dict[str, tuple[str, str]] = {}
        #: Whose run each job is, of those that were asked for in this transaction.
        self._whose: dict[str, str | None] = {}

    @property
    def box(self) -> str:
        return self._member.box

    def load(self, db: Database) -> None:
        self.changed.clear()
        self.touched.clear()
        self._whose.clear()
        self._given.clear()
        with snapshot(db):
            self.line = Line.read(db, self._member.box)
        # Less than was followed is there only where the database was restored from a backup.
        self.followed = self.line.event_id if self.followed is None else min(self.followed, self.line.event_id)

    def ask(self, db: Database) -> Asked:
        """Ask for some of what other boxes have changed."""
        return arrivals.ask(db, self.followed or 0)

    def follow(self, asked: Asked) -> bool:
        """Take that in; whether there may be more."""
        news = arrivals.read(asked)
        unknown = [arrival for arrival in news.arrivals if arrival.job.event_id > self.line.event_id]
        for arrival in unknown:
            self.line.follow(arrival)
        if unknown:
            self.line.take_turns(news.served, news.rounds)
        self.arrived += [arrival.job for arrival in news.arrivals if arrival.job.event_id not in self.kept]
        self.followed = news.up_to
        self.line.event_id = max(self.line.event_id, news.up_to)
        return news.is_more

    def take_found(self) -> list[Job]:
        found, self.found = self.found, []
        return found

    def take_arrived(self) -> list[Job]:
        """What other boxes have changed, to announce it; of those changes that are `kept`, only what came before."""
        first = min(self.kept, default=math.inf)
        arrived = [job for job in self.arrived if job.event_id < first]
        self.arrived = [job for job in self.arrived if job.event_id >= first]
        return arrived

    def take_changes(self) -> list[Job]:
        self._whose.clear()
        changed = super().take_changes()
        self.followed = max([self.followed or 0, *(job.event_id for job in changed)])
        return changed

    # Coming, going, and those that are gone. -----------------------------------------------------------------

    def join(self, db: Database, max_attempts: int, lived_until_ms: int | None = None) -> tuple[str, Recovery]:
        """Become a box; returns the epoch, and what became of what the box's name has left."""
        recovery = self._take_back(db, self._member.box, max_attempts, lived_until_ms, and_orphans=True)
        db.execute("DELETE FROM leases WHERE holder NOT IN (SELECT box FROM boxes)")
        db.execute(
            "DELETE FROM writers WHERE box = ? AND name <> ?",
            (self._member.box, self._member.process),
        )
        self.found = members.list_running(db, but=self._member.box)
        placing.forget_refusals(db, self._member.box)
        return members.join(db, self._member), recovery

    def leave(self, db: Database, max_attempts: int, lived_until_ms: int | None = None) -> Recovery:
        """Be a box no more; what this one has under way waits again."""
        if not members.leave(db, self._member):
            return Recovery(0, ())
        return self._take_back(db, self._member.box, max_attempts, lived_until_ms)

    def reap(self, db: Database, max_attempts: int) -> dict[str, Recovery]:
        """Take back what boxes have whose lease is over."""
        dead = members.take_out_dead(db, self._member)
        return {box: self._take_back(db, box, max_attempts, beat_at_ms) for box, beat_at_ms in dead}

    def _take_back(
        self, db: Database, box: str, max_attempts: int, lived_until_ms: int | None, and_orphans: bool = False
    ) -> Recovery:
        self._forget_foreseen(db)
        jobs = members.list_under_way(db, box, and_orphans=and_orphans)
        secretive = members.list_secretive(db, box, and_orphans=and_orphans)
        recovery = self._take_up(db, [*jobs, *secretive], max_attempts, lived_until_ms)
        members.take_back(db, jobs)
        db.execute("DELETE FROM leases WHERE holder = ?", (box,))
        if box == self._member.box:
            self.line.leases.clear()
            self.tokens.clear()
            self._turns.clear()
            self._loaded.clear()
        return recovery

    # What will be asked is asked as the transaction begins: see `PostgresConnection.foresee`. ---------------------

    def foresee_submit(self, db: Foreseeing, new: NewJob, key: IdempotencyKey | None, bounds: Bounds) -> None:
        super().foresee_submit(db, new, key, bounds)
        buckets.foresee(db, bounds.takings)

    def foresee_next(self, db: Foreseeing, *, with_body: bool) -> None:
        # As far as is known: what others have done, and this transaction does before, may make it another's turn.
        if (owner := self.line.pick_owner(self.held_back)) is None:
            return
        db.foresee(placing.WHO_IS_THERE, (self._member.box,))
        db.foresee(placing.FIRST, (owner,))
        db.foresee(placing.HEAD, (owner,))
        if with_body:
            db.foresee(placing.BODY_OF_HEAD, (owner,))

    def foresee_run(self, db: Foreseeing, job_id: str) -> None:
        db.foresee(FIND_JOB, (job_id,))
        db.foresee(members.ASK_TOKEN, (job_id,))

    def _forget_foreseen(self, db: Database) -> None:
        """Everything may have another answer now."""
        cast(Foreseeing, db).forget_foreseen()
        self._whose.clear()

    def _move(self, db: Database, job: Job, state: JobState, *, writes: bool = True, **changes: Any) -> Job:
        cast(Foreseeing, db).take_foreseen(FIND_JOB, (job.job_id,))
        if JobState.QUEUED in (job.state, state):
            cast(Foreseeing, db).forget_foreseen(_OF_QUEUE)
        return super()._move(db, job, state, writes=writes, **changes)

    def _find_written(self, db: Database, job_id: str) -> Job | None:
        return self._find(db, job_id)  # here memory has nothing but this transaction

    def _find_body(self, db: Database, job: Job) -> bytes | None:
        row = self._take_head(db, placing.BODY_OF_HEAD, job.owner, job.number)
        return super()._find_body(db, job) if row is None else row[1]

    def _take_head(self, db: Database, query: str, owner: str, number: int) -> tuple[Any, ...] | None:
        """What was foreseen of the first job in the owner's line, if that is the one of that number."""
        asked = cast(Foreseeing, db).take_foreseen(query, (owner,))
        row: tuple[Any, ...] | None = None if asked is None else asked.fetchone()
        return row if row is not None and row[0] == number else None

    # A claim that the engine makes by itself: see :mod:`.claiming`. -------------------------------------------

    def has_plain_claims(self, max_jobs: int) -> bool:
        """Whether a claim may be of the plain case, as far as is known."""
        line = self.line
        has_slot = self._member.epoch is not None and len(line.leases) < max_jobs and line.alone is None
        return has_slot and not self.held_back and line.count_waiting_owners() <= claiming.OWNERS

    def ask_to_claim(self, db: Database, token: str, signature: Signature) -> Rows:
        return claiming.ask(db, self._member, self.followed or 0, token, self._clock.now_ms(), signature)

    def take_claimed(self, taken: Taken, token: str) -> Claimed:
        """Know of what the engine has given to this box, after what the others had done until then."""
        job = taken.job.evolve(token=token)
        turn = self.line.turns[job.owner]
        self._turns[job.job_id] = turn.served, job.event_id
        self.line.follow(Arrival(job, JobState.QUEUED, 0.0))
        self.line.take_turns({job.owner: job.event_id}, ())
        if taken.round > turn.last_rounds.get(job.priority, 0):
            turn.last_rounds[job.priority] = taken.round
        self._loaded[job.job_id] = self._member.loaded
        names = frozenset(json.loads(taken.models)) if taken.models else frozenset()
        self._member.loaded = names or self._member.loaded
        self._note(job)
        return self.keep_claimed(job, taken.body, token)

    def keep_claimed(self, job: Job, body: bytes, token: str) -> Claimed:
        """Know whose run it is."""
        self.tokens[job.job_id] = token
        self.line.leases.add(job.job_id)
        if self.line.here is not None:
            self.line.here.add(job.job_id)
        return Claimed(job.evolve(token=token), body)

    # The start of a run that the engine writes by itself: see :mod:`.starting`. -------------------------------

    def ask_to_start(self, db: Database, job_id: str, signature: Signature) -> Rows:
        return starting.ask(db, job_id, self.tokens[job_id], self.followed or 0, self._clock.now_ms(), signature)

    def take_started(self, job: Job) -> Job:
        """Know of a start that the engine has written, after what the others had done until then."""
        self.line.follow(Arrival(job, JobState.DISPATCHED, 0.0))
        self._note(job)
        return job

    # A submit that the engine writes if nobody else has written meanwhile: see :mod:`.submitting`. -----------------

    def plan_submit(self, new: NewJob, key: IdempotencyKey | None, bounds: Bounds) -> Planned:
        """Decide it by what this box knows. Raises what `submit` does, for which others may have made room since."""
        self._check(new, bounds)
        turn = self.line.turns.get(new.owner)
        round_ = turn.last_rounds.get(new.priority, 0) if turn is not None else 0
        job = self._make_job(new, key, round_)
        served = self.line.find_served(new.owner)
        is_new = served != (turn.served if turn is not None else 0)
        return Planned(new, key, job, find_place(new, job.number), served if is_new else None)

    def take_submitted(self, planned: Planned, round_: int) -> Job:
        """Know of a job that the engine has let in."""
        job = planned.job.evolve(round=round_)
        self.line.follow(Arrival(job, None, planned.order))
        if planned.served is not None:
            self.line.take_turns({job.owner: planned.served}, ())
        self._note(job)
        return job

    def locate(self, db: Database, job: Job, place: float | None = None) -> Submitted:
        """A job that was let in, and where it stands."""
        return Submitted(job, self.line.locate(db, job, by_submit=True, place=place))

    # What is otherwise for a box among others. ---------------------------------------------------------------

    def _find_first(self, db: Database) -> Job | None:
        self._choice = None
        if not self.line.queued:
            return None
        there = placing.There(db, self._member)
        found = (
            (owner, placing.find(db, owner, self._member, there)) for owner in self.line.list_owners(self.held_back)
        )
        owner, choice = next(((owner, choice) for owner, choice in found if choice is not None), ("", None))
        if choice is None:
            return None
        self._choice, self._now_ms = choice, there.now_ms
        row = self._take_head(db, placing.HEAD, owner, choice.job.number)
        if row is None:
            query = f"SELECT {COLUMNS} FROM jobs WHERE number = ?"
            row = db.execute(query, (choice.job.number,)).fetchone()
        return read_job(row)

    def _lease(self, db: Database, job: Job, holder: str, *, writes: bool = True) -> Job:
        self.tokens[job.job_id] = token = secrets.token_hex(8)
        self._whose.pop(job.job_id, None)
        self._given[job.job_id] = self._member.box, token
        if self._choice is not None:
            placing.note_passed(db, self._choice, self._now_ms)
            self._loaded[job.job_id] = self._member.loaded
            self._member.loaded = self._choice.job.names or self._member.loaded
        return super()._lease(db, job.evolve(token=token), self._member.box, writes=writes)

    def _update(self, db: Database, job: Job) -> None:
        # What its run writes must say the token. In one statement: each makes a row of its own, in every index.
        update_job(db, job, self._given.pop(job.job_id, None))

    def _serve(self, db: Database, job: Job) -> None:
        before = self.line.turns[job.owner].served
        # Users take their turns in the order of the line, also where a later one's job goes first.
        self.line.serve(db, job if self._choice is None else job.evolve(round=self._choice.first.round))
        self._turns[job.job_id] = before, self.line.turns[job.owner].served

    def put_back(self, db: Database, job_id: str, token: str, refused: Refused) -> bool:
        """Let a job wait again, at its place, that this box could not run; its owner has its turn back.

        False: no box can run it, and nothing has changed.
        """
        has_run = self._ask_for_run(db, job_id, token)
        job = find_job(db, job_id)
        if job is None or job.state.settled or not has_run():
            return True  # it is nobody's here
        self._forget_foreseen(db)
        if not placing.refuse(db, job.number, job_id, self._member, refused):
            return False
        self._move(db, job, JobState.QUEUED)
        members.take_back(db, [job])
        before, after = self._turns.get(job_id, (0, -1))
        if self.line.turns[job.owner].served == after:
            self.line.set_served(db, job.owner, before)
        self._member.loaded = self._loaded.get(job_id, frozenset())
        self.release(db, job_id)
        return True

    def _ask_for_run(self, db: Database, job_id: str, token: str | None = None) -> Callable[[], bool]:
        wanted = token or self.tokens.get(job_id)
        asked = None if job_id in self._whose else members.ask_token(db, job_id)

        def has_run() -> bool:
            if asked is not None:
                self._whose[job_id] = (asked.fetchone() or (None,))[0]
            return wanted is not None and self._whose[job_id] == wanted

        return has_run

    def release(self, db: Database, job_id: str) -> None:
        # By its holder: it may be another box's by now, which one that was frozen has not heard of.
        db.execute("DELETE FROM leases WHERE job_id = ? AND holder = ?", (job_id, self._member.box))
        self.line.leases.discard(job_id)
        self.tokens.pop(job_id, None)
        self._turns.pop(job_id, None)
        self._loaded.pop(job_id, None)

    def _take(self, db: Database, takings: Sequence[Taking]) -> None:
        buckets.take(db, takings)

    def _insert(self, db: Database, new: NewJob, key: IdempotencyKey | None) -> Job:
        job = super()._insert(db, new, key)
        cast(Foreseeing, db).forget_foreseen(_OF_QUEUE)
        if new.has_secrets:
            members.bind(db, job.number, self._member)
        return job

    def _note(self, job: Job) -> None:
        super()._note(job if job.token is None else job.evolve(token=None))  # it is its run's alone
