# Over 400 lines: the order of the queue and the counts that are kept with it are changed together, by each transition.

"""The queue's order: who waits, and whose turn is next.

Owners take turns, and within an owner's line its users do: each of a user's waiting jobs has a round of its own. A
round is written with the job, when it comes in, so that the order is that of an index, and a position is counted along
it.

Counts are kept in memory, so that no submit has to count the queue; whose turn it is, in the table `turns`, too.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..job import Job, JobState, Kind, NewJob
from .database import Database, last_number
from .facts import Arrival, Standing, Waiting
from .rows import IS_OPEN

#: Up to this many jobs ahead, of this many owners, are counted by kind in the table.
LOOKED_UP = 200
LOOKED_UP_OWNERS = 50
#: The owner's jobs of the same priority and round before a job are counted from either end up to so many, by who asks
#: for its position, and by its submit, which other commits wait for. Between the two ends their number is an estimate.
COUNTED = 10_000
COUNTED_BY_SUBMIT = 200
#: A user's jobs have rounds of their own up to so many ahead; what waits beyond shares the last one.
ROUNDS = 1000
#: So many jobs are listed in the order in which they will run.
STANDING = 10_000

LAST_ROUND = (
    "SELECT round FROM jobs INDEXED BY jobs_with_turns WHERE owner = ? AND user_id = ? AND priority = ? "
    "AND user_id <> '' AND (state IN ('queued', 'dispatched') OR started_at_ms IS NOT NULL) "
    "ORDER BY round DESC LIMIT 1"
)
# In an order that no other index has: PostgreSQL knows no INDEXED BY.
QUEUED_OF_USER = (
    "SELECT count(*) FROM (SELECT 1 FROM jobs INDEXED BY jobs_of_user_by_state WHERE owner = ? "
    "AND user_id BETWEEN ? AND ? AND user_id <> '' AND state = 'queued' ORDER BY user_id LIMIT ?) AS part"
)


@dataclass
class Turn:
    """One owner's line: how many jobs wait, how many left it and have not ended, the bytes of the bodies of all those,
    and the last round that served it."""

    queued: int = 0
    under_way: int = 0
    body_bytes: int = 0
    served: int = 0
    #: How many wait of each priority and round, and the last round of each priority that was served.
    rounds: dict[tuple[int, int], int] = field(default_factory=dict)
    last_rounds: dict[int, int] = field(default_factory=dict)
    #: Behind that place none of them stands; the last one may have left.
    last_places: dict[tuple[int, int], float] = field(default_factory=dict)

    def add(self, priority: int, round_: int, change: int) -> None:
        self.queued += change
        at = priority, round_
        self.rounds[at] = self.rounds.get(at, 0) + change
        if not self.rounds[at]:
            del self.rounds[at]
            self.last_places.pop(at, None)

    def note_place(self, priority: int, round_: int, place: float) -> None:
        """A job that waits has that place."""
        at = priority, round_
        self.last_places[at] = max(place, self.last_places.get(at, place))

    def is_last(self, priority: int, round_: int, place: float) -> bool:
        """Whether the newest job, with that place, is certainly the last of its priority and round."""
        return place >= self.last_places.get((priority, round_), math.inf)

    def count_before(self, priority: int, round_: int) -> int:
        """Count what waits of a higher priority, and of this one in earlier rounds."""
        mine = -priority, round_
        return sum(count for (other, its), count in list(self.rounds.items()) if (-other, its) < mine)


#: Of an owner that has none. Only to be read.
_NONE = Turn()


@dataclass
class Line:
    """The line of each owner, and whose turn it is. The writer keeps it in step with its transaction, and reads it
    again from the tables after a rollback.

    Attributes:
        turns: by owner, for owners with open jobs or that were served before.
        kinds: how many waiting jobs there are of each kind.
        leases: the jobs that hold slots.
        number: the newest job's.
        event_id: the newest change of state's.
        queued: how many jobs wait.
        alone: the job under way that had begun before a process died: nothing else begins beside it.
        here: the jobs that this box has under way, if it shares the queue with others; then `leases` and `alone` are
            its own, too.
    """

    turns: dict[str, Turn] = field(default_factory=dict)
    kinds: dict[Kind, int] = field(default_factory=dict)
    leases: set[str] = field(default_factory=set)
    number: int = 0
    event_id: int = 0
    queued: int = 0
    alone: str | None = None
    here: set[str] | None = None

    @classmethod
    def read(cls, db: Database, box: str | None = None) -> Line:
        """Read the line from the tables; `box`: of this box among others."""
        mine, whose = ("", ()) if box is None else (" WHERE holder = ?", (box,))
        leases = {job_id for (job_id,) in db.execute(f"SELECT job_id FROM leases{mine}", whose)}
        waiting = db.execute(
            "SELECT owner, priority, round, template, shape, count(*), sum(body_bytes), max(place) "
            "FROM jobs INDEXED BY jobs_queued "
            "WHERE state = 'queued' GROUP BY owner, priority, round, template, shape"
        )
        rounds = db.execute("SELECT owner, served FROM turns WHERE user_id = ''")
        turns: dict[str, Turn] = {owner: Turn(served=served) for owner, served in rounds}
        kinds: dict[Kind, int] = {}
        for owner, priority, last in db.execute("SELECT owner, priority, round FROM rounds"):
            turns.setdefault(owner, Turn()).last_rounds[priority] = last
        for owner, priority, round_, template, shape, count, body_bytes, last in waiting:
            turn = turns.setdefault(owner, Turn())
            turn.add(priority, round_, count)
            turn.note_place(priority, round_, last)
            turn.body_bytes += body_bytes
            kinds[Kind(template, shape)] = kinds.get(Kind(template, shape), 0) + count
        under_way = db.execute(
            f"SELECT owner, count(*), sum(body_bytes) FROM jobs INDEXED BY jobs_open WHERE {IS_OPEN} "
            "AND state IN ('dispatched', 'running', 'validating') GROUP BY owner"
        )
        for owner, count, body_bytes in under_way:
            turn = turns.setdefault(owner, Turn())
            turn.under_way = count
            turn.body_bytes += body_bytes
        mine = "" if box is None else "AND box = ? "
        alone = db.execute(
            f"SELECT job_id FROM jobs INDEXED BY jobs_open WHERE {IS_OPEN} {mine}AND (state = 'dispatched' "
            "AND attempts > 0 OR state IN ('running', 'validating') AND attempts > 1)",
            whose,
        ).fetchone()
        here = None
        if box is not None:
            query = (
                "SELECT job_id FROM jobs INDEXED BY jobs_of_box WHERE box = ? AND box IS NOT NULL "
                "AND state IN ('dispatched', 'running', 'validating')"
            )
            here = {job_id for (job_id,) in db.execute(query, whose)}
        number, event_id = last_number(db, "jobs"), last_number(db, "transitions")
        queued = sum(turn.queued for turn in turns.values())
        return cls(turns, kinds, leases, number, event_id, queued, alone and alone[0], here)

    @property
    def under_way(self) -> int:
        return sum(turn.under_way for turn in list(self.turns.values()))

    @property
    def under_way_here(self) -> int:
        return self.under_way if self.here is None else len(self.here)

    def count_queued(self, owner: str) -> int:
        return self.turns.get(owner, _NONE).queued

    def count_open(self, owner: str | None) -> int:
        """Count the owner's jobs (None: everybody's) that have not ended."""
        turns = list(self.turns.values()) if owner is None else [self.turns.get(owner, _NONE)]
        return sum(turn.queued + turn.under_way for turn in turns)

    def count_open_bytes(self, owner: str) -> int:
        """Count the bytes of the bodies of the owner's jobs that have not ended."""
        return self.turns.get(owner, _NONE).body_bytes

    def add_open_bytes(self, owner: str, change: int) -> None:
        self._find_turn(owner).body_bytes += change

    def add_under_way(self, owner: str, change: int) -> None:
        """Count `change` more of the owner's jobs as having left the line without having ended."""
        self._find_turn(owner).under_way += change

    def add_queued(self, db: Database, job: Job, change: int) -> None:
        """Count the job as waiting (+1), or as waiting no more (-1)."""
        turn = self._find_turn(job.owner)
        if turn.queued == 0:
            self.set_served(db, job.owner, self.find_served(job.owner))
        self._count_queued(job, change)

    def find_served(self, owner: str) -> int:
        """When the owner counts as served last once another job of it waits.

        An owner whose line was empty takes turns from now on: rounds in which it wanted nothing count as served. Where
        nobody waits but who had the last turn, it goes before that.
        """
        turn = self.turns.get(owner, _NONE)
        if turn.queued:
            return turn.served
        first = min((other.served for other in self.turns.values() if other.queued), default=0)
        latest = max((other.served for other in self.turns.values()), default=0)
        return max(turn.served, first - (first == latest > 0))

    def _count_queued(self, job: Job, change: int) -> None:
        kind = job.kind
        self._find_turn(job.owner).add(job.priority, job.round, change)
        self.queued += change
        self.kinds[kind] = self.kinds.get(kind, 0) + change
        if not self.kinds[kind]:
            del self.kinds[kind]

    def _find_turn(self, owner: str) -> Turn:
        """The owner's, made where it has none."""
        turn = self.turns.get(owner)
        if turn is None:
            turn = self.turns[owner] = Turn()
        return turn

    def follow(self, arrival: Arrival) -> None:
        """Count a change that another box has made; `arrivals.News` has whose turn it is since."""
        job, before, after = arrival.job, arrival.before, arrival.job.state
        self.number, self.event_id = max(self.number, job.number), job.event_id
        if before is None:
            self.add_open_bytes(job.owner, job.body_bytes)
        elif after.settled:
            self.add_open_bytes(job.owner, -job.body_bytes)
        if (is_queued := after is JobState.QUEUED) != (before is JobState.QUEUED):
            self._count_queued(job, +1 if is_queued else -1)
        if is_queued:
            self.turns[job.owner].note_place(job.priority, job.round, arrival.place)
        was_under_way = before is not None and is_under_way(before)
        self.add_under_way(job.owner, is_under_way(after) - was_under_way)
        if not is_under_way(after):
            self.forget_here(job.job_id)

    def take_turns(self, served: Mapping[str, int], rounds: Iterable[tuple[str, int, int]]) -> None:
        """Whose turns have passed since, as the tables say."""
        for owner, round_ in served.items():
            self.turns.setdefault(owner, Turn()).served = round_
        for owner, priority, last in rounds:
            self.turns.setdefault(owner, Turn()).last_rounds[priority] = last

    def forget_here(self, job_id: str) -> None:
        """The job is no longer under way."""
        if self.alone == job_id:
            self.alone = None
        if self.here is not None:
            self.here.discard(job_id)

    def pick_owner(self, but: Collection[str] = ()) -> str | None:
        """The waiting owner whose last turn was the longest ago; none of `but`."""
        waiting = [(turn.served, owner) for owner, turn in self.turns.items() if turn.queued and owner not in but]
        return min(waiting)[1] if waiting else None

    def count_waiting_owners(self) -> int:
        return sum(turn.queued > 0 for turn in self.turns.values())

    def list_owners(self, but: Collection[str] = ()) -> list[str]:
        """The waiting owners, the one whose last turn was the longest ago first; none of `but`."""
        waiting = [(turn.served, owner) for owner, turn in self.turns.items() if turn.queued and owner not in but]
        return [owner for _served, owner in sorted(waiting)]

    def find_round(self, db: Database, new: NewJob) -> int:
        """The round of a new job among those of its owner's users.

        A user's jobs have a round each, from the one that is being served; a job of no user belongs to that one, and so
        does one that goes to the front. So everybody's first job comes before anybody's second.
        """
        current = self.turns.get(new.owner, _NONE).last_rounds.get(new.priority, 0)
        if not new.user or new.front:
            return current
        row = db.execute(LAST_ROUND, (new.owner, new.user, new.priority)).fetchone()
        return current if row is None else min(max(current, row[0] + 1), current + ROUNDS)

    def count_queued_of_user(self, db: Database, owner: str, user: str, at_most: int) -> int:
        (number,) = db.execute(QUEUED_OF_USER, (owner, user, user, at_most)).fetchone()
        return int(number)

    def serve(self, db: Database, job: Job) -> None:
        """Note that the job's owner has had its turn, and which round of its users that was."""
        served = self.turns[job.owner].served
        latest = max((turn.served for owner, turn in self.turns.items() if owner != job.owner), default=0)
        if served <= latest:  # else it was the last one to have a turn already, and nothing is to be written
            self.set_served(db, job.owner, 1 + latest)
        last_rounds = self.turns[job.owner].last_rounds
        if job.round > last_rounds.get(job.priority, 0):
            last_rounds[job.priority] = job.round
            db.execute(
                "INSERT INTO rounds VALUES (?, ?, ?) "
                "ON CONFLICT (owner, priority) DO UPDATE SET round = excluded.round",
                (job.owner, job.priority, job.round),
            )

    def set_served(self, db: Database, owner: str, served: int) -> None:
        """Note when the owner had its last turn."""
        if self.turns[owner].served != served:
            self.turns[owner].served = served
            db.execute(
                "INSERT INTO turns (owner, user_id, served) VALUES (?, '', ?) "
                "ON CONFLICT (owner, user_id) DO UPDATE SET served = excluded.served",
                (owner, served),
            )

    def count_ahead(self, owner: str, own: int) -> dict[str, int]:
        """Count, by owner, the jobs before a job of `owner` that `own` of that owner's jobs precede."""
        turns = list(self.turns.items())
        mine = self.turns.get(owner, _NONE).served
        of_others = {
            name: min(turn.queued, own + ((turn.served, name) < (mine, owner))) for name, turn in turns if name != owner
        }
        return {**of_others, owner: own}

    # Where jobs stand. Any thread, with its own connection. --------------------------------------------------

    def locate(self, db: Database, job: Job, *, by_submit: bool = False, place: float | None = None) -> Waiting:
        """Where a queued job stands, if every owner keeps taking turns; `by_submit`: see `COUNTED_BY_SUBMIT`.

        `place`: of the newest job, which its submit knows. Most stand at the end of their line, and nothing is counted.
        """
        counted = COUNTED_BY_SUBMIT if by_submit else COUNTED
        turn = self.turns.get(job.owner, _NONE)
        if place is not None and turn.is_last(job.priority, job.round, place):
            of_round = turn.rounds.get((job.priority, job.round), 1)
            own = turn.count_before(job.priority, job.round) + of_round - 1
        else:
            own = self._count_own_ahead(db, job, counted)
        ahead = self.count_ahead(job.owner, own)
        count = sum(ahead.values())
        return Waiting(1 + count, len(self.leases), self._count_kinds(db, job, ahead, count))

    def _count_own_ahead(self, db: Database, job: Job, counted: int) -> int:
        """Count the owner's waiting jobs before this one."""
        turn = self.turns.get(job.owner, _NONE)
        row = db.execute("SELECT place FROM jobs WHERE number = ?", (job.number,)).fetchone()
        if row is None:
            return 0
        of_round = (
            "FROM jobs INDEXED BY jobs_queued WHERE owner = ? AND state = 'queued' AND priority = ? AND round = ?"
        )
        whose, place = (job.owner, job.priority, job.round), (*row, job.number)

        def count(side: str) -> int:
            query = f"SELECT count(*) FROM (SELECT 1 {of_round} AND (place, number) {side} (?, ?) LIMIT ?) AS part"
            (number,) = db.execute(query, (*whose, *place, counted)).fetchone()
            return int(number)

        # The tables may be a commit older than the counts, on a thread that reads.
        of_all = max(turn.rounds.get((job.priority, job.round), 0) - 1, 0)
        if (behind := count(">")) < counted:
            ahead = of_all - behind
        elif (before := count("<")) < counted:
            ahead = before
        else:
            ends = [
                db.execute(f"SELECT place {of_round} ORDER BY place {way}, number {way} LIMIT 1", whose).fetchone()
                for way in ("ASC", "DESC")
            ]
            (first,), (last,) = (end or row for end in ends)
            share = (place[0] - first) / (last - first) if last > first else 0.5
            ahead = min(max(round(of_all * share), counted), of_all - counted)
        return turn.count_before(job.priority, job.round) + max(ahead, 0)

    def _count_kinds(self, db: Database, job: Job, ahead: dict[str, int], count: int) -> dict[Kind, float]:
        """Count the jobs before this one by kind: exactly where they are few, otherwise by each kind's share."""
        kinds: dict[Kind, float] = {**self.kinds}
        total = sum(kinds.values())
        if count >= total - 1:
            kinds[job.kind] = kinds.get(job.kind, 0) - 1
            return {kind: number for kind, number in kinds.items() if number > 0}
        if count > LOOKED_UP or len(ahead) > LOOKED_UP_OWNERS:
            return {kind: number * count / total for kind, number in kinds.items()}
        kinds = {}
        for owner, number in ahead.items():
            if number:
                for template, shape, several in db.execute(
                    "SELECT template, shape, count(*) FROM (SELECT template, shape FROM jobs INDEXED BY jobs_queued "
                    "WHERE owner = ? AND state = 'queued' ORDER BY priority DESC, round, place, number LIMIT ?) "
                    "AS ahead GROUP BY template, shape",
                    (owner, number),
                ):
                    kinds[Kind(template, shape)] = kinds.get(Kind(template, shape), 0) + several
        return kinds

    def list_standings(self, db: Database) -> list[Standing]:
        """List the first `STANDING` jobs in the order in which they will run, if every owner keeps taking turns."""
        owners = [(turn.served, owner) for owner, turn in list(self.turns.items()) if turn.queued]
        reach = _find_reach([turn.queued for turn in list(self.turns.values())])
        lines = [_walk(db, served, owner, reach) for served, owner in owners]
        rows = itertools.islice(heapq.merge(*lines, key=lambda row: row[:3]), STANDING)
        return [
            Standing(job_id, owner, client_id, locale, Kind(template, shape))
            for _own, _served, owner, (job_id, client_id, locale, template, shape) in rows
        ]


def is_under_way(state: JobState) -> bool:
    """Whether a job in that state has left the line and has not ended."""
    return state is not JobState.QUEUED and not state.settled


def _find_reach(lengths: list[int]) -> int:
    """How far down the lines of these lengths the first `STANDING` jobs reach."""
    if sum(lengths) <= STANDING:
        return STANDING  # the tables may be ahead of the counts
    reach = STANDING // max(len(lengths), 1)
    while sum(min(length, reach) for length in lengths) < STANDING:
        reach += 1 + reach // 8
    return reach


def _walk(db: Database, served: int, owner: str, reach: int) -> Iterator[tuple[int, int, str, tuple[str, ...]]]:
    """An owner's line from its head, read as far as it is used: place in it, round, owner, facts."""
    query = (
        "SELECT job_id, client_id, locale, template, shape FROM jobs INDEXED BY jobs_queued "
        "WHERE owner = ? AND state = 'queued' ORDER BY priority DESC, round, place, number LIMIT ?"
    )
    for own, facts in enumerate(db.execute(query, (owner, reach))):
        yield own, served, owner, facts
