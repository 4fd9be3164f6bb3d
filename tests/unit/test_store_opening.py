"""A server's store: it opens the database as soon as it can, recovers once, and says what is wrong until then."""

import os
import sqlite3
import subprocess
import threading
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from unit.children import as_child
from unit.fakes import LONG_S, new_job
from unit.store_steps import claim, submit

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import ServerUnavailableError
from comfyui_guarded.guard.job import SUCCESS, JobState
from comfyui_guarded.guard.store import SqliteStore, disk, pause, threads

PROGRAM = """
import os, time
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.store import SqliteStore
path = Path(sys.argv[1])
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "guarded.db"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Tries again every 20 ms."""
    monkeypatch.setattr(threads, "LOOK_S", 0.02)
    monkeypatch.setattr(pause, "PAUSE_S", 0.02)
    monkeypatch.setattr(pause, "LONGEST_PAUSE_S", 0.04)
    monkeypatch.setattr(threads, "_complaints", {})


class Server:
    """The store of a server, and what it has told."""

    def __init__(self, path, clock):
        self.told = []
        self.changed = []
        self.store = SqliteStore(path, clock, open_now=False)
        self.store.opened.subscribe(lambda recovery: self.told.append((recovery, threading.current_thread().name)))
        self.store.changed.subscribe(self.changed.append)

    def serve(self):
        self.store.serve("local", 2)
        return self.store


@pytest.fixture
def server(path, clock):
    made = Server(path, clock)
    yield made
    made.store.close()


def until(true):
    ends_s = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < ends_s
        time.sleep(0.005)


def elsewhere(path, code):
    """Runs Python beside us, with `SqliteStore`, `Clock` and `path`."""
    return subprocess.Popen(as_child(PROGRAM + code, path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextmanager
def opened_elsewhere(path):
    """Another process has it open, as the command line has for a sweep."""
    other = elsewhere(path, "store = SqliteStore(path, Clock()); print('open', flush=True); sys.stdin.readline()")
    assert other.stdout.readline() == "open\n"
    try:
        yield other
    finally:
        other.communicate("close\n", timeout=LONG_S)


def look_away(store):
    """Let it look no more after its files: it would make them anew before another process comes."""
    file = store._engine._file
    store._engine.write(lambda _db: setattr(file, "_looked_s", time.monotonic() + 10 * LONG_S)).result(LONG_S)


def read(store, job_id):
    with suppress(ServerUnavailableError):
        return store.get(job_id).result(LONG_S)
    return None


def left_running(path, clock):
    """What a server that was killed leaves: a job that runs, and one that waits."""
    store = SqliteStore(path, clock)
    for _ in range(2):
        submit(store)
    job_id = claim(store)
    store.start(job_id).result(LONG_S)
    store.close()
    return job_id


def test_what_a_killed_server_left_is_recovered_once_and_told_on_the_stores_thread(server, path, clock):
    left_running(path, clock)
    assert server.store.trouble is not None
    store = server.serve()
    assert store.trouble is None
    assert store.flush(LONG_S)
    ((recovery, thread),) = server.told
    assert (recovery.requeued, recovery.settled, thread) == (1, (), "guarded-store")
    assert (store.queued, store.leased) == (2, 0)
    assert server.changed == [], "a job that waits again is no new one"


def test_a_job_that_the_recovery_ends_is_announced_as_any_other(server, path, clock):
    store = SqliteStore(path, clock)
    job_id = submit(store, has_secrets=True).job.job_id
    store.close()
    assert server.serve().flush(LONG_S)
    assert [(job.job_id, job.verdict.code) for job in server.changed] == [(job_id, "server_restarted")]


def test_before_anything_else_is_written_the_opening_is_told(server, path, clock):
    left_running(path, clock)
    order = []
    server.store.opened.subscribe(lambda _recovery: order.append("opened"))
    server.store.changed.subscribe(lambda _job: order.append("changed"))
    store = server.serve()
    submit(store)
    assert order == ["opened", "changed"]


def test_a_database_that_another_process_has_is_waited_for(server, path, clock, caplog, monkeypatch):
    left_running(path, clock)
    monkeypatch.setattr(pause, "PATIENCE_S", 0.1)
    with opened_elsewhere(path):
        store = server.serve()
        assert "another server has" in store.trouble
        assert str(path) in store.trouble
        for future in (store.submit(new_job(), 10), store.get("x"), store.list_standings()):
            error = future.exception(LONG_S)
            assert isinstance(error, ServerUnavailableError)
            assert (error.status, error.retry_after_s, error.details) == (503, 10, store.trouble)
        assert not store.flush(LONG_S)
        assert store.silent_s == 0
        assert store.unreadable_s == 0, "the other one reads it"
        until(lambda: "ERROR" in caplog.text)
        time.sleep(0.2)
        levels = [record.levelname for record in caplog.records if "another server has" in record.getMessage()]
        assert levels == ["WARNING", "ERROR"], "not a line for each attempt"
    until(lambda: server.told)
    assert store.trouble is None
    assert submit(store).job.number == 3
    assert server.told[0][0].requeued == 1


@pytest.mark.parametrize("why", ["a file where the folder should be", "a folder where the file should be", "too new"])
def test_whatever_keeps_the_database_from_being_opened_the_store_is_there_and_opens_it_later(
    path, clock, tmp_path, why, caplog
):
    path = tmp_path / "folder" / "guarded.db"
    if why == "a file where the folder should be":
        path.parent.write_text("")
    elif why == "a folder where the file should be":
        path.mkdir(parents=True)
    else:
        SqliteStore(path, clock).close()
        set_version(path, 999)
    server = Server(path, clock)
    store = server.serve()
    try:
        assert "guarded.db" in store.trouble
        assert isinstance(store.submit(new_job(), 10).exception(LONG_S), ServerUnavailableError)
        until(lambda: store.unreadable_s > 0.2)
        (line,) = {record.getMessage() for record in caplog.records if record.levelname == "ERROR"}
        assert "tried again" in line
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
        if why == "a file where the folder should be":
            path.parent.unlink()
        elif why == "a folder where the file should be":
            path.rmdir()
        else:
            set_version(path, len(disk.schema.MIGRATIONS))
        until(lambda: server.told)
        assert store.trouble is None
        assert store.unreadable_s == 0
        assert submit(store).job.number == 1
    finally:
        store.close()


def set_version(path, version):
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {version}")


def test_a_disk_without_room_for_the_recovery_leaves_the_jobs_readable_and_is_over_when_there_is_room(
    server, path, clock, monkeypatch
):
    job_id = left_running(path, clock)
    full = True
    prepare = server.store._engine._file._prepare

    def limited(db):
        """Each page that is added is one too many, as on a full disk."""
        if full:
            (pages,) = prepare(db).execute("PRAGMA page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {pages}")
        return db

    monkeypatch.setattr(server.store._engine._file, "_prepare", limited)
    first = server.store._transitions.recover

    def large(db, *args):
        db.execute("CREATE TABLE ballast AS SELECT zeroblob(100000) AS bytes")
        try:
            return first(db, *args)
        finally:
            db.execute("DROP TABLE ballast")

    monkeypatch.setattr(server.store._transitions, "recover", large)
    store = server.serve()
    assert "full" in store.trouble
    assert isinstance(store.submit(new_job(), 10).exception(LONG_S), ServerUnavailableError)
    assert store.get(job_id).result(LONG_S).state is JobState.RUNNING, "what cannot be written can still be read"
    assert store.unreadable_s == 0
    assert server.told == []
    store._engine._writer.db.execute(f"PRAGMA max_page_count = {2**30}")
    until(lambda: server.told)
    assert store.trouble is None
    assert store.get(job_id).result(LONG_S).state is JobState.QUEUED
    assert (store.queued, store.leased) == (2, 0)


def test_a_store_that_never_opened_closes(path, clock):
    with opened_elsewhere(path):
        server = Server(path, clock)
        server.serve().close()
        assert isinstance(server.store.submit(new_job(), 10).exception(LONG_S), ServerUnavailableError)
    Server(path, clock).store.close()  # nor was it ever asked to


# A second writer. ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="a locked file cannot be deleted there")
@pytest.mark.parametrize("busy", [True, False])
def test_a_writer_whose_lock_was_lost_stops_once_another_process_has_opened_the_database(
    server, path, busy, caplog, monkeypatch
):
    store = server.serve()
    submit(store)
    mine = claim(store)
    if busy:
        monkeypatch.setattr(threads, "LOOK_S", LONG_S)  # it looks at its commits only
    look_away(store)
    Path(f"{path}.lock").unlink()
    other = elsewhere(
        path,
        "store = SqliteStore(path, Clock(), open_now=False)\n"
        "store.serve('local', 2)\n"
        "print(store.claim('local', 1).result().job.job_id, flush=True)\n"
        "sys.stdin.readline()\n",
    )
    assert other.stdout.readline() == f"{mine}\n", "the other one runs the job"
    if not busy:
        until(lambda: store.trouble is not None)
    late = store.settle(mine, SUCCESS)
    assert isinstance(late.exception(LONG_S), ServerUnavailableError)
    assert "another process has opened the job database" in store.trouble
    for future in (store.submit(new_job(), 10), store.claim("local", 9), store.get(mine), store.list_standings()):
        assert isinstance(future.exception(LONG_S), ServerUnavailableError)
    other.communicate("end\n", timeout=LONG_S)
    time.sleep(0.1)
    assert store.trouble is not None, "for good"
    assert len([record for record in caplog.records if record.levelname == "CRITICAL"]) == 1
    store.close()
    later = SqliteStore(path, Clock())
    assert later.get(mine).result(LONG_S).state is JobState.DISPATCHED, "nothing was written past the other one"
    later.close()


@pytest.mark.skipif(os.name == "nt", reason="a locked file cannot be deleted there")
def test_a_lock_that_was_deleted_is_made_anew_before_another_process_comes(server, path):
    store = server.serve()
    Path(f"{path}.lock").unlink()
    file = store._engine._file
    store._engine.write(lambda _db: setattr(file, "_looked_s", 0.0)).result(LONG_S)
    until(lambda: file._lock.is_current())
    with pytest.raises(disk.StoreLockedError):
        SqliteStore(path, Clock())
    assert submit(store).job.number == 1


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be deleted there")
def test_a_database_that_another_process_has_made_anew_is_left_to_it(server, path):
    """The whole folder was deleted: there is nothing left that the two could meet in."""
    store = server.serve()
    submit(store)
    look_away(store)
    for each in path.parent.iterdir():
        each.unlink()
    with opened_elsewhere(path):
        store._engine._file._looked_s = 0.0
        assert isinstance(store.submit(new_job(), 10).exception(LONG_S), ServerUnavailableError)
        assert "another process" in store.trouble
        assert not list(path.parent.glob("*.foreign*"))


# Forks. ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_ends_as_a_whole_program_leaves_the_database_to_its_parent(path):
    parent = elsewhere(
        path,
        "import atexit\n"
        "from comfyui_guarded.tests.unit.fakes import new_job\n"
        "store = SqliteStore(path, Clock(), open_now=False)\n"
        "atexit.register(store.close)\n"
        "store.serve('local', 2)\n"
        "store.submit(new_job(), 10).result()\n"
        "if not (child := os.fork()):\n"
        "    print(type(store.submit(new_job(), 10).exception(5)).__name__, store.trouble, flush=True)\n"
        "    print(type(store.get('x').exception(5)).__name__, flush=True)\n"
        "    sys.exit(0)\n"
        "print(os.waitpid(child, 0)[1], flush=True)\n"
        "sys.stdin.readline()\n"
        "print(store.submit(new_job(), 10).result().job.number, flush=True)\n",
    )
    said = [parent.stdout.readline() for _ in range(3)]
    assert said[0].startswith("ServerUnavailableError this process is a copy")
    assert said[1:] == ["ServerUnavailableError\n", "0\n"]
    with pytest.raises(disk.StoreLockedError):
        SqliteStore(path, Clock())
    assert parent.communicate("go\n", timeout=LONG_S)[0] == "2\n"
    store = SqliteStore(path, Clock())
    assert store.queued == 2
    store.close()


@pytest.mark.skipif(os.name == "nt", reason="Windows opens no folder as if it were a file")
def test_a_database_that_can_only_be_read_is_used_as_soon_as_it_can_be_written(path, clock, server):
    job_id = left_running(path, clock)
    Path(f"{path}-shm").mkdir()
    store = server.serve()
    assert "readonly" in store.trouble
    until(lambda: read(store, job_id) is not None)  # meanwhile, but for the moments in which it is opened anew
    Path(f"{path}-shm").rmdir()
    until(lambda: store.trouble is None)
    submit(store)
    until(lambda: len(server.told) == 1)


def test_a_database_that_refuses_a_change_is_said_to_fail_until_it_takes_one(path, server):
    store = server.serve()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert store.failing is None
        assert isinstance(store.submit(new_job(), 10).exception(LONG_S), ServerUnavailableError)
        assert "locked" in store.failing
        assert store.trouble is None, "each is tried all the same"
    until(lambda: store.failing is None)  # although nobody hands anything in
    submit(store)
