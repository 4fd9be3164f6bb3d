"""The database file: corrupt, of another version, open elsewhere, to be migrated, on a full disk."""

import os
import random
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest
from unit.children import as_child
from unit.fakes import LONG_S, new_job
from unit.store_steps import claim_all, submit

from comfyui_guarded.guard.errors import (
    DiskFullError,
)
from comfyui_guarded.guard.job import JobState
from comfyui_guarded.guard.store import (
    SqliteStore,
    StoreLockedError,
    StoreTooNewError,
    StoreUnusableError,
    disk,
    repair,
    schema,
)


def _old_database(path, clock, jobs=50):
    store = SqliteStore(path, clock)
    ids = [store.submit(new_job(), 10**9) for _ in range(jobs)]
    ids = [future.result(LONG_S).job.job_id for future in ids]
    store.close()
    return ids


def _garbage_pages(data: bytes) -> bytes:
    return data[:100] + random.Random(1).randbytes(len(data) - 100)


def _garbage_in_the_middle(data: bytes) -> bytes:
    return data[:8192] + random.Random(2).randbytes(len(data) - 8192)


@pytest.mark.parametrize(
    "ruin",
    [
        lambda data: random.Random(0).randbytes(len(data)),
        lambda data: b"not a database " * 1000,
        lambda data: data[: len(data) // 2],
        lambda data: data[:5000],
        _garbage_pages,
        _garbage_in_the_middle,
    ],
    ids=["random", "text", "half", "a page", "valid header", "garbage pages"],
)
@pytest.mark.parametrize("killed", [False, True])
def test_a_corrupt_file_is_set_aside_whole_and_what_is_left_of_it_is_used(tmp_path, clock, ruin, killed, caplog):
    """tests/unit/test_store_repair.py says what is left."""
    old, path = tmp_path / "old.db", tmp_path / "jobs.db"
    _old_database(old, clock)
    if killed:  # the last job is in the write-ahead log only
        store = SqliteStore(old, clock)
        submit(store, body=b"only in the log")
        for suffix in ("", "-wal", "-shm"):
            shutil.copy(f"{old}{suffix}", f"{path}{suffix}")
        store.close()
        assert b"only in the log" in Path(f"{path}-wal").read_bytes()
    else:
        shutil.copy(old, path)
    ruined = ruin(path.read_bytes())
    path.write_bytes(ruined)
    store = SqliteStore(path, clock)
    saved = store.list_jobs(None, None, 100).result(LONG_S)
    waiting = [job for job in saved if job.state is JobState.QUEUED]
    assert store.queued == len(waiting)
    assert submit(store).job.number > max((job.number for job in saved), default=0)
    assert len(claim_all(store)) == len(waiting) + 1
    store.close()
    kept = {file.name: file.read_bytes() for file in tmp_path.glob("jobs.db.corrupt-*")}
    (aside,) = [name for name in kept if not name.endswith(("-wal", "-shm"))]
    assert "set aside" in caplog.text
    assert aside in caplog.text
    if killed:
        assert any(b"only in the log" in content for content in kept.values())
    else:
        assert kept[aside] == ruined


def test_two_corrupt_files_in_the_same_second_are_both_kept(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(repair.time, "strftime", lambda *_args: "20300101-000000")
    path = tmp_path / "jobs.db"
    for content in (b"first " * 1000, b"second " * 1000):
        path.write_bytes(content)
        SqliteStore(path, clock).close()
    kept = {file.read_bytes()[:6] for file in tmp_path.glob("jobs.db.corrupt-*") if not file.name.endswith("-wal")}
    assert kept == {b"first ", b"second"}


def test_a_corrupt_file_is_closed_before_it_is_set_aside(tmp_path, clock, monkeypatch):
    """Windows refuses to rename a file that somebody has open."""
    opened = []
    connect, replace = sqlite3.connect, os.replace

    def noting(*args, **kwargs):
        opened.append(connect(*args, **kwargs))
        return opened[-1]

    def replacing(*args):
        for db in opened:
            with pytest.raises(sqlite3.ProgrammingError, match="closed"):
                db.total_changes  # noqa: B018
        replaced.append(args)
        replace(*args)

    replaced = []
    monkeypatch.setattr(disk.sqlite3, "connect", noting)
    monkeypatch.setattr(disk.os, "replace", replacing)
    (tmp_path / "jobs.db").write_bytes(b"not a database " * 1000)
    SqliteStore(tmp_path / "jobs.db", clock).close()
    assert replaced


def test_a_database_of_a_later_version_is_refused_untouched(tmp_path, clock):
    path = tmp_path / "jobs.db"
    _old_database(path, clock)
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreTooNewError, match=r"jobs\.db"):
        SqliteStore(path, clock)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.corrupt-*"))
    with pytest.raises(StoreTooNewError):  # and not "locked": the first refusal has let go
        SqliteStore(path, clock)


_OPENER = """
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.store import SqliteStore
try:
    SqliteStore(Path(sys.argv[1]), Clock())
except Exception as error:
    print(type(error).__name__, error)
else:
    print("opened")
"""


def test_a_second_process_is_refused_while_the_first_has_the_database(store):
    def open_elsewhere():
        return subprocess.run(
            as_child(_OPENER, store.path), capture_output=True, text=True, timeout=LONG_S, check=True
        ).stdout

    submit(store)
    said = open_elsewhere()
    assert said.startswith("StoreLockedError")
    assert str(store.path) in said
    assert submit(store).job.number == 2


def test_a_second_opener_in_the_same_process_is_refused(store, clock):
    with pytest.raises(StoreLockedError):
        SqliteStore(store.path, clock)
    assert submit(store).job.number == 1


def test_a_migration_keeps_the_jobs(tmp_path, clock, monkeypatch):
    path = tmp_path / "jobs.db"
    ids = _old_database(path, clock)
    second = "ALTER TABLE jobs ADD COLUMN mood TEXT NOT NULL DEFAULT 'fine'; CREATE TABLE extra (x INTEGER);"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, second))
    store = SqliteStore(path, clock)
    assert [job.job_id for job in store.list_jobs(None, None, 100).result(LONG_S)] == ids[::-1]
    assert store.queued == len(ids)
    assert submit(store).job.number == len(ids) + 1
    store.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
    assert db.execute("SELECT DISTINCT mood FROM jobs").fetchall() == [("fine",)]
    db.close()
    SqliteStore(path, clock).close()  # not migrated twice


def test_a_migration_that_fails_half_way_leaves_the_database_as_it_was(tmp_path, clock, monkeypatch):
    path = tmp_path / "jobs.db"
    ids = _old_database(path, clock)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "DELETE FROM jobs; SELECT no_such_function();"))
        with pytest.raises(StoreUnusableError):
            SqliteStore(path, clock)
    store = SqliteStore(path, clock)
    assert store.queued == len(ids)
    assert len(store.list_jobs(None, None, 100).result(LONG_S)) == len(ids)
    store.close()


def test_a_full_disk_is_said_by_name_and_is_over_when_there_is_room_again(store):
    kept = submit(store).job.job_id

    def limit(pages):
        return store._engine.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone()).result(LONG_S)

    limit(1)  # SQLite never goes below what there is
    big = new_job(body=b"x" * 1_000_000)
    error = store.submit(big, 10**9).exception(LONG_S)
    assert isinstance(error, DiskFullError)
    assert (error.status, error.retryable, error.retry_after_s) == (507, True, 60)
    assert store.queued == 1
    assert store.get(kept).result(LONG_S).state is JobState.QUEUED
    limit(2**30)
    assert store.submit(big, 10**9).result(LONG_S).waiting.position == 2
    assert store.queued == 2


def test_a_process_that_keeps_being_killed_leaves_no_growing_log(tmp_path, clock):
    """A kill leaves the database as it lies there: a copy of its files under a new name."""
    sizes, jobs = [], 0
    for life in range(12):
        folder = tmp_path / str(life)
        folder.mkdir()
        if life:
            for part in (tmp_path / str(life - 1)).iterdir():
                if not part.name.endswith((".lock", "-shm")):
                    shutil.copy(part, folder)
        store = SqliteStore(folder / "guarded.db", clock)
        # The tidier takes its work in order: behind this, the log that the life before has left is worked in.
        store._engine.read_slowly(lambda _db: None).result(LONG_S)
        for _ in range(20):
            submit(store)
        jobs += 20
        sizes.append((folder / "guarded.db-wal").stat().st_size)
        assert store.count_jobs().result(LONG_S).queued == jobs
        for part in folder.iterdir():
            shutil.copy(part, folder / f"killed-{part.name}")
        store.close()
        for part in folder.glob("killed-*"):
            os.replace(part, folder / part.name.removeprefix("killed-"))
    assert max(sizes) < 2 * sizes[1]
