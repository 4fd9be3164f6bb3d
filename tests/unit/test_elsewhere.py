"""Which jobs of other boxes are listened to, and what is done with what those boxes tell."""

import asyncio
from concurrent.futures import Future

import pytest
from unit.fakes import new_job

from comfyui_guarded.guard.callers.elsewhere import MESSAGES, Elsewhere
from comfyui_guarded.guard.callers.sockets import Sockets
from comfyui_guarded.guard.client import LOCAL
from comfyui_guarded.guard.events.event import PREVIEW, PROGRESS, STATE
from comfyui_guarded.guard.host import Progress
from comfyui_guarded.guard.job import JobState
from comfyui_guarded.guard.store.members import Box

BOXES = (
    Box("here", 1, 0, True, "http://here"),
    Box("there", 1, 0, True, "http://there"),
    Box("silent", 1, 0, True, None),
    Box("gone", 1, 0, False, "http://gone"),
)


class Places:
    """Where each job is."""

    def __init__(self):
        self.asked, self.of = [], {}

    def find_places(self, job_ids):
        self.asked.append(sorted(job_ids))
        found = Future()
        found.set_result({job_id: self.of[job_id] for job_id in job_ids if job_id in self.of})
        return found


@pytest.fixture
def places():
    return Places()


@pytest.fixture
def sockets(machine, store, host, clock):
    return Sockets(store, host, machine.jobs, machine.events, machine.client_ids, clock)


@pytest.fixture
def elsewhere(machine, places, sockets):
    return Elsewhere(places, machine.events, sockets, lambda: BOXES, lambda: ["own"], lambda: "here")


@pytest.fixture
def runs(machine, store, places):
    """Has a job run on a box of that name."""

    def run(box, **facts):
        job = store.submit(new_job(owner=LOCAL.owner, **facts), 10**9).result().job.evolve(state=JobState.RUNNING)
        places.of[job.job_id] = box
        machine.events.follow_other(job)
        return job

    return run


async def test_nothing_is_asked_of_anybody_while_nobody_listens(elsewhere, machine, runs, places):
    job = runs("there", client_id="tab")
    with machine.events.subscribe((STATE,), job_id=job.job_id), machine.events.subscribe((PROGRESS,), job_id="other"):
        assert await elsewhere.choose() == {}
    assert places.asked == []


async def test_a_reader_a_socket_and_one_of_the_hosts_own_are_listeners(
    elsewhere, machine, runs, sockets, host, places
):
    one, two, three = runs("there"), runs("there", client_id="tab"), runs("there", client_id="editor")
    host.native_sockets["editor"] = []
    socket = sockets.open(LOCAL, "tab", lambda: None)
    await asyncio.sleep(0)  # it begins to read the jobs' events
    with machine.events.subscribe((PROGRESS, PREVIEW), job_id=one.job_id):
        chosen = await elsewhere.choose()
    ((place, wanted),) = chosen.items()
    assert place == ("there", "http://there")
    assert {job_id: facts["names"] for job_id, facts in wanted.items()} == {
        one.job_id: [PREVIEW, PROGRESS],
        two.job_id: [MESSAGES, PROGRESS],
        three.job_id: [MESSAGES],
    }
    await elsewhere.choose()
    assert len(places.asked) == 1
    sockets.close(socket)


async def test_boxes_that_cannot_be_reached_and_this_one_are_not_asked(elsewhere, machine, runs):
    for box in ("here", "silent", "gone", "unknown"):
        runs(box)
    with machine.events.subscribe((PROGRESS,)):
        assert await elsewhere.choose() == {}


async def test_messages_are_passed_on_once_and_none_after_the_end(elsewhere, machine, runs, host):
    host.native_sockets["tab"] = heard = []
    job = runs("there", client_id="tab")
    for number in (1, 2, 2, 1, 3):
        elsewhere.take_message(job.job_id, number, f"{number}")
    assert heard == ["1", "2", "3"]
    machine.events.follow_other(again := job.evolve(state=JobState.RUNNING, event_id=job.event_id + 5))
    elsewhere.take_message(job.job_id, 1, "of the next run")
    machine.events.follow_other(again.evolve(state=JobState.CANCELLED))
    elsewhere.take_message(job.job_id, 9, "late")
    elsewhere.take_progress(job.job_id, Progress(1, 2, "1", "x", 50))
    assert heard == ["1", "2", "3", "of the next run"]
    assert machine.events.progress(job.job_id) is None
