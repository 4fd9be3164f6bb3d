"""Several boxes on one PostgreSQL, as far as the store: one queue, one verdict a job, one order of all changes."""

import contextlib
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from postgres import MEMORY
from unit import stores
from unit.fakes import LONG_S, FakeHost, new_job
from unit.store_steps import CANCELLED
from unit.stores import look_into, make_schema, only_postgres, server

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import WorkerDiedError
from comfyui_guarded.guard.fleet import Membership, read_or_make_name, rename
from comfyui_guarded.guard.job import SUCCESS, TERMINAL, JobState, Verdict
from comfyui_guarded.guard.life.fleet import keep_membership
from comfyui_guarded.guard.life.health import Health
from comfyui_guarded.guard.settings import SettingsError
from comfyui_guarded.guard.signal import Signal
from comfyui_guarded.guard.store import Member, StoreLockedError, make_store
from comfyui_guarded.guard.store.line import Line
from comfyui_guarded.guard.store.postgres import PostgresStore
from comfyui_guarded.guard.store.postgres_address import read_address
from comfyui_guarded.guard.store.postgres_fleet import FleetStore
from comfyui_guarded.guard.store.table_store import TableStore

pytestmark = only_postgres

QUEUED, DISPATCHED, RUNNING = JobState.QUEUED, JobState.DISPATCHED, JobState.RUNNING
DIED = Verdict.of(WorkerDiedError("x"))
LEASE_MS, MAX_ATTEMPTS = 600_000, 2


class Heard:
    """What a box has told of changes, in order."""

    def __init__(self, store):
        self.changes = []
        self.own = []
        store.arrived.subscribe(self.changes.append)
        store.changed.subscribe(self.changes.append)
        store.changed.subscribe(self.own.append)
        self.found = []
        store.found.subscribe(self.found.append)


def open_box(path, name, *, slots=2, lease_ms=LEASE_MS):
    store = FleetStore(
        read_address(server().url(make_schema(path))), Clock(), Member(name, lease_ms, slots), open_now=False
    )
    store.heard = Heard(store)
    store.serve("local", MAX_ATTEMPTS)
    assert store.trouble is None, store.trouble
    return store


def kill(store):
    """As SIGKILL: without a word to the others."""
    TableStore.close(store)
    store.drop_beats()


def sync(store):
    """Have the box take in what the others have done."""
    store._engine.write(lambda _db: None).result(LONG_S)


def expire(path, box):
    with look_into(path) as db:
        db.execute("UPDATE boxes SET until_ms = 0 WHERE box = ?", (box,))
        db.execute("SELECT 1").fetchone()


def reap(store):
    """Take back what dead boxes had, however lately the engine has started."""
    store.member.lease_ms = 0
    try:
        return store.reap().result(LONG_S)
    finally:
        store.member.lease_ms = LEASE_MS


@pytest.fixture(autouse=True)
def _on_postgres():
    stores.use("postgres")
    yield
    stores.use("sqlite")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs"


@pytest.fixture
def boxes(path):
    opened = []

    def start(name, **facts):
        opened.append(open_box(path, name, **facts))
        return opened[-1]

    yield start
    for store in opened:
        with contextlib.suppress(Exception):
            store.close()


def submit(store, **facts):
    return store.submit(new_job(**facts), 10**9).result(LONG_S).job


def claim(store, max_jobs=2):
    claimed = store.claim("local", max_jobs).result(LONG_S)
    return claimed and claimed.job


def test_one_box_takes_what_another_has_let_in_and_both_tell_of_it(boxes):
    one, two = boxes("one"), boxes("two")
    job = submit(one)
    taken = claim(two)
    assert taken.job_id == job.job_id
    assert claim(one) is None
    two.start(job.job_id).result(LONG_S)
    assert one.get(job.job_id).result(LONG_S).state is RUNNING
    assert two.settle(job.job_id, SUCCESS, token=taken.token).result(LONG_S).won
    two.release(job.job_id).result(LONG_S)
    sync(one)
    told = [(seen.job_id, seen.state.value) for seen in one.heard.changes]
    assert told == [(job.job_id, state) for state in ("queued", "dispatched", "running", "succeeded")]
    assert told == [(seen.job_id, seen.state.value) for seen in two.heard.changes]
    assert [seen.state.value for seen in one.heard.own] == ["queued"]
    assert (one.queued, one.leased, one.count_open(None)) == (0, 0, 0)


def test_a_box_that_joins_finds_what_the_others_run_and_tells_no_change_twice(boxes, path):
    one = boxes("one")
    ran = submit(one)
    claim(one)
    one.start(ran.job_id).result(LONG_S)
    two = boxes("two")
    sync(two)
    assert [job.job_id for job in two.heard.found] == [ran.job_id]
    later = submit(one)
    claim(one)
    one.start(later.job_id).result(LONG_S)
    for _ in range(2):
        with look_into(path) as db:
            db.execute("DELETE FROM boxes WHERE box = 'two'")
        two.join().result(LONG_S)
        sync(two)
    numbers = [job.event_id for job in two.heard.changes]
    assert numbers == [job.event_id for job in one.heard.changes][-len(numbers) :]
    assert numbers[-3:] == [4, 5, 6]
    assert {job.job_id for job in two.heard.found} == {ran.job_id, later.job_id}


def test_a_reader_hears_of_what_others_do_without_asking(boxes):
    one, two = boxes("one"), boxes("two")
    job = submit(one)
    stores.until(lambda: [seen.job_id for seen in two.heard.changes] == [job.job_id])
    assert two.queued == 1


def test_a_late_verdict_of_a_box_that_has_lost_its_lease_is_refused(boxes, path):
    frozen, other = boxes("frozen"), boxes("other")
    job = submit(frozen)
    lost = claim(frozen)
    frozen.start(job.job_id).result(LONG_S)
    expire(path, "frozen")
    assert {box: recovery.requeued for box, recovery in reap(other).items()} == {"frozen": 1}
    late = frozen.settle(job.job_id, SUCCESS, token=lost.token).result(LONG_S)
    assert not late.won
    assert late.job.state is QUEUED
    assert frozen.start(job.job_id).result(LONG_S) is None
    assert frozen.validate(job.job_id).result(LONG_S) is None
    frozen.release(job.job_id).result(LONG_S)
    assert claim(frozen) is None, "a box whose lease is over takes nothing"
    again = claim(other)
    assert (again.job_id, again.attempts) == (job.job_id, 1)
    late = frozen.settle(job.job_id, DIED, token=lost.token).result(LONG_S)
    assert (late.won, late.job.state) == (False, DISPATCHED)
    other.start(job.job_id).result(LONG_S)
    assert other.settle(job.job_id, SUCCESS, token=again.token).result(LONG_S).won
    assert frozen.get(job.job_id).result(LONG_S).verdict == SUCCESS


def test_a_box_that_lets_go_late_takes_no_slot_from_the_one_that_has_the_job_now(boxes, path):
    frozen, other = boxes("frozen"), boxes("other")
    job = submit(frozen)
    claim(frozen)
    expire(path, "frozen")
    reap(other)
    assert claim(other).job_id == job.job_id
    frozen.release(job.job_id).result(LONG_S)
    with look_into(path) as db:
        assert list(db.execute("SELECT job_id, holder FROM leases").fetchall()) == [(job.job_id, "other")]


def test_a_box_that_is_alive_keeps_what_it_has(boxes):
    one, two = boxes("one"), boxes("two")
    submit(one)
    assert claim(one) is not None
    assert one.beat().is_keeper
    assert not two.beat().is_keeper
    assert reap(two) == {}
    assert two.beat().finds_dead is False


def test_a_clock_of_the_engine_that_was_set_back_keeps_no_dead_box_alive(boxes, path):
    """Or the clock of the engine that took over is behind: then all leases last for an hour more."""
    one, two = boxes("one"), boxes("two")
    submit(one)
    assert claim(one) is not None
    kill(one)
    with look_into(path) as db:
        db.execute("UPDATE boxes SET until_ms = until_ms + 3600000 RETURNING box").fetchall()
    for _ in range(2):
        two.beat()
    with look_into(path) as db:
        lasts = db.execute(
            "SELECT box, until_ms - (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM boxes ORDER BY box"
        ).fetchall()
    assert [box for box, left_ms in lasts if left_ms <= LEASE_MS] == ["one", "two"], lasts


def test_a_box_that_comes_back_takes_up_its_own_jobs_alone(boxes, path):
    one, two = boxes("one"), boxes("two")
    mine, others = submit(one), submit(two)
    assert claim(one).job_id == mine.job_id
    theirs = claim(two)
    assert theirs.job_id == others.job_id
    one.start(mine.job_id).result(LONG_S)
    two.start(others.job_id).result(LONG_S)
    kill(one)
    recovered = []
    again = FleetStore(read_address(server().url(make_schema(path))), Clock(), Member("one", LEASE_MS), open_now=False)
    again.opened.subscribe(recovered.append)
    again.serve("local", MAX_ATTEMPTS)
    stores.until(lambda: recovered)
    assert (recovered[0].requeued, recovered[0].settled) == (1, ())
    assert two.get(others.job_id).result(LONG_S).state is RUNNING
    assert two.settle(others.job_id, SUCCESS, token=theirs.token).result(LONG_S).won
    again.close()


def test_a_cancel_by_any_box_ends_the_job_and_the_box_that_has_it_hears(boxes):
    one, two = boxes("one"), boxes("two")
    job = submit(one)
    taken = claim(two)
    two.start(job.job_id).result(LONG_S)
    assert one.settle(job.job_id, CANCELLED).result(LONG_S).won
    stores.until(lambda: two.heard.changes[-1].state is JobState.CANCELLED)
    late = two.settle(job.job_id, SUCCESS, token=taken.token).result(LONG_S)
    assert (late.won, late.job.state) == (False, JobState.CANCELLED)


def test_a_job_with_secrets_runs_where_they_are_and_ends_when_they_are_gone(boxes, path):
    one, two = boxes("one"), boxes("two")
    secret, plain = submit(one, has_secrets=True), submit(one)
    assert claim(two).job_id == plain.job_id
    assert claim(two) is None
    expire(path, "one")
    ended = reap(two)["one"].settled
    assert [(job.job_id, job.verdict.code) for job in ended] == [(secret.job_id, "server_restarted")]


def test_a_box_that_leaves_gives_its_jobs_back_at_once(boxes):
    one, two = boxes("one"), boxes("two")
    job = submit(two)
    assert claim(one).job_id == job.job_id
    one.close()
    assert claim(two).job_id == job.job_id


def test_a_box_of_the_same_name_displaces_the_one_before(boxes):
    first = boxes("one")
    assert first.beat() is not None
    boxes("one")
    assert first.beat() is None
    assert first.is_displaced()
    submit(first)
    assert claim(first) is None


def test_a_server_that_wants_the_database_for_itself_waits_for_a_fleet_and_a_fleet_for_it(boxes, path):
    boxes("one")
    address = read_address(server().url(make_schema(path)))
    with pytest.raises(StoreLockedError, match="another server"):
        PostgresStore(address, Clock())


def test_jobs_of_a_server_that_had_the_database_for_itself_are_taken_up(boxes, path):
    address = read_address(server().url(make_schema(path)))
    alone = PostgresStore(address, Clock())
    begun, waiting = submit(alone), submit(alone)
    alone.claim("local", 1).result(LONG_S)
    alone.start(begun.job_id).result(LONG_S)
    alone.close()
    one = boxes("one")
    assert [claim(one).job_id, claim(one)] == [begun.job_id, None]  # one that has begun runs alone
    assert one.get(waiting.job_id).result(LONG_S).state is QUEUED


def test_boxes_that_work_at_once_take_no_job_twice_and_tell_of_all_changes_in_one_order(boxes):
    opened = [boxes(name) for name in ("one", "two", "three")]
    everything = threading.Barrier(len(opened))

    def work(store):
        taken = []
        everything.wait(LONG_S)
        for _ in range(15):
            submitting = [store.submit(new_job(owner=owner), 10**9) for owner in "ab"]
            while (job := claim(store, 10**9)) is not None:
                taken.append(job.job_id)
                store.start(job.job_id)
                assert store.settle(job.job_id, SUCCESS, token=job.token).result(LONG_S).won
                store.release(job.job_id)
            wait(submitting)
        return taken

    with ThreadPoolExecutor(len(opened)) as pool:
        taken = [job_id for some in pool.map(work, opened) for job_id in some]
    while (job := claim(opened[0], 10**9)) is not None:
        taken.append(job.job_id)
    assert len(taken) == len(set(taken)) == 90
    for store in opened:
        sync(store)
        assert [job.event_id for job in store.heard.changes] == list(range(1, store.heard.changes[-1].event_id + 1))
    assert [job.state for job in opened[0].heard.changes] == [job.state for job in opened[1].heard.changes]
    assert [job.number for job in opened[0].heard.changes if job.state is QUEUED] == list(range(1, 91))


def listed(store, known=()):
    """The boxes as this one sees them, by name."""
    assert store.beat() is not None
    return {box.box: box for box in store.list_boxes(known)}


def write_into(path, **values):
    """What somebody else may have put into the row of box `two`."""
    columns = ", ".join(f"{name} = ?" for name in values)
    with look_into(path) as db:
        db.execute(f"UPDATE boxes SET revision = revision + 1, {columns} WHERE box = 'two'", tuple(values.values()))
        db.execute("SELECT 1").fetchone()


def test_boxes_hear_what_the_others_tell_about_themselves(boxes):
    one, two = boxes("one"), boxes("two")
    assert (listed(one)["two"].url, dict(listed(one)["two"].status)) == (None, {})
    two.member.url = "http://two.internal:8188/"
    two.member.tell("version", "1.2.3")
    two.member.tell("models", ["a.safetensors", "b\udc80.safetensors", 7])
    two.member.tell("vram_mb", 24_000)
    assert two.beat() is not None
    seen = listed(one)["two"]
    assert seen.url == "http://two.internal:8188"
    assert (seen.text("version"), seen.number("vram_mb")) == ("1.2.3", 24_000)
    assert seen.texts("models") == {"a.safetensors", "b?.safetensors"}
    assert (seen.text("vram_mb"), seen.number("version"), seen.texts("version"), seen.text("none")) == (None,) * 4
    two.member.tell("vram_mb", None)
    two.member.tell("version", "1.2.4")
    assert two.beat() is not None
    assert set(listed(one)["two"].status) == {"version", "models"}
    assert listed(one)["two"].text("version") == "1.2.4"
    kill(two)
    again = boxes("two")
    assert listed(one)["two"].status == {}, "the next process of a box tells anew"
    again.member.tell("version", "1.2.5")
    again.member.epoch, _recovery = again.join().result(LONG_S)
    assert listed(one)["two"].text("version") == "1.2.5", "it is told with the join"


def test_what_a_box_tells_is_not_read_again_until_it_has_changed(boxes, path):
    one, two = boxes("one"), boxes("two")
    two.member.tell("models", ["a"])
    assert two.beat() is not None
    known = listed(one)
    unread = listed(one, tuple(known.values()))
    assert unread["two"].status is known["two"].status
    write_into(path, status='{"models": ["b"]}')
    assert listed(one, tuple(unread.values()))["two"].texts("models") == {"b"}


@pytest.mark.parametrize(
    "status",
    [
        "no JSON",
        "[1]",
        "null",
        '{"a": NaN}',
        '{"a": "\\ud800"}',
        '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"a": [' + "0," * 60_000 + "0]}",
        '{"a": "' + "x" * 2**20 + '"}',
    ],
    ids=["text", "list", "null", "nan", "surrogate", "deep", "many", "long"],
)
def test_a_status_that_no_box_would_write_is_none(boxes, path, status):
    one, _two = boxes("one"), boxes("two")
    write_into(path, status=status)
    assert listed(one)["two"].status == {}


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "http://user:secret@two", "http://two/#x", "http://two/" + "x" * 2000, "two", ""]
)
def test_an_address_that_is_none_is_not_taken(boxes, path, url):
    one, _two = boxes("one"), boxes("two")
    write_into(path, url=url)
    assert listed(one)["two"].url is None


def test_of_a_status_that_is_too_long_the_others_hear_all_but_the_longest_part(boxes):
    one, two = boxes("one"), boxes("two")
    two.member.tell("version", "1.2.3")
    two.member.tell("models", ["x" * 100] * 20_000)
    assert two.beat() is not None
    assert dict(listed(one)["two"].status) == {"version": "1.2.3"}


def test_a_member_knows_all_boxes_without_asking(boxes, path):
    one, two = boxes("one"), boxes("two")
    membership = Membership(one, Clock(), lambda: True)
    assert membership.boxes == ()
    membership.begin()
    try:
        stores.until(lambda: [box.box for box in membership.boxes] == ["one", "two"])
        assert all(box.is_alive for box in membership.boxes)
        two.member.tell("version", "1.2.3")
        assert two.beat() is not None
        stores.until(lambda: membership.boxes[1].text("version") == "1.2.3")
        assert not membership.is_first_of("sweeps")
        for box in (one, two):
            box.member.tell("sweeps", True)
        two.beat()
        stores.until(lambda: membership.is_first_of("sweeps"))
        one.member.tell("sweeps", False)
        stores.until(lambda: not membership.is_first_of("sweeps"))
        expire(path, "two")  # nobody is taken for dead so soon after the engine's start
        stores.until(lambda: len(membership.boxes) < 2 or not membership.boxes[1].is_alive)
    finally:
        membership.close()


def test_a_box_whose_beats_nobody_answers_takes_no_job_and_joins_no_more(boxes, monkeypatch, tmp_path):
    """The writer, over which it joins, may have a connection where the beats find none."""
    store, answers, lost = boxes("one", lease_ms=900), threading.Event(), []

    def beat():
        if answers.is_set():
            return FleetStore.beat(store)
        store.drop_beats()
        raise psycopg.OperationalError("too many clients already")

    monkeypatch.setattr(store, "beat", beat)
    health = Health(FakeHost(), SimpleNamespace(queued=0))
    health.mark_serving()
    membership = keep_membership(
        store.member,
        store,
        SimpleNamespace(mark_names=lambda _find: None),
        Clock(),
        health,
        SimpleNamespace(has_ends_of_runs=False),
        SimpleNamespace(list_ids=list),
        SimpleNamespace(handing=frozenset, wake=lambda: None),
        SimpleNamespace(turned=Signal()),
        tmp_path,
    )
    membership.lost.subscribe(lost.append)
    membership.begin()
    try:
        assert health.problems() == ["beats unanswered"]
        stores.until(lambda: membership.turn() or not membership.is_member)
        time.sleep(0.5)
        assert health.problems() == ["beats unanswered", "not in the fleet"]
        assert {alarm["code"] for alarm in health.alarms()} == {"beats_unanswered", "not_in_the_fleet"}
        answers.set()
        stores.until(lambda: not health.problems())
        assert len(lost) == 1
        answers.clear()
        stores.until(lambda: health.problems() == ["beats unanswered"])
    finally:
        membership.close()


def test_a_box_whose_name_another_process_has_keeps_the_next_one_for_good(boxes, tmp_path):
    """Copies of one machine all begin with one name: a start of one of them would take it from another each time."""
    own = tmp_path / "own"
    own.mkdir()
    name = read_or_make_name(own)
    first, second = boxes(name), boxes(name)
    membership = Membership(first, Clock(), lambda: True, lambda: rename(own))
    membership.begin()
    try:
        stores.until(lambda: first.member.box != name and first.member.epoch is not None)
    finally:
        membership.close()
    assert read_or_make_name(own) == first.member.box
    assert second.beat() is not None


def test_a_fleet_without_postgresql_is_a_setting_to_correct(tmp_path):
    with pytest.raises(SettingsError, match=r"fleet\.enabled.*postgresql"):
        make_store("", tmp_path, Clock(), member=Member("one", LEASE_MS))


def test_a_name_is_kept_and_what_is_none_is_made_anew(tmp_path):
    name = read_or_make_name(tmp_path)
    assert read_or_make_name(tmp_path) == name
    (tmp_path / "box.id").write_text("../x'; DROP TABLE jobs")
    assert read_or_make_name(tmp_path) != name


# All at once. -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A run that some box has, or believes to have."""

    job_id: str
    box: int
    token: str
    started: bool = False


class FleetMachine(RuleBasedStateMachine):
    """Boxes do what boxes do, die, freeze past their lease and come back; what each of them knows is what is there."""

    jobs = Bundle("jobs")
    BOXES = 3

    @initialize()
    def begin(self):
        stores.use("postgres")
        self.folder = Path(tempfile.mkdtemp(prefix="guarded-fleet-", dir=MEMORY))
        self.path = self.folder / "jobs"
        self.owner_of, self.states, self.ends = {}, {}, {}
        #: The token that counts for each job under way, and all runs whose end was not told yet.
        self.holds, self.runs = {}, []
        self.boxes = [open_box(self.path, f"box{number}") for number in range(self.BOXES)]
        self.members = [True] * self.BOXES

    def teardown(self):
        if hasattr(self, "boxes"):
            for store in self.boxes:
                kill(store)
            shutil.rmtree(self.folder)
        stores.use("sqlite")

    @rule(target=jobs, box=st.integers(0, 2), owner=st.sampled_from("abc"), count=st.integers(1, 3))
    def submit(self, box, owner, count):
        ids = []
        for _ in range(count):
            job = self.boxes[box].submit(new_job(owner=owner), 10**9).result(LONG_S).job
            assert job.number == len(self.states) + 1
            self.states[job.job_id] = QUEUED
            ids.append(job.job_id)
        return multiple(*ids)

    @rule(box=st.integers(0, 2))
    def claim(self, box):
        claimed = self.boxes[box].claim("local", 2).result(LONG_S)
        if claimed is None:
            return
        job = claimed.job
        assert self.members[box], "no box takes a job whose lease is over"
        assert self.states[job.job_id] is QUEUED
        self.states[job.job_id] = DISPATCHED
        self.holds[job.job_id] = job.token
        self.runs.append(Run(job.job_id, box, job.token))

    @rule(pick=st.integers(0, 10**6))
    def start(self, pick):
        if self.runs:
            run = self.runs[pick % len(self.runs)]
            started = None
            with contextlib.suppress(Exception):
                started = self.boxes[run.box].start(run.job_id).result(LONG_S)
            if started is not None:
                assert self.holds.get(run.job_id) == run.token, "a run that is nobody's has begun"
                self.states[run.job_id] = RUNNING

    @rule(pick=st.integers(0, 10**6), verdict=st.sampled_from([SUCCESS, DIED]))
    def end(self, pick, verdict):
        """A run ends, whoever has its job by now."""
        if not self.runs:
            return
        run = self.runs.pop(pick % len(self.runs))
        settled = self.boxes[run.box].settle(run.job_id, verdict, token=run.token).result(LONG_S)
        may_win = self.holds.get(run.job_id) == run.token and self.states[run.job_id] not in TERMINAL
        assert settled.won is may_win
        if may_win:
            self._end(run.job_id, verdict)
        self.boxes[run.box].release(run.job_id).result(LONG_S)

    @rule(job_id=jobs, box=st.integers(0, 2))
    def cancel(self, job_id, box):
        settled = self.boxes[box].settle(job_id, CANCELLED).result(LONG_S)
        assert settled.won is (self.states[job_id] not in TERMINAL)
        if settled.won:
            self._end(job_id, CANCELLED)

    @rule(box=st.integers(0, 2), by=st.integers(0, 2))
    def freeze_past_the_lease(self, box, by):
        if box == by:
            return
        expire(self.path, f"box{box}")
        self.members[box] = False
        self._forget(reap(self.boxes[by]))

    @rule(box=st.integers(0, 2))
    def thaw(self, box):
        """It has noticed, has no run left, and joins again."""
        if not self.members[box]:
            assert self.boxes[box].beat() is None
            self.runs = [run for run in self.runs if run.box != box]
            self.boxes[box].member.epoch, recovery = self.boxes[box].join().result(LONG_S)
            assert recovery.requeued == 0
            self.members[box] = True

    @rule(box=st.integers(0, 2))
    def kill_and_start(self, box):
        kill(self.boxes[box])
        self.runs = [run for run in self.runs if run.box != box]
        self.boxes[box] = open_box(self.path, f"box{box}")
        self.members[box] = True
        self._sync_states()

    def _end(self, job_id, verdict):
        assert job_id not in self.ends
        self.states[job_id], self.ends[job_id] = verdict.state, verdict
        self.holds.pop(job_id, None)

    def _forget(self, reaped):
        for recovery in reaped.values():
            for job in recovery.settled:
                self._end(job.job_id, job.verdict)
        self._sync_states()

    def _sync_states(self):
        """What a recovery has put back."""
        for job in self.boxes[0].list_jobs(None, None, 1000).result(LONG_S):
            if job.state in TERMINAL and job.job_id not in self.ends:
                assert job.verdict.code == "server_restarted"
                self._end(job.job_id, job.verdict)
            elif job.state is QUEUED and self.states[job.job_id] is not QUEUED:
                self.states[job.job_id] = QUEUED
                self.holds.pop(job.job_id, None)

    @invariant()
    def every_box_knows_what_is_there(self):
        if not hasattr(self, "boxes"):
            return
        for store in self.boxes:
            sync(store)
        listed = {job.job_id: job for job in self.boxes[0].list_jobs(None, None, 1000).result(LONG_S)}
        assert {job_id: job.state for job_id, job in listed.items()} == self.states
        assert {job_id: job.verdict for job_id, job in listed.items() if job.verdict} == self.ends
        for box, store in enumerate(self.boxes):
            line = store._transitions.line
            fresh = store._engine.read(lambda db, box=store.member.box: read_line(db, box)).result(LONG_S)
            if not self.members[box]:  # one that was frozen learns what it has lost when it joins again
                fresh = replace(fresh, leases=line.leases)
            assert replace(line, turns=clean(line)) == replace(fresh, turns=clean(fresh))
            assert store.queued == list(self.states.values()).count(QUEUED)
            told = [job.event_id for job in store.heard.changes]
            assert told == list(range(told[0], fresh.event_id + 1)) if told else True
        self.nothing_is_told_twice_or_in_another_order()

    def nothing_is_told_twice_or_in_another_order(self):
        latest = {}
        for job in max((store.heard.changes for store in self.boxes), key=len):
            latest[job.job_id] = job.state
        assert all(self.states[job_id] is state for job_id, state in latest.items())


def read_line(db, box):
    from comfyui_guarded.guard.store.database import snapshot

    with snapshot(db):
        return Line.read(db, box)


def clean(line):
    """The turns without what only saves a look at the tables."""
    return {
        owner: replace(turn, last_places={}, rounds=dict(turn.rounds))
        for owner, turn in line.turns.items()
        if turn != type(turn)()
    }


FleetMachine.TestCase.settings = settings(
    max_examples=max(settings().max_examples // 20, 3), stateful_step_count=30, deadline=None
)
TestFleet = pytest.mark.timeout(LONG_S * 2)(only_postgres(FleetMachine.TestCase))
