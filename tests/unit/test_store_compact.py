"""A database of an earlier version, which never becomes smaller by itself, is written anew."""

import argparse
import logging
import os
import shutil
import sqlite3
import stat
from contextlib import closing

import pytest
from unit.fakes import LONG_S
from unit.store_steps import CANCELLED, submit

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.store import SqliteStore, command, compact, repair

BODY = b'{"prompt": {"1": "' + b"x" * 20_000 + b'"}}'


def make(path, jobs=40, settled=30, mode="NONE"):
    """A file as earlier versions made it: full of jobs, of which most have been forgotten."""
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA auto_vacuum = {mode}")
        db.execute("VACUUM")
        db.execute("CREATE TABLE t (a)")
        db.execute("DROP TABLE t")
    store = SqliteStore(path, Clock())
    ids = [submit(store, body=BODY).job.job_id for _ in range(jobs)]
    for job_id in ids[:settled]:
        store.settle(job_id, CANCELLED).result(LONG_S)
    while store.forget(2**60, 100).result(LONG_S):
        pass
    store.close()
    return ids[settled:]


def facts(path):
    with closing(sqlite3.connect(path)) as db:
        (mode,) = db.execute("PRAGMA auto_vacuum").fetchone()
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        numbers = [number for (number,) in db.execute("SELECT number FROM jobs JOIN bodies USING (number)")]
        sequence = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
    return mode, numbers, sequence, path.stat().st_size


@pytest.fixture
def old(tmp_path, monkeypatch):
    path = tmp_path / "__guarded" / "guarded.db"
    with monkeypatch.context() as patched:
        patched.setattr(compact, "is_due", lambda _db, _path: False)
        ids = make(path)
    mode, numbers, *_rest = facts(path)
    assert (mode, len(numbers)) == (0, len(ids))
    return path, ids


def jobs_of(path):
    with closing(SqliteStore(path, Clock())) as store:
        return [job.job_id for job in store.list_jobs(None, None, 1000).result(LONG_S)][::-1]


def test_a_start_copies_an_old_file_that_is_small_without_its_free_pages(old):
    path, ids = old
    os.chmod(path, 0o600)
    _mode, numbers, sequence, size = facts(path)
    assert jobs_of(path) == ids
    mode, after, counter, smaller = facts(path)
    assert mode == 2, "from now on it can become smaller while it is in use"
    assert (after, counter) == (numbers, sequence)
    assert smaller < size / 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(part.name for part in path.parent.iterdir()) == ["guarded.db", "guarded.db.lock"]


def test_a_new_file_needs_no_copy(tmp_path):
    path = tmp_path / "guarded.db"
    assert jobs_of(path) == []
    before = path.stat().st_ino
    assert jobs_of(path) == []
    assert (facts(path)[0], path.stat().st_ino) == (2, before)


def test_a_start_leaves_a_large_one_as_it_is_and_says_what_helps(old, monkeypatch, caplog):
    path, ids = old
    monkeypatch.setattr(compact, "COPIED_BYTES", 100_000)
    caplog.set_level(logging.INFO, "guarded.store")
    assert jobs_of(path) == ids
    assert facts(path)[0] == 0
    assert "vacuum" in caplog.text


def test_a_start_leaves_an_old_file_as_it_is_where_the_disk_has_no_room(old, monkeypatch):
    path, ids = old
    monkeypatch.setattr(compact, "SPARE_BYTES", shutil.disk_usage(path).total)
    assert jobs_of(path) == ids
    assert facts(path)[0] == 0


@pytest.mark.parametrize("step", ["copymode", "sync", "replace"])
def test_a_start_goes_on_with_the_old_file_where_the_copy_fails(old, monkeypatch, caplog, step):
    path, ids = old

    def fail(*_arguments):
        raise OSError("the disk refuses")

    where = {"copymode": shutil, "sync": compact, "replace": os}[step]
    with monkeypatch.context() as patched:
        patched.setattr(where, step, fail)
        assert jobs_of(path) == ids
    assert "could not be made smaller: the disk refuses" in caplog.text
    assert not list(path.parent.glob("*.compacting"))
    assert jobs_of(path) == ids


def test_the_copy_is_on_the_disk_before_it_takes_the_old_name(old, monkeypatch):
    path, _ids = old
    steps = []
    sync, replace = repair.sync, os.replace
    monkeypatch.setattr(compact, "sync", lambda path: (steps.append(("sync", path.name)), sync(path)))
    monkeypatch.setattr(
        compact.os, "replace", lambda one, two: (steps.append(("replace", two.name)), replace(one, two))
    )
    compact.compact(path)
    assert steps == [("sync", "guarded.db.compacting"), ("replace", "guarded.db"), ("sync", "__guarded")]


def test_a_file_that_another_program_reads_stays_as_it_is(old, caplog):
    path, ids = old
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        with closing(SqliteStore(path, Clock())) as store:  # so that there is a log for the reader to read
            store.settle(ids[0], CANCELLED).result(LONG_S)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM jobs").fetchone()
        assert jobs_of(path) == ids
        assert reader.execute("SELECT count(*) FROM jobs").fetchone() == (len(ids),)


def test_the_command_makes_a_large_file_small(old, monkeypatch):
    path, ids = old
    monkeypatch.setattr(compact, "COPIED_BYTES", 100_000)
    said = []
    assert run(path.parents[1], said) == 0
    mode, numbers, _sequence, size = facts(path)
    assert (mode, len(numbers)) == (2, len(ids))
    assert said[0].startswith(f"{path} has {size} bytes now instead of ")
    assert jobs_of(path) == ids


def test_the_command_leaves_the_file_of_a_running_server_alone(old, monkeypatch):
    path, _ids = old
    monkeypatch.setattr(compact, "COPIED_BYTES", 100_000)
    with closing(SqliteStore(path, Clock())):
        said = []
        assert run(path.parents[1], said) == 2
        assert said == ["a server runs on this user folder; stop it first"]
    assert facts(path)[0] == 0


def test_the_command_says_where_there_is_nothing_to_do(tmp_path):
    said = []
    assert run(tmp_path, said) == 2
    assert said[0].startswith("there is no job database")


def run(user, said):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(["--user", str(user)]), {}, user / "custom_nodes" / "x", said.append)
