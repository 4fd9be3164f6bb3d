"""The store's threads: what is urgent goes at once, the rest with it or a moment later, and all in order."""

import random
import sys
import threading
from concurrent.futures import wait

import pytest
from unit.fakes import LONG_S, new_job
from unit.store_steps import Held, claim, submit

from comfyui_guarded.guard.job import SUCCESS, JobState
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
