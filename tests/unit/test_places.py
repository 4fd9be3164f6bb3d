"""Who polls for a position does not wait for the disk each time, and is not told an old one after a change."""

import asyncio

import pytest
from unit.fakes import LONG_S
from unit.store_steps import CANCELLED, Held, submit

from comfyui_guarded.guard.callers import places


def find(machine, job_id):
    return asyncio.run(machine.jobs.body(machine.store.recall(job_id)))["position"]


@pytest.fixture
def patient(monkeypatch):
    """A test that takes long must not make a place old."""
    monkeypatch.setattr(places, "TOLD_AGAIN_S", LONG_S)


def test_a_job_that_waits_is_polled_without_the_disk(machine, patient):
    first, second = submit(machine.store).job.job_id, submit(machine.store).job.job_id
    assert (find(machine, first), find(machine, second)) == (1, 2)
    with Held(machine.store, "read"):
        assert (find(machine, first), find(machine, second)) == (1, 2)


def test_a_position_is_looked_up_anew_after_a_while(machine, monkeypatch):
    monkeypatch.setattr(places, "TOLD_AGAIN_S", 0.0)
    first, second = submit(machine.store).job.job_id, submit(machine.store).job.job_id
    assert find(machine, second) == 2
    claimed = machine.store.claim("local", 1).result(LONG_S)
    assert claimed.job.job_id == first
    assert find(machine, second) == 1


def test_a_cancel_moves_those_behind_at_once(machine, patient):
    first, second = submit(machine.store).job.job_id, submit(machine.store).job.job_id
    assert find(machine, second) == 2
    assert machine.store.settle(first, CANCELLED).result(LONG_S).won
    assert find(machine, second) == 1


def test_a_job_with_a_priority_moves_those_that_it_overtakes_at_once(machine, patient):
    first = submit(machine.store).job.job_id
    assert find(machine, first) == 1
    assert find(machine, submit(machine.store, priority=5).job.job_id) == 1
    assert find(machine, first) == 2


def test_only_so_many_places_are_kept(machine, patient, monkeypatch):
    monkeypatch.setattr(places, "KEPT", 2)
    job_ids = [submit(machine.store).job.job_id for _ in range(5)]
    assert [find(machine, job_id) for job_id in job_ids] == [1, 2, 3, 4, 5]
    assert len(machine.jobs._places._kept) <= 2


def describe(machine, submitted):
    return machine.jobs.describe_position(submitted.job, submitted.waiting, "en")["position"]


def test_the_place_that_the_answer_to_a_submit_told_need_not_be_looked_up(machine, patient):
    submitted = [submit(machine.store) for _ in range(2)]
    assert [describe(machine, each) for each in submitted] == [1, 2]
    with Held(machine.store, "read"):
        assert [find(machine, each.job.job_id) for each in submitted] == [1, 2]


def test_it_is_looked_up_where_a_job_before_was_cancelled_meanwhile(machine, patient):
    first, second = submit(machine.store), submit(machine.store)
    assert machine.store.settle(first.job.job_id, CANCELLED).result(LONG_S).won
    assert describe(machine, second) == 2
    assert find(machine, second.job.job_id) == 1


def test_a_place_that_is_told_no_more_is_not_kept(machine, monkeypatch):
    monkeypatch.setattr(places, "TOLD_AGAIN_S", 0.0)
    for position in range(1, 6):
        assert describe(machine, submit(machine.store)) == position
    assert len(machine.jobs._places._kept) == 1
