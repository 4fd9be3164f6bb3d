"""Databases of earlier versions: opened with all that is in them, and copied before they are changed."""

import hashlib
import json
import os
import re
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest
from chaos.conftest import fill, small_disk
from unit.fakes import LONG_S
from unit.store_steps import CANCELLED, submit
from unit.test_store_check import wait_until

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.job import SUCCESS, JobState
from comfyui_guarded.guard.store import Listing, SqliteStore, disk, migrate, schema, table_store
from comfyui_guarded.guard.store.rows import COLUMNS

__all__ = ["small_disk"]

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"
LATEST = len(schema.MIGRATIONS)
#: The one that adds the table of alarms.
ALARMS = next(number for number, text in enumerate(schema.MIGRATIONS, 1) if "CREATE TABLE alarms" in text)
#: The one that notes how large bodies are.
SIZES = next(number for number, text in enumerate(schema.MIGRATIONS, 1) if "ADD COLUMN body_bytes" in text)

#: The first characters of each shipped migration's SHA-256. A shipped one is in databases: changing it, its place or
#: its number would leave those with other tables than their `user_version` says. To change the schema, append a
#: migration. It may be edited until a release ships it; add its line here with that release.
SHIPPED = (
    "a981717c03514b54",
    "9cbcc743c9102810",
    "f85635c89508231f",
    "44c29670fb73c12d",
    "99d8aa5b1c114168",
    "2fad4085ab636df9",
    "d80de3fd77e66168",
    "e02aff70bbb08116",
    "a0effb1fefc79a02",
    "2c65461449d60f3b",
)


def test_no_shipped_migration_was_changed():
    assert tuple(hashlib.sha256(script.encode()).hexdigest()[:16] for script in schema.MIGRATIONS)[: len(SHIPPED)] == (
        SHIPPED
    )


ADDS = re.compile(
    r"CREATE TABLE .*|CREATE INDEX .*"
    r"|ALTER TABLE \w+ ADD COLUMN \w+ (INTEGER|TEXT|REAL|BLOB)( NOT NULL DEFAULT ('\w*'|\d+)| DEFAULT ('\w*'|\d+))?",
    re.DOTALL,
)


def test_what_comes_after_the_version_whose_code_may_still_run_only_adds():
    for number, script in enumerate(schema.MIGRATIONS[schema.WORKS_SINCE :], schema.WORKS_SINCE + 1):
        plain = re.sub("--[^\n]*", "", script)
        for statement in filter(None, (part.strip() for part in plain.split(";"))):
            assert ADDS.fullmatch(statement), f"raise WORKS_SINCE to {number}: {statement}"


def test_a_release_pins_every_migration():
    (unreleased,) = re.findall(r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", CHANGELOG.read_text("utf-8"), re.DOTALL | re.M)
    if not unreleased.strip():
        assert len(SHIPPED) == LATEST


def make_database(path, version):
    """A database as that version left it, when it was killed: three jobs, and a row in every table."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        for script in schema.MIGRATIONS[:version]:
            db.executescript(script)
        db.execute(f"PRAGMA user_version = {version}")
        for number, state in enumerate(("succeeded", "running", "queued"), start=1):
            verdict = json.dumps(asdict(SUCCESS)) if state == "succeeded" else None
            job = {
                "number": number,
                "job_id": f"job-{number}",
                "owner": "bot",
                "state": state,
                "priority": 0,
                "place": float(number),
                "attempts": 0 if state == "queued" else 1,
                "created_at_ms": 1_000 + number,
                "started_at_ms": None if state == "queued" else 2_000,
                "settled_at_ms": 3_000 if verdict else None,
                "timeout_s": 600.0,
                "locale": "en",
                "client_id": "client",
                "shape": "shape",
                "outputs_to_execute": '["9"]',
                "metadata": '{"order": 7}',
                "has_secrets": 0,
                "verdict": verdict,
                "result": '{"outputs": {}, "artifacts": []}' if verdict else None,
            }
            insert(db, "jobs", **job)
            insert(db, "bodies", number=number, body=b'{"prompt": %d}' % number)
            insert(db, "transitions", job_id=f"job-{number}", at_ms=1_000 + number, state="queued")
            if state != "queued":
                insert(db, "transitions", job_id=f"job-{number}", at_ms=2_000, state="running")
        insert(db, "transitions", job_id="job-1", at_ms=3_000, state="succeeded")
        insert(db, "leases", job_id="job-2", holder="local", deadline_ms=0)
        insert(db, "idempotency", owner="bot", key="k", body_digest="d", job_id="job-3", created_at_ms=1_003)
        if version >= 2:
            insert(db, "unread", type="output", path=b"a.png", job_id="job-1", artifact=0, since_ms=3_000)
        if version >= 6:
            insert(db, "unheard", job_id="job-1", owner="bot", client_id="client", settled_at_ms=3_000)
        if version >= 7:
            db.execute("UPDATE jobs SET event_id = (SELECT max(event_id) FROM transitions WHERE job_id = jobs.job_id)")
        if version >= 9:
            insert(
                db,
                "webhooks",
                **dict.fromkeys(("webhook_id", "type", "owner", "url", "target", "payload"), "x"),
                job_id="job-1",
                state="pending",
                **dict.fromkeys(("attempts", "created_at_ms", "since_ms", "next_at_ms"), 0),
            )
        if version >= SIZES:
            db.execute("UPDATE jobs SET body_bytes = (SELECT length(body) FROM bodies WHERE number = jobs.number)")
        if version >= 10:
            insert(db, "made", type="output", path=b"a.png", job_id="job-1", artifact=0)
        if version >= ALARMS:
            insert(db, "alarms", at_ms=3_000, code="x", message="x", job_id="job-1")
        db.commit()


def insert(db, table, **values):
    marks = ", ".join("?" * len(values))
    db.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))


def read_all(path):
    with closing(sqlite3.connect(path)) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        (version,) = db.execute("PRAGMA user_version").fetchone()
        return version, {name: sorted(map(repr, db.execute(f"SELECT * FROM {name}"))) for name in names}


def copies(path):
    return sorted(path.parent.glob(f"{path.name}.*before*"))


@pytest.mark.parametrize("version", range(1, LATEST))
def test_a_database_of_each_earlier_version_opens_with_all_its_jobs_and_is_copied_first(tmp_path, version):
    path = tmp_path / "jobs.db"
    make_database(path, version)
    before = read_all(path)
    store = SqliteStore(path, Clock())
    assert store.recover("local", 3).result(LONG_S).requeued == 1
    assert store.count_open_bytes("bot") == len(b'{"prompt": 2}{"prompt": 3}')
    jobs = {job.job_id: job for job in store.list_jobs(None, None, 10).result(LONG_S)}
    assert {job_id: job.state.value for job_id, job in jobs.items()} == {
        "job-1": "succeeded",
        "job-2": "queued",
        "job-3": "queued",
    }
    assert jobs["job-1"].verdict == SUCCESS
    assert jobs["job-3"].metadata == {"order": 7}
    assert [job.state for job in store.read_changes(0, job_id="job-1").result(LONG_S).jobs] == [
        JobState.QUEUED,
        JobState.RUNNING,
        JobState.SUCCEEDED,
    ]
    claimed = [store.claim("local", 10).result(LONG_S)]
    store.settle("job-2", CANCELLED).result(LONG_S)  # one of them has begun before
    claimed.append(store.claim("local", 10).result(LONG_S))
    assert [(one.job.job_id, one.body) for one in claimed] == [("job-2", b'{"prompt": 2}'), ("job-3", b'{"prompt": 3}')]
    assert submit(store).job.number == 4
    store.close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (LATEST,)
        db.execute(f"SELECT {COLUMNS} FROM jobs")
    (copy,) = copies(path)
    assert read_all(copy) == before


def test_the_workflows_of_jobs_from_before_the_update_are_found_after_the_start(tmp_path, monkeypatch):
    path = tmp_path / "jobs.db"
    make_database(path, 11)
    body = b'{"prompt": {}, "extra_data": {"extra_pnginfo": {"workflow": {"id": "w"}}}}'
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE bodies SET body = ? WHERE number IN (1, 3)", (body,))
        db.execute("UPDATE bodies SET body = ? WHERE number = 2", (b"\xef\xbb\xbf" + body,))  # no JSON for SQLite
        db.commit()
    monkeypatch.setattr(table_store, "WORKFLOWS_AT_ONCE", 1)
    asked = Listing(frozenset(JobState), workflow_id="w")
    for _ in range(2):  # a restart keeps what was found
        store = SqliteStore(path, Clock())
        wait_until(lambda store=store: store.find_page(None, asked).result(LONG_S).total == 2)
        assert [job.number for job, _workflow in store.find_page(None, asked).result(LONG_S).jobs] == [3, 1]
        store.close()


def test_the_copy_is_what_one_goes_back_to(tmp_path, monkeypatch):
    path = tmp_path / "jobs.db"
    make_database(path, LATEST - 1)
    disk.open_database(path).close()
    (copy,) = copies(path)
    # As docs/deploy.md says: the new file away, the copy in its place, the version before.
    path.unlink()
    os.replace(copy, path)
    monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:-1])
    with closing(disk.open_database(path)) as db:
        assert db.execute("SELECT job_id FROM jobs ORDER BY number").fetchall() == [("job-1",), ("job-2",), ("job-3",)]
    assert copies(path) == []


def test_only_the_last_copy_is_kept(tmp_path):
    path = tmp_path / "jobs.db"
    for version in (3, 7):
        path.unlink(missing_ok=True)
        make_database(path, version)
        disk.open_database(path).close()
    assert copies(path) == [migrate.name_copy(path, 7)]
    disk.open_database(path).close()  # nothing to migrate, nothing to copy
    assert copies(path) == [migrate.name_copy(path, 7)]


def test_a_new_database_is_not_copied(tmp_path):
    disk.open_database(tmp_path / "jobs.db").close()
    assert copies(tmp_path / "jobs.db") == []


def test_a_migration_that_fails_again_and_again_is_copied_for_once(tmp_path, monkeypatch):
    path = tmp_path / "jobs.db"
    make_database(path, LATEST)
    written = []
    sync = migrate.sync
    monkeypatch.setattr(migrate, "sync", lambda target: (written.append(target), sync(target)))
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "SELECT no_such_function();"))
    for _ in range(3):
        with pytest.raises(sqlite3.OperationalError, match="no_such_function"):
            disk.open_database(path)
    assert [target.name for target in written].count("jobs.db.copying") == 1
    # It has changed since: an old copy would not do.
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE jobs SET owner = 'other'")
        db.commit()
    os.utime(path, (2**31, 2**31))
    with pytest.raises(sqlite3.OperationalError, match="no_such_function"):
        disk.open_database(path)
    assert read_all(migrate.name_copy(path, LATEST)) == read_all(path)


def test_a_migration_that_does_not_suit_the_rows_is_no_damage(tmp_path, monkeypatch):
    path = tmp_path / "jobs.db"
    make_database(path, LATEST)
    before = read_all(path)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE UNIQUE INDEX one_job ON jobs (owner);"))
    with pytest.raises(sqlite3.IntegrityError):
        disk.open_database(path)
    assert read_all(path) == before
    assert not list(tmp_path.glob("*.corrupt-*"))


def test_without_room_for_the_copy_nothing_is_migrated_and_the_error_says_so(small_disk):
    path = small_disk / "jobs.db"
    make_database(path, LATEST - 1)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE bodies SET body = randomblob(300000)")
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = read_all(path)
    ballast = fill(small_disk)
    os.truncate(ballast, ballast.stat().st_size - 200_000)
    with pytest.raises(sqlite3.OperationalError, match=r"copied before its update.*full"):
        disk.open_database(path)
    assert read_all(path) == before
    assert not copies(path)
    ballast.unlink()
    disk.open_database(path).close()
    assert read_all(path)[0] == LATEST
    assert read_all(migrate.name_copy(path, LATEST - 1)) == before


def test_a_kill_during_the_copy_leaves_the_earlier_copy(tmp_path, monkeypatch):
    path = tmp_path / "jobs.db"
    make_database(path, 3)
    disk.open_database(path).close()
    before = read_all(migrate.name_copy(path, 3))
    path.unlink()
    make_database(path, 7)

    class Killed(BaseException):
        pass

    def die(*_args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(migrate.os, "replace", die)
        with pytest.raises(Killed):
            disk.open_database(path)
    assert read_all(migrate.name_copy(path, 3)) == before
    assert read_all(path)[0] == 7
