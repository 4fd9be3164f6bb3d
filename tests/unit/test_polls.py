"""Who polls faster than anything changes is held for a moment, and hears of a change as it comes."""

import asyncio

import pytest
from unit.fakes import LONG_S
from unit.store_steps import CANCELLED

from comfyui_guarded.guard.callers import places, polls
from comfyui_guarded.guard.client import LOCAL, Client
from comfyui_guarded.guard.job import JobState

BOT = Client("bot", operator=False)


@pytest.fixture
def patient(monkeypatch):
    monkeypatch.setattr(polls, "PACE_S", LONG_S)


async def _poll(jobs, job_id, client):
    return await jobs.hold(await jobs.get(job_id, client), client)


async def answer(machine, job_id, client=BOT):
    return (await asyncio.wait_for(_poll(machine.jobs, job_id, client), LONG_S / 2)).state


async def test_a_second_poll_is_answered_when_the_state_changes(machine, patient):
    job_id = machine.submit()
    assert await answer(machine, job_id) is JobState.QUEUED
    for state in (JobState.DISPATCHED, JobState.RUNNING):
        polling = asyncio.ensure_future(answer(machine, job_id))
        await asyncio.sleep(0.05)
        assert not polling.done()
        if state is JobState.DISPATCHED:
            assert await machine.dispatcher.turn()
        else:
            assert await asyncio.to_thread(machine.runs.started, job_id)
        assert await polling is state


async def test_the_answer_to_a_submit_counts_as_a_poll(machine, patient):
    job_id = machine.submit()
    machine.jobs.note_told(machine.job(job_id), BOT)
    assert await answer(machine, job_id, LOCAL) is JobState.QUEUED
    polling = asyncio.ensure_future(answer(machine, job_id))
    await asyncio.sleep(0.05)
    assert not polling.done()
    machine.store.settle(job_id, CANCELLED).result(LONG_S)
    assert await polling is JobState.CANCELLED


async def test_a_poll_after_a_change_is_answered_at_once(machine, patient):
    job_id = machine.submit()
    assert await answer(machine, job_id) is JobState.QUEUED
    machine.store.settle(job_id, CANCELLED).result(LONG_S)
    assert [await answer(machine, job_id) for _ in range(3)] == [JobState.CANCELLED] * 3


async def test_a_poll_in_time_is_answered_at_once(machine, monkeypatch):
    monkeypatch.setattr(polls, "PACE_S", 0.0)
    job_id = machine.submit()
    assert [await answer(machine, job_id) for _ in range(3)] == [JobState.QUEUED] * 3


async def test_a_poll_is_held_for_the_pace_at_most(machine, monkeypatch):
    monkeypatch.setattr(polls, "PACE_S", 0.2)
    job_id = machine.submit()
    assert [await answer(machine, job_id) for _ in range(2)] == [JobState.QUEUED] * 2


async def test_a_job_that_waits_is_told_of_no_more_often_than_its_place_is_looked_up(machine, patient):
    job = machine.job(machine.submit())
    known = polls.Polls()
    for state, at_most_s in ((JobState.QUEUED, polls.WAITING * LONG_S), (JobState.RUNNING, LONG_S)):
        known.note(job.evolve(state=state), BOT)
        assert at_most_s / 2 < known.hold_s(job.evolve(state=state), BOT) <= at_most_s
    assert polls.WAITING * 0.1 == places.TOLD_AGAIN_S


async def test_one_caller_s_polls_hold_up_no_other(machine, patient):
    job_id = machine.submit()
    assert await answer(machine, job_id) is JobState.QUEUED
    assert await answer(machine, job_id, LOCAL) is JobState.QUEUED
    other = machine.submit()
    assert await answer(machine, other) is JobState.QUEUED


async def test_only_so_many_polls_are_remembered(machine, monkeypatch, patient):
    monkeypatch.setattr(polls, "KEPT", 3)
    job_ids = [machine.submit() for _ in range(10)]
    for job_id in job_ids:
        await answer(machine, job_id)
    assert len(machine.jobs._polls._told) == 3
    assert await answer(machine, job_ids[0]) is JobState.QUEUED  # forgotten, and so answered at once
    machine.store.settle(job_ids[0], CANCELLED).result(LONG_S)
    await answer(machine, job_ids[0])
    assert len(machine.jobs._polls._told) == 2


async def test_a_poll_right_after_another_waits_past_a_change_but_hears_of_the_end_at_once(
    machine, patient, monkeypatch
):
    monkeypatch.setattr(polls, "NEWS_S", LONG_S)
    job_id = machine.submit()
    assert await answer(machine, job_id) is JobState.QUEUED
    polling = asyncio.ensure_future(answer(machine, job_id))
    await asyncio.sleep(0.05)
    assert await machine.dispatcher.turn()
    await asyncio.sleep(0.1)
    assert not polling.done()
    machine.store.settle(job_id, CANCELLED).result(LONG_S)
    assert await polling is JobState.CANCELLED


async def test_a_poll_hears_of_a_change_once_the_moment_has_passed(machine, patient):
    job_id = machine.submit()
    assert await answer(machine, job_id) is JobState.QUEUED
    assert await machine.dispatcher.turn()
    assert await answer(machine, job_id) is JobState.DISPATCHED
