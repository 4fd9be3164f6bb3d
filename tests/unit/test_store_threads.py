"""The store's threads: what is urgent goes at once, the rest with it or a moment later, and all in order."""

import contextlib
import random
import sys
import threading
from concurrent.futures import wait

import pytest
from unit.fakes import LONG_S, new_job
from unit.store_steps import CANCELLED, Held, claim, submit
from unit.stores import open_store

from comfyui_guarded.guard.job import SUCCESS, JobState
from comfyui_guarded.guard.spent import Spent
from comfyui_guarded.guard.store import threads
from comfyui_guarded.guard.store.threads import DatabaseThread


def commits(store):
    return store._engine._commits


@pytest.fixture
def patient(monkeypatch):
    """What is not urgent never comes by itself."""
    monkeypatch.setattr(threads, "LATER_S", LONG_S)


@pytest.fixture
def running(store, patient):
    """A job that runs, in a store that naps."""
    job_id = submit(store).job.job_id
    assert claim(store) == job_id
    store.hand_over(job_id).result(LONG_S)  # the first one that is not urgent goes at once
    store.start(job_id).result(LONG_S)
    return job_id


def test_that_a_check_begins_shares_the_commit_of_its_verdict(store, running):
    told, before = [], commits(store)
    store.changed.subscribe(lambda job: told.append(job.state))
    checked = store.validate(running)
    assert store.get(running).result(LONG_S).state is JobState.RUNNING
    assert not checked.done()
    settled = store.settle(running, SUCCESS)
    assert (settled.result(LONG_S).won, checked.result(LONG_S).state) == (True, JobState.VALIDATING)
    assert told == [JobState.VALIDATING, JobState.SUCCEEDED]
    assert commits(store) == before + 1


def test_what_nobody_waits_for_wakes_no_thread(store, running):
    before = commits(store)
    later = [store.mark_heard(running), store.hand_over(running), store.validate(running)]
    assert not any(future.done() for future in later)
    store.hide(None, []).result(LONG_S)
    assert all(future.done() for future in later)
    assert commits(store) == before + 1


def test_a_slot_is_freed_by_the_commit_that_gives_it_to_the_next_job(store, running):
    second, before = submit(store).job.job_id, commits(store)
    freed = store.release(running)
    assert wait([freed], 0.1).not_done
    assert store.begin("local", 1, lambda _job_id: True).result(LONG_S).job_id == second
    assert freed.done()
    assert commits(store) == before + 1


def test_what_is_not_urgent_comes_a_moment_later_by_itself(store):
    job_id = submit(store).job.job_id
    claim(store)
    store.start(job_id).result(LONG_S)
    for _ in range(3):
        store.mark_heard(job_id).result(LONG_S)
    assert store.validate(job_id).result(LONG_S).state is JobState.VALIDATING


def test_a_thread_that_sleeps_is_woken_at_once(store, monkeypatch):
    monkeypatch.setattr(threads, "LATER_S", 0.0)
    monkeypatch.setattr(threads, "LOOK_S", LONG_S)
    job_id = submit(store).job.job_id
    for _ in range(20):
        store.mark_heard(job_id).result(LONG_S / 2)


def test_what_is_held_at_the_end_of_a_run_wakes_no_thread_until_the_store_is_reminded(quick, monkeypatch):
    job_id = submit(quick).job.job_id
    claim(quick)
    quick.hand_over(job_id).result(LONG_S)
    job = quick.start(job_id).result(LONG_S)
    while not quick._engine._writer._sleeps:
        threading.Event().wait(0.001)
    monkeypatch.setattr(threads, "LATER_S", LONG_S)
    before = commits(quick)
    held = {"held": True}
    later = [
        quick.spend(job, Spent(9, 1, 0, ()), **held),
        quick.validate(job_id, **held),
        quick.release(job_id, **held),
    ]
    assert wait(later, 0.1).done == set()
    assert commits(quick) == before
    quick.remind()
    assert wait(later, 0.1).done == set(), "the verdict may come soon"
    assert quick.settle(job_id, SUCCESS).result(LONG_S).won
    assert all(future.done() for future in later)
    assert commits(quick) == before + 1


def test_what_is_held_at_the_end_of_a_run_comes_by_itself_soon_after_the_reminder(quick):
    for _ in range(3):
        job_id = submit(quick).job.job_id
        quick.begin("local", 1, lambda _job_id: True).result(LONG_S)
        freed = quick.release(job_id, held=True)
        quick.remind()
        freed.result(LONG_S / 2)


# On the thread that asks. -----------------------------------------------------------------------------------------


@pytest.fixture
def quick(tmp_path, clock):
    """A store whose commits wait for no disk, and whose thread does nothing by itself."""
    with contextlib.closing(open_store(tmp_path / "quick.db", clock, survives="kill")) as store:
        store._engine._writer._idle = None
        yield store


@pytest.fixture
def committing(quick):
    """The threads that have made its commits."""
    writer, made = quick._engine._writer, list[str]()
    work = writer._work

    def note(batch):
        made.append(threading.current_thread().name)
        work(batch)

    writer._work = note
    return made


def wait_until_free(store):
    """Wait until the store's thread has nothing to do: that is a moment after the last future is done."""
    free = 0
    while free < 20:
        free = 0 if store.silent_s or store._engine._writer._turn.locked() else free + 1
        threading.Event().wait(0.001)


def test_whoever_begins_a_job_commits_that_itself_with_all_that_waits(quick, patient, committing):
    first, second = (submit(quick).job.job_id for _ in range(2))
    quick.hand_over("of nobody").result(LONG_S)
    wait_until_free(quick)
    del committing[:]
    before, later, held = commits(quick), quick.mark_heard(first), quick.submit(new_job(), 9, held=True)
    beginning = quick.begin("local", 1, lambda _job_id: True)
    assert beginning.done()
    assert beginning.result().job_id == first
    assert later.done()
    assert held.done()
    assert committing == [threading.current_thread().name]
    assert commits(quick) == before + 1
    freed, ended = quick.release(first), quick.settle(first, SUCCESS, here=True)
    assert (freed.done(), ended.result().won) == (True, True)
    assert quick.begin("local", 1, lambda _job_id: True).result().job_id == second
    assert set(committing) == {threading.current_thread().name}


def test_an_end_is_committed_by_whoever_asks_for_that_alone(quick, committing):
    """A thread that has more to do must not wait for the disk."""
    job_id = submit(quick).job.job_id
    wait_until_free(quick)
    del committing[:]
    assert quick.settle(job_id, CANCELLED).result(LONG_S).won
    assert committing == ["guarded-store"]


def test_nobody_waits_for_a_store_that_is_busy_and_all_keep_their_order(quick, committing):
    job_id = submit(quick).job.job_id
    with Held(quick):
        later = quick.submit(new_job(priority=9), 9)
        beginning = quick.begin("local", 1, lambda _job_id: True)
        assert not beginning.done()
    assert beginning.result(LONG_S).job_id == later.result(LONG_S).job.job_id != job_id
    assert set(committing) == {"guarded-store"}


@pytest.mark.parametrize("trouble", ["failing", "damage"])
def test_a_store_in_trouble_is_left_to_its_own_thread(quick, committing, trouble):
    job_id = submit(quick).job.job_id
    wait_until_free(quick)
    del committing[:]
    if trouble == "failing":
        quick._engine.failing = "the disk is full"
    else:
        quick._engine._damage, quick._engine._mend_due_s = OSError(), float("inf")
    assert quick.begin("local", 1, lambda _job_id: True).result(LONG_S).job_id == job_id
    assert committing == ["guarded-store"]


@pytest.mark.parametrize("survives", ["kill", "power_cut"])
def test_only_a_commit_that_waits_for_no_disk_is_made_by_the_thread_that_asks(tmp_path, clock, survives):
    store = open_store(tmp_path / "jobs.db", clock, survives=survives)
    store._engine._writer._idle = None
    with contextlib.closing(store):
        job_id = submit(store).job.job_id
        wait_until_free(store)
        assert store.begin("local", 1, lambda _job_id: True).done(), "a start survives a kill in any case"
        ending = store.settle(job_id, SUCCESS, here=True)
        assert ending.done() or survives == "power_cut"
        assert ending.result(LONG_S).won
        wait_until_free(store)
        held = store.submit(new_job(), 9, held=True)
        beginning = store.begin("local", 2, lambda _job_id: True)
        assert beginning.done() or survives == "power_cut"
        assert beginning.result(LONG_S).job_id == held.result(LONG_S).job.job_id


def test_what_is_held_comes_in_one_commit_once_it_is_let_go_or_something_urgent_comes(store, patient):
    before = commits(store)
    held = [store.submit(new_job(), 9, held=True) for _ in range(3)]
    assert wait(held, 0.1).done == set()
    store.let_go()
    assert [future.result(LONG_S).replayed for future in held] == [False] * 3
    assert commits(store) == before + 1
    held = [store.submit(new_job(), 9, held=True) for _ in range(3)]
    submit(store)
    assert all(future.done() for future in held)
    assert commits(store) == before + 2


def test_what_is_held_and_never_let_go_comes_all_the_same_and_so_it_does_at_a_close(store):
    assert not store.submit(new_job(), 9, held=True).result(LONG_S).replayed
    left = store.submit(new_job(), 9, held=True)
    store.close()
    assert not left.result(LONG_S).replayed


def test_a_close_does_what_was_not_urgent(store, running):
    later = store.validate(running)
    store.close()
    assert later.result(LONG_S).state is JobState.VALIDATING


def test_operations_are_done_in_the_order_of_the_calls(monkeypatch):
    monkeypatch.setattr(threads, "LATER_S", 0.001)
    done: list[tuple[int, int]] = []

    def work(batch):
        for task in batch:
            task.future.set_result(task.operation(None))

    thread = DatabaseThread("ordered", work)
    thread.start()
    futures = []

    def hand_in(caller):
        dice = random.Random(caller)
        for number in range(500):
            told = caller, number
            if dice.random() < 0.2:
                futures.append(thread.run_here(lambda _db, told=told: done.append(told), lambda _batch: True))
                continue
            kind = {"urgent": dice.random() < 0.3, "held": dice.random() < 0.3}
            futures.append(thread.run(lambda _db, told=told: done.append(told), **kind))
            if dice.random() < 0.1:
                thread.let_go()

    callers = [threading.Thread(target=hand_in, args=(caller,)) for caller in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    thread.let_go()
    for future in futures:
        future.result(LONG_S)
    thread.close()
    assert len(done) == 2000
    for caller in range(4):
        assert [number for who, number in done if who == caller] == list(range(500))


def test_a_commit_says_what_it_waits_for_only_where_that_changes(store):
    said = []
    with Held(store):
        store._engine._writer.db.set_trace_callback(said.append)
    for _ in range(5):
        submit(store)
    # Each submit waits for the disk, like the one before.
    assert sum("synchronous" in line for line in said) <= 1


def test_what_is_handed_in_while_a_thread_closes_is_done_or_refused():
    """Whoever waits for it would wait for ever."""

    def work(batch):
        for task in batch:
            task.future.set_result(task.operation(None))

    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _round in range(20):
            thread, futures, closed = DatabaseThread("closing", work), [], threading.Event()
            thread.start()

            def hand_in(thread=thread, futures=futures, closed=closed):
                dice = random.Random(1)
                while not closed.is_set():
                    kind = {"urgent": dice.random() < 0.5, "held": dice.random() < 0.3}
                    futures.append(thread.run(lambda _db: 1, **kind))
                    futures.append(thread.run_here(lambda _db: 1, lambda _batch: True))
                    thread.let_go()

            callers = [threading.Thread(target=hand_in) for _ in range(3)]
            for caller in callers:
                caller.start()
            thread.close()
            closed.set()
            for caller in callers:
                caller.join()
            # Nothing is done any more by now.
            assert [future for future in futures if not future.done()] == []
            assert thread.silent_s == 0
    finally:
        sys.setswitchinterval(before_s)
