"""What the store answered is durable, by an idempotency key too; who is told; what a restart takes up."""

import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from unit.fakes import LONG_S, new_id, new_job
from unit.store_steps import CANCELLED, Held, claim, claim_all, run_to_success, submit
from unit.stores import ask, both, copy_store, open_store

from comfyui_guarded.guard.errors import (
    ConflictError,
    GuardError,
    QueueFullError,
    ServerUnavailableError,
)
from comfyui_guarded.guard.job import SUCCESS, JobState
from comfyui_guarded.guard.store import (
    IdempotencyKey,
    line,
)

pytestmark = both

# What was answered is durable. ------------------------------------------------------------------------------------


def test_jobs_of_many_threads_are_all_durable_and_have_numbers_of_their_own(store, tmp_path):
    with ThreadPoolExecutor(16) as pool:
        submitted = list(pool.map(lambda turn: submit(store, owner=f"bot-{turn % 5}"), range(400)))
    assert len({each.job.number for each in submitted}) == 400
    # Read past the store, while it is open, as a process would find it after a SIGKILL of ours.
    copy = copy_store(store, tmp_path / "copy.db")
    numbers = dict(ask(copy, "SELECT job_id, number FROM jobs WHERE state = 'queued'"))
    (bodies,) = ask(copy, "SELECT count(*) FROM bodies")
    assert numbers == {each.job.job_id: each.job.number for each in submitted}
    assert bodies == (400,)
    assert store.queued == 400


def test_what_comes_in_together_shares_commits(store):
    commits = []
    committed = store._engine._writer._work
    store._engine._writer._work = lambda batch: (commits.append(len(batch)), committed(batch))
    with Held(store):
        futures = [store.submit(new_job(), 10**9) for _ in range(200)]
    assert [future.result(LONG_S).job.number for future in futures] == list(range(1, 201))
    assert sum(commits) == 201
    assert len(commits) <= 3


def test_a_refused_operation_does_not_take_its_neighbours_down(store):
    taken = submit(store).job.job_id
    with Held(store):
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
        store._transitions.line.turns.setdefault("nobody", line.Turn()).add(0, 0, 99)
        store._transitions.changed.append("a change that will not be")
        raise fault

    with Held(store):
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
    assert submit(store).waiting.position == 1
    assert len(told) == store.queued == 1


@pytest.mark.parametrize("thread", ["_writer", "_reader"])
def test_a_fault_in_the_stores_own_thread_is_told_to_whoever_waits_and_the_thread_lives(store, thread):
    thread = getattr(store._engine, thread)
    work = thread._work

    def broken_once(_batch):
        thread._work = work
        raise ZeroDivisionError("a bug")

    thread._work = broken_once
    assert isinstance(thread.run(lambda _db: None).exception(LONG_S), GuardError)
    assert thread.run(lambda _db: 5).result(LONG_S) == 5


def test_a_caller_that_went_away_before_its_turn_has_taken_its_job_back(store):
    with Held(store):
        gone = store.submit(new_job(), 10**9)
        stays = store.submit(new_job(), 10**9)
        assert gone.cancel()
    assert stays.result(LONG_S).waiting.position == 1
    assert store.queued == 1


def test_a_closed_store_refuses_and_has_lost_nothing_that_was_handed_in(tmp_path, clock):
    store = open_store(tmp_path / "jobs.db", clock)
    with Held(store):
        last = store.submit(new_job(), 10**9)
        closing = threading.Thread(target=store.close)
        closing.start()
    closing.join()
    assert last.result(LONG_S).job.number == 1
    assert isinstance(store.submit(new_job(), 10**9).exception(LONG_S), ServerUnavailableError)
    assert isinstance(store.get("x").exception(LONG_S), ServerUnavailableError)
    reopened = open_store(tmp_path / "jobs.db", clock)
    assert reopened.queued == 1
    reopened.close()


# Idempotency keys. ------------------------------------------------------------------------------------------------


def test_an_idempotency_key_is_forgotten_after_its_time_and_can_be_used_again(store):
    old = submit(store, key=IdempotencyKey("k", "digest"), created_at_ms=1000).job.job_id
    assert store.replay("bot", IdempotencyKey("k", "digest", since_ms=1000)).result(LONG_S).job.job_id == old
    late = IdempotencyKey("k", "another digest", since_ms=1001)
    assert store.replay("bot", late).result(LONG_S) is None
    new = submit(store, key=late, created_at_ms=2000)
    assert (new.replayed, new.job.job_id != old) == (False, True)
    assert store.replay("bot", late).result(LONG_S).job.job_id == new.job.job_id


def test_the_same_key_and_body_give_the_job_of_before(store):
    key = IdempotencyKey("k", "digest")
    first = submit(store, key=key)
    again = submit(store, key=key)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.job == first.job
    assert store.queued == 1
    assert store.replay("bot", key).result(LONG_S).job == first.job


def test_a_replay_shows_how_the_job_ended(store):
    key = IdempotencyKey("k", "digest")
    job_id = submit(store, key=key).job.job_id
    store.settle(job_id, CANCELLED).result(LONG_S)
    replayed = store.replay("bot", key).result(LONG_S)
    assert (replayed.job.state, replayed.waiting, replayed.replayed) == (JobState.CANCELLED, None, True)


def test_the_same_key_with_another_body_is_a_conflict(store):
    job_id = submit(store, key=IdempotencyKey("k", "digest")).job.job_id
    other = IdempotencyKey("k", "another digest")
    for future in (store.replay("bot", other), store.submit(new_job(), 10**9, other)):
        error = future.exception(LONG_S)
        assert isinstance(error, ConflictError)
        assert error.extra_info == {"job_id": job_id}
    assert store.queued == 1


def test_a_key_is_its_owners_own(store):
    key = IdempotencyKey("k", "digest")
    submit(store, owner="a", key=key)
    assert store.replay("b", key).result(LONG_S) is None
    assert submit(store, owner="b", key=key).replayed is False


def test_a_replay_is_answered_by_a_full_queue_too(store):
    key = IdempotencyKey("k", "digest")
    first = submit(store, key=key)
    assert submit(store, key=key, max_queued=1).job == first.job


def test_a_refused_submit_does_not_use_its_key_up(store):
    key = IdempotencyKey("k", "digest")
    taken = submit(store).job.job_id
    assert isinstance(store.submit(new_job(taken), 10**9, key).exception(LONG_S), ConflictError)
    assert store.replay("bot", key).result(LONG_S) is None
    assert submit(store, key=key).replayed is False


def test_a_key_survives_a_restart(tmp_path, clock):
    key = IdempotencyKey("k", "digest")
    store = open_store(tmp_path / "jobs.db", clock)
    first = submit(store, key=key)
    store.close()
    store = open_store(tmp_path / "jobs.db", clock)
    assert submit(store, key=key).job == first.job
    store.close()


# Telling. ---------------------------------------------------------------------------------------------------------


def test_a_listener_hears_of_a_change_only_once_it_is_durable(store):
    seen = []

    def listener(job):
        ((state,),) = ask(store.path, "SELECT state FROM jobs WHERE job_id = ?", (job.job_id,))
        seen.append((job.state.value, state))

    store.changed.subscribe(listener)
    job_id = submit(store).job.job_id
    claim(store)
    run_to_success(store, job_id)
    assert seen == [(state, state) for state in ("queued", "dispatched", "running", "validating", "succeeded")]


def test_whoever_gets_an_answer_knows_that_the_listeners_were_told_before(store):
    told = []
    store.changed.subscribe(lambda job: told.append(job.job_id))
    for _ in range(50):
        job_id = submit(store).job.job_id
        assert told[-1] == job_id


def test_a_listener_that_raises_harms_nobody(store, caplog):
    told = []

    def broken(_job):
        raise ValueError("a broken listener")

    store.changed.subscribe(broken)
    store.changed.subscribe(lambda job: told.append(job.job_id))
    ids = [submit(store).job.job_id for _ in range(2)]
    assert told == ids
    assert "a broken listener" in caplog.text


def test_what_was_refused_is_told_to_nobody(store):
    told = []
    store.changed.subscribe(told.append)
    job_id = submit(store).job.job_id
    told.clear()
    for refused in (store.submit(new_job(job_id), 10**9), store.submit(new_job(), 1), store.start(job_id)):
        assert refused.exception(LONG_S) is not None
    assert store.settle(job_id, CANCELLED).result(LONG_S).won
    assert store.settle(job_id, CANCELLED).result(LONG_S).won is False
    assert [job.state for job in told] == [JobState.CANCELLED]


# A restart. -------------------------------------------------------------------------------------------------------


def test_recovery_takes_up_what_was_under_way_and_gives_up_what_cannot_be(tmp_path, clock):
    path = tmp_path / "jobs.db"
    store = open_store(path, clock)
    names = ["dispatched", "once", "checked", "twice", "secret-running", "secret-queued", "queued"]
    ids = {name: new_id() for name in names}
    submit(store, ids["twice"])
    assert claim(store, 99) == ids["twice"]
    store.start(ids["twice"]).result(LONG_S)
    store._engine.write(lambda db: db.execute("UPDATE jobs SET attempts = 2")).result(LONG_S)
    for name in names:
        if name != "twice":
            submit(store, ids[name], has_secrets=name.startswith("secret"))
    for _ in range(4):
        store.hand_over(claim(store, 99)).result(LONG_S)
    for name in ("once", "checked", "secret-running"):
        store.start(ids[name]).result(LONG_S)
    store.validate(ids["checked"]).result(LONG_S)
    store.close()

    store = open_store(path, clock)
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
    attempts = {name: store.get(ids[name]).result(LONG_S).attempts for name in names}
    assert (attempts["dispatched"], attempts["once"], attempts["twice"]) == (0, 1, 2)
    assert claim_all(store) == [ids["dispatched"]], "the next one has begun before, and waits until it is alone"
    for name, then in (("dispatched", "once"), ("once", "checked"), ("checked", "queued")):
        assert claim(store, 99) is None
        run_to_success(store, ids[name])
        assert claim(store, 99) == ids[then]
    assert claim(store, 99) is None
    store.close()


@pytest.mark.parametrize("innocent_is", ["running", "validating"])
def test_a_job_that_kills_the_process_twice_costs_the_one_beside_it_no_second_attempt(tmp_path, clock, innocent_is):
    path = tmp_path / "jobs.db"
    store = open_store(path, clock)
    innocent, poison, later = (submit(store).job.job_id for _ in range(3))
    for job_id in (innocent, poison):
        assert claim(store, 2) == job_id
        store.start(job_id).result(LONG_S)
    if innocent_is == "validating":
        store.validate(innocent).result(LONG_S)
        store.release(innocent).result(LONG_S)
    store.close()  # the process dies

    store = open_store(path, clock)
    assert store.recover("local", 2).result(LONG_S).requeued == 2
    assert claim_all(store) == [innocent]
    store.start(innocent).result(LONG_S)
    store.validate(innocent).result(LONG_S)
    store.release(innocent).result(LONG_S)
    assert claim(store, 2) is None, "while its files are checked, too"
    store._engine.write(lambda db: store._transitions.load(db)).result(LONG_S)  # as after a rollback
    assert claim(store, 2) is None
    assert store.settle(innocent, SUCCESS).result(LONG_S).won
    assert claim_all(store) == [poison]
    store.close()  # and again

    store = open_store(path, clock)
    assert [job.job_id for job in store.recover("local", 2).result(LONG_S).settled] == [poison]
    assert claim_all(store) == [later]
    store.close()


def test_a_job_that_was_being_validated_for_dispatch_counts_an_attempt_and_one_that_merely_waited_does_not(
    tmp_path, clock
):
    path = tmp_path / "jobs.db"
    store = open_store(path, clock)
    waited, poison, queued = (submit(store).job.job_id for _ in range(3))
    for attempt in (1, 2):
        assert claim(store, 2) == waited
        store.hand_over(waited).result(LONG_S)
        if attempt == 2:
            assert claim(store, 2) is None, "it has begun before, and waits until it is alone"
            store.settle(waited, CANCELLED).result(LONG_S)
            store.release(waited).result(LONG_S)
        assert claim(store, 2) == poison
        store.close()  # the process dies
        store = open_store(path, clock)
        recovery = store.recover("local", 2).result(LONG_S)
        assert store.get(poison).result(LONG_S).attempts == attempt
        assert store.get(waited).result(LONG_S).attempts == 0
        assert [job.job_id for job in recovery.settled] == ([poison] if attempt == 2 else [])
    assert store.get(poison).result(LONG_S).verdict.code == "server_restarted"
    assert claim_all(store) == [queued]
    store.close()


def test_a_job_whose_prompt_is_gone_fails_in_the_claim_that_finds_it_and_the_next_one_is_claimed(store):
    bad, good, worse = (submit(store).job for _ in range(3))
    told = []
    store.changed.subscribe(lambda job: told.append((job.job_id, job.state.value)))
    numbers = [(bad.number,), (worse.number,)]
    store._engine.write(lambda db: db.executemany("DELETE FROM bodies WHERE number = ?", numbers)).result(LONG_S)
    assert claim(store) == good.job_id
    assert told == [(bad.job_id, "failed"), (good.job_id, "dispatched")]
    assert store.get(bad.job_id).result(LONG_S).verdict.code == "internal_error"
    store.release(good.job_id).result(LONG_S)
    assert claim(store) is None
    assert store.get(worse.job_id).result(LONG_S).state is JobState.FAILED
    assert (store.queued, store.leases) == (0, frozenset())


def test_the_leases_are_known_on_any_thread_as_of_the_last_commit(store):
    assert store.leases == frozenset()
    ids = [submit(store).job.job_id for _ in range(3)]
    claimed = {claim(store, 2), claim(store, 2)}
    assert store.leases == claimed < set(ids)
    assert store.leased == 2
    store.settle(next(iter(claimed)), SUCCESS).result(LONG_S)
    assert store.leases == claimed, "a settled job keeps its slot until the worker lets go"
    for job_id in claimed:
        store.release(job_id).result(LONG_S)
    assert store.leases == frozenset()


@pytest.mark.parametrize("owner", ["bot", None])
def test_an_end_counts_once_it_is_on_disk_and_not_while_its_commit_hangs(store, owner):
    job_id = submit(store).job.job_id
    inside, go = threading.Event(), threading.Event()
    with Held(store):
        settled = store.settle(job_id, CANCELLED)
        store._engine.write(lambda _db: (inside.set(), go.wait(LONG_S)))  # in the same transaction, after the end
    assert inside.wait(LONG_S)
    try:
        assert store.count_open(owner) == 1
    finally:
        go.set()
    assert settled.result(LONG_S).won
    assert store.count_open(owner) == 0


def test_what_an_earlier_process_left_open_counts_from_the_start(tmp_path, clock):
    path = tmp_path / "jobs.db"
    store = open_store(path, clock)
    for owner in ("a", "a", "b"):
        submit(store, owner=owner)
    store.close()
    store = open_store(path, clock)
    assert [store.count_open(owner) for owner in ("a", "b", "c", None)] == [2, 1, 0, 3]
    store.close()


def test_the_leases_are_read_again_with_the_database(tmp_path, clock):
    path = tmp_path / "jobs.db"
    store = open_store(path, clock)
    submit(store)
    job_id = claim(store)
    store.close()
    store = open_store(path, clock)
    assert store.leases == {job_id}
    store.recover("local", 2).result(LONG_S)
    assert store.leases == frozenset()
    store.close()


def test_that_the_host_has_taken_a_job_is_written_down(store):
    def handed_over():
        query = "SELECT job_id, handed_over FROM leases JOIN jobs USING (job_id) ORDER BY number"
        return store._engine.read(lambda db: db.execute(query).fetchall()).result(LONG_S)

    for _ in range(2):
        submit(store)
    first, second = claim(store, 2), claim(store, 2)
    store.hand_over(second).result(LONG_S)
    store.hand_over("of nobody").result(LONG_S)
    assert handed_over() == [(first, 0), (second, 1)]


def test_the_oldest_unfinished_write_says_how_long_the_store_has_been_silent(store):
    assert store.silent_s == 0
    with Held(store):
        held = store.silent_s
        waiting = store.submit(new_job(), 10)
        cancelled = store.submit(new_job(), 10)
        assert cancelled.cancel()
        assert store.silent_s > held > 0
        assert not store.flush(0.01)
        assert not waiting.done()
    assert store.flush(LONG_S)
    assert waiting.done()
    store._engine.write(lambda _db: None).result(LONG_S)
    ends_s = time.monotonic() + LONG_S
    while store.silent_s:  # the last future is done a moment before the batch is
        assert time.monotonic() < ends_s


def test_a_flush_of_a_closed_store_says_that_it_is_not_on_disk(tmp_path, clock):
    store = open_store(tmp_path / "jobs.db", clock)
    assert store.flush(LONG_S)
    store.close()
    assert not store.flush(LONG_S)
