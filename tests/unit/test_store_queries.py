"""What can be asked of the store."""

import json
import re
import sqlite3
import threading

from unit.fakes import LONG_S, new_job
from unit.store_steps import CANCELLED, Held, claim, run_to_success, submit
from unit.stores import both, only_sqlite, open_store

from comfyui_guarded.guard.job import OPEN, SUCCESS, Artifact, JobState, Result, Verdict
from comfyui_guarded.guard.store import (
    Counts,
    IdempotencyKey,
)

pytestmark = both


def test_a_list_is_newest_first_filtered_and_paged(store):
    ids = [submit(store, owner=owner).job.job_id for owner in "ababa"]
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
    old_queued = submit(store, created_at_ms=100, order=10.0).job.job_id
    old_dispatched = submit(store, created_at_ms=100, order=1.0).job.job_id
    old_running = submit(store, created_at_ms=100, order=0.0).job.job_id
    old_settled = submit(store, created_at_ms=100).job.job_id
    submit(store, created_at_ms=200)
    assert claim(store, 2) == old_running
    assert claim(store, 2) == old_dispatched
    store.start(old_running).result(LONG_S)
    store.settle(old_settled, CANCELLED).result(LONG_S)
    overdue = {job.job_id for job in store.list_overdue(200).result(LONG_S)}
    assert overdue == {old_queued, old_dispatched}
    assert store.list_overdue(100).result(LONG_S) == []


def test_an_overdue_verdict_leaves_alone_what_has_begun_to_run(store):
    job_id = submit(store).job.job_id
    claim(store)
    store.start(job_id).result(LONG_S)
    settled = store.settle(job_id, CANCELLED, only_waiting=True).result(LONG_S)
    assert (settled.won, settled.job.state) == (False, JobState.RUNNING)


def test_the_first_verdict_holds(store):
    job_id = submit(store).job.job_id
    claim(store)
    store.start(job_id).result(LONG_S)
    timeout = Verdict(JobState.FAILED, "generation_timeout", "too long", {"timeout_s": 1})
    with Held(store):
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
    claim(store)
    settled = run_to_success(store, new.job_id, result).job
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
    store = open_store(tmp_path / "jobs.db", ticking)
    for run_ms in (10, 20, 30):
        job_id = submit(store).job.job_id
        claim(store)
        store.start(job_id).result(LONG_S)
        ticking.now += run_ms
        store.settle(job_id, SUCCESS).result(LONG_S)
        store.release(job_id).result(LONG_S)
    store.settle(submit(store).job.job_id, CANCELLED).result(LONG_S)
    assert [run.run_ms for run in store.list_recent_runs(2).result(LONG_S)] == [20, 30]
    store.close()


@only_sqlite
def test_no_question_about_the_open_jobs_reads_through_the_settled_ones(store):
    """The watchdog asks twice a second, and a store may hold a million."""
    asked = []
    for thread in (store._engine._reader, store._engine._lister):
        thread.db.set_trace_callback(asked.append)
    few = frozenset({JobState.RUNNING, JobState.VALIDATING})
    for future in (
        store.list_overdue(1),
        store.count_jobs(),
        store.count_jobs("bot"),
        store.list_open_numbers(0, 10),
        store.list_jobs(None, few, 10),
        store.list_jobs("bot", few, 10),
        store.list_jobs(None, OPEN, 10),
        store.count_endings(0, 1),
    ):
        future.result(LONG_S)
    assert len(asked) >= 8
    db = sqlite3.connect(store.path)
    plans = []
    for query in asked:
        plan = " ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}"))
        plans.append(plan)
        assert re.search(r"SCAN jobs(?! USING (COVERING )?INDEX jobs_(queued|open))", plan) is None, (query, plan)
        assert re.search(r"jobs_of_owner(?!_by_state)", plan) is None, (query, plan)
    assert any("COVERING INDEX jobs_settled" in plan for plan in plans)
    db.close()


def test_what_ended_is_counted_by_owner_and_code(store, clock):
    first, second = (submit(store, owner="a").job.job_id for _ in range(2))
    claim(store)
    run_to_success(store, first)
    claim(store)
    store.settle(second, CANCELLED).result(LONG_S)
    submit(store, owner="b")
    now_ms = clock.now_ms()
    endings = store.count_endings(now_ms - 60_000, now_ms + 1).result(LONG_S)
    assert sorted((one.owner, one.code, one.jobs, one.runs) for one in endings if one.code) == [
        ("a", "cancelled", 1, 0)
    ]
    (success,) = [one for one in endings if one.code is None]
    assert (success.owner, success.jobs, success.runs) == ("a", 1, 1)
    assert success.run_ms >= 0
    assert store.count_endings(0, now_ms - 60_000).result(LONG_S) == []
    assert store.count_jobs("b").result(LONG_S) == Counts(queued=1, leased=0, running=0)
    assert store.count_jobs("a").result(LONG_S) == Counts(queued=0, leased=1, running=0)


def test_run_times_come_with_their_template_the_newest_first(store, clock):
    for template in ("portrait", "", "video"):
        job_id = submit(store, template=template).job.job_id
        claim(store)
        run_to_success(store, job_id)
    submit(store, template="waiting")
    names = [template for template, _run_ms in store.list_template_runs_ms(None, 3, 0).result(LONG_S)]
    assert names == ["video", ""]
    assert store.list_template_runs_ms("stranger", 9, 0).result(LONG_S) == []
    assert len(store.list_template_runs_ms("bot", 9, 0).result(LONG_S)) == 3
    assert store.list_template_runs_ms(None, 9, clock.now_ms() + 1).result(LONG_S) == []


def test_a_look_up_by_an_id_waits_for_no_list(store):
    key = IdempotencyKey("k", "digest")
    job_id = submit(store, key=key).job.job_id
    go = threading.Event()
    lists = [
        store._engine.read_list(lambda _db: go.wait(LONG_S)),
        store.list_jobs(None, None, 10),
        store.list_queue(None),
    ]
    try:
        assert store.locate(job_id).result(LONG_S / 2).position == 1
        assert store.find_entry(job_id).result(LONG_S / 2).job.job_id == job_id
        assert store.replay("bot", key).result(LONG_S / 2).job.job_id == job_id
        assert store.count_jobs().result(LONG_S / 2).queued == 1
        assert not any(one.done() for one in lists)
    finally:
        go.set()
    assert [job.job_id for job in lists[1].result(LONG_S)] == [job_id]
