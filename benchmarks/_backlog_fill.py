"""Fill a job database by SQL: so many waiting and so many settled jobs, with all that belongs to them."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import _common  # noqa: F401  # makes the package's name known

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.store import SqliteStore

#: The last hours before now are those in which the settled jobs ended.
HOURS = 7 * 24


def fill(path: Path, owners: tuple[str, ...], waiting: int, settled: int, body: bytes, workflows: int) -> None:
    """Create the database. Jobs are named by :func:`name_job`; the settled ones come first."""
    SqliteStore(path, Clock()).close()
    now_ms = time.time_ns() // 1_000_000
    facts = {"settled": settled, "now": now_ms, "step": HOURS * 3_600_000 / max(settled, 1), "body": body}
    owner = f"CASE i % {len(owners)} {' '.join(f'WHEN {at} THEN {name!r}' for at, name in enumerate(owners))} END"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -200000")
        indexes = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetchall()
        for name, _sql in indexes:
            db.execute(f"DROP INDEX {name}")
        db.execute("BEGIN")
        db.execute(
            "CREATE TEMP TABLE made_up (i INTEGER PRIMARY KEY, owner TEXT, state TEXT, code TEXT, ended_ms INTEGER)"
        )
        db.execute(
            "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < :all) INSERT INTO made_up "
            f"SELECT i, {owner}, CASE WHEN i > :settled THEN 'queued' WHEN i % 20 = 1 THEN 'failed' "
            "WHEN i % 20 = 2 THEN 'cancelled' ELSE 'succeeded' END, CASE WHEN i > :settled THEN NULL WHEN i % 20 = 1 "
            "THEN 'generation_failed' WHEN i % 20 = 2 THEN 'cancelled' END, "
            "iif(i > :settled, NULL, CAST(:now - (:settled - i) * :step AS INTEGER)) FROM n",
            {"settled": settled, "now": now_ms, "step": facts["step"], "all": settled + waiting},
        )
        db.execute(
            "INSERT INTO jobs (number, job_id, owner, state, priority, place, attempts, created_at_ms, started_at_ms, "
            "settled_at_ms, timeout_s, locale, client_id, shape, outputs_to_execute, metadata, has_secrets, code, "
            "verdict, result, event_id) SELECT i, printf('%08x-0000-4000-8000-%012x', i, i), owner, state, 0, i, "
            "iif(i > :settled, 0, 1), coalesce(ended_ms - 20000, :now), ended_ms - 5000 - i % 5000, ended_ms, 600, "
            "'ru', 'client', 'shape', '[\"2\"]', '{\"chat\": 1}', 0, code, "
            "iif(i > :settled, NULL, json_object('state', state, 'code', code, 'message', '', "
            "'details', json('{}'))), iif(i > :settled, NULL, "
            '\'{"outputs": {"2": {"text": ["1"]}}, "artifacts": []}\'), iif(i > :settled, i, 3 * i) FROM made_up',
            {"settled": settled, "now": now_ms},
        )
        db.execute("INSERT INTO bodies SELECT i, ? FROM made_up", (body,))
        db.execute(
            "INSERT INTO workflows SELECT number, job_id, 'workflow-' || (number % ?) FROM jobs", (max(workflows, 1),)
        )
        db.execute(
            "INSERT INTO transitions SELECT 3 * number - 2, job_id, created_at_ms, 'queued' FROM jobs "
            "UNION ALL SELECT 3 * number - 1, job_id, started_at_ms, 'running' FROM jobs WHERE started_at_ms > 0 "
            "UNION ALL SELECT 3 * number, job_id, settled_at_ms, state FROM jobs WHERE settled_at_ms > 0"
        )
        db.execute("UPDATE jobs SET event_id = 3 * number - 2 WHERE settled_at_ms IS NULL")
        db.execute("COMMIT")
        for _name, sql in indexes:
            db.execute(sql)
        db.execute("PRAGMA journal_mode = WAL")


def name_job(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-{number:012x}"
