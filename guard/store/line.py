"""The queue's order, kept in memory so that no submit has to count the queue: who waits, and whose turn is next."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from ..job import Job, Kind
from .facts import Standing, Waiting
from .rows import IS_OPEN

#: Up to this many jobs ahead, of this many owners, are counted by kind in the table.
LOOKED_UP = 200
LOOKED_UP_OWNERS = 50


@dataclass
class Turn:
    """One owner's line: how many jobs wait, how many left it and have not ended, and the last round that served it."""

    queued: int = 0
    under_way: int = 0
    served: int = 0


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
        reordered: whether a waiting job may have another position than its arrival gives it.
        alone: the job under way that had begun before a process died: nothing else begins beside it.
    """

    turns: dict[str, Turn] = field(default_factory=dict)
    kinds: dict[Kind, int] = field(default_factory=dict)
    leases: set[str] = field(default_factory=set)
    number: int = 0
    event_id: int = 0
    reordered: bool = False
    alone: str | None = None

    @classmethod
    def read(cls, db: sqlite3.Connection) -> Line:
        """Read the line from the tables; the count of rounds starts again."""
        leases = {job_id for (job_id,) in db.execute("SELECT job_id FROM leases")}
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
        under_way = db.execute(
            f"SELECT owner, count(*) FROM jobs INDEXED BY jobs_open WHERE {IS_OPEN} "
            "AND state IN ('dispatched', 'running', 'validating') GROUP BY owner"
        )
        for owner, count in under_way:
            turns.setdefault(owner, Turn()).under_way = count
        alone = db.execute(
            f"SELECT job_id FROM jobs INDEXED BY jobs_open WHERE {IS_OPEN} "
            "AND state IN ('dispatched', 'running', 'validating') AND attempts > (state <> 'dispatched')"
        ).fetchone()
        number, event_id = cls.last_number(db, "jobs"), cls.last_number(db, "transitions")
        return cls(turns, kinds, leases, number, event_id, bool(reordered), alone and alone[0])

    @staticmethod
    def last_number(db: sqlite3.Connection, table: str) -> int:
        """The last number that the table has assigned."""
        (number,) = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return int(number)

    @property
    def queued(self) -> int:
        return sum(turn.queued for turn in list(self.turns.values()))

    @property
    def under_way(self) -> int:
        return sum(turn.under_way for turn in list(self.turns.values()))

    def count_queued(self, owner: str) -> int:
        return self.turns.get(owner, Turn()).queued

    def count_open(self, owner: str | None) -> int:
        """Count the owner's jobs (None: everybody's) that have not ended."""
        turns = list(self.turns.values()) if owner is None else [self.turns.get(owner, Turn())]
        return sum(turn.queued + turn.under_way for turn in turns)

    def add_under_way(self, owner: str, change: int) -> None:
        """Count `change` more of the owner's jobs as having left the line without having ended."""
        self.turns.setdefault(owner, Turn()).under_way += change

    def add_queued(self, owner: str, kind: Kind, change: int) -> None:
        """Count `change` more of the owner's jobs as waiting.

        An owner whose line was empty takes turns from now on: rounds in which it wanted nothing count as served.
        """
        turn = self.turns.setdefault(owner, Turn())
        if turn.queued == 0:
            present = [other.served for other in self.turns.values() if other.queued]
            turn.served = max(turn.served, min(present, default=0))
        turn.queued += change
        self.kinds[kind] = self.kinds.get(kind, 0) + change
        if not self.kinds[kind]:
            del self.kinds[kind]

    def pick_owner(self) -> str | None:
        """The waiting owner whose last turn was the longest ago."""
        waiting = [(turn.served, owner) for owner, turn in self.turns.items() if turn.queued]
        return min(waiting)[1] if waiting else None

    def serve(self, owner: str) -> None:
        """Note that the owner has had its turn."""
        self.turns[owner].served = 1 + max(turn.served for turn in self.turns.values())

    def count_ahead(self, owner: str, own: int) -> dict[str, int]:
        """Count, by owner, the jobs before a job of `owner` that `own` of that owner's jobs precede."""
        turns = list(self.turns.items())
        mine = self.turns.get(owner, Turn()).served
        of_others = {
            name: min(turn.queued, own + ((turn.served, name) < (mine, owner))) for name, turn in turns if name != owner
        }
        return {**of_others, owner: own}

    # Where jobs stand. Any thread, with its own connection. --------------------------------------------------

    def locate(self, db: sqlite3.Connection, job: Job) -> Waiting:
        """Where a queued job stands, if every owner keeps taking turns."""
        last = job.number == self.number and not self.reordered
        queued = self.count_queued(job.owner)
        # The tables may be a commit older than the line, on a thread that reads.
        ahead = self.count_ahead(job.owner, max(queued - 1 - (0 if last else _count_behind(db, job)), 0))
        count = sum(ahead.values())
        return Waiting(1 + count, len(self.leases), self._count_kinds(db, job, ahead, count))

    def _count_kinds(self, db: sqlite3.Connection, job: Job, ahead: dict[str, int], count: int) -> dict[Kind, float]:
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
                    "WHERE owner = ? AND state = 'queued' ORDER BY priority DESC, place, number LIMIT ?) GROUP BY 1, 2",
                    (owner, number),
                ):
                    kinds[Kind(template, shape)] = kinds.get(Kind(template, shape), 0) + several
        return kinds

    def list_standings(self, db: sqlite3.Connection) -> list[Standing]:
        """List all queued jobs in the order in which they will run, if every owner keeps taking turns."""
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
    """Count the owner's waiting jobs after this one: they are few, as new jobs stand at the end."""
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
