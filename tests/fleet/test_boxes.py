"""What becomes of jobs when boxes of a fleet are killed, frozen past their lease, or cut off."""

from contextlib import closing

import pytest
from contract.client import (
    assert_heard_only_an_error,
    connected,
    files_announced,
    gated,
    open_gate,
    raises,
    sleep,
    types_of,
    unique,
)
from fleet.conftest import until
from fleet.link import Link

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(360)]


def test_a_box_that_only_accepts_has_its_jobs_run_elsewhere_and_cancels_them(fleet):
    front, worker = fleet.start(GUARDED_QUEUE__MAX_JOBS="0"), fleet.start()
    job_id = front.admitted(sleep(0.1))
    job = front.settled(job_id)
    assert job["state"] == "succeeded", job
    assert worker.job(job_id)["artifacts"] == job["artifacts"]
    long = front.admitted(sleep(3600))
    front.reached(long, "running")
    waiting = worker.admitted(sleep(0.1))
    until(lambda: front.job(waiting)["position"] == 1)
    assert front.ask("DELETE", f"/guarded/jobs/{long}")[1]["state"] == "cancelled"
    assert worker.settled(waiting)["state"] == "succeeded", "the run was not stopped"
    assert fleet.count_ends(long) == 1


def test_the_job_of_a_box_that_is_killed_begins_again_elsewhere(fleet):
    boxes = [fleet.start(), fleet.start()]
    prefix = unique()
    job_id = boxes[0].admitted(gated(prefix))
    boxes[0].reached(job_id, "running")
    dead = fleet.find_box_of(job_id)
    other = next(box for box in boxes if box is not dead)
    dead.kill()
    until(lambda: fleet.find_box_of(job_id) is other)
    open_gate(other.base, prefix)
    job = other.settled(job_id)
    assert job["state"] == "succeeded", job
    assert job["attempts"] >= 2
    dead.start()
    assert dead.job(job_id) == other.job(job_id)
    assert fleet.count_ends(job_id) == 1


def test_a_box_that_was_frozen_past_its_lease_changes_nothing_and_comes_back(fleet):
    boxes = [fleet.start(), fleet.start()]
    prefix = unique()
    job_id = boxes[0].admitted(gated(prefix))
    boxes[0].reached(job_id, "running")
    frozen = fleet.find_box_of(job_id)
    other = next(box for box in boxes if box is not frozen)
    frozen.freeze()
    until(lambda: fleet.find_box_of(job_id) is other)
    open_gate(other.base, prefix)  # for both of them
    frozen.thaw()
    job = other.settled(job_id)
    assert job["state"] == "succeeded", job
    until(frozen.is_ready)
    until(lambda: frozen.job(job_id)["state"] == "succeeded")
    assert fleet.count_ends(job_id) == 1
    again = frozen.admitted(sleep(0.1))
    assert other.settled(again)["state"] == "succeeded"


def test_a_server_alone_on_postgresql_keeps_what_it_has_acknowledged_and_keeps_others_out(fleet):
    alone = fleet.start(GUARDED_FLEET__ENABLED="false")
    prefix = unique()
    running, waiting = alone.admitted(gated(prefix)), alone.admitted(sleep(0.1))
    alone.reached(running, "running")
    other = fleet.make(GUARDED_FLEET__ENABLED="false")
    other.spawn()
    until(lambda: (other.ask("GET", "/guarded/ready") or [0])[0] == 503)
    assert other.submit(sleep(0.1)) is None
    other.kill()
    alone.kill()
    open_gate(alone.base, prefix)
    alone.start()
    assert [alone.settled(job_id)["state"] for job_id in (running, waiting)] == ["succeeded", "succeeded"]
    assert alone.job(running)["attempts"] == 2
    assert [fleet.count_ends(job_id) for job_id in (running, waiting)] == [1, 1]


@pytest.fixture
def link(engine):
    """Taken down once the boxes are gone."""
    with closing(Link(engine.port)) as made:
        yield made


def test_a_box_that_is_cut_off_stops_its_run_and_joins_again(link, fleet, engine):
    cut_off, other = fleet.start(url=engine.url(port=link.port)), fleet.start(GUARDED_QUEUE__MAX_JOBS="0")
    prefix = unique()
    job_id = cut_off.admitted(gated(prefix))
    cut_off.reached(job_id, "running")
    other.reached(job_id, "running")
    link.cut()
    until(lambda: not cut_off.is_ready())
    assert until(lambda: other.job(job_id)["state"] == "queued")
    link.mend()
    open_gate(other.base, prefix)  # of the run that was given up, too: it asks for no interrupt
    job = other.settled(job_id)
    assert job["state"] == "succeeded", job
    assert job["attempts"] >= 2
    until(cut_off.is_ready)
    assert fleet.count_ends(job_id) == 1


def test_an_engine_that_is_killed_and_comes_back_at_once_costs_no_run(fleet, engine):
    boxes = [fleet.start(GUARDED_FLEET__LEASE_S="60") for _ in range(2)]
    prefix = unique()
    running = boxes[0].admitted(gated(prefix))
    boxes[0].reached(running, "running")
    waiting = boxes[1].admitted(sleep(3600))
    boxes[1].reached(waiting, "running")
    engine.kill()
    until(lambda: boxes[0].submit(sleep(0.1)) is None)
    open_gate(boxes[0].base, prefix)
    engine.start()
    job = boxes[1].settled(running)
    assert (job["state"], job["attempts"]) == ("succeeded", 1), job
    until(lambda: (boxes[0].ask("DELETE", f"/guarded/jobs/{waiting}") or [0])[0] == 200)
    assert boxes[1].job(waiting)["state"] == "cancelled"
    last = boxes[0].admitted(sleep(0.1))
    assert boxes[1].settled(last)["state"] == "succeeded"
    assert fleet.ask("SELECT attempts FROM jobs WHERE job_id = %s", [waiting]) == [(1,)]


async def test_a_websocket_hears_the_end_of_a_job_that_another_box_has_run(fleet):
    front, worker = fleet.start(GUARDED_QUEUE__MAX_JOBS="0"), fleet.start()
    async with connected(front) as client, client.socket("/guarded/ws") as socket:
        good = await client.admitted(sleep(0.1), client_id=socket.client_id)
        events = await socket.until_end_of(good)
        assert types_of(events).count("execution_success") == 1
        [file] = files_announced(events)
        assert worker.job(good)["artifacts"][0]["filename"] == file["filename"]
        bad = await client.admitted(raises("value_error"), client_id=socket.client_id)
        assert_heard_only_an_error(await socket.until_end_of(bad))
        waiting = await client.admitted(sleep(3600), client_id=socket.client_id)
        await client.running(waiting)
        await client.cancel(waiting)
        events = await socket.until_end_of(waiting)
        assert types_of(events).count("execution_success") == 0
