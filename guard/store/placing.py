"""Which of an owner's waiting jobs a box takes: the first that it may run, or one whose models it has loaded.

Boxes differ: in what node classes, models and memory they have. Whether one can run a job, ComfyUI says as the job is
handed to it; a refusal counts for all jobs of the same needs, for some minutes. Only PostgreSQL has several boxes, so
these statements are in its words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from .database import Database
from .members import NOW_MS, Member
from .rows import COLUMNS

#: Of so many of an owner's jobs, the first in line and of equal priority, one whose models are loaded may go first.
NEAR = 20
#: So many kinds of jobs of one owner are looked through for one that the box may run.
KINDS = 200
#: For so long a box does not try again what it has refused.
REFUSED_MS = 600_000
#: Begin the needs of a job that is unlike all others: its own prompt was refused, or it wants a larger card.
_ALONE, _LARGER = "job:", "larger:"

LIGHT = (
    "number, priority, round, place, needs, models, min_vram_mb, only_box, passed_at_ms, "
    "(SELECT string_agg(refusals.box, ' ') FROM refusals WHERE refusals.needs = jobs.needs "
    f"AND refusals.at_ms > {NOW_MS} - {REFUSED_MS}) AS refusers"
)
ORDER = "priority DESC, round, place, number"

#: Questions that are asked before their answers are wanted. Mostly the first job in line is the one that is taken.
WHO_IS_THERE = (
    f"SELECT box, epoch, vram_mb, {NOW_MS} FROM boxes WHERE until_ms > {NOW_MS} AND (max_jobs > 0 OR box = ?)"
)
FIRST = f"SELECT {LIGHT} FROM jobs WHERE owner = ? AND state = 'queued' ORDER BY {ORDER} LIMIT {NEAR}"
HEAD = f"SELECT {COLUMNS} FROM jobs WHERE owner = ? AND state = 'queued' ORDER BY {ORDER} LIMIT 1"
BODY_OF_HEAD = (
    "SELECT number, body FROM bodies WHERE number = "
    f"(SELECT number FROM jobs WHERE owner = ? AND state = 'queued' ORDER BY {ORDER} LIMIT 1)"
)


class Runner(NamedTuple):
    """A box that lives and runs jobs; its card's memory, where that is known."""

    box: str
    vram_mb: int | None


class Candidate(NamedTuple):
    """What decides on a waiting job. `refusers`: boxes that have refused its needs lately, with spaces between."""

    number: int
    priority: int
    round: int
    place: float
    needs: str
    models: str | None
    min_vram_mb: int | None
    only_box: str | None
    passed_at_ms: int | None
    refusers: str | None

    @property
    def rank(self) -> tuple[int, int, float, int]:
        return -self.priority, self.round, self.place, self.number

    @property
    def names(self) -> frozenset[str]:
        return frozenset(json.loads(self.models)) if self.models else frozenset()

    def may_go_to(self, box: str, runners: Sequence[Runner]) -> bool:
        """Whether the box may take it. Where all have refused it, or no card is large enough, the best of them may."""
        if self.only_box is not None:
            return self.only_box == box
        if self.min_vram_mb is None and self.refusers is None:
            return True
        return any(runner.box == box for runner in self.list_able(runners))

    def list_able(self, runners: Sequence[Runner]) -> list[Runner]:
        """The boxes that may take it."""
        refusers = set((self.refusers or "").split())
        able = [runner for runner in runners if runner.box not in refusers] or list(runners)
        least = self.min_vram_mb or 0
        fits = [runner for runner in able if runner.vram_mb is None or runner.vram_mb >= least]
        most = max((runner.vram_mb or 0 for runner in able), default=0)
        return fits or [runner for runner in able if runner.vram_mb == most]


@dataclass(frozen=True)
class Choice:
    """The job that a box takes, and the first that it might have taken."""

    job: Candidate
    first: Candidate


class There:
    """The boxes that are there. Asked at once and read when they are wanted: one question to the engine, and not two.

    Attributes:
        runners: those that live and run jobs; none where this box's own lease does not hold now.
        now_ms: the engine's time.
    """

    def __init__(self, db: Database, member: Member) -> None:
        self._member = member
        self._asked = db.execute(WHO_IS_THERE, (member.box,))

    @cached_property
    def _rows(self) -> list[tuple[str, str, int | None, int]]:
        rows = self._asked.fetchall()
        member = self._member
        return rows if any((box, epoch) == (member.box, member.epoch) for box, epoch, *_rest in rows) else []

    @cached_property
    def runners(self) -> list[Runner]:
        return [Runner(box, vram_mb) for box, _epoch, vram_mb, _now_ms in self._rows]

    @property
    def now_ms(self) -> int:
        return int(self._rows[0][3]) if self._rows else 0


def find(db: Database, owner: str, member: Member, there: There) -> Choice | None:
    """The owner's job that the box takes next: one of those near the head of the line, else one of any kind."""
    for list_candidates in (_list_first, _list_heads):
        candidates = list_candidates(db, owner)
        if not there.runners:
            return None
        able = [job for job in candidates if job.may_go_to(member.box, there.runners)]
        if able:
            return choose(able, there.now_ms, member.loaded, member.affinity_wait_ms)
    return None


def choose(able: Sequence[Candidate], now_ms: int, loaded: frozenset[str], wait_ms: int) -> Choice:
    """The first of those that a box may take, unless a later one's models are loaded, and the first's are not.

    Nobody is passed over for longer than that.
    """
    first = able[0]
    if not loaded or first.names <= loaded:
        return Choice(first, first)
    if not 0 <= now_ms - (first.passed_at_ms or now_ms) < wait_ms:
        return Choice(first, first)
    near = (job for job in able[1:] if job.priority == first.priority and job.models)
    return Choice(next((job for job in near if job.names <= loaded), first), first)


def _list_first(db: Database, owner: str) -> Iterable[Candidate]:
    asked = db.execute(FIRST, (owner,))
    return (Candidate(*row) for row in asked)


def _list_heads(db: Database, owner: str) -> Iterable[Candidate]:
    """The first job of each of the owner's kinds: however many that no box can run now stand before the others."""
    waits = "owner = ? AND state = 'queued' AND needs <> ''"
    query = (
        f"WITH RECURSIVE kinds (needs, place) AS ((SELECT needs, 1 FROM jobs WHERE {waits} ORDER BY needs LIMIT 1) "
        f"UNION ALL SELECT (SELECT jobs.needs FROM jobs WHERE {waits} AND jobs.needs > kinds.needs "
        f"ORDER BY jobs.needs LIMIT 1), place + 1 FROM kinds WHERE kinds.needs IS NOT NULL AND place < {KINDS}) "
        f"SELECT head.* FROM kinds, LATERAL (SELECT {LIGHT} FROM jobs WHERE {waits} AND jobs.needs = kinds.needs "
        f"ORDER BY {ORDER} LIMIT 1) AS head WHERE kinds.needs IS NOT NULL"
    )
    found = db.execute(query, (owner, owner, owner)).fetchall()
    return sorted((Candidate(*row) for row in found), key=lambda job: job.rank)


def note_passed(db: Database, choice: Choice, now_ms: int) -> None:
    """Note since when others go before the first in line."""
    if choice.first is not choice.job and choice.first.passed_at_ms is None:
        db.execute("UPDATE jobs SET passed_at_ms = ? WHERE number = ?", (now_ms, choice.first.number))


# What a box could not run. ------------------------------------------------------------------------------------------


class Refused(NamedTuple):
    """Why a box cannot run a job.

    Attributes:
        code: of the error.
        is_of_needs: it would be the same for any prompt of these node classes and models.
        wants_memory: a card with more memory may be able to.
    """

    code: str
    is_of_needs: bool = False
    wants_memory: bool = False


def refuse(db: Database, number: int, job_id: str, member: Member, refused: Refused) -> bool:
    """Note it; whether another box may be able to run the job."""
    there = There(db, member)
    row = db.execute(f"SELECT {LIGHT} FROM jobs WHERE number = ?", (number,)).fetchone()
    if row is None or not there.runners:
        return False
    job, runners, now_ms = Candidate(*row), there.runners, there.now_ms
    if job.only_box is not None:
        return False
    if refused.wants_memory:
        return _ask_for_memory(db, job, job_id, member, runners, refused, now_ms)
    if not job.needs or not (refused.is_of_needs or job.needs.startswith((_ALONE, _LARGER))):
        job = _set_apart(db, job, _ALONE + job_id)
    _note(db, job.needs, member.box, refused.code, now_ms)
    refusers = {member.box, *_list_refusers(db, job.needs, now_ms - REFUSED_MS)}
    return any(runner.box not in refusers for runner in runners)


def _ask_for_memory(
    db: Database,
    job: Candidate,
    job_id: str,
    member: Member,
    runners: Iterable[Runner],
    refused: Refused,
    now_ms: int,
) -> bool:
    """Send the job to a larger card; once."""
    own_mb = next((runner.vram_mb for runner in runners if runner.box == member.box), None)
    if own_mb is None or not any((runner.vram_mb or 0) > own_mb for runner in runners) or job.needs.startswith(_LARGER):
        return False
    job = _set_apart(db, job, _LARGER + job_id)
    db.execute("UPDATE jobs SET min_vram_mb = ? WHERE number = ?", (own_mb + 1, job.number))
    _note(db, job.needs, member.box, refused.code, now_ms)
    return True


def _set_apart(db: Database, job: Candidate, needs: str) -> Candidate:
    db.execute("UPDATE jobs SET needs = ? WHERE number = ?", (needs, job.number))
    return job._replace(needs=needs)


def _note(db: Database, needs: str, box: str, code: str, now_ms: int) -> None:
    db.execute("DELETE FROM refusals WHERE at_ms <= ?", (now_ms - REFUSED_MS,))
    db.execute(
        "INSERT INTO refusals VALUES (?, ?, ?, ?) "
        "ON CONFLICT (needs, box) DO UPDATE SET code = excluded.code, at_ms = excluded.at_ms",
        (needs, box, code, now_ms),
    )


def _list_refusers(db: Database, needs: str, since_ms: int) -> list[str]:
    return [box for (box,) in db.execute("SELECT box FROM refusals WHERE needs = ? AND at_ms > ?", (needs, since_ms))]


def forget_refusals(db: Database, box: str) -> None:
    """The box has begun anew: it may have by now what it lacked."""
    db.execute("DELETE FROM refusals WHERE box = ?", (box,))
