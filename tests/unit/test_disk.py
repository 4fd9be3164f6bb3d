"""The job database under a running server: deleted, replaced, vanished, read-only, slow."""

import contextlib
import os
import shutil
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError

import pytest
from unit.fakes import LONG_S, FailingStore, new_job
from unit.store_steps import Held

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import CancelledError, ServerUnavailableError, WorkerDiedError
from comfyui_guarded.guard.host import Outcome
from comfyui_guarded.guard.job import SUCCESS, JobState
from comfyui_guarded.guard.life import runs
from comfyui_guarded.guard.store import SqliteStore, StoreUnusableError, disk, engine, held_file, threads

TEXT = Outcome(success=True, outputs={"2": {"text": ["hi"]}})


class _WatchfulFile(held_file.HeldFile):
    """Looks whether it is there at every commit."""

    def keep(self, db):
        self._looked_s = 0.0
        return super().keep(db)


@pytest.fixture
def store(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(engine, "HeldFile", _WatchfulFile)
    monkeypatch.setattr(threads, "LOOK_S", LONG_S)  # at commits only
    opened = FailingStore(tmp_path / "guarded.db", clock)
    yield opened
    opened.close()


@pytest.fixture
def idle_store(tmp_path, clock, monkeypatch):
    """One that looks after its file while it has nothing to do."""
    monkeypatch.setattr(threads, "LOOK_S", 0.02)
    monkeypatch.setattr(held_file, "LOOK_S", 0.02)
    opened = SqliteStore(tmp_path / "guarded.db", clock)
    yield opened
    opened.close()


@pytest.fixture
def busy(store):
    return store, _made_busy(store)


def _made_busy(store):
    """As the store of a server in the middle of it: one job has ended, one runs, one waits."""
    ids = [store.submit(new_job(), 10).result(LONG_S).job.job_id for _ in range(3)]
    for job_id in ids[:2]:
        store.claim("local", 2).result(LONG_S)
        store.start(job_id).result(LONG_S)
    store.settle(ids[0], SUCCESS).result(LONG_S)
    return ids


def _states(store):
    return [job.state for job in store.list_jobs(None, None, 100).result(LONG_S)][::-1]


def _on_disk(path, tmp_path):
    """What a server would find there that started now, the old one having been killed."""
    copy = tmp_path / "copy" / "guarded.db"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    with contextlib.suppress(FileNotFoundError):  # a database that has just been written anew has no log yet
        shutil.copy(f"{path}-wal", f"{copy}-wal")
    store = SqliteStore(copy, Clock())
    try:
        return _states(store)
    finally:
        store.close()


BUSY = [JobState.SUCCEEDED, JobState.RUNNING, JobState.QUEUED]


@pytest.mark.parametrize("gone", ["the file", "its log too", "the whole folder"])
def test_a_database_deleted_under_the_server_is_written_anew_with_everything_in_it(busy, tmp_path, gone, caplog):
    store, ids = busy
    if gone == "the whole folder":
        # In one step: a folder that the store has made again meanwhile must not be what is deleted.
        os.rename(store.path.parent, gone_to := tmp_path.with_name(f"{tmp_path.name}-gone"))
        shutil.rmtree(gone_to)
    else:
        store.path.unlink()
        if gone == "its log too":
            for suffix in ("-wal", "-shm"):
                os.unlink(f"{store.path}{suffix}")
    store.settle(ids[1], SUCCESS).result(LONG_S)
    later = store.submit(new_job(), 10).result(LONG_S)
    assert later.job.number == 4
    told = [JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.QUEUED, JobState.QUEUED]
    assert _states(store) == told, "the reader has followed"
    tmp_path.mkdir(exist_ok=True)
    assert _on_disk(store.path, tmp_path) == told
    assert str(store.path) in caplog.text
    assert "deleted or replaced" in caplog.text


def test_a_database_deleted_under_an_idle_server_is_written_anew_before_anything_is_asked_of_it(idle_store, tmp_path):
    store = idle_store
    _made_busy(store)
    store.path.unlink()
    ends_s = time.monotonic() + LONG_S
    while not store.path.exists() or store._engine._file._identity != disk.identify(store.path):
        assert time.monotonic() < ends_s
        time.sleep(0.01)
    assert _on_disk(store.path, tmp_path) == BUSY


def test_a_database_replaced_by_another_file_is_set_aside_and_ours_goes_on(busy, tmp_path):
    store, ids = busy
    other = tmp_path / "other"
    other.write_bytes(b"somebody restored a backup, or so he thought")
    os.replace(other, store.path)
    store.settle(ids[1], SUCCESS).result(LONG_S)
    assert _on_disk(store.path, tmp_path)[1] is JobState.SUCCEEDED
    (foreign,) = store.path.parent.glob("*.foreign")
    assert foreign.read_bytes().startswith(b"somebody restored")


def test_a_database_that_cannot_be_written_anew_yet_is_so_later_and_nothing_is_promised_meanwhile(busy, tmp_path):
    store, ids = busy
    folder = store.path.parent / "below"
    store.path.unlink()
    file = store._engine._file
    real, file.path = store.path, folder / "guarded.db"
    folder.write_text("a file where the folder should be")
    error = store.settle(ids[1], SUCCESS).exception(LONG_S)
    assert isinstance(error, ServerUnavailableError)
    assert isinstance(store.submit(new_job(), 10).exception(LONG_S), ServerUnavailableError)
    file.path = real
    assert store.settle(ids[1], SUCCESS).result(LONG_S).won
    assert _on_disk(real, tmp_path) == [JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.QUEUED]


def test_a_database_written_anew_on_a_disk_that_is_full_leaves_no_halves_behind(busy, tmp_path, monkeypatch):
    store, ids = busy
    store.path.unlink()
    half = store.path.with_name("guarded.db.restored")
    for _ in range(3):
        # What a full disk leaves of it, and SQLite does not write over.
        half.write_bytes(b"half a database")
        monkeypatch.setattr(held_file, "connect", _no_room)
        assert store.settle(ids[1], SUCCESS).exception(LONG_S) is not None
    monkeypatch.undo()
    assert store.settle(ids[1], SUCCESS).result(LONG_S).won
    assert _on_disk(store.path, tmp_path)[1] is JobState.SUCCEEDED
    assert not half.exists()


def _no_room(_path):
    raise sqlite3.OperationalError("database or disk is full")


def test_a_second_deletion_is_survived_too(busy, tmp_path):
    store, ids = busy
    for _ in range(2):
        store.path.unlink()
        store.submit(new_job(), 10).result(LONG_S)
    store.settle(ids[1], SUCCESS).result(LONG_S)
    assert len(_on_disk(store.path, tmp_path)) == 5


async def test_a_database_that_has_become_read_only_is_said_so_and_holds_back_the_ending(machine, store):
    job_id = await machine.run(timeout_s=1.0)
    _read_only(store, True)
    error = store.submit(new_job(), 10).exception(LONG_S)
    assert isinstance(error, ServerUnavailableError)
    assert "readonly" in error.details
    machine.turn(2)
    with ThreadPoolExecutor(1) as worker:
        verdict = worker.submit(machine.finish, job_id, TEXT)
        _held_up(machine, job_id, verdict)
        assert store.get(job_id).result(LONG_S).state is JobState.RUNNING, "what cannot be written can still be read"
        assert machine.host.announced == []
        _read_only(store, False)
        machine.turn()
        assert verdict.result(LONG_S).code == "generation_timeout"
    machine.runs.released(job_id)
    assert machine.ended(job_id) == ("failed", "generation_timeout")
    assert [each[2] for each in machine.host.announced] == ["generation_timeout"]
    assert machine.leased() == 0
    assert store.submit(new_job(), 10).result(LONG_S)


def _read_only(store, on):
    # Not through the thread: it could not even begin.
    store._engine._writer.db.execute(f"PRAGMA query_only = {int(on)}")


def _held_up(machine, job_id, verdict):
    """The run's own ending is handed in, and nobody hears of it, turn after turn of the watchdog."""
    while machine.settler.verdict_of(job_id) is None:
        assert not verdict.done()
    for _ in range(3):
        machine.turn()
        machine.store.flush(0.05)
    with pytest.raises(FutureTimeoutError):
        verdict.result(0.3)


@pytest.mark.parametrize("first", ["success", "cancel"])
async def test_a_database_that_hangs_holds_the_ending_back_and_then_tells_the_first_one(machine, store, first):
    job_id = await machine.run(client_id="socket")
    job = machine.job(job_id)
    with ThreadPoolExecutor(1) as worker, Held(store):
        if first == "cancel":
            machine.settler.end(job, CancelledError("The job was cancelled."))
        verdict = worker.submit(machine.finish, job_id, TEXT)
        _held_up(machine, job_id, verdict)
        if first == "success":
            machine.settler.end(job, CancelledError("The job was cancelled."))
        assert machine.host.announced == []
        assert store.get(job_id).result(LONG_S).state is JobState.RUNNING
    expected = (JobState.SUCCEEDED, None) if first == "success" else (JobState.CANCELLED, "cancelled")
    assert (verdict.result(LONG_S).state, verdict.result(LONG_S).code) == expected
    machine.runs.released(job_id)
    assert machine.ended(job_id) == (expected[0].value, expected[1])
    assert [each[2] for each in machine.host.announced] == ([] if first == "success" else ["cancelled"])
    assert machine.leased() == 0


async def test_a_database_that_hangs_delays_a_start_for_a_while_and_no_longer(machine, store, monkeypatch):
    monkeypatch.setattr(runs, "START_WAIT_S", 0.05)
    job_id = await machine.dispatch()
    with Held(store):
        assert machine.runs.started(job_id)
    assert machine.job(job_id).state is JobState.RUNNING, "it is written before the ending"
    assert machine.finish(job_id, TEXT).state is JobState.SUCCEEDED


@pytest.mark.parametrize("disk", ["silent", "full"])
async def test_a_job_that_is_being_ended_does_not_begin(machine, store, disk, caplog):
    job_id = await machine.dispatch()
    store.failing = frozenset({"settle"} if disk == "full" else ())
    with Held(store) if disk == "silent" else contextlib.nullcontext():
        machine.settler.end(machine.runs._jobs[job_id], CancelledError("The job was cancelled."))
        assert not machine.runs.started(job_id)
    store.failing = frozenset()
    machine.turn()
    assert machine.ended(job_id) == ("cancelled", "cancelled")
    assert "started" not in caplog.text


async def test_a_job_that_is_cancelled_as_it_starts_logs_its_start_first(machine, store, caplog):
    caplog.set_level("DEBUG")
    job_id = await machine.dispatch()
    with ThreadPoolExecutor(1) as worker:
        with Held(store):
            silent_s, starting = store.silent_s, worker.submit(machine.runs.started, job_id)
            while not store._engine._writer._inbox.qsize():
                assert store.silent_s >= silent_s
            machine.settler.end(machine.runs._jobs[job_id], CancelledError("The job was cancelled."))
        starting.result(LONG_S)
    assert machine.host.stopped == [job_id], "so it does not run, whatever its start was told"
    assert machine.ended(job_id) == ("cancelled", "cancelled")
    said = [record.message for record in caplog.records if job_id in record.message]
    assert [text.split(";")[0].split()[-1] for text in said] == ["started", "cancelled"]


async def test_a_run_whose_report_cannot_be_read_has_the_verdict_that_is_on_disk(machine, store):
    first, second = await machine.run(), machine.submit()
    assert machine.finish(first, None).code == "internal_error"
    assert machine.ended(first) == ("failed", "internal_error")
    machine.runs.released(first)
    store.flush()
    assert await machine.dispatcher.turn()
    assert machine.runs.started(second)
    machine.settler.end(machine.job(second), CancelledError("The job was cancelled.")).result(LONG_S)
    assert machine.finish(second, None).code == "cancelled"


async def test_a_success_of_a_job_that_the_store_does_not_know_is_none(machine, store):
    job_id = await machine.run()
    operation = "DELETE FROM jobs WHERE job_id = ?"
    store._engine.write(lambda db: db.execute(operation, (job_id,))).result(LONG_S)
    assert machine.finish(job_id, TEXT).code == "internal_error"


async def test_a_job_whose_worker_is_gone_is_closed_with_the_first_ending_once_that_is_durable(machine, store, host):
    job_id = await machine.run(timeout_s=1.0)
    closed = []
    with Held(store):
        machine.turn(1)
        machine.runs.left_behind(job_id, WorkerDiedError("left behind"), closed.append)
        assert closed == []
    store.flush()
    assert [verdict.code for verdict in closed] == ["generation_timeout"]


async def test_a_watchdog_does_not_wait_for_a_database_that_hangs(machine, host):
    job_id = await machine.run(timeout_s=1.0)
    hung = threading.Event()
    for thread in (machine.store._engine._writer, machine.store._engine._reader):
        thread.run(lambda _db: hung.wait(LONG_S))
    for after_s in (0, 2, 3):
        machine.turn(after_s)
    assert host.stopped == [job_id]
    hung.set()
    assert machine.ended(job_id) == ("failed", "generation_timeout")


@pytest.mark.parametrize("trouble", ["a file where the folder should be", "a folder where the file should be"])
def test_a_database_that_cannot_be_made_is_named_with_the_reason(tmp_path, trouble):
    path = tmp_path / "folder" / "guarded.db"
    if trouble == "a file where the folder should be":
        path.parent.write_text("")
    else:
        path.mkdir(parents=True)
    with pytest.raises(StoreUnusableError, match=r"guarded\.db"):
        FailingStore(path, Clock())
    if path.parent.is_dir():
        path.rmdir()
        FailingStore(path, Clock()).close()  # the lock was let go


def test_a_failing_look_does_not_end_the_stores_thread(idle_store, monkeypatch):
    looked = threading.Event()

    def failing():
        looked.set()
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(idle_store._engine._file, "_is_gone", failing)
    assert looked.wait(LONG_S)
    monkeypatch.undo()
    assert idle_store.submit(new_job(), 10).result(LONG_S)
