"""The job database stays small: prompts of settled jobs go, space is given back, and nothing else is lost."""

import json
import os
import random
import sqlite3
import time
from concurrent.futures import Future
from dataclasses import replace

import pytest
from unit.fakes import LONG_S
from unit.store_steps import CANCELLED, claim, run_to_success, submit

from comfyui_guarded.guard.callers import as_comfyui
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import DiskFullError
from comfyui_guarded.guard.job import OPEN, JobState, Result
from comfyui_guarded.guard.store import Limits, Listing, SqliteStore, threads, upkeep
from comfyui_guarded.guard.store.rows import find_job

MIB = 2**20
DAY_MS = 86_400_000


class Later(Clock):
    """A clock that the test moves on."""

    def __init__(self):
        super().__init__()
        self.ahead_ms = 0

    def now_ms(self):
        return super().now_ms() + self.ahead_ms


@pytest.fixture
def clock():
    return Later()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The writer looks after the file all the time, and a few hundred KiB matter."""
    monkeypatch.setattr(threads, "LOOK_S", 0.01)
    monkeypatch.setattr(threads, "MORE_S", 0.001)
    monkeypatch.setattr(upkeep, "FREE_BYTES", MIB // 4)
    monkeypatch.setattr(upkeep, "LOG_BYTES", MIB)
    monkeypatch.setattr(upkeep, "LOG_MOST", 8 * MIB)
    monkeypatch.setattr(upkeep, "TIDY_BYTES", MIB)
    monkeypatch.setattr(upkeep, "TIDY_PAGES", 200)


@pytest.fixture
def opened(tmp_path, clock):
    """Opens stores on one file; the last one is closed at the end."""
    stores = []

    def open_store(**limits):
        for store in stores:
            store.close()
        stores[:] = [SqliteStore(tmp_path / "guarded.db", clock, "kill", Limits(**limits))]
        return stores[0]

    yield open_store
    for store in stores:
        store.close()


def body(size):
    """As large as that, and not to be compressed."""
    return json.dumps({"prompt": {}, "extra_data": {"x": random.randbytes(size // 2).hex()}}).encode()


def add(store, clock, size=1000, **facts):
    return submit(store, body=body(size), created_at_ms=clock.now_ms(), **facts).job.job_id


def add_patiently(store, clock, size, **facts):
    """As a caller who comes again when the thinning has not kept up with the others."""
    ends_s = time.monotonic() + LONG_S
    while True:
        try:
            return add(store, clock, size, **facts)
        except DiskFullError:
            assert time.monotonic() < ends_s
            time.sleep(0.01)


def end(store, *job_ids):
    for future in [store.settle(job_id, CANCELLED) for job_id in job_ids]:
        future.result(LONG_S)


def has_body(store, job_id):
    entry = store.find_entry(job_id).result(LONG_S)
    return entry is not None and entry.body is not None


def wait_until(met, what=""):
    ends_s = time.monotonic() + LONG_S
    while not met():
        assert time.monotonic() < ends_s, what or "it does not happen"
        time.sleep(0.005)


def bytes_of(store):
    """What its files take on the disk: the database, and its log."""
    return os.stat(store.path).st_size, os.stat(f"{store.path}-wal").st_size


def assert_whole(store):
    assert store._engine.read(lambda db: db.execute("PRAGMA integrity_check").fetchall()).result(LONG_S) == [("ok",)]


def test_prompts_go_some_days_after_their_jobs_have_settled_and_the_jobs_stay(opened, clock):
    store = opened(bodies_max_age_s=3 * 86400)
    waiting, first = add(store, clock), add(store, clock)
    end(store, first)
    clock.ahead_ms += 2 * DAY_MS
    second = add(store, clock)
    end(store, second)
    clock.ahead_ms += DAY_MS + 1000
    wait_until(lambda: not has_body(store, first))
    assert has_body(store, second)
    assert has_body(store, waiting), "an open job keeps its prompt however long it waits"
    assert store.get(first).result(LONG_S).state is JobState.CANCELLED
    clock.ahead_ms += 3 * DAY_MS
    wait_until(lambda: not has_body(store, second))
    assert has_body(store, waiting)
    assert store.claim("local", 1).result(LONG_S).job.job_id == waiting


def test_after_a_restart_the_prompts_left_by_the_process_before_go_too(opened, clock):
    store = opened(bodies_max_age_s=86400)
    ids = [add(store, clock) for _ in range(10)]
    end(store, *ids[:5])
    clock.ahead_ms += 2 * DAY_MS
    wait_until(lambda: not any(has_body(store, job_id) for job_id in ids[:5]))
    end(store, *ids[5:])
    store = opened(bodies_max_age_s=86400)
    clock.ahead_ms += 2 * DAY_MS
    wait_until(lambda: not any(has_body(store, job_id) for job_id in ids))


def test_a_prompt_that_is_gone_leaves_the_job_in_every_list(opened, clock):
    store = opened(bodies_max_age_s=86400)
    job_id = add(store, clock, client_id="c")
    end(store, job_id)
    clock.ahead_ms += 2 * DAY_MS
    wait_until(lambda: not has_body(store, job_id))
    entry = store.find_entry(job_id).result(LONG_S)
    assert (entry.job.job_id, entry.body) == (job_id, None)
    for offset in (None, 0):
        listed = store.list_history("bot", 10, offset).result(LONG_S)
        assert [(found.job.job_id, found.body) for found in listed] == [(job_id, None)]
    page = store.find_page("bot", Listing(frozenset(JobState))).result(LONG_S)
    assert ([job.job_id for job, _workflow in page.jobs], page.total) == ([job_id], 1)
    number, shown, prompt, extra_data, outputs = as_comfyui.row(entry)
    assert (number, shown, prompt, outputs) == (entry.job.number, job_id, {}, [])
    assert extra_data == {"create_time": entry.job.created_at_ms, "client_id": "c"}
    listed = as_comfyui.item_in_full(entry)
    assert (listed["workflow"]["prompt"], listed["prompt_gone"]) == ({}, True)
    assert as_comfyui.history_entry(entry, {})["prompt_gone"] is True
    kept = store.find_entry(add(store, clock)).result(LONG_S)
    assert "prompt_gone" not in as_comfyui.history_entry(kept, {})


def test_thousands_of_jobs_never_take_the_file_beyond_its_limit_and_it_falls_after_forgetting(opened, clock):
    limit = 8 * MIB
    store = opened(bodies_max_age_s=3 * 86400, max_bytes=limit)
    rng = random.Random(7)
    waiting, ended, sent = [], [], 0
    largest = 0
    for _round in range(40):
        for _ in range(50):
            size = int(1024 * 200 ** rng.random())
            waiting.append(add_patiently(store, clock, size))
            sent += size
        while len(waiting) > 20:
            ended.append(waiting.pop(rng.randrange(len(waiting))))
            end(store, ended[-1])
        clock.ahead_ms += 600_000
        taken, _log = bytes_of(store)
        largest = max(largest, taken)
        assert taken <= limit * upkeep.MOST + MIB
    assert sent > 5 * limit, "this test is about more than fits"
    assert largest > limit / 2, "prompts are kept while there is room"
    assert all(has_body(store, job_id) for job_id in waiting)
    assert has_body(store, ended[-1]), "the last to go are the last that settled"
    assert not has_body(store, ended[0])
    assert store._engine.read(lambda db: db.execute("SELECT count(*) FROM jobs").fetchone()).result(LONG_S) == (2000,)
    assert_whole(store)
    wait_until(lambda: bytes_of(store)[1] <= MIB, "the log is not cut off")
    clock.ahead_ms += DAY_MS
    while store.forget(clock.now_ms() - DAY_MS // 2, 200).result(LONG_S):
        pass
    kept = os.path.getsize(store.path)
    wait_until(lambda: os.path.getsize(store.path) < max(kept / 4, 2 * MIB), "the space is not given back")
    assert all(has_body(store, job_id) for job_id in waiting)
    assert_whole(store)


def test_whatever_jobs_report_the_file_keeps_to_its_limit_and_new_jobs_are_let_in(opened, clock):
    """Any part of what a caller or a node can make large, in any job: its prompt, its texts, the ids of its nodes."""
    limit = 8 * MIB
    store = opened(max_bytes=limit)
    rng = random.Random(11)
    file = {"filename": "a.png", "subfolder": "b", "type": "output"}
    reports, ended, sent = {}, [], 0
    while sent < 6 * limit:
        parts = [int(100 * 5000 ** rng.random()) if rng.random() < 0.5 else 10 for _ in range(4)]
        text, node_id = rng.randbytes(parts[1] // 2).hex(), "9" * (parts[2] // 8 + 1)
        job_id = add_patiently(store, clock, parts[0], outputs_to_execute=(node_id,))
        reports[job_id] = {node_id: {"text": [text], "images": [{**file, "shown": "x" * (parts[3] // 4)}]}}
        sent += sum(parts)
        while len(reports) - len(ended) > 5:
            ended.append(claim(store))
            run_to_success(store, ended[-1], Result(reports[ended[-1]]))
        assert bytes_of(store)[0] <= limit * upkeep.MOST + MIB
    add_patiently(store, clock, 1000)
    for job_id in ended:
        job = store._engine.read(lambda db, job_id=job_id: find_job(db, job_id)).result(LONG_S)
        assert job.state is JobState.SUCCEEDED
        ((node_id, report),) = reports[job_id].items()
        if len(node_id) < 1000:
            (image,) = job.result.outputs[node_id]["images"]
            assert {**image, "shown": ""} == {**file, "shown": ""}
            assert job.result.outputs[node_id].get("text") in (report["text"], None)
    assert_whole(store)


def test_where_every_job_is_open_new_ones_are_refused_by_name_until_one_has_ended(opened, clock):
    limit = 4 * MIB
    store = opened(max_bytes=limit)
    ids = []

    def fill():
        while True:
            ids.append(add(store, clock, 200_000))

    with pytest.raises(DiskFullError) as refusal:
        fill()
    assert refusal.value.status == 507
    assert refusal.value.retry_after_s
    assert refusal.value.extra_info["max_bytes"] == limit
    assert bytes_of(store)[0] <= limit * upkeep.MOST
    assert all(has_body(store, job_id) for job_id in ids)
    assert store.full() is None or store.full().code == "disk_full"
    end(store, *ids[:8])
    wait_until(lambda: _lets_in(store, clock))
    assert len(store.list_jobs("bot", OPEN, 100).result(LONG_S)) == len(ids) - 8 + 1
    assert all(has_body(store, job_id) for job_id in ids[8:])


def _lets_in(store, clock):
    try:
        return bool(add(store, clock, 50_000))
    except DiskFullError:
        return False


def test_a_disk_that_runs_short_takes_the_prompts_that_it_needs_the_first_settled_first(opened, clock):
    store = opened()
    ids = [add(store, clock, 100_000) for _ in range(40)]
    for job_id in ids[:30]:
        end(store, job_id)
        clock.ahead_ms += 10
    store.flush(LONG_S)
    wait_until(lambda: store.size.bytes > 3 * MIB)
    before = store.size.bytes
    store.relieve(MIB)
    wait_until(lambda: os.path.getsize(store.path) <= before - MIB and store.size.bytes <= before - MIB, "not smaller")
    store.relieve(0)
    kept = [has_body(store, job_id) for job_id in ids]
    assert kept[30:] == [True] * 10
    assert kept == sorted(kept), "the first settled go first"
    assert 10 <= kept.count(False) <= 15
    assert_whole(store)


def test_a_log_that_has_grown_while_somebody_read_is_cut_off_once_that_is_over(opened, clock, tmp_path):
    store = opened()
    add(store, clock)
    reader = sqlite3.connect(store.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM jobs").fetchone()
    ids = [add(store, clock, 200_000) for _ in range(60)]
    grown = bytes_of(store)[1]
    assert grown > 10 * MIB
    began_s = time.monotonic()
    add(store, clock)
    assert time.monotonic() - began_s < LONG_S, "nobody waits for the reader"
    reader.execute("COMMIT")
    wait_until(lambda: bytes_of(store)[1] <= MIB, "the log is not cut off")
    reader.close()
    assert all(has_body(store, job_id) for job_id in ids)


def test_what_the_store_says_of_its_size_is_what_lies_on_the_disk(opened, clock):
    store = opened()
    for _ in range(20):
        end(store, add(store, clock, 50_000))
    wait_until(lambda: store.size.bytes > MIB)
    store._engine.read_slowly(lambda db: db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()).result(LONG_S)
    wait_until(lambda: (store.size.bytes, store.size.log_bytes) == bytes_of(store))


def test_a_log_that_cannot_be_worked_in_is_worked_in_later(opened, clock, monkeypatch):
    """Not only once as much has been written again: nobody may write for days."""
    monkeypatch.setattr(upkeep, "AGAIN_S", 0.05)
    monkeypatch.setattr(upkeep, "LOG_BYTES", 64 * MIB)
    store = opened()
    means, failures = store._engine._means, [sqlite3.OperationalError("database or disk is full")] * 3

    def read_slowly(work):
        if not failures:
            return means.read_slowly(work)
        failed = Future()
        failed.set_exception(failures.pop())
        return failed

    monkeypatch.setattr(store._engine, "_means", replace(means, read_slowly=read_slowly))
    add(store, clock, 3 * MIB // 2)
    wait_until(lambda: bytes_of(store)[0] > MIB)
    assert not failures
