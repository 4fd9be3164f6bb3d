import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from unit.fakes import LONG_S, new_id, new_job

from comfyui_guarded.guard.errors import (
    ConflictError,
    DiskFullError,
    GuardError,
    QueueFullError,
    ServerUnavailableError,
)
from comfyui_guarded.guard.job import OPEN, SUCCESS, Artifact, JobState, Kind, Result, Verdict
from comfyui_guarded.guard.store import (
    Counts,
    IdempotencyKey,
    SqliteStore,
    StoreLockedError,
    StoreTooNewError,
    StoreUnusableError,
    disk,
)

REPO = Path(__file__).parents[2]
CANCELLED = Verdict(JobState.CANCELLED, "cancelled", "The job was cancelled.")


def _submit(store, job_id=None, *, max_queued=10**9, key=None, **facts):
    return store.submit(new_job(job_id, **facts), max_queued, key).result(LONG_S)


def _claim(store, max_jobs=1):
    claimed = store.claim("local", max_jobs).result(LONG_S)
    return claimed.job.job_id if claimed is not None else None


def _claimed_in_order(store):
    order = []
    while (job_id := _claim(store, 10**9)) is not None:
        order.append(job_id)
    return order


def _run_to_success(store, job_id, result=None):
    store.start(job_id).result(LONG_S)
    store.validate(job_id).result(LONG_S)
    settled = store.settle(job_id, SUCCESS, result).result(LONG_S)
    store.release(job_id).result(LONG_S)
    return settled


class _Held:
    """Keeps the store's writer busy, so that what is handed in meanwhile shares one commit."""

    def __init__(self, store):
        self._go, holding = threading.Event(), threading.Event()
        self._done = store._engine.write(lambda _db: (holding.set(), self._go.wait(LONG_S)))
        assert holding.wait(LONG_S)

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self._go.set()
        self._done.result(LONG_S)


# What was answered is durable. ------------------------------------------------------------------------------------


def test_jobs_of_many_threads_are_all_durable_and_have_numbers_of_their_own(store, tmp_path):
    with ThreadPoolExecutor(16) as pool:
        submitted = list(pool.map(lambda turn: _submit(store, owner=f"bot-{turn % 5}"), range(400)))
    assert len({each.job.number for each in submitted}) == 400
    # Read past the store, while it is open, as a process would find it after a SIGKILL of ours.
    for suffix in ("", "-wal"):
        shutil.copy(f"{store.path}{suffix}", tmp_path / f"copy.db{suffix}")
    db = sqlite3.connect(tmp_path / "copy.db")
    found = dict(db.execute("SELECT job_id, number FROM jobs WHERE state = 'queued'"))
    bodies = db.execute("SELECT count(*) FROM bodies").fetchone()
    db.close()
    assert found == {each.job.job_id: each.job.number for each in submitted}
    assert bodies == (400,)
    assert store.queued == 400


def test_what_comes_in_together_shares_commits(store):
    commits = []
    committed = store._engine._writer._work
    store._engine._writer._work = lambda db, batch: (commits.append(len(batch)), committed(db, batch))
    with _Held(store):
        futures = [store.submit(new_job(), 10**9) for _ in range(200)]
    assert [future.result(LONG_S).job.number for future in futures] == list(range(1, 201))
    assert sum(commits) == 201
    assert len(commits) <= 3


def test_a_refused_operation_does_not_take_its_neighbours_down(store):
    taken = _submit(store).job.job_id
    with _Held(store):
        before = store.submit(new_job(), 10**9)
        conflict = store.submit(new_job(taken), 10**9)
        full = store.submit(new_job(), 1)
        illegal = store.start(taken)
        after = store.submit(new_job(), 10**9)
    assert isinstance(conflict.exception(LONG_S), ConflictError)
    assert isinstance(full.exception(LONG_S), QueueFullError)
    assert isinstance(illegal.exception(LONG_S), GuardError)
    assert (before.result().waiting.position, after.result().waiting.position) == (2, 3)
    assert store.count_jobs().result(LONG_S).queued == store.queued == 3


@pytest.mark.parametrize("fault", [ZeroDivisionError("a bug"), KeyError("a bug"), sqlite3.IntegrityError("a bug")])
def test_an_operation_with_a_bug_does_not_take_its_neighbours_down(store, fault):
    told = []
    store.changed.subscribe(told.append)

    def buggy(db):
        db.execute("UPDATE jobs SET priority = 99")
        store._transitions.line.add_queued("nobody", Kind("", ""), 99)
        store._transitions.changed.append("a change that will not be")
        raise fault

    with _Held(store):
        before = store.submit(new_job(), 10**9)
        broken = store._engine.write(buggy)
        after = store.submit(new_job(), 10**9)
    assert isinstance(broken.exception(LONG_S), ServerUnavailableError)
    assert before.result(LONG_S).job.number == 1
    assert after.result(LONG_S).waiting.position == 2
    assert store.queued == 2
    assert [job.number for job in told] == [1, 2]
    assert [job.priority for job in store.list_jobs(None, None, 10).result(LONG_S)] == [0, 0]


@pytest.mark.parametrize("nth", [1, 2], ids=["in the operation", "before the commit"])
def test_a_commit_that_meets_a_failing_disk_tells_everybody_and_the_next_one_goes_well(store, monkeypatch, nth):
    told, looks = [], []
    store.changed.subscribe(told.append)
    failing, step = [(store._transitions, "_insert"), (store._engine, "_attempt")][nth - 1]
    native = getattr(failing, step)

    def failing_once(*arguments):
        done = native(*arguments)
        looks.append(done)
        if len(looks) == 1:
            raise sqlite3.OperationalError("disk I/O error")
        return done

    monkeypatch.setattr(failing, step, failing_once)
    assert isinstance(store.submit(new_job(), 10**9).exception(LONG_S), ServerUnavailableError)
    assert (told, store.queued) == ([], 0)
    assert _submit(store).waiting.position == 1
    assert len(told) == store.queued == 1


@pytest.mark.parametrize("thread", ["_writer", "_reader"])
def test_a_fault_in_the_stores_own_thread_is_told_to_whoever_waits_and_the_thread_lives(store, thread):
    thread = getattr(store._engine, thread)
    work = thread._work

    def broken_once(_db, _batch):
        thread._work = work
        raise ZeroDivisionError("a bug")

    thread._work = broken_once
    assert isinstance(thread.run(lambda _db: None).exception(LONG_S), GuardError)
    assert thread.run(lambda _db: 5).result(LONG_S) == 5


def test_a_caller_that_went_away_before_its_turn_has_taken_its_job_back(store):
    with _Held(store):
        gone = store.submit(new_job(), 10**9)
        stays = store.submit(new_job(), 10**9)
        assert gone.cancel()
    assert stays.result(LONG_S).waiting.position == 1
    assert store.queued == 1


def test_a_closed_store_refuses_and_has_lost_nothing_that_was_handed_in(tmp_path, clock):
    store = SqliteStore(tmp_path / "jobs.db", clock)
    with _Held(store):
        last = store.submit(new_job(), 10**9)
        closing = threading.Thread(target=store.close)
        closing.start()
    closing.join()
    assert last.result(LONG_S).job.number == 1
    assert isinstance(store.submit(new_job(), 10**9).exception(LONG_S), ServerUnavailableError)
    assert isinstance(store.get("x").exception(LONG_S), ServerUnavailableError)
    reopened = SqliteStore(tmp_path / "jobs.db", clock)
    assert reopened.queued == 1
    reopened.close()


# The line. --------------------------------------------------------------------------------------------------------


def test_owners_take_turns_and_each_owners_jobs_stay_in_order(store):
    jobs = {}
    for owner, count in (("a", 4), ("b", 2), ("c", 1)):
        for turn in range(count):
            jobs[_submit(store, owner=owner).job.job_id] = f"{owner}{turn}"
    assert [jobs[job_id] for job_id in _claimed_in_order(store)] == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_a_late_coming_owner_neither_waits_for_the_others_backlog_nor_catches_up(store):
    jobs = {_submit(store, owner="early").job.job_id: f"early{turn}" for turn in range(30)}
    order = [jobs[_claim(store, 10**9)] for _ in range(10)]
    jobs.update({_submit(store, owner="late").job.job_id: f"late{turn}" for turn in range(5)})
    order = [jobs[job_id] for job_id in _claimed_in_order(store)]
    assert order[:10:2] + order[1:10:2] in (
        [f"late{turn}" for turn in range(5)] + [f"early{turn}" for turn in range(10, 15)],
        [f"early{turn}" for turn in range(10, 15)] + [f"late{turn}" for turn in range(5)],
    )
    assert order[10:] == [f"early{turn}" for turn in range(15, 30)]


def test_an_owner_who_comes_back_again_and_again_gets_no_more_than_its_turn(store):
    for _ in range(10):
        _submit(store, owner="patient")
    owners = {}
    order = []
    for _ in range(10):
        owners[_submit(store, owner="eager").job.job_id] = "eager"
        order.append(owners.get(_claim(store, 10**9), "patient"))
        order.append(owners.get(_claim(store, 10**9), "patient"))
    assert order.count("eager") == order.count("patient") == 10
    assert all(order[at : at + 3] != ["eager"] * 3 for at in range(len(order)))


def test_priority_number_and_front_reorder_within_an_owner_only(store):
    def submit(name, **facts):
        names[_submit(store, **facts).job.job_id] = name

    names = {}
    submit("plain", owner="a")
    submit("b-first", owner="b")
    submit("low", owner="a", priority=-1)
    submit("front", owner="a", front=True)
    submit("number", owner="a", order=0.5)
    submit("high", owner="a", priority=1)
    submit("fronter", owner="a", front=True)
    submit("b-second", owner="b")
    order = [names[job_id] for job_id in _claimed_in_order(store)]
    assert [name for name in order if not name.startswith("b-")] == [
        "high",
        "fronter",
        "front",
        "number",
        "plain",
        "low",
    ]
    assert [name for name in order if name.startswith("b-")] == ["b-first", "b-second"]
    assert {order.index("b-first"), order.index("b-second")} <= {0, 1, 2, 3}


def test_jobs_with_the_same_number_go_in_the_order_in_which_they_came(store):
    ids = [_submit(store, order=5.0) for _ in range(4)]
    positions = [store.locate(each.job.job_id).result(LONG_S).position for each in ids]
    assert positions == [1, 2, 3, 4]
    assert [each.waiting.position for each in ids] == [1, 2, 3, 4]
    assert _claimed_in_order(store) == [each.job.job_id for each in ids]


def test_a_requeued_job_has_its_old_place_and_its_slot_is_free(store):
    first, second = (_submit(store).job.job_id for _ in range(2))
    assert _claim(store) == first
    assert _claim(store) is None
    assert store.recover("local", 2).result(LONG_S).requeued == 1
    assert store.locate(first).result(LONG_S).position == 1
    assert store.locate(second).result(LONG_S).position == 2
    assert _claim(store) == first


def test_a_slot_is_free_when_released_and_not_when_settled(store):
    first, second = (_submit(store).job.job_id for _ in range(2))
    assert _claim(store) == first
    store.start(first).result(LONG_S)
    assert store.settle(first, CANCELLED).result(LONG_S).won
    assert _claim(store) is None
    store.release(first).result(LONG_S)
    assert _claim(store) == second


def test_positions_among_ten_thousand_queued_are_right(store):
    futures = [
        store.submit(new_job(owner=f"bot-{turn % 7}", priority=(turn % 11) // 10, front=turn % 13 == 0), 10**9)
        for turn in range(10_000)
    ]
    ids = [future.result(LONG_S).job.job_id for future in futures]
    assert store.queued == 10_000
    picked = random.Random(3).sample(ids, 200)
    told = {job_id: store.locate(job_id).result(LONG_S).position for job_id in picked}
    claims = [store.claim("local", 10**9) for _ in ids]
    place = {claim.result(LONG_S).job.job_id: at for at, claim in enumerate(claims, start=1)}
    assert set(place) == set(ids)
    assert told == {job_id: place[job_id] for job_id in picked}


def test_a_full_queue_is_refused_at_the_commit(store):
    with _Held(store):
        futures = [store.submit(new_job(), 3) for _ in range(5)]
    refusals = [future.exception(LONG_S) for future in futures]
    assert refusals[:3] == [None, None, None]
    assert all(isinstance(refusal, QueueFullError) for refusal in refusals[3:])
    assert refusals[3].extra_info == {"queued": 3, "max_queued": 3}
    assert store.queued == 3


def test_a_job_id_that_is_taken_is_a_conflict_for_every_owner(store):
    job_id = _submit(store, owner="a").job.job_id
    for owner in ("a", "b"):
        error = store.submit(new_job(job_id, owner=owner), 10**9).exception(LONG_S)
        assert isinstance(error, ConflictError)
        assert error.extra_info == {"job_id": job_id}
    assert store.get(job_id).result(LONG_S).owner == "a"
    assert store.queued == 1


# Idempotency keys. ------------------------------------------------------------------------------------------------


def test_an_idempotency_key_is_forgotten_after_its_time_and_can_be_used_again(store):
    old = _submit(store, key=IdempotencyKey("k", "digest"), created_at_ms=1000).job.job_id
    assert store.replay("bot", IdempotencyKey("k", "digest", since_ms=1000)).result(LONG_S).job.job_id == old
    late = IdempotencyKey("k", "another digest", since_ms=1001)
    assert store.replay("bot", late).result(LONG_S) is None
    new = _submit(store, key=late, created_at_ms=2000)
    assert (new.replayed, new.job.job_id != old) == (False, True)
    assert store.replay("bot", late).result(LONG_S).job.job_id == new.job.job_id


def test_the_same_key_and_body_give_the_job_of_before(store):
    key = IdempotencyKey("k", "digest")
    first = _submit(store, key=key)
    again = _submit(store, key=key)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.job == first.job
    assert store.queued == 1
    assert store.replay("bot", key).result(LONG_S).job == first.job


def test_a_replay_shows_how_the_job_ended(store):
    key = IdempotencyKey("k", "digest")
    job_id = _submit(store, key=key).job.job_id
    store.settle(job_id, CANCELLED).result(LONG_S)
    replayed = store.replay("bot", key).result(LONG_S)
    assert (replayed.job.state, replayed.waiting, replayed.replayed) == (JobState.CANCELLED, None, True)


def test_the_same_key_with_another_body_is_a_conflict(store):
    job_id = _submit(store, key=IdempotencyKey("k", "digest")).job.job_id
    other = IdempotencyKey("k", "another digest")
    for future in (store.replay("bot", other), store.submit(new_job(), 10**9, other)):
        error = future.exception(LONG_S)
        assert isinstance(error, ConflictError)
        assert error.extra_info == {"job_id": job_id}
    assert store.queued == 1


def test_a_key_is_its_owners_own(store):
    key = IdempotencyKey("k", "digest")
    _submit(store, owner="a", key=key)
    assert store.replay("b", key).result(LONG_S) is None
    assert _submit(store, owner="b", key=key).replayed is False


def test_a_replay_is_answered_by_a_full_queue_too(store):
    key = IdempotencyKey("k", "digest")
    first = _submit(store, key=key)
    assert _submit(store, key=key, max_queued=1).job == first.job


def test_a_refused_submit_does_not_use_its_key_up(store):
    key = IdempotencyKey("k", "digest")
    taken = _submit(store).job.job_id
    assert isinstance(store.submit(new_job(taken), 10**9, key).exception(LONG_S), ConflictError)
    assert store.replay("bot", key).result(LONG_S) is None
    assert _submit(store, key=key).replayed is False


def test_a_key_survives_a_restart(tmp_path, clock):
    key = IdempotencyKey("k", "digest")
    store = SqliteStore(tmp_path / "jobs.db", clock)
    first = _submit(store, key=key)
    store.close()
    store = SqliteStore(tmp_path / "jobs.db", clock)
    assert _submit(store, key=key).job == first.job
    store.close()


# Files. -----------------------------------------------------------------------------------------------------------


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
def test_a_corrupt_file_is_set_aside_whole_and_a_new_one_begun(tmp_path, clock, ruin, killed, caplog):
    old, path = tmp_path / "old.db", tmp_path / "jobs.db"
    _old_database(old, clock)
    if killed:  # the last job is in the write-ahead log only
        store = SqliteStore(old, clock)
        _submit(store, body=b"only in the log")
        for suffix in ("", "-wal", "-shm"):
            shutil.copy(f"{old}{suffix}", f"{path}{suffix}")
        store.close()
        assert b"only in the log" in Path(f"{path}-wal").read_bytes()
    else:
        shutil.copy(old, path)
    ruined = ruin(path.read_bytes())
    path.write_bytes(ruined)
    store = SqliteStore(path, clock)
    assert store.queued == 0
    assert _submit(store).job.number == 1
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
    monkeypatch.setattr(disk.time, "strftime", lambda *_args: "20300101-000000")
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
    db.execute(f"PRAGMA user_version = {len(disk.MIGRATIONS) + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreTooNewError, match=r"jobs\.db"):
        SqliteStore(path, clock)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.corrupt-*"))
    with pytest.raises(StoreTooNewError):  # and not "locked": the first refusal has let go
        SqliteStore(path, clock)


_OPENER = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("_alias", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.register()
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.store import SqliteStore
try:
    SqliteStore(Path(sys.argv[2]), Clock())
except Exception as error:
    print(type(error).__name__, error)
else:
    print("opened")
"""


def test_a_second_process_is_refused_while_the_first_has_the_database(store):
    def open_elsewhere():
        command = [sys.executable, "-c", _OPENER, str(REPO / "alias.py"), str(store.path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=True).stdout

    _submit(store)
    said = open_elsewhere()
    assert said.startswith("StoreLockedError")
    assert str(store.path) in said
    assert _submit(store).job.number == 2


def test_a_second_opener_in_the_same_process_is_refused(store, clock):
    with pytest.raises(StoreLockedError):
        SqliteStore(store.path, clock)
    assert _submit(store).job.number == 1


def test_a_migration_keeps_the_jobs(tmp_path, clock, monkeypatch):
    path = tmp_path / "jobs.db"
    ids = _old_database(path, clock)
    second = "ALTER TABLE jobs ADD COLUMN mood TEXT NOT NULL DEFAULT 'fine'; CREATE TABLE extra (x INTEGER);"
    monkeypatch.setattr(disk, "MIGRATIONS", (*disk.MIGRATIONS, second))
    store = SqliteStore(path, clock)
    assert [job.job_id for job in store.list_jobs(None, None, 100).result(LONG_S)] == ids[::-1]
    assert store.queued == len(ids)
    assert _submit(store).job.number == len(ids) + 1
    store.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (len(disk.MIGRATIONS),)
    assert db.execute("SELECT DISTINCT mood FROM jobs").fetchall() == [("fine",)]
    db.close()
    SqliteStore(path, clock).close()  # not migrated twice


def test_a_migration_that_fails_half_way_leaves_the_database_as_it_was(tmp_path, clock, monkeypatch):
    path = tmp_path / "jobs.db"
    ids = _old_database(path, clock)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "MIGRATIONS", (*disk.MIGRATIONS, "DELETE FROM jobs; SELECT no_such_function();"))
        with pytest.raises(StoreUnusableError):
            SqliteStore(path, clock)
    store = SqliteStore(path, clock)
    assert store.queued == len(ids)
    assert len(store.list_jobs(None, None, 100).result(LONG_S)) == len(ids)
    store.close()


def test_a_full_disk_is_said_by_name_and_is_over_when_there_is_room_again(store):
    kept = _submit(store).job.job_id

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


# Telling. ---------------------------------------------------------------------------------------------------------


def test_a_listener_hears_of_a_change_only_once_it_is_durable(store):
    seen = []

    def listener(job):
        db = sqlite3.connect(store.path)
        seen.append((job.state.value, *db.execute("SELECT state FROM jobs WHERE job_id = ?", (job.job_id,)).fetchone()))
        db.close()

    store.changed.subscribe(listener)
    job_id = _submit(store).job.job_id
    _claim(store)
    _run_to_success(store, job_id)
    assert seen == [(state, state) for state in ("queued", "dispatched", "running", "validating", "succeeded")]


def test_whoever_gets_an_answer_knows_that_the_listeners_were_told_before(store):
    told = []
    store.changed.subscribe(lambda job: told.append(job.job_id))
    for _ in range(50):
        job_id = _submit(store).job.job_id
        assert told[-1] == job_id


def test_a_listener_that_raises_harms_nobody(store, caplog):
    told = []

    def broken(_job):
        raise ValueError("a broken listener")

    store.changed.subscribe(broken)
    store.changed.subscribe(lambda job: told.append(job.job_id))
    ids = [_submit(store).job.job_id for _ in range(2)]
    assert told == ids
    assert "a broken listener" in caplog.text


def test_what_was_refused_is_told_to_nobody(store):
    told = []
    store.changed.subscribe(told.append)
    job_id = _submit(store).job.job_id
    told.clear()
    for refused in (store.submit(new_job(job_id), 10**9), store.submit(new_job(), 1), store.start(job_id)):
        assert refused.exception(LONG_S) is not None
    assert store.settle(job_id, CANCELLED).result(LONG_S).won
    assert store.settle(job_id, CANCELLED).result(LONG_S).won is False
    assert [job.state for job in told] == [JobState.CANCELLED]


# Looking. ---------------------------------------------------------------------------------------------------------


def test_a_list_is_newest_first_filtered_and_paged(store):
    ids = [_submit(store, owner=owner).job.job_id for owner in "ababa"]
    store.settle(ids[0], CANCELLED).result(LONG_S)

    def listed(owner=None, states=None, limit=100, before=None):
        return [ids.index(job.job_id) for job in store.list_jobs(owner, states, limit, before).result(LONG_S)]

    assert listed() == [4, 3, 2, 1, 0]
    assert listed("a") == [4, 2, 0]
    assert listed("nobody") == []
    assert listed(states=frozenset({JobState.QUEUED})) == [4, 3, 2, 1]
    assert listed("a", frozenset({JobState.CANCELLED, JobState.FAILED})) == [0]
    assert listed(states=frozenset()) == []
    pages, before = [], None
    while page := store.list_jobs(None, None, 2, before).result(LONG_S):
        pages.append([ids.index(job.job_id) for job in page])
        before = page[-1].number
    assert pages == [[4, 3], [2, 1], [0]]


def test_overdue_are_the_jobs_that_wait_since_before_a_time(store):
    old_queued = _submit(store, created_at_ms=100, order=10.0).job.job_id
    old_dispatched = _submit(store, created_at_ms=100, order=1.0).job.job_id
    old_running = _submit(store, created_at_ms=100, order=0.0).job.job_id
    old_settled = _submit(store, created_at_ms=100).job.job_id
    _submit(store, created_at_ms=200)
    assert _claim(store, 2) == old_running
    assert _claim(store, 2) == old_dispatched
    store.start(old_running).result(LONG_S)
    store.settle(old_settled, CANCELLED).result(LONG_S)
    overdue = {job.job_id for job in store.list_overdue(200).result(LONG_S)}
    assert overdue == {old_queued, old_dispatched}
    assert store.list_overdue(100).result(LONG_S) == []


def test_an_overdue_verdict_leaves_alone_what_has_begun_to_run(store):
    job_id = _submit(store).job.job_id
    _claim(store)
    store.start(job_id).result(LONG_S)
    settled = store.settle(job_id, CANCELLED, only_waiting=True).result(LONG_S)
    assert (settled.won, settled.job.state) == (False, JobState.RUNNING)


def test_the_first_verdict_holds(store):
    job_id = _submit(store).job.job_id
    _claim(store)
    store.start(job_id).result(LONG_S)
    timeout = Verdict(JobState.FAILED, "generation_timeout", "too long", {"timeout_s": 1})
    with _Held(store):
        first, second = store.settle(job_id, timeout), store.settle(job_id, SUCCESS, Result({"2": {"text": ["x"]}}))
    assert first.result(LONG_S).won
    assert not second.result(LONG_S).won
    job = store.get(job_id).result(LONG_S)
    assert (job.state, job.verdict, job.result) == (JobState.FAILED, timeout, Result())
    assert second.result().job == job


def test_a_job_comes_back_from_the_disk_as_it_was(store):
    artifact = Artifact(0, "2", "image", "é.png", "sub", "output", 9, "ab", 3, 4, None, ("unknown_kind",))
    result = Result({"2": {"images": [{"filename": "é.png"}]}}, (artifact,))
    new = new_job(
        priority=3, client_id="c", shape="s", template="t", parameters={"seed": 5}, outputs_to_execute=("2", "7"),
        metadata={"a": ["б", None, 1.5]}, has_secrets=True, timeout_s=1.25, locale="ru",
    )  # fmt: skip
    submitted = store.submit(new, 1).result(LONG_S).job
    assert store.get(new.job_id).result(LONG_S) == submitted
    _claim(store)
    settled = _run_to_success(store, new.job_id, result).job
    read = store.get(new.job_id).result(LONG_S)
    assert read == settled
    assert read.result == result
    assert read.verdict == SUCCESS
    assert (read.metadata, read.timeout_s, read.client_id) == ({"a": ["б", None, 1.5]}, 1.25, "c")
    assert read.started_at_ms <= read.settled_at_ms
    assert store.find_entry(new.job_id).result(LONG_S).body == new.body
    assert json.loads(json.dumps(read.body()))["refund"] is False


def test_nothing_is_known_of_a_job_that_never_was(store):
    assert store.get("x").result(LONG_S) is None
    assert store.find_entry("x").result(LONG_S) is None
    assert store.locate("x").result(LONG_S) is None
    assert store.start("x").result(LONG_S) is None
    assert store.settle("x", CANCELLED).result(LONG_S) is None
    assert store.release("x").result(LONG_S) is None


def test_run_times_are_those_of_the_last_successes_oldest_first(tmp_path):
    class Ticking:
        now = 0

        def now_ms(self):
            return self.now

    ticking = Ticking()
    store = SqliteStore(tmp_path / "jobs.db", ticking)
    for run_ms in (10, 20, 30):
        job_id = _submit(store).job.job_id
        _claim(store)
        store.start(job_id).result(LONG_S)
        ticking.now += run_ms
        store.settle(job_id, SUCCESS).result(LONG_S)
        store.release(job_id).result(LONG_S)
    store.settle(_submit(store).job.job_id, CANCELLED).result(LONG_S)
    assert [run.run_ms for run in store.list_recent_runs(2).result(LONG_S)] == [20, 30]
    store.close()


# A restart. -------------------------------------------------------------------------------------------------------


def test_recovery_takes_up_what_was_under_way_and_gives_up_what_cannot_be(tmp_path, clock):
    path = tmp_path / "jobs.db"
    store = SqliteStore(path, clock)
    names = ["dispatched", "once", "checked", "twice", "secret-running", "secret-queued", "queued"]
    ids = {name: new_id() for name in names}
    _submit(store, ids["twice"])
    for _ in range(2):
        assert store.recover("local", 2).result(LONG_S).settled == ()
        assert _claim(store, 99) == ids["twice"]
        store.start(ids["twice"]).result(LONG_S)
    for name in names:
        if name != "twice":
            _submit(store, ids[name], has_secrets=name.startswith("secret"))
    for _ in range(4):
        _claim(store, 99)
    for name in ("once", "checked", "secret-running"):
        store.start(ids[name]).result(LONG_S)
    store.validate(ids["checked"]).result(LONG_S)
    store.close()

    store = SqliteStore(path, clock)
    told = []
    store.changed.subscribe(lambda job: told.append(job.job_id))
    recovery = store.recover("local", 2).result(LONG_S)
    assert recovery.requeued == 3
    given_up = {ids["twice"], ids["secret-running"], ids["secret-queued"]}
    assert {job.job_id for job in recovery.settled} == given_up
    for job_id in given_up:
        body = store.get(job_id).result(LONG_S).body()
        assert (body["state"], body["error"]["code"], body["refund"]) == ("failed", "server_restarted", True)
    assert len(told) == 6
    assert store.count_jobs().result(LONG_S).leased == 0
    assert _claimed_in_order(store) == [ids[name] for name in ("dispatched", "once", "checked", "queued")]
    attempts = {name: store.get(ids[name]).result(LONG_S).attempts for name in names}
    assert (attempts["dispatched"], attempts["once"], attempts["twice"]) == (0, 1, 2)
    store.close()


def test_no_question_about_the_open_jobs_reads_through_the_settled_ones(store):
    """The watchdog asks twice a second, and a store may hold a million."""
    asked = []
    store._engine._reader._db.set_trace_callback(asked.append)
    few = frozenset({JobState.RUNNING, JobState.VALIDATING})
    for future in (
        store.list_overdue(1),
        store.count_jobs(),
        store.count_jobs("bot"),
        store.list_open_numbers(),
        store.list_jobs(None, few, 10),
        store.list_jobs("bot", few, 10),
        store.list_jobs(None, OPEN, 10),
        store.count_endings(0, 1),
    ):
        future.result(LONG_S)
    assert len(asked) >= 8
    db = sqlite3.connect(store.path)
    for query in asked:
        plan = " ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}"))
        assert re.search(r"SCAN jobs(?! USING (COVERING )?INDEX jobs_(queued|open))", plan) is None, (query, plan)
        assert "jobs_of_owner" not in plan, (query, plan)
    assert "COVERING INDEX jobs_settled" in plan
    db.close()


def test_what_ended_is_counted_by_owner_and_code(store, clock):
    first, second = (_submit(store, owner="a").job.job_id for _ in range(2))
    _claim(store)
    _run_to_success(store, first)
    _claim(store)
    store.settle(second, CANCELLED).result(LONG_S)
    _submit(store, owner="b")
    now_ms = clock.now_ms()
    found = store.count_endings(now_ms - 60_000, now_ms + 1).result(LONG_S)
    assert sorted((one.owner, one.code, one.jobs, one.runs) for one in found if one.code) == [("a", "cancelled", 1, 0)]
    (success,) = [one for one in found if one.code is None]
    assert (success.owner, success.jobs, success.runs) == ("a", 1, 1)
    assert success.run_ms >= 0
    assert store.count_endings(0, now_ms - 60_000).result(LONG_S) == []
    assert store.count_jobs("b").result(LONG_S) == Counts(queued=1, leased=0, running=0)
    assert store.count_jobs("a").result(LONG_S) == Counts(queued=0, leased=1, running=0)


def test_run_times_come_with_their_template_the_newest_first(store, clock):
    for template in ("portrait", "", "video"):
        job_id = _submit(store, template=template).job.job_id
        _claim(store)
        _run_to_success(store, job_id)
    _submit(store, template="waiting")
    names = [template for template, _run_ms in store.list_template_runs_ms(None, 3, 0).result(LONG_S)]
    assert names == ["video", ""]
    assert store.list_template_runs_ms("stranger", 9, 0).result(LONG_S) == []
    assert len(store.list_template_runs_ms("bot", 9, 0).result(LONG_S)) == 3
    assert store.list_template_runs_ms(None, 9, clock.now_ms() + 1).result(LONG_S) == []
