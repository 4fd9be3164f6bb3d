import asyncio
import threading

import pytest
from unit.fakes import LONG_S

from comfyui_guarded.guard.events import Events
from comfyui_guarded.guard.host import Progress
from comfyui_guarded.guard.job import Job, JobState


def _job(job_id="a", state=JobState.RUNNING):
    return Job(
        job_id=job_id, number=1, owner="bot", state=state, priority=0, attempts=1, created_at_ms=0, started_at_ms=0,
        settled_at_ms=None, timeout_s=1, locale="en", client_id=None, shape="", template="", parameters={},
        outputs_to_execute=(), metadata={}, has_secrets=False,
    )  # fmt: skip


async def test_a_change_between_entering_and_waiting_is_not_lost():
    events = Events()
    with events.watching("a") as waiter:
        events.changed(_job())
        assert await waiter.wait(LONG_S)


async def test_a_change_from_another_thread_wakes_the_waiter():
    events = Events()
    with events.watching("a") as waiter:
        waiting = asyncio.ensure_future(waiter.wait(LONG_S))
        await asyncio.sleep(0)
        thread = threading.Thread(target=events.changed, args=(_job(),))
        thread.start()
        assert await waiting
        thread.join()


async def test_every_waiter_of_the_job_is_woken_and_no_other():
    events = Events()
    with events.watching("a") as one, events.watching("a") as two, events.watching("b") as other:
        events.changed(_job("a"))
        assert await one.wait(LONG_S)
        assert await two.wait(LONG_S)
        assert not await other.wait(0.01)


async def test_a_change_wakes_once_and_the_next_one_wakes_again():
    events = Events()
    with events.watching("a") as waiter:
        events.changed(_job())
        events.changed(_job())
        assert await waiter.wait(LONG_S)
        assert not await waiter.wait(0.01)
        events.changed(_job())
        assert await waiter.wait(LONG_S)


async def test_a_change_that_comes_as_the_time_runs_out_is_seen_by_the_next_wait():
    events = Events()
    with events.watching("a") as waiter:
        assert not await waiter.wait(0)
        events.changed(_job())
        assert await waiter.wait(LONG_S)


async def test_no_waiter_stays_behind():
    events = Events()
    with events.watching("a"), events.watching("a"):
        assert set(events._waiters) == {"a"}
    assert events._waiters == {}
    try:
        with events.watching("a"):
            raise ValueError
    except ValueError:
        pass
    assert events._waiters == {}
    events.changed(_job())


async def test_many_changes_from_many_threads_are_all_followed():
    """A reader that re-reads after each wake-up always ends at the last state."""
    events, state = Events(), {"value": 0}

    def change():
        for _ in range(200):
            with lock:
                state["value"] += 1
            events.changed(_job())

    lock = threading.Lock()
    threads = [threading.Thread(target=change) for _ in range(4)]
    with events.watching("a") as waiter:
        for thread in threads:
            thread.start()
        while state["value"] < 800:
            assert await waiter.wait(LONG_S)
    for thread in threads:
        thread.join()


PROGRESS = Progress(5, 20, "3", 40)


def test_progress_is_known_while_the_job_runs():
    events = Events()
    assert events.progress("a") is None
    events.changed(_job(state=JobState.RUNNING))
    assert events.progress("a") is None
    events.progressed("a", PROGRESS)
    assert events.progress("a").body() == {"value": 5, "max": 20, "node_id": "3", "percent": 40}
    assert events.progress("b") is None
    events.changed(_job(state=JobState.VALIDATING))
    assert events.progress("a") is PROGRESS


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "queued"])
def test_progress_is_forgotten_when_the_job_ends_also_if_its_node_goes_on_telling(state):
    """After a timeout a node may go on for minutes."""
    events = Events()
    events.changed(_job(state=JobState.RUNNING))
    events.progressed("a", PROGRESS)
    events.changed(_job(state=JobState(state)))
    events.progressed("a", PROGRESS)
    assert events.progress("a") is None
    assert events._progress == {}


def test_a_job_that_is_begun_again_does_not_show_its_old_progress():
    events = Events()
    events.changed(_job(state=JobState.RUNNING))
    events.progressed("a", PROGRESS)
    events.changed(_job(state=JobState.RUNNING))
    assert events.progress("a") is None
