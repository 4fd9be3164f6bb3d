"""What the engine claims and starts by itself, in one question, is what this process would have taken: jobs, turns and
tables."""

import random
import threading
from dataclasses import replace

import pytest
from unit.fakes import LONG_S, new_id, new_job
from unit.store_steps import CANCELLED
from unit.stores import make_schema, only_postgres, server
from unit.test_fleet_store import _on_postgres, clean, expire, kill, open_box, read_line, reap, sync
from unit.test_postgres import Proxy
from unit.test_postgres import open_box as open_box_at

from comfyui_guarded.guard.errors import ServerUnavailableError
from comfyui_guarded.guard.job import SUCCESS, JobState, Webhook
from comfyui_guarded.guard.store import claiming, postgres_engine, starting
from comfyui_guarded.guard.store.shared import SharedTransitions
from comfyui_guarded.guard.weight import Placement

# A fixture for all of them here, too.
__all__ = ["_on_postgres"]

pytestmark = only_postgres

ALL_STATES = ("queued", "dispatched", "running", "succeeded", "failed", "cancelled")


def note_answers(monkeypatch, module):
    """What the engine answers to the questions of that module, from here on."""
    told = []
    monkeypatch.setattr(module, "read", lambda asked, read=module.read: (told.append(found := read(asked)), found)[1])
    return told


@pytest.fixture
def by_engine(monkeypatch):
    """What the engine was asked to claim, and what it has taken."""
    return note_answers(monkeypatch, claiming)


def draw(seed, count, is_plain):
    """Jobs of all kinds, the same for a seed but for their ids."""
    draws = random.Random(seed)
    for number in range(count):
        models = tuple(draws.sample(("a", "b", "c"), draws.randint(0, 2)))
        odd = not is_plain and draws.random() < 0.2
        yield new_job(
            owner=draws.choice(("ann", "bob", "cid", "Ünal")),
            user=draws.choice(("", "u1", "u2", "u3")),
            priority=draws.choice((0, 0, 0, 1)),
            front=draws.random() < 0.1,
            placement=Placement(f"n{'-'.join(models)}", tuple(sorted(models)), 8_000 if odd else None),
            webhook=Webhook("http://x.test/", ALL_STATES) if odd and number % 2 else None,
        )


def work_off(path, seed, is_plain):
    """The places of the jobs in the order in which two boxes claim them, more coming in meanwhile."""
    boxes = [open_box(path, name, slots=10**6) for name in ("one", "two")]
    try:
        for box in boxes:
            box.member.affinity_wait_ms = 10**9
        places, order, jobs = {}, [], list(draw(seed, 30, is_plain))
        draws = random.Random(seed)
        waits = jobs[:20]
        while True:
            for new in waits:
                places[new.job_id] = len(places)
                draws.choice(boxes).submit(new, 10**9).result(LONG_S)
            waits, jobs = jobs[20:22], jobs[:20] + jobs[22:]
            claimed = draws.choice(boxes).claim("local", 10**6).result(LONG_S)
            if claimed is None and not waits:
                break
            if claimed is not None:
                assert claimed.body == new_job().body
                order.append(places[claimed.job.job_id])
        for box in boxes:
            sync(box)
            line = box._transitions.line
            fresh = box._engine.read(lambda db, box=box: read_line(db, box.member.box)).result(LONG_S)
            assert replace(line, turns=clean(line)) == replace(fresh, turns=clean(fresh))
            told = [job.event_id for job in box.heard.changes]
            assert told == list(range(told[0], fresh.event_id + 1))
        states = boxes[0].list_jobs(None, None, 100).result(LONG_S)
        assert {job.state for job in states} == {JobState.DISPATCHED}
        return order
    finally:
        for box in boxes:
            kill(box)


@pytest.mark.parametrize("is_plain", [True, False], ids=["plain", "all kinds"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_engine_takes_what_this_process_would_take(tmp_path, monkeypatch, by_engine, seed, is_plain):
    if not is_plain:
        monkeypatch.setattr("comfyui_guarded.guard.store.postgres_shared_engine.PAUSE_S", 0.0)
    order = work_off(tmp_path / "engine", seed, is_plain)
    assert sum(taken is not None for _done, taken in by_engine) >= (25 if is_plain else 1)
    monkeypatch.setattr(SharedTransitions, "has_plain_claims", lambda *_: False)
    assert order == work_off(tmp_path / "process", seed, is_plain)
    assert len(order) == 30


@pytest.fixture
def started(monkeypatch):
    """What the engine has started, or not."""
    return note_answers(monkeypatch, starting)


@pytest.fixture
def box(tmp_path):
    box = open_box(tmp_path / "jobs", "one", slots=10**6)
    yield box
    kill(box)


def test_a_claim_of_nothing_writes_nothing(box):
    def read_signature():
        return box._engine.read(lambda db: db.execute("SELECT writer FROM epoch").fetchone()).result(LONG_S)

    before = read_signature()
    assert box.claim("local", 9).result(LONG_S) is None
    assert read_signature() == before


def test_an_owner_that_one_box_holds_back_is_served_by_another(tmp_path, box):
    other = open_box(tmp_path / "jobs", "other")
    try:
        first, second = (box.submit(new_job(owner=owner), 9).result(LONG_S).job.job_id for owner in ("a", "b"))
        box.hold_back(frozenset({"a"}))
        assert box.claim("local", 9).result(LONG_S).job.job_id == second
        assert box.claim("local", 9).result(LONG_S) is None
        assert other.claim("local", 9).result(LONG_S).job.job_id == first
    finally:
        kill(other)


def test_a_box_whose_lease_is_over_claims_nothing(box):
    box.submit(new_job(), 9).result(LONG_S)
    box._engine.write(lambda db: db.execute("UPDATE boxes SET until_ms = 0")).result(LONG_S)
    assert box.claim("local", 9).result(LONG_S) is None


def test_what_a_run_writes_with_the_token_of_its_claim_counts(box):
    job_id = new_id()
    box.submit(new_job(job_id), 9).result(LONG_S)
    claimed = box.claim("local", 9).result(LONG_S)
    assert (claimed.job.token, claimed.job.token is not None) == (box.find_token(job_id), True)
    assert box.start(job_id).result(LONG_S).state is JobState.RUNNING


def test_a_claim_of_a_box_that_is_far_behind_takes_the_first(tmp_path, box):
    """It must know what the others have done before."""
    behind = open_box(tmp_path / "jobs", "two", slots=10**6)
    try:
        ids = [new_id() for _ in range(100)]
        for job_id in ids:
            box.submit(new_job(job_id), 10**9).result(LONG_S)
        assert behind.claim("local", 9).result(LONG_S).job.job_id == ids[0]
        assert behind.claim("local", 9).result(LONG_S).job.job_id == ids[1]
        assert behind.queued == 98
    finally:
        kill(behind)


@pytest.mark.parametrize("way", ["before", "after"])
def test_a_claim_whose_answer_is_lost_is_told_as_it_ended(tmp_path, monkeypatch, way):
    monkeypatch.setattr(postgres_engine, "HOLD_S", LONG_S)
    proxy, job_id = Proxy(server().port), new_id()
    box = open_box_at(server().url(make_schema(tmp_path / "jobs"), port=proxy.port), "one")
    try:
        told = []
        for changes in (box.changed, box.arrived):
            changes.subscribe(lambda job: told.append((job.job_id, job.state)))
        box.submit(new_job(job_id), 9).result(LONG_S)
        with monkeypatch.context() as patch:
            patch.setattr(box._engine, "_check", lambda _db: None)  # what it asks ends in COMMIT, too
            proxy.cut = way
            first = box.claim("local", 9)
            if way == "before":
                with pytest.raises(ServerUnavailableError):
                    first.result(LONG_S)
                first = box.claim("local", 9)
            claimed = first.result(LONG_S)
        assert (proxy.cuts, claimed.job.job_id, claimed.body) == (1, job_id, new_job().body)
        assert claimed.job.token == box.find_token(job_id)
        assert box.leases == {job_id}
        assert box.start(job_id).result(LONG_S).state is JobState.RUNNING
        assert told == [(job_id, JobState.QUEUED), (job_id, JobState.DISPATCHED), (job_id, JobState.RUNNING)]
    finally:
        kill(box)
        proxy.close()


# Starts. ------------------------------------------------------------------------------------------------------------


def claim(box, **facts):
    box.submit(new_job(**facts), 10**9).result(LONG_S)
    return box.claim("local", 10**6).result(LONG_S).job


def read_tables(box, job_id):
    """What they have of that job, but for numbers and times."""

    def operation(db):
        columns = "state, attempts, started_at_ms - created_at_ms >= 0, box, token <> '', event_id"
        job = db.execute(f"SELECT {columns} FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        of_job = "WHERE job_id = ? ORDER BY event_id"
        changes = db.execute(f"SELECT state, event_id FROM transitions {of_job}", (job_id,)).fetchall()
        webhooks = db.execute("SELECT type FROM webhooks WHERE job_id = ? ORDER BY number", (job_id,)).fetchall()
        assert job[-1] == changes[-1][1]
        return job[:-1], [state for state, _number in changes], webhooks

    return box._engine.read(operation).result(LONG_S)


@pytest.mark.parametrize("events", [None, ("succeeded",), ALL_STATES], ids=["no webhook", "of the end", "of all"])
def test_a_start_by_the_engine_writes_what_this_process_would(tmp_path, monkeypatch, started, events):
    written = []
    for name in ("engine", "process"):
        box = open_box(tmp_path / name, "one", slots=10**6)
        try:
            job = claim(box, webhook=Webhook("http://x.test/", events) if events else None)
            begun = box.start(job.job_id).result(LONG_S)
            assert (begun.state, begun.attempts, begun.token) == (JobState.RUNNING, 1, None)
            assert begun == box.get(job.job_id).result(LONG_S)
            line = box._transitions.line
            fresh = box._engine.read(lambda db: read_line(db, "one")).result(LONG_S)
            assert replace(line, turns=clean(line)) == replace(fresh, turns=clean(fresh))
            told = [(job.state.value, job.event_id) for job in box.heard.own]
            assert told == [("queued", 1), ("dispatched", 2), ("running", 3)]
            written.append(read_tables(box, job.job_id))
            assert box.settle(job.job_id, SUCCESS, token=job.token).result(LONG_S).won
        finally:
            kill(box)
        monkeypatch.setattr("comfyui_guarded.guard.store.postgres_fleet._Start.is_plain", lambda _self: False)
    assert written[0] == written[1]
    assert [found is not None for found in started] == [events != ALL_STATES]


def test_what_was_taken_from_a_box_does_not_start_there(tmp_path, box, started):
    job, other = claim(box), open_box(tmp_path / "jobs", "two", slots=10**6)
    try:
        expire(tmp_path / "jobs", "one")
        assert set(reap(other)) == {"one"}
        again = other.claim("local", 9).result(LONG_S).job
        assert again.job_id == job.job_id
        assert box.start(job.job_id).result(LONG_S) is None
        assert other.start(job.job_id).result(LONG_S).state is JobState.RUNNING
        sync(box)
        assert [found is not None for found in started] == [False, True]
        seen = [(each.state.value, each.event_id) for each in box.heard.changes]
        assert seen[2:] == [(each.state.value, each.event_id) for each in other.heard.changes]
        assert [number for _state, number in seen] == [1, 2, 3, 4, 5]
    finally:
        kill(other)


def test_what_has_ended_does_not_start(box):
    job = claim(box)
    assert box.settle(job.job_id, CANCELLED).result(LONG_S).won
    assert box.start(job.job_id).result(LONG_S) is None
    assert read_tables(box, job.job_id)[1] == ["queued", "dispatched", "cancelled"]


def test_a_start_goes_before_what_shares_its_commit_and_that_is_done_in_its_order(box, started):
    before, job = claim(box), claim(box)
    assert box.start(before.job_id).result(LONG_S)
    box._engine._writer.run(lambda _db: threading.Event().wait(0.2))  # all of it comes while it is busy
    box._engine._writer.patience_s = 0.25
    validating = box.validate(before.job_id)
    beginning = box.start(job.job_id)
    settling = box.settle(before.job_id, SUCCESS, token=before.token)
    assert beginning.result(LONG_S).state is JobState.RUNNING
    assert validating.result(LONG_S).state is JobState.VALIDATING
    assert settling.result(LONG_S).won
    assert len(started) == 2
    states = [(each.job_id == job.job_id, each.state.value) for each in box.heard.own[-3:]]
    assert states == [(True, "running"), (False, "validating"), (False, "succeeded")]
    assert box._engine.silent_s == 0


@pytest.mark.parametrize("way", ["before", "after"])
def test_a_start_whose_answer_is_lost_is_told_as_it_ended(tmp_path, monkeypatch, way):
    monkeypatch.setattr(postgres_engine, "HOLD_S", LONG_S)
    proxy = Proxy(server().port)
    box = open_box_at(server().url(make_schema(tmp_path / "jobs"), port=proxy.port), "one")
    try:
        told = []
        for changes in (box.changed, box.arrived):
            changes.subscribe(lambda job: told.append(job.state.value))
        job = claim(box)
        with monkeypatch.context() as patch:
            patch.setattr(box._engine, "_check", lambda _db: None)  # what it asks ends in COMMIT, too
            proxy.cut = way
            starting = box.start(job.job_id)
            if way == "before":
                with pytest.raises(ServerUnavailableError):
                    starting.result(LONG_S)
                starting = box.start(job.job_id)
            assert starting.result(LONG_S).state is JobState.RUNNING
        assert (proxy.cuts, box.get(job.job_id).result(LONG_S).attempts) == (1, 1)
        assert box.settle(job.job_id, SUCCESS, token=job.token).result(LONG_S).won
        assert told == ["queued", "dispatched", "running", "succeeded"]
    finally:
        kill(box)
        proxy.close()
