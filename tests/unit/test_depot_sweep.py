"""The janitor in the depot: what is old goes, and nothing that anybody still needs."""

import hashlib
import io
import json
import os
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit import janitor as janitor_files
from unit import stores
from unit.fakes import LONG_S
from unit.janitor import DAY_S, Box
from unit.store_steps import CANCELLED, claim, run_to_success, submit

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.depot import Depot, make_key, read_address
from comfyui_guarded.guard.job import Artifact, Result
from comfyui_guarded.guard.outgoing import StoredFile
from comfyui_guarded.guard.store import DeliveryState, SqliteStore


@pytest.fixture
def box(tmp_path):
    return Box(tmp_path / "box")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "shared"
    made.mkdir()
    return made


@pytest.fixture
def depot(folder):
    made = Depot(read_address(folder.as_uri()))
    made.look()
    return made


def put(depot, data, age_s=30 * DAY_S):
    key = make_key(hashlib.sha256(data).hexdigest(), "a.png")
    depot.put(key, io.BytesIO(data))
    made_old(depot, key, age_s)
    return key


def made_old(depot, key, age_s):
    at_s = time.time() - age_s
    os.utime(depot.address.folder / key, (at_s, at_s))


def left(depot):
    return {file.key for file in depot.list_all()}


def graph(name):
    return json.dumps({"prompt": {"1": {"class_type": "LoadImage", "inputs": {"image": name}}}}).encode()


def make_result(store, *datas):
    """A job whose results have these bytes, just settled."""
    artifacts = tuple(
        Artifact(index, "9", "image", f"{time.monotonic_ns()}.png", "", "output", 1, hashlib.sha256(data).hexdigest())
        for index, data in enumerate(datas)
    )
    job_id = submit(store).job.job_id
    while claim(store, 10**9) != job_id:
        pass
    run_to_success(store, job_id, Result(artifacts=artifacts))
    return job_id


def test_ages_are_those_of_results_and_of_inputs(box, depot, store):
    uploads = [put(depot, b"young input", 2 * DAY_S), put(depot, b"old input", 8 * DAY_S)]
    submit(store, inputs=tuple(StoredFile(key, key, 1) for key in uploads))
    store.settle(store.list_jobs(None, None, 1).result(LONG_S)[0].job_id, CANCELLED).result(LONG_S)
    young, old = put(depot, b"young result", 3600), put(depot, b"old result", 2 * DAY_S)
    report = box.janitor(store, depot=depot).sweep(time.time())
    assert left(depot) == {uploads[0], young}
    assert (report.deleted["depot"].files, report.errors) == (2, 0)
    assert old not in left(depot)
    assert store.find_uploads("bot", uploads).result(LONG_S) == {uploads[0]: uploads[0]}


def test_of_several_servers_one_sweeps_the_depot_and_forgets_records_and_another_where_it_is_asked(box, depot, store):
    key, now_s = put(depot, b"old"), time.time()
    job_id = submit(store).job.job_id
    store.settle(job_id, CANCELLED).result(LONG_S)
    old = {"history_max_age_s": 0.001, "interval_s": 10}
    file = janitor_files.put(box.output / "a.png")
    idle = box.janitor(store, depot=depot, is_keeper=False, **old)
    for after_s in (0, 100):
        idle.turn(now_s + after_s)
    assert not file.exists()
    assert key in left(depot)
    assert store.get(job_id).result(LONG_S) is not None
    keeper = box.janitor(store, depot=depot, **old)
    for after_s in (0, 100):
        keeper.turn(now_s + after_s)
    assert left(depot) == set()
    assert store.get(job_id).result(LONG_S) is None
    asked = put(depot, b"asked for")
    idle.sweep(now_s)
    assert asked not in left(depot)


def test_what_an_open_job_names_stays(box, depot, store):
    key = put(depot, b"input")
    job_id = submit(store, body=graph(f"guarded-uploads/bot-0123456789abcdef0123456789abcdef/{key}")).job.job_id
    janitor = box.janitor(store, depot=depot)
    assert janitor.sweep(time.time()).kept["in_use"].files == 1
    store.settle(job_id, CANCELLED).result(LONG_S)
    janitor.sweep(time.time())
    assert left(depot) == set()


def test_a_result_that_nobody_has_fetched_stays_for_its_time(box, depot, store):
    one, two, copy = put(depot, b"one"), put(depot, b"two"), put(depot, b"nobody's")
    job_id = make_result(store, b"one", b"two")
    janitor = box.janitor(store, depot=depot)
    janitor.sweep(time.time())
    assert left(depot) == {one, two}
    assert copy not in left(depot)
    for index in range(2):
        store.mark_fetched(job_id, index).result(LONG_S)
    janitor.sweep(time.time())
    assert left(depot) == set()


def test_a_rehearsal_deletes_nothing_and_tells_what_would_go(box, depot, store):
    key = put(depot, b"old")
    report = box.janitor(store, depot=depot).sweep(time.time(), dry_run=True)
    assert left(depot) == {key}
    assert report.deleted["depot"].files == 1
    assert report.samples == [f"depot/{key}"]


def test_a_depot_that_is_away_is_left_alone_and_the_sweep_goes_on(box, depot, folder, store):
    key = put(depot, b"old")
    folder.rename(f"{folder}-away")
    report = box.janitor(store, depot=depot).sweep(time.time())
    assert "depot" not in report.deleted
    os.rename(f"{folder}-away", folder)
    depot.look()
    assert left(depot) == {key}


def test_what_a_killed_put_has_left_goes_after_a_day(box, depot, folder, store):
    key = put(depot, b"young", 60)
    for name in (f"{key}#1", f"{key}#23", "guarded-probe-00ff", "guarded-probe-00ff#1", f"{key}#x", "notes#1"):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - 2 * DAY_S,) * 2)
    (folder / f"{key}#3").write_bytes(b"under way")
    box.janitor(store, depot=depot).sweep(time.time(), dry_run=True)
    assert len(list(folder.iterdir())) == 8
    box.janitor(store, depot=depot).sweep(time.time())
    assert {path.name for path in folder.iterdir()} == {key, f"{key}#3", f"{key}#x", "notes#1"}


def test_files_that_are_not_ours_stay(box, depot, folder, store):
    for name in ("notes.txt", "x" * 64, "0" * 63):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (0, 0))
    box.janitor(store, depot=depot).sweep(time.time())
    assert {path.name for path in folder.iterdir()} == {"notes.txt", "x" * 64, "0" * 63}


def test_a_file_that_is_put_in_again_while_it_is_about_to_go_stays(box, depot, store, monkeypatch):
    """Another box lets in a prompt that names it, between the list and the deletion."""
    key = put(depot, b"again")
    stat, again = depot.stat, threading.Event()

    def put_again_first(asked):
        if not again.is_set():
            again.set()
            made_old(depot, key, 0)
        return stat(asked)

    monkeypatch.setattr(depot, "stat", put_again_first)
    box.janitor(store, depot=depot).sweep(time.time())
    assert again.is_set()
    assert left(depot) == {key}


def test_ages_go_by_the_depots_own_clock(box, depot, store, monkeypatch):
    key = put(depot, b"result", 0.6 * DAY_S)
    monkeypatch.setattr(depot, "look", lambda: setattr(depot, "skew_s", -0.5 * DAY_S))
    janitor = box.janitor(store, depot=depot)
    janitor.sweep(time.time() + 0.7 * DAY_S)  # a clock that is half a day ahead of the storage's
    assert left(depot) == {key}
    janitor.sweep(time.time() + 1.0 * DAY_S)
    assert left(depot) == set()


@stores.both
def test_a_local_result_that_the_depot_lacks_is_not_swept_although_it_was_fetched(box, depot, store):
    (box.output / "x.png").write_bytes(b"data")
    os.utime(box.output / "x.png", (0, 0))
    artifact = Artifact(0, "9", "image", "x.png", "", "output", 4, hashlib.sha256(b"data").hexdigest())
    job_id = submit(store).job.job_id
    claim(store)
    run_to_success(store, job_id, Result(artifacts=(artifact,), unstored=((0, False, "here"),)))
    store.mark_fetched(job_id, 0).result(LONG_S)
    janitor = box.janitor(store, depot=depot)
    janitor.sweep(time.time())
    assert box.left() == {"output/x.png"}
    now_ms = Clock().now_ms() + 1000
    (due,) = store.find_due_deposits("here", now_ms, 10, under_way=[]).result(LONG_S).deliveries
    store.record_deposit(replace(due, state=DeliveryState.DELIVERED)).result(LONG_S)
    janitor.sweep(time.time())
    assert box.left() == set()


@settings(max_examples=25)
@given(
    files=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["input", "result", "unread", "open", "nobody's"]),
                  st.integers(0, 12)),
        max_size=12, unique_by=lambda file: file[:2],
    )
)  # fmt: skip
def test_whatever_is_there_only_what_is_old_and_needed_by_nobody_goes(tmp_path_factory, files):
    base = tmp_path_factory.mktemp("sweep")
    box = Box(base / "box")
    (base / "shared").mkdir()
    depot = Depot(read_address((base / "shared").as_uri()))
    store = SqliteStore(base / "guarded.db", Clock())
    needed = {}
    for number, kind, age_days in files:
        data = f"{number} {kind}".encode()
        key = put(depot, data, age_days * DAY_S + 600)
        needed[key] = {"input": age_days < 7, "open": True, "unread": True}.get(kind, age_days < 1)
        if kind == "open":
            submit(store, body=graph(f"photo/{key}"))
        elif kind == "input":
            job_id = submit(store, inputs=(StoredFile(key, key, 1),)).job.job_id
            store.settle(job_id, CANCELLED).result(LONG_S)
        elif kind in ("result", "unread"):
            job_id = make_result(store, data)
            if kind == "result":
                store.mark_fetched(job_id, 0).result(LONG_S)
    box.janitor(store, depot=depot).sweep(time.time())
    assert left(depot) == {key for key, is_needed in needed.items() if is_needed}
    store.close()
