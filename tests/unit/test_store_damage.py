"""A page goes bad under a running server: the file is mended, and the server goes on with its own jobs."""

import sqlite3
import time
from contextlib import closing

import pytest
from unit.fakes import LONG_S, new_job
from unit.pages import map_pages
from unit.store_steps import claim, run_to_success, submit

from comfyui_guarded.guard.errors import GuardError, ServerUnavailableError
from comfyui_guarded.guard.job import SUCCESS, JobState
from comfyui_guarded.guard.store import SqliteStore, disk, engine, pause, threads

PAGE = 4096


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(threads, "LOOK_S", 0.02)
    monkeypatch.setattr(threads, "_complaints", {})


@pytest.fixture
def store(tmp_path, clock):
    opened = SqliteStore(tmp_path / "jobs.db", clock)
    yield opened
    opened.close()


def until(true):
    ends_s = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < ends_s
        time.sleep(0.005)


def damage(store, kind, name):
    """Fill those pages of the file with noise, and let no connection have a copy of them."""
    store._engine.write(lambda _db: None).result(LONG_S)
    store._engine.read(lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()).result(LONG_S)
    pages = map_pages(store.path).of(kind, name)
    assert pages
    with open(store.path, "r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE)
            file.write(b"\xa5" * PAGE)
    for run in (store._engine.write, store._engine.read, store._engine.read_slowly):
        run(lambda db: db.execute("PRAGMA shrink_memory")).result(LONG_S)


def filled(store, jobs=30):
    """Jobs that wait, and one that runs; with bodies large enough to fill some pages."""
    for number in range(jobs):
        submit(store, body=b"x" * 500, owner=f"bot-{number % 3}")
    job_id = claim(store)
    store.start(job_id).result(LONG_S)
    return job_id


@pytest.mark.parametrize(
    ("kind", "name"), [("leaf", "transitions"), ("index", "transitions_of_job"), ("index", "jobs_queued")]
)
def test_a_page_that_goes_bad_under_the_writer_is_mended_and_the_running_job_keeps_its_slot(store, kind, name, caplog):
    """It was answered 200 by /ready, and nothing was dispatched any more."""
    running = filled(store)
    opened = []
    store.opened.subscribe(opened.append)
    damage(store, kind, name)
    error = store.submit(new_job(), 10**9).exception(LONG_S)
    assert error is None or isinstance(error, ServerUnavailableError)
    late = store.claim("local", 2)
    assert late.exception(LONG_S) is None or isinstance(late.exception(LONG_S), ServerUnavailableError)
    until(lambda: "will be mended" in caplog.text and store.trouble is None)
    assert running in store.leases
    assert store.get(running).result(LONG_S).state is JobState.RUNNING, "no recovery: its process lives"
    assert store.settle(running, SUCCESS).result(LONG_S).won
    store.release(running).result(LONG_S)
    assert store.queued >= 28
    for _ in range(store.queued):
        job_id = claim(store, 99)
        assert store.settle(job_id, SUCCESS).result(LONG_S).won
    assert store.queued == 0
    assert opened == []
    assert not store._engine._is_over


def test_a_bad_page_that_only_a_reader_meets_is_mended_too(store, caplog):
    filled(store)
    damage(store, "index", "jobs_of_owner")
    refused = store.list_jobs("bot-1", None, 100).exception(LONG_S)
    # On a slow machine the search at the start meets it first, and it is mended by then.
    assert refused is None or isinstance(refused, ServerUnavailableError)
    until(lambda: "will be mended" in caplog.text and store.trouble is None)
    assert len(store.list_jobs("bot-1", None, 100).result(LONG_S)) == 10
    assert store.submit(new_job(), 10**9).result(LONG_S).job.number == 31


def test_while_it_is_mended_everybody_is_told_so(store, monkeypatch):
    filled(store)
    damage(store, "leaf", "transitions")
    monkeypatch.setattr(engine, "MEND_S", LONG_S)  # what could not be opened is tried again before that
    monkeypatch.setattr(store._engine._file, "open", lambda _is_damaged: (_ for _ in ()).throw(OSError("no room")))
    assert store.submit(new_job(), 10**9).exception(LONG_S) is not None
    until(lambda: store.trouble is not None and "no room" in store.trouble)
    for future in (store.submit(new_job(), 10), store.get("x"), store.list_standings()):
        assert isinstance(future.exception(LONG_S), ServerUnavailableError)
    assert store.unreadable_s > 0
    monkeypatch.undo()
    until(lambda: store.trouble is None)
    assert store.queued == 29


@pytest.mark.parametrize(
    "fault",
    [sqlite3.IntegrityError("a bug"), sqlite3.ProgrammingError("a bug"), ValueError("a bug"), KeyError("a bug")],
)
def test_a_fault_of_an_operation_is_no_damage(store, fault, caplog):
    submit(store)
    db = store._engine._writer.db

    def faulty(_db):
        raise fault

    for run in (store._engine.write, store._engine.read, store._engine.read_slowly):
        assert isinstance(run(faulty).exception(LONG_S), GuardError)
    assert submit(store).job.number == 2
    assert store.trouble is None
    assert store._engine._writer.db is db
    assert "mended" not in caplog.text


def test_a_busy_or_full_database_is_no_damage(store, caplog):
    def busy(_db):
        raise sqlite3.OperationalError("database is locked")

    assert isinstance(store._engine.write(busy).exception(LONG_S), ServerUnavailableError)
    assert isinstance(store._engine.read(busy).exception(LONG_S), ServerUnavailableError)
    assert submit(store).job.number == 1
    assert "mended" not in caplog.text


def test_damage_that_nothing_mends_is_not_mended_again_and_again(store, caplog):
    def damaged(_db):
        raise sqlite3.DatabaseError("database disk image is malformed")

    submit(store)
    assert store._engine.read(damaged).exception(LONG_S) is not None
    until(lambda: store.trouble is None)
    for _ in range(20):
        store._engine.read(damaged).exception(LONG_S)
    time.sleep(0.3)
    assert caplog.text.count("will be mended") == 1
    assert "damaged" in store.trouble
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) < 5


@pytest.mark.parametrize("name", ["jobs_queued", "jobs_open", "sqlite_autoindex_leases_1"])
def test_a_file_too_large_to_be_checked_before_its_use_is_mended_when_the_start_meets_the_damage(
    tmp_path, clock, monkeypatch, name, caplog
):
    """The error escaped from the start, and ComfyUI ran without the package."""
    path = tmp_path / "jobs.db"
    store = SqliteStore(path, clock)
    filled(store)
    store.close()
    pages = map_pages(path).of("index", name)
    with open(path, "r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE)
            file.write(b"\xa5" * PAGE)
    monkeypatch.setattr(disk, "CHECKED_BYTES", 0)
    monkeypatch.setattr(pause, "PAUSE_S", 0.02)
    store = SqliteStore(path, clock, open_now=False)
    recovered = []
    store.opened.subscribe(recovered.append)
    store.serve("local", 2)
    until(lambda: recovered)
    assert store.trouble is None
    assert recovered[0].requeued == 1
    assert store.queued == 30
    for number in range(30):
        job_id = claim(store)
        assert job_id is not None, number
        run_to_success(store, job_id)
    store.close()


@pytest.mark.parametrize("gone", ["INDEX jobs_queued", "TABLE transitions"])
def test_an_index_or_table_that_is_gone_is_made_anew(store, gone, caplog):
    filled(store)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute(f"DROP {gone}")
    store.submit(new_job(), 10**9).exception(LONG_S)
    store.claim("local", 99).exception(LONG_S)
    until(lambda: store.trouble is None)
    assert submit(store).job.number > 30
    assert store.queued >= 30
