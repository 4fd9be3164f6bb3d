"""A damaged database: what is saved of it, and that nothing of it is lost on the way."""

import logging
import os
import random
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from chaos.conftest import fill, small_disk
from unit.fakes import LONG_S, new_job
from unit.pages import PAGE, map_pages
from unit.store_steps import CANCELLED, claim, run_to_success, submit

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.job import OPEN, Artifact, JobState, Result, Verdict, Webhook
from comfyui_guarded.guard.store import DeliveryState, IdempotencyKey, SqliteStore, disk, repair, schema

__all__ = ["small_disk"]

OWNERS = 5
FAILED = Verdict(JobState.FAILED, "generation_failed", "It did not work.")


def make_jobs(path, queued=60, settled=60):
    """Jobs in every state, with all that goes with them; some graphs are longer than a page."""
    store = SqliteStore(path, Clock())

    def new(number):
        return new_job(
            body=b"%d " % number * random.Random(number).choice((20, 200, 4000)),
            owner=f"owner {number % OWNERS}",
            client_id=f"client {number % 7}",
            webhook=Webhook("https://bot.example/told", ("succeeded", "failed")) if number % 3 == 0 else None,
            metadata={"n": "x" * (number % 400)},
        )

    for number in range(settled):
        job_id = submit_as(store, new(number), number)
        claim(store, 10**9)
        if number % 3 == 0:
            files = tuple(_artifact(index, f"{number}_{index}.png") for index in range(3))
            run_to_success(store, job_id, Result({"9": {"images": []}}, files))
        else:
            store.settle(job_id, FAILED if number % 3 == 1 else CANCELLED).result(LONG_S)
            store.release(job_id).result(LONG_S)
    for number in range(settled, settled + queued):
        submit_as(store, new(number), number)
    started = [claim(store, 10**9) for _ in range(3)]
    for job_id in started[1:]:
        store.start(job_id).result(LONG_S)
    store.validate(started[2]).result(LONG_S)
    if settled:  # leaves free pages
        store.forget(store.get(first_id(store)).result(LONG_S).settled_at_ms + 1, 10).result(LONG_S)
    store.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def submit_as(store, new, number):
    key = IdempotencyKey(f"key {number}", "digest") if number % 2 else None
    return store.submit(new, 10**9, key).result(LONG_S).job.job_id


def first_id(store):
    return store.list_jobs(None, None, 10**6).result(LONG_S)[-1].job_id


def _artifact(index, name):
    return Artifact(
        index=index,
        node_id="9",
        kind="image",
        type="output",
        subfolder="x" * 60,
        filename=name,
        bytes=10,
        sha256="",
        width=1,
        height=1,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "jobs.db"
    make_jobs(path)
    return path


def read_rows(path):
    """All rows, by table, but for the name of the process that opened it last."""
    with closing(sqlite3.connect(path)) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: set(db.execute(f"SELECT * FROM {name}")) for name in names if name != "epoch"}


def overwrite(path, pages, seed=0):
    data = bytearray(path.read_bytes())
    for page in pages:
        data[(page - 1) * PAGE : page * PAGE] = random.Random(seed + page).randbytes(PAGE)
    path.write_bytes(data)


def log_line(caplog, words):
    (record,) = [record for record in caplog.records if words in record.getMessage()]
    assert record.levelno == logging.ERROR
    return record.getMessage()


def assert_works(store):
    """A new job comes to its end, and every open one can be claimed with its body."""
    store.recover("local", 3).result(LONG_S)
    job = submit(store).job
    claimed = set()
    while (one := store.claim("local", 10**9).result(LONG_S)) is not None:
        assert one.job.job_id not in claimed
        claimed.add(one.job.job_id)
    assert job.job_id in claimed
    run_to_success(store, job.job_id)
    assert store.get(job.job_id).result(LONG_S).state is JobState.SUCCEEDED
    jobs = store.list_jobs(None, None, 10**6).result(LONG_S)
    assert len({job.job_id for job in jobs}) == len(jobs)
    assert len({job.number for job in jobs}) == len(jobs)
    for job in jobs:
        assert store.get(job.job_id).result(LONG_S) == job


@pytest.mark.parametrize("fill", ["noise", "zeros"])
def test_a_bad_index_page_costs_no_job(tmp_path, caplog, fill):
    """Fifty good jobs beside one bad page of an index, whichever."""
    path = tmp_path / "jobs.db"
    make_jobs(path, queued=50, settled=0)
    before = read_rows(path)
    pages = map_pages(path)
    good = path.read_bytes()
    with closing(sqlite3.connect(path)) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    bad = [page for page in pages.of("index") if pages.kinds[page][1] not in (*tables, "?")]
    assert len(bad) > 10
    for page in bad:
        damaged = bytearray(good)
        damaged[(page - 1) * PAGE : page * PAGE] = (
            bytes(PAGE) if fill == "zeros" else random.Random(page).randbytes(PAGE)
        )
        path.write_bytes(damaged)
        disk.open_database(path).close()
        assert read_rows(path) == before, pages.kinds[page]
    assert "missing" not in caplog.text
    assert "set aside" in caplog.text
    store = SqliteStore(path, Clock())
    assert store.queued == 47
    assert_works(store)
    store.close()


def test_an_index_that_disagrees_with_its_table_is_built_anew_in_place(tmp_path, whole, caplog):
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    before = read_rows(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        # Swap the trees of two indexes: both can be read, and neither has what it should.
        db.execute("PRAGMA writable_schema = ON")
        roots = dict(
            db.execute("SELECT name, rootpage FROM sqlite_master WHERE name IN ('jobs_of_owner', 'jobs_settled')")
        )
        db.execute("UPDATE sqlite_master SET rootpage = ? WHERE name = 'jobs_of_owner'", (roots["jobs_settled"],))
        db.execute("UPDATE sqlite_master SET rootpage = ? WHERE name = 'jobs_settled'", (roots["jobs_of_owner"],))
    disk.open_database(path).close()
    assert read_rows(path) == before
    assert "none is lost" in log_line(caplog, "indexes of the job database")
    assert not list(tmp_path.glob("*.corrupt-*"))


def test_rows_before_behind_and_between_damaged_pages_are_saved(tmp_path, whole, caplog):
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    pages = map_pages(path)
    leaves = pages.of("leaf", "jobs")
    assert len(leaves) >= 7
    bad = {leaves[1], leaves[4], leaves[-1]}
    before = {row[0]: row for row in read_rows(path)["jobs"]}
    overwrite(path, bad)
    damaged = path.read_bytes()
    store = SqliteStore(path, Clock())
    after = {row[0]: row for row in read_rows(path)["jobs"]}
    kept = {number for number in before if not pages.rows["jobs", number] & bad}
    assert 0 < len(kept) < len(before)
    assert {number: before[number] for number in kept} == after
    line = log_line(caplog, "was damaged")
    assert "Rows may be missing" in line
    saved, waiting = map(int, re.search(r"(\d+) jobs were saved, (\d+) of them waiting", line).groups())
    assert saved == len(kept)
    assert waiting == store.queued
    (aside,) = tmp_path.glob("jobs.db.corrupt-*")
    assert aside.read_bytes() == damaged
    assert aside.name in line
    assert_works(store)
    # No number is given twice: not a lost job's either.
    assert submit(store).job.number > max(before)
    store.close()


@pytest.mark.parametrize("fill", ["noise", "zeros"])
def test_rows_are_found_where_the_way_to_them_is_lost(tmp_path, whole, fill, caplog):
    """The header, the descriptions of the tables, the tables' roots: a bad page there hides whole tables."""
    path = tmp_path / "jobs.db"
    good, pages, before = whole.read_bytes(), map_pages(whole), read_rows(whole)
    ways = [*pages.of("header"), *pages.of("interior"), *pages.of("leaf", "sqlite_master")]
    assert len(ways) >= 6
    for page in ways:
        damaged = bytearray(good)
        damaged[(page - 1) * PAGE : page * PAGE] = (
            bytes(PAGE) if fill == "zeros" else random.Random(page).randbytes(PAGE)
        )
        path.write_bytes(damaged)
        caplog.clear()
        disk.open_database(path).close()
        after = read_rows(path)
        for table in ("jobs", "bodies", "transitions", "leases", "idempotency", "webhooks"):
            assert after[table] == before[table], (table, pages.kinds[page])
        assert f"{len(before['jobs'])} jobs were saved" in log_line(caplog, "was damaged")


@pytest.mark.parametrize("at", [18, 19, 44, 47, 56, 59])
def test_a_header_that_names_another_format_is_damage_and_no_full_disk(tmp_path, whole, at, caplog):
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    before = read_rows(path)
    data = bytearray(path.read_bytes())
    data[at] = 200
    path.write_bytes(data)
    store = SqliteStore(path, Clock())
    assert read_rows(path)["jobs"] == before["jobs"]
    assert "names a format" in log_line(caplog, "was damaged")
    assert_works(store)
    store.close()


def test_what_was_deleted_does_not_come_back(tmp_path):
    """Free pages still hold what was on them: here every job, as it was before it ended or was forgotten."""
    path = tmp_path / "jobs.db"
    make_jobs(path, queued=30, settled=90)
    store = SqliteStore(path, Clock())
    store.recover("local", 3).result(LONG_S)
    while (job_id := claim(store)) is not None:
        run_to_success(store, job_id)
    store.forget(2**60, 60).result(LONG_S)
    store.close()
    pages = map_pages(path)
    assert len(pages.of("free")) > 10
    before = read_rows(path)
    overwrite(path, [*pages.of("interior", "jobs"), *pages.of("interior", "bodies")])
    disk.open_database(path).close()
    assert read_rows(path)["jobs"] == before["jobs"]
    # Without the list of free pages, too, no job is open that has ended.
    path.unlink()
    shutil.copy(next(tmp_path.glob("*.corrupt-*")), path)
    overwrite(path, [1])
    disk.open_database(path).close()
    after = {row[0]: row for row in read_rows(path)["jobs"]}
    assert {row[0]: row for row in before["jobs"]}.items() <= after.items()
    assert {row[3] for row in after.values()} <= {"succeeded", "failed", "cancelled"}


def test_an_open_job_without_its_body_fails_and_its_owner_hears_so(tmp_path, whole, caplog):
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    pages = map_pages(path)
    bad = set(pages.of("leaf", "bodies")[-3:-1])
    with closing(sqlite3.connect(path)) as db:
        is_open = dict(db.execute("SELECT number, job_id FROM jobs WHERE verdict IS NULL"))
    lost = {job_id for number, job_id in is_open.items() if pages.rows["bodies", number] & bad}
    assert lost
    overwrite(path, bad)
    store = SqliteStore(path, Clock())
    for job_id in lost:
        job = store.get(job_id).result(LONG_S)
        assert (job.state, job.verdict.code, job.body()["refund"]) == (JobState.FAILED, "server_restarted", True)
        assert job_id in {one.job_id for one in store.list_missed(job.owner, job.client_id, 0, 10**6).result(LONG_S)}
        last = store.read_changes(0, job_id=job_id).result(LONG_S).jobs[-1]
        assert last.state is JobState.FAILED
    told = {
        one.job_id
        for one in store.list_deliveries(None, frozenset(DeliveryState), 10**6).result(LONG_S)
        if one.type == "job.failed"
    }
    assert told >= {job_id for job_id in lost if store.get(job_id).result(LONG_S).webhook}
    line = log_line(caplog, "was damaged")
    assert f" {store.queued} of them waiting" in line
    still_open = store.list_jobs(None, OPEN, 10**6).result(LONG_S)
    assert {job.job_id for job in still_open} == set(is_open.values()) - lost
    assert_works(store)
    store.close()


def test_a_value_that_makes_no_sense_costs_that_row_alone(tmp_path, whole, caplog):
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    with closing(sqlite3.connect(path)) as db:
        (number,) = db.execute("SELECT number FROM jobs WHERE state = 'queued' LIMIT 1").fetchone()
        db.execute("UPDATE jobs SET metadata = CAST(x'7b22ff' AS TEXT) WHERE number = ?", (number,))
        db.commit()
    before = {row[0]: row for row in read_rows_as_bytes(path, "jobs")}
    store = SqliteStore(path, Clock())
    after = {row[0]: row for row in read_rows_as_bytes(path, "jobs")}
    assert before.keys() - after.keys() == {number}
    assert "jobs.metadata" in log_line(caplog, "was damaged")
    assert_works(store)
    store.close()


def read_rows_as_bytes(path, table):
    with closing(sqlite3.connect(path)) as db:
        db.text_factory = bytes
        return db.execute(f"SELECT * FROM {table}").fetchall()


def test_counters_do_not_go_back_where_their_table_is_lost(tmp_path, whole):
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    pages = map_pages(path)
    with closing(sqlite3.connect(path)) as db:
        counters = dict(db.execute("SELECT name, seq FROM sqlite_sequence"))
    overwrite(
        path, [*pages.of("leaf", "sqlite_sequence"), pages.of("leaf", "jobs")[-1], pages.of("leaf", "bodies")[-1]]
    )
    overwrite(path, [pages.of("leaf", "transitions")[-1]])
    store = SqliteStore(path, Clock())
    job = submit(store).job
    assert job.number > counters["jobs"]
    assert job.event_id > counters["transitions"]
    store.close()


def test_no_room_for_the_new_file_leaves_everything_as_it_was(tmp_path, whole, small_disk):
    path = Path(shutil.copy(whole, small_disk / "jobs.db"))
    overwrite(path, map_pages(path).of("leaf", "jobs")[:2])
    before = path.read_bytes()
    ballast = fill(small_disk)
    os.truncate(ballast, ballast.stat().st_size - len(before) // 2)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        disk.open_database(path)
    assert path.read_bytes() == before
    assert {file.name for file in small_disk.glob("jobs.db*")} <= {"jobs.db", "jobs.db-wal", "jobs.db-shm"}
    ballast.unlink()
    db = disk.open_database(path)
    assert db.execute("SELECT count(*) FROM jobs").fetchone()[0] > 60
    db.close()


@pytest.mark.parametrize("step", range(4))
def test_a_kill_while_the_new_file_is_put_in_place_loses_nothing(tmp_path, whole, monkeypatch, step):
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    pages = map_pages(path)
    overwrite(path, pages.of("index")[:1])
    jobs = len(read_rows(whole)["jobs"])
    replace, calls = repair.os.replace, []

    class Killed(BaseException):
        pass

    def replacing(*args):
        if len(calls) == step:
            raise Killed
        calls.append(args)
        replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr(repair.os, "replace", replacing)
        try:
            disk.open_database(path).close()
        except Killed:
            pass
        else:
            assert step == 3
    db = disk.open_database(path)
    assert db.execute("SELECT count(*) FROM jobs").fetchone() == (jobs,)
    db.close()
    assert len(list(tmp_path.glob("jobs.db.corrupt-*"))) == 1


def test_a_database_whose_version_was_overwritten_is_opened_by_its_tables(tmp_path, whole):
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) - 2}")
    before = read_rows(path)["jobs"]
    db = disk.open_database(path)
    assert db.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
    db.close()
    assert read_rows(path)["jobs"] == before
