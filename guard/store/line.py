"""What the queue's order needs at hand, so that no submit has to count the queue: who waits, and whose turn it is."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from ..job import Job, Kind
from .facts import Standing, Waiting

#: Jobs ahead of one, and their owners, that are looked up one by one to see how long they will take.
LOOKED_UP = 200
LOOKED_UP_OWNERS = 50


@dataclass
class Turn:
    """One owner's line: how many jobs wait in it, how many have left it and not ended, in which round it was served."""

    queued: int = 0
    begun: int = 0
    served: int = 0


@dataclass
class Line:
    """Kept by the writer beside its transaction, and read again from the tables whenever one is taken back.

    Attributes:
        kinds: how many waiting jobs there are of which kind.
        turns: by owner; none without open jobs that was never served.
        leased: how many slots are taken.
        number: of the job that came last.
        event_id: of the transition that came last.
        reordered: whether a waiting job may stand elsewhere than in the order of arrival.
    """

    turns: dict[str, Turn] = field(default_factory=dict)
    kinds: dict[Kind, int] = field(default_factory=dict)
    leased: int = 0
    number: int = 0
    event_id: int = 0
    reordered: bool = False

    @classmethod
    def read(cls, db: sqlite3.Connection) -> Line:
        """Rounds begin anew with each process."""
        (leased,) = db.execute("SELECT count(*) FROM leases").fetchone()
        (reordered,) = db.execute(
            "SELECT EXISTS (SELECT 1 FROM jobs WHERE state = 'queued' AND (priority <> 0 OR place <> number))"
        ).fetchone()
        waiting = db.execute(
            "SELECT owner, template, shape, count(*) FROM jobs INDEXED BY jobs_queued WHERE state = 'queued' "
            "GROUP BY owner, template, shape"
        )
        turns: dict[str, Turn] = {}
        kinds: dict[Kind, int] = {}
        for owner, template, shape, count in waiting:
            turns.setdefault(owner, Turn()).queued += count
            kinds[Kind(template, shape)] = kinds.get(Kind(template, shape), 0) + count
        begun = db.execute(
            # The first condition is the index's own; without it SQLite reads through all that ever settled.
            "SELECT owner, count(*) FROM jobs INDEXED BY jobs_open "
            "WHERE state IN ('queued', 'dispatched', 'running', 'validating') "
            "AND state IN ('dispatched', 'running', 'validating') GROUP BY owner"
        )
        for owner, count in begun:
            turns.setdefault(owner, Turn()).begun = count
        return cls(turns, kinds, leased, cls.last(db, "jobs"), cls.last(db, "transitions"), bool(reordered))

    @staticmethod
    def last(db: sqlite3.Connection, table: str) -> int:
        """The last number that the table has given away."""
        (number,) = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return int(number)

    @property
    def queued(self) -> int:
        return sum(turn.queued for turn in list(self.turns.values()))

    def count_queued(self, owner: str) -> int:
        return self.turns.get(owner, Turn()).queued

    def count_open(self, owner: str | None) -> int:
        """How many of the owner's jobs (None: everybody's) have not ended."""
        turns = list(self.turns.values()) if owner is None else [self.turns.get(owner, Turn())]
        return sum(turn.queued + turn.begun for turn in turns)

    def begins(self, owner: str, change: int) -> None:
        """One more or one fewer of the owner's jobs has left the line without having ended."""
        self.turns.setdefault(owner, Turn()).begun += change

    def waits(self, owner: str, kind: Kind, change: int) -> None:
        """One more or one fewer of the owner's jobs waits.

        An owner whose line was empty takes its turn from now, not from the rounds in which it wanted nothing.
        """
        turn = self.turns.setdefault(owner, Turn())
        if turn.queued == 0:
            present = [other.served for other in self.turns.values() if other.queued]
            turn.served = max(turn.served, min(present, default=0))
        turn.queued += change
        self.kinds[kind] = self.kinds.get(kind, 0) + change
        if not self.kinds[kind]:
            del self.kinds[kind]

    def next_owner(self) -> str | None:
        """Whose turn was longest ago, of those who wait."""
        waiting = [(turn.served, owner) for owner, turn in self.turns.items() if turn.queued]
        return min(waiting)[1] if waiting else None

    def serve(self, owner: str) -> None:
        self.turns[owner].served = 1 + max(turn.served for turn in self.turns.values())

    def ahead(self, owner: str, own: int) -> dict[str, int]:
        """How many jobs of each owner come before that owner's job that has `own` of its own in front."""
        turns = list(self.turns.items())
        mine = self.turns.get(owner, Turn()).served
        found = {
            name: min(turn.queued, own + ((turn.served, name) < (mine, owner))) for name, turn in turns if name != owner
        }
        return {**found, owner: own}

    # Where jobs stand. The writer's thread, or another that reads. ---------------------------------------------

    def locate(self, db: sqlite3.Connection, job: Job) -> Waiting:
        """Where a queued job stands if every owner goes on taking turns."""
        last = job.number == self.number and not self.reordered
        queued = self.count_queued(job.owner)
        # A reader's view of the table may be a commit older than the line.
        ahead = self.ahead(job.owner, max(queued - 1 - (0 if last else _count_behind(db, job)), 0))
        count = sum(ahead.values())
        return Waiting(1 + count, self.leased, self._count_kinds(db, job, ahead, count))

    def _count_kinds(self, db: sqlite3.Connection, job: Job, ahead: dict[str, int], count: int) -> dict[Kind, float]:
        """What the jobs before this one are. Looked up one by one only where they are few."""
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
                    "WHERE owner = ? AND state = 'queued' ORDER BY priority DESC, place, number LIMIT ?) GROUP BY 1, 2",
                    (owner, number),
                ):
                    kinds[Kind(template, shape)] = kinds.get(Kind(template, shape), 0) + several
        return kinds

    def list_standings(self, db: sqlite3.Connection) -> list[Standing]:
        """All queued jobs, next one first, if every owner goes on taking turns."""
        turns = dict(self.turns)
        rows, own, last = [], 0, None
        for owner, *facts in db.execute(
            "SELECT owner, job_id, client_id, locale, template, shape FROM jobs INDEXED BY jobs_queued "
            "WHERE state = 'queued' ORDER BY owner, priority DESC, place, number"
        ):
            own, last = (own + 1 if owner == last else 0), owner
            rows.append((own, turns.get(owner, Turn()).served, owner, facts))
        rows.sort(key=lambda row: row[:3])
        return [
            Standing(job_id, owner, client_id, locale, Kind(template, shape))
            for _own, _served, owner, (job_id, client_id, locale, template, shape) in rows
        ]


def _count_behind(db: sqlite3.Connection, job: Job) -> int:
    """How many of the owner's waiting jobs come after this one. Counted from behind: new jobs stand at the end."""
    (place,) = db.execute("SELECT place FROM jobs WHERE number = ?", (job.number,)).fetchone()
    (later,) = db.execute(
        "SELECT count(*) FROM jobs INDEXED BY jobs_queued WHERE owner = ? AND state = 'queued' "
        "AND priority = ? AND (place, number) > (?, ?)",
        (job.owner, job.priority, place, job.number),
    ).fetchone()
    (lower,) = db.execute(
        "SELECT count(*) FROM jobs INDEXED BY jobs_queued WHERE owner = ? AND state = 'queued' AND priority < ?",
        (job.owner, job.priority),
    ).fetchone()
    return int(later + lower)
