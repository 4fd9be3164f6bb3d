"""A kill, a full disk, and whatever else comes in any order, while the job database is made smaller: nothing is lost
but the prompts of settled jobs."""

import contextlib
import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
from chaos.conftest import fill, small_disk
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from unit.children import as_child
from unit.fakes import LONG_S
from unit.store_steps import CANCELLED
from unit.test_store_small import MIB, Later, add, bytes_of, end, small, wait_until

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import DiskFullError
from comfyui_guarded.guard.job import OPEN
from comfyui_guarded.guard.store import Limits, SqliteStore, compact, upkeep

__all__ = ["small", "small_disk"]

DAY_MS = 86_400_000

PROGRAM = """
import os, signal, sqlite3, time
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.store import Limits, SqliteStore, compact, slices, threads, upkeep

path, first, dies_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
threads.LOOK_S, threads.MORE_S = 0.01, 0.001
upkeep.FREE_BYTES = upkeep.TIDY_BYTES = 2**18
upkeep.LOG_BYTES, upkeep.TIDY_PAGES = 2**15, 100
slices.SLICE_S = 0.001
seen = 0

def reach(what):
    # What the step does next. The first is `first`; at number `dies_at` the process is killed.
    global seen
    if seen or first in what:
        seen += 1
        if seen == 1:
            print("begun", flush=True)
        if seen == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

def connect(*args, real=sqlite3.connect, **kwargs):
    db = real(*args, **kwargs)
    db.set_trace_callback(reach)
    return db

def watched(name, real):
    def call(*args, **kwargs):
        reach(name)
        return real(*args, **kwargs)
    return call

sqlite3.connect = connect
compact.shutil.copymode = watched("copymode", compact.shutil.copymode)
compact.sync = watched("sync", compact.sync)
os.replace = watched("replace", os.replace)
os.unlink = watched("unlink", os.unlink)

class Later(Clock):
    def now_ms(self):
        return super().now_ms() + 10 * 86_400_000

store = SqliteStore(path, Later(), "kill", Limits(bodies_max_age_s=86400))
ends_s = time.monotonic() + 60
while time.monotonic() < ends_s:
    size = store.size
    if store.thinned[0] >= 30 or first == "VACUUM INTO":
        if size.bytes < 3 * 2**20 and size.log_bytes <= upkeep.LOG_BYTES:
            break
    time.sleep(0.01)
store.close()
print("finished", flush=True)
"""


def digest(data):
    return hashlib.sha256(data).hexdigest()


def fill_store(path, clock, settled=40, waiting=12):
    """A file of some MiB: by job, the digest of its prompt where it is open, else None."""
    jobs = {}
    with closing(SqliteStore(path, clock, "kill")) as store:
        ids = [add(store, clock, 100_000) for _ in range(settled + waiting)]
        random.Random(1).shuffle(ids)
        end(store, *ids[:settled])
        for job_id in ids:
            entry = store.find_entry(job_id).result(LONG_S)
            jobs[job_id] = None if entry.job.state.settled else digest(entry.body)
    return jobs


def assert_nothing_lost(path, jobs):
    """What the next process finds: every job, each open one with its prompt, in a file that is whole."""
    with closing(SqliteStore(path, Clock(), "kill")) as store:
        assert store._engine.read(lambda db: db.execute("PRAGMA integrity_check").fetchall()).result(LONG_S) == [
            ("ok",)
        ]
        for job_id, prompt in jobs.items():
            entry = store.find_entry(job_id).result(LONG_S)
            assert entry is not None, f"{job_id} is gone"
            assert entry.job.state.settled is (prompt is None)
            assert prompt is None or digest(entry.body) == prompt
    assert not list(path.parent.glob("*.corrupt*")), "it was mended"


def start(path, first, dies_at=0):
    return subprocess.Popen(as_child(PROGRAM, path, first, dies_at), stdout=subprocess.PIPE, text=True)


#: What each step begins with.
STEPS = {
    "deleting prompts": "SELECT length(body)",
    "giving back pages": "incremental_vacuum",
    "cutting off the log": "wal_checkpoint(TRUNCATE)",
    "writing it anew": "VACUUM INTO",
}


@pytest.fixture(params=STEPS)
def step(request, tmp_path):
    """A file in which that step is due, and what it begins with."""
    path = tmp_path / "guarded.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA auto_vacuum = {'NONE' if request.param == 'writing it anew' else 'INCREMENTAL'}")
        db.execute("VACUUM")
        db.execute("CREATE TABLE t (a)")
        db.execute("DROP TABLE t")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compact, "is_due", lambda _db, _path: False)
        jobs = fill_store(path, Clock())
    return path, jobs, STEPS[request.param]


def test_a_kill_at_any_boundary_of_a_step_loses_nothing(step, tmp_path):
    path, jobs, first = step
    killed = 0
    for dies_at in (1, 2, 3, 4, 5, 6, 8, 12, 30):
        (tmp_path / f"{dies_at}").mkdir()
        copy = Path(shutil.copy(path, tmp_path / f"{dies_at}"))
        with start(copy, first, dies_at) as process:
            said = process.stdout.read()
        assert said.startswith("begun"), "the step was not due"
        killed += process.returncode == -9
        assert process.returncode == -9 or "finished" in said
        with pytest.MonkeyPatch.context() as patched:
            if dies_at % 2:  # the next start goes on with the step, or finds the file as the kill has left it
                patched.setattr(compact, "is_due", lambda _db, _path: False)
            assert_nothing_lost(copy, jobs)
    assert killed >= 4


def test_a_kill_in_the_middle_of_a_step_loses_nothing(step, tmp_path):
    path, jobs, first = step
    for number in range(4):
        (tmp_path / f"{number}").mkdir()
        copy = Path(shutil.copy(path, tmp_path / f"{number}"))
        with start(copy, first) as process:
            assert process.stdout.readline() == "begun\n"
            time.sleep(random.uniform(0, 0.02))
            process.kill()
        assert_nothing_lost(copy, jobs)


def test_a_disk_that_is_full_in_the_middle_loses_nothing_and_the_thinning_goes_on_when_there_is_room(
    small_disk, monkeypatch
):
    monkeypatch.setattr(upkeep, "AGAIN_S", 0.05)
    clock = Later()
    path = small_disk / "guarded.db"
    with closing(SqliteStore(path, clock, "kill", Limits(bodies_max_age_s=86400))) as store:
        # As much as leaves room for what goes, also where none of the log has been worked in yet.
        ids = [add(store, clock, 30_000) for _ in range(20)]
        end(store, *ids[:15])
        prompts = {job_id: digest(store.find_entry(job_id).result(LONG_S).body) for job_id in ids[15:]}
        ballast = fill(small_disk)
        clock.ahead_ms += 2 * DAY_MS
        time.sleep(0.3)  # some slices fail, or not: the log may have room in it
        for job_id, prompt in prompts.items():
            assert digest(store.find_entry(job_id).result(LONG_S).body) == prompt
        ballast.unlink()
        wait_until(lambda: not any(store.find_entry(job_id).result(LONG_S).body for job_id in ids[:15]))
        wait_until(lambda: bytes_of(store)[0] < 600_000)
        assert add(store, clock)
    assert_nothing_lost(path, {**dict.fromkeys(ids[:15]), **prompts})


def test_prompts_that_a_full_disk_kept_from_going_go_once_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "AGAIN_S", 0.05)
    full = [sqlite3.OperationalError("database or disk is full")]
    delete = upkeep.delete_body

    def delete_if_there_is_room(*asked):
        if full:
            raise full.pop()
        return delete(*asked)

    monkeypatch.setattr(upkeep, "delete_body", delete_if_there_is_room)
    clock = Later()
    with closing(SqliteStore(tmp_path / "guarded.db", clock, "kill", Limits(bodies_max_age_s=86400))) as store:
        ids = [add(store, clock, 5_000) for _ in range(3)]
        end(store, *ids)
        clock.ahead_ms += 2 * DAY_MS
        wait_until(lambda: not any(store.find_entry(job_id).result(LONG_S).body for job_id in ids))
    assert not full


def test_an_old_file_on_a_disk_without_room_for_a_copy_stays_as_it_is(small_disk, monkeypatch):
    path = small_disk / "guarded.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA auto_vacuum = NONE")
        db.execute("CREATE TABLE t (a)")
        db.execute("DROP TABLE t")
    with monkeypatch.context() as patched:
        patched.setattr(compact, "is_due", lambda _db, _path: False)
        jobs = fill_store(path, Clock(), settled=6, waiting=6)
    ballast = fill(small_disk)
    os.truncate(ballast, ballast.stat().st_size - 300_000)
    monkeypatch.setattr(compact, "SPARE_BYTES", -(10**9))  # as if somebody took the room while it is copied
    assert_nothing_lost(path, jobs)
    assert not list(small_disk.glob("*.compacting"))


class Mixes(RuleBasedStateMachine):
    """Submits, ends, days that go by, a disk that runs short, forgetting and restarts, in any order."""

    LIMIT = 2 * MIB

    @initialize()
    def open(self):
        self.folder = Path(os.environ["GUARDED_TEST_FOLDER"]) / os.urandom(8).hex()
        self.folder.mkdir()
        self.clock = Later()
        self.open_jobs, self.settled = {}, {}
        self.start()

    def start(self):
        limits = Limits(bodies_max_age_s=3 * 86400, max_bytes=self.LIMIT)
        self.store = SqliteStore(self.folder / "guarded.db", self.clock, "kill", limits)

    @rule(size=st.sampled_from([100, 5_000, 60_000, 300_000]), jobs=st.integers(1, 8))
    def submit(self, size, jobs):
        for _ in range(jobs):
            try:
                job_id = add(self.store, self.clock, size)
            except DiskFullError as refusal:
                # What it was then: it may have become much smaller since.
                bytes_then = refusal.extra_info["bytes"]
                assert bytes_then + 300_000 + MIB // 4 > self.LIMIT, "refused although there is room"
                return
            self.open_jobs[job_id] = digest(self.store.find_entry(job_id).result(LONG_S).body)

    # By number: how many jobs are open depends on how fast the store thins.
    @rule(numbers=st.sets(st.integers(0, 20), max_size=10))
    def end(self, numbers):
        for job_id in [job_id for number, job_id in enumerate(self.open_jobs) if number in numbers]:
            self.store.settle(job_id, CANCELLED).result(LONG_S)
            del self.open_jobs[job_id]
            self.settled[job_id] = self.clock.now_ms()

    @rule(days=st.sampled_from([0.01, 1, 4]))
    def wait(self, days):
        self.clock.ahead_ms += int(days * DAY_MS)

    @rule(wanted=st.sampled_from([0, 100_000, 10 * MIB]))
    def run_short(self, wanted):
        self.store.relieve(wanted)

    @rule(days=st.sampled_from([1, 5]))
    def forget(self, days):
        before_ms = self.clock.now_ms() - days * DAY_MS
        while self.store.forget(before_ms, 50).result(LONG_S):
            pass
        self.settled = {job_id: at_ms for job_id, at_ms in self.settled.items() if at_ms >= before_ms}

    @rule()
    def restart(self):
        self.store.close()
        self.start()

    @invariant()
    def open_jobs_keep_their_prompts(self):
        for job_id, prompt in getattr(self, "open_jobs", {}).items():
            assert digest(self.store.find_entry(job_id).result(LONG_S).body) == prompt

    @invariant()
    def nothing_else_is_lost(self):
        if hasattr(self, "store"):
            listed = {job.job_id for job in self.store.list_jobs(None, None, 10_000).result(LONG_S)}
            assert listed == {*self.open_jobs, *self.settled}
            assert len(self.store.list_jobs(None, OPEN, 10_000).result(LONG_S)) == len(self.open_jobs)

    @invariant()
    def the_file_has_its_bound(self):
        if hasattr(self, "store"):
            assert bytes_of(self.store)[0] <= self.LIMIT * upkeep.MOST + MIB

    def teardown(self):
        if hasattr(self, "store"):
            with contextlib.suppress(Exception):
                self.store.relieve(0)
            self.store.close()
            with closing(sqlite3.connect(self.folder / "guarded.db")) as db:
                assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            shutil.rmtree(self.folder)


def test_in_any_order_nothing_is_lost_but_prompts_of_settled_jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDED_TEST_FOLDER", str(tmp_path))
    chosen = settings(
        max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(Mixes, settings=chosen)
