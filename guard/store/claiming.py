"""A claim that the engine makes by itself, in one statement: nobody has the turn while this process thinks.

Where sixteen boxes claim, each of them would otherwise hold up the others until its own thread has run twice. It does
what :meth:`.transitions.Transitions.claim` does, for the plain case. Every other one is left to that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..job import Job
from .arrivals import AT_ONCE
from .database import Database, Rows
from .members import NOW_MS, Member
from .placing import LIGHT, NEAR, ORDER
from .rows import COLUMNS, read_job

#: Where more owners wait, the line in memory finds the next one sooner.
OWNERS = 32

#: For so long no claim is tried in this way after one that was none of the plain case.
PAUSE_S = 1.0

_PLAIN = "min_vram_mb IS NULL AND refusers IS NULL AND (only_box IS NULL OR only_box = $box)"
#: No webhook wants to hear of it, and nothing has died of it before.
_QUIET = "jobs.attempts = 0 AND (jobs.webhook IS NULL OR jobs.webhook NOT LIKE '%\"dispatched\"%')"
#: The number of the newest change of state.
LAST = "greatest((SELECT max(event_id) FROM transitions), (SELECT last FROM numbers WHERE name = 'transitions'), 0)"
#: What others have changed since.
NEWS = f"SELECT 1 FROM transitions WHERE event_id > $followed LIMIT {AT_ONCE}"

#: The owner whose turn it is, his first jobs, and of them the one that this box takes: see `placing.choose`. An owner's
#: turn is numbered by the change, which no turn before has reached: each has made a change.
_CLAIM = f"""
WITH RECURSIVE owners (owner) AS (
    (SELECT owner FROM jobs WHERE state = 'queued' ORDER BY owner LIMIT 1)
    UNION ALL
    SELECT (SELECT owner FROM jobs WHERE state = 'queued' AND jobs.owner > owners.owner ORDER BY owner LIMIT 1)
    FROM owners WHERE owners.owner IS NOT NULL
), turn AS (
    SELECT owners.owner FROM owners LEFT JOIN turns ON turns.owner = owners.owner AND user_id = ''
    WHERE owners.owner IS NOT NULL ORDER BY coalesce(served, 0), owners.owner LIMIT 1
), near AS MATERIALIZED (
    SELECT row_number() OVER (ORDER BY {ORDER}) AS nth, light.* FROM turn, LATERAL (
        SELECT {LIGHT} FROM jobs WHERE jobs.owner = turn.owner AND state = 'queued' ORDER BY {ORDER} LIMIT {NEAR}
    ) AS light
), first AS (
    SELECT number AS its_number, priority AS its_priority, round AS its_round, passed_at_ms AS its_passed_at_ms,
        $loaded::jsonb = '[]' OR coalesce(models, '[]')::jsonb <@ $loaded::jsonb
        OR NOT {NOW_MS} - coalesce(passed_at_ms, {NOW_MS}) BETWEEN 0 AND $wait - 1 AS stays
    FROM near WHERE nth = 1
), chosen AS (
    SELECT number AS chosen, its_number, its_round, its_passed_at_ms, body, {LAST} + 1 AS change
    FROM (
        SELECT near.number, first.* FROM near, first
        WHERE nth = 1 OR NOT stays AND priority = its_priority AND models::jsonb <@ $loaded::jsonb
        ORDER BY nth = 1, nth LIMIT 1
    ) AS one JOIN jobs USING (number) JOIN bodies USING (number)
    WHERE {_QUIET} AND (SELECT bool_and({_PLAIN}) FROM near)
    AND EXISTS (SELECT 1 FROM boxes WHERE boxes.box = $box AND epoch = $epoch AND until_ms > {NOW_MS})
    AND (SELECT count(*) FROM ({NEWS}) AS news) < {AT_ONCE}
), claimed AS (
    UPDATE jobs SET state = 'dispatched', event_id = change, box = $box, token = $token
    FROM chosen WHERE number = chosen RETURNING jobs.*
), changed AS (
    INSERT INTO transitions SELECT event_id, job_id, greatest($at, created_at_ms), state FROM claimed
), leased AS (
    INSERT INTO leases (job_id, holder, deadline_ms) SELECT job_id, $box, 0 FROM claimed
), served AS (
    INSERT INTO turns (owner, user_id, served) SELECT owner, '', event_id FROM claimed
    ON CONFLICT (owner, user_id) DO UPDATE SET served = excluded.served
), rounded AS (
    INSERT INTO rounds SELECT owner, priority, its_round FROM claimed, chosen WHERE its_round > coalesce((
        SELECT last.round FROM rounds AS last WHERE last.owner = claimed.owner AND last.priority = claimed.priority), 0)
    ON CONFLICT (owner, priority) DO UPDATE SET round = excluded.round
), passed AS (
    UPDATE jobs SET passed_at_ms = {NOW_MS} FROM chosen
    WHERE number = its_number AND its_number <> chosen AND its_passed_at_ms IS NULL
), signed AS (
    UPDATE epoch SET writer = $writer WHERE EXISTS (SELECT 1 FROM claimed)
), noted AS (
    UPDATE writers SET commits = $commits WHERE name = $name AND EXISTS (SELECT 1 FROM claimed)
)
SELECT (SELECT count(*) FROM near), found.* FROM (VALUES (1)) AS always
LEFT JOIN (SELECT its_round, models, body, {COLUMNS} FROM claimed, chosen) AS found ON true
"""
_NAMES = "box", "epoch", "followed", "loaded", "wait", "token", "at", "writer", "commits", "name"
#: As both engines' statements are written.
_FIND = f"SELECT body, {COLUMNS} FROM jobs JOIN bodies USING (number) WHERE box = ? AND box IS NOT NULL AND token = ?"


def number_names(query: str, names: Sequence[str]) -> str:
    """Write values by their places and not by their names."""
    for place, name in enumerate(names, start=1):
        query = query.replace(f"${name}", f"${place}")
    return query


_CLAIM = number_names(_CLAIM, sorted(_NAMES))


@dataclass(frozen=True)
class Signature:
    """What a commit leaves for its process to find: see :meth:`.postgres_shared.SharedDatabase.sign`."""

    name: str
    commits: int

    @property
    def writer(self) -> str:
        return f"{self.name}:{self.commits}"


@dataclass(frozen=True)
class Taken:
    """What a claim has taken.

    Attributes:
        round: of the first job in line, whose turn it was.
        models: of the job, as JSON.
    """

    job: Job
    body: bytes
    round: int
    models: str | None


def ask(db: Database, member: Member, followed: int, token: str, now_ms: int, signature: Signature) -> Rows:
    """Ask for a job, in a transaction that has its turn; what comes with it signs the commit."""
    values = {
        "box": member.box,
        "epoch": member.epoch or "",
        "followed": followed,
        "loaded": json.dumps(sorted(member.loaded)),
        "wait": member.affinity_wait_ms,
        "token": token,
        "at": now_ms,
        "writer": signature.writer,
        "commits": signature.commits,
        "name": signature.name,
    }
    return db.execute(_CLAIM, [values[name] for name in sorted(_NAMES)])


def read(asked: Rows) -> tuple[bool, Taken | None]:
    """Whether a job waits, and what was taken; nothing although one waits: it is none of the plain case."""
    waiting, round_, models, body, *row = asked.fetchone()
    if body is None:
        return waiting > 0, None
    return True, Taken(read_job(tuple(row)), body, round_, models)


def find(db: Database, box: str, token: str) -> tuple[Job, bytes] | None:
    """What the claim with that token has taken."""
    row = db.execute(_FIND, (box, token)).fetchone()
    return None if row is None else (read_job(row[1:]), row[0])
