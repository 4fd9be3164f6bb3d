"""The check of a database in use: it finds damage wherever it is, and never holds up for long what else goes on."""

import random
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.fakes import LONG_S
from unit.pages import PAGE, map_pages
from unit.store_steps import submit
from unit.test_store_repair import make_jobs

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.store import SqliteStore, check, disk, engine, rows, tables, threads


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "jobs.db"
    make_jobs(path)
    return path


def walk(path):
    """Check it all; return how many slices that took."""
    with closing(disk.connect(path)) as db:
        looking, slices = check.Check(_fail), 1
        while looking.step(db):
            assert not db.in_transaction
            slices += 1
        assert not looking.step(db)  # and does not begin again
    return slices


def _fail(error):
    raise error


def wait_until(is_so):
    until_s = time.monotonic() + LONG_S
    while not is_so():
        assert time.monotonic() < until_s
        time.sleep(0.01)


#: Texts of all kinds in the place of those that a job's columns hold.
TEXTS = st.one_of(
    st.sampled_from(["", "{", "{}", "[]", "null", "5", '"a"', '["2"]', '{"url": "x"}', '{"url": "x", "events": []}',
                     '{"state": "succeeded", "code": null, "message": "", "details": {}}', '{"state": "done"}',
                     '{"outputs": {}, "artifacts": []}', '{"outputs": {}, "artifacts": [{"warnings": []}]}',
                     '{"outputs": {}, "artifacts": [], "spent": {"nodes": []}}', "succeeded", "done"]),
    st.text(max_size=5),
)  # fmt: skip


@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(changes=st.lists(st.tuples(st.sampled_from(sorted(rows._READERS)), TEXTS), max_size=4))
def test_a_row_makes_sense_where_a_job_can_be_made_of_it_and_nowhere_else(whole, changes):
    """Each row after those that were looked at before it, whose texts need not be looked at again."""
    with closing(disk.connect(whole)) as db:
        table = next(table for table in tables.list_tables(db) if table.name == "jobs")
        query = f"SELECT {table.names} FROM jobs WHERE settled_at_ms IS NOT NULL LIMIT 1"
        good = db.execute(query).fetchone()
    assert table.fault(good) is None
    for column, text in changes:
        row = table.as_dict(good) | {column: text}
        try:
            job = rows.read_job(tuple(row[name] for name in rows.COLUMNS.split(", ")))
            is_right = job.state.settled
        except (ValueError, TypeError, LookupError, AttributeError):
            is_right = False
        for _ in range(2):
            assert (table.fault(tuple(row.values())) is None) is is_right, (column, text)


def test_a_whole_database_is_walked_to_its_end(whole):
    assert walk(whole) > 20


@pytest.mark.parametrize("fill", ["noise", "zeros"])
@pytest.mark.parametrize("kind", ["leaf", "interior", "index", "overflow"])
def test_damage_is_found_on_every_page(tmp_path, whole, kind, fill):
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    good, pages = path.read_bytes(), map_pages(path)
    # Without this SQLite cannot begin, and says so by itself.
    begin = {page for page in pages.of(kind) if pages.kinds[page][1] == "sqlite_master"}
    # Not part of what is walked; a bad last page of a chain is a wrong value, which nothing tells from a right one.
    unseen = {*pages.of(kind, "sqlite_sequence"), *pages.of(kind, "?")}
    unseen |= {page for page in pages.of("overflow") if fill == "zeros" or pages.page(page)[:4] == bytes(4)}
    found = [page for page in pages.of(kind) if page not in unseen | begin]
    assert found or (kind, fill) == ("overflow", "zeros")
    for page in found:
        damaged = bytearray(good)
        damaged[(page - 1) * PAGE : page * PAGE] = (
            bytes(PAGE) if fill == "zeros" else random.Random(page).randbytes(PAGE)
        )
        path.write_bytes(damaged)
        with pytest.raises(sqlite3.DatabaseError) as raised:
            walk(path)
        assert type(raised.value) is sqlite3.DatabaseError, pages.kinds[page]


def test_a_disk_that_refuses_for_a_moment_ends_no_check(tmp_path, whole, monkeypatch):
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    looking, read = check.Check(_fail), check._read_slice
    with closing(disk.connect(path)) as db:
        for _ in range(5):
            looking.look(db)

        def refuse(*_args):
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as patch:
            patch.setattr(check, "_read_slice", refuse)
            with pytest.raises(sqlite3.OperationalError):
                looking.look(db)
        slices = []
        monkeypatch.setattr(check, "_read_slice", lambda *args: (slices.append(args), read(*args))[1])
        while not looking.is_done:
            looking.look(db)
    assert len(slices) > 20


def test_an_entry_of_an_index_without_its_row_is_found(tmp_path, whole):
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        # An index that SQLite does not know of while rows go.
        (sql,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'jobs_of_owner'").fetchone()
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs_of_owner'").fetchone()
        db.execute("PRAGMA writable_schema = ON")
        db.execute("DELETE FROM sqlite_master WHERE name = 'jobs_of_owner'")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM jobs WHERE number = 60")
        db.execute("PRAGMA writable_schema = ON")
        db.execute(
            "INSERT INTO sqlite_master VALUES ('index', 'jobs_of_owner', 'jobs', ?, ?)",
            (root, sql),
        )
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        walk(path)


def test_every_slice_ends_although_each_row_takes_too_long(whole, monkeypatch):
    with closing(sqlite3.connect(whole)) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = sum(db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names)
    monkeypatch.setattr(check, "SLICE_S", -1)
    assert walk(whole) > rows


def test_the_log_is_worked_in_and_shrinks_between_slices(tmp_path, whole, monkeypatch):
    """While a check runs, jobs are written and the log is emptied after each slice."""
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    monkeypatch.setattr(check, "SLICE_ROWS", 10)
    log = Path(f"{path}-wal")
    with closing(disk.connect(path)) as db, closing(disk.connect(path)) as writer:
        looking, slices = check.Check(_fail), 0
        while looking.step(db):
            slices += 1
            writer.execute("UPDATE bodies SET body = CAST(body || 'x' AS BLOB) WHERE number = ?", (20 + slices % 50,))
            assert log.stat().st_size > 0
            busy, in_log, worked_in = writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            assert (busy, in_log) == (0, worked_in)
            (busy, _in_log, _worked_in) = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            assert busy == 0
            assert log.stat().st_size == 0
        assert slices > 50


def test_a_slice_that_is_not_finished_would_keep_the_log(tmp_path, whole):
    """The test above can fail: this is what an open read transaction does."""
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    with closing(disk.connect(path)) as db, closing(disk.connect(path)) as writer:
        writer.execute("PRAGMA busy_timeout = 0")
        cursor = db.execute("SELECT * FROM transitions")
        cursor.fetchone()
        writer.execute("UPDATE bodies SET body = 'x'")
        busy, *_counts = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert busy == 1
        cursor.close()


def test_what_is_written_and_deleted_meanwhile_does_not_look_like_damage(tmp_path, whole, monkeypatch):
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    monkeypatch.setattr(check, "SLICE_ROWS", 3)
    chance = random.Random(1)
    with closing(disk.connect(path)) as db, closing(disk.connect(path)) as writer:
        looking = check.Check(_fail)
        while looking.step(db):
            number = chance.randrange(1, 200)
            writer.execute("DELETE FROM bodies WHERE number = ?", (number,))
            writer.execute("INSERT OR IGNORE INTO bodies VALUES (?, ?)", (chance.randrange(1, 200), b"x" * 9000))
            writer.execute("DELETE FROM unread WHERE job_id IN (SELECT job_id FROM jobs WHERE number = ?)", (number,))
            writer.execute("UPDATE jobs SET owner = ? WHERE number = ?", (f"owner {chance.random()}", number))


def test_a_large_file_is_opened_at_once_and_mended_when_the_check_finds_damage(tmp_path, whole, monkeypatch, caplog):
    monkeypatch.setattr(disk, "CHECKED_BYTES", 0)
    monkeypatch.setattr(threads, "LOOK_S", 0.01)
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    pages = map_pages(path)
    data = bytearray(path.read_bytes())
    bad = [pages.of("leaf", "transitions")[1], pages.of("index", "webhooks_of_owner_by_state")[-1]]
    for page in bad:
        data[(page - 1) * PAGE : page * PAGE] = bytes(PAGE)
    path.write_bytes(data)
    store = SqliteStore(path, Clock())
    queued = store.queued
    assert queued > 0
    wait_until(lambda: list(tmp_path.glob("jobs.db.corrupt-*")) and store.trouble is None)
    assert store.queued == queued
    assert "was damaged" in caplog.text
    submit(store)
    assert store.queued == queued + 1
    store.close()
    assert walk(path) > 20
    assert not list(tmp_path.glob("*.suspect"))


def test_a_large_file_without_damage_is_checked_once(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(disk, "CHECKED_BYTES", 0)
    monkeypatch.setattr(threads, "LOOK_S", 0.1)
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    checks = []

    class Noted(check.Check):
        def __init__(self, report):
            super().__init__(report)
            checks.append(self)

    monkeypatch.setattr(engine, "Check", Noted)
    store = SqliteStore(path, Clock())
    # Whoever asks all the time does not keep it from going on.
    wait_until(lambda: (store.list_standings().result(LONG_S), checks[0].is_done)[1])
    assert len(checks) == 1
    assert store.trouble is None
    store.close()
    assert not list(tmp_path.glob("*.corrupt-*"))


def test_a_settled_job_that_makes_no_sense_does_not_spoil_the_lists_for_good(tmp_path, whole, monkeypatch, caplog):
    monkeypatch.setattr(threads, "LOOK_S", 0.01)
    path = Path(shutil.copy(whole, tmp_path / "jobs.db"))
    with closing(sqlite3.connect(path)) as db:
        jobs = {number for (number,) in db.execute("SELECT number FROM jobs")}
        (number,) = db.execute("SELECT max(number) FROM jobs WHERE state = 'failed'").fetchone()
        db.execute("UPDATE jobs SET result = '{\"outputs\": ' WHERE number = ?", (number,))
        db.commit()
    store = SqliteStore(path, Clock())
    wait_until(lambda: list(tmp_path.glob("jobs.db.corrupt-*")) and store.trouble is None)
    assert {job.number for job in store.list_jobs(None, None, 10**6).result(LONG_S)} == jobs - {number}
    assert "a row of jobs makes no sense" in caplog.text
    submit(store)
    store.close()
