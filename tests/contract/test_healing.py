"""A queue that heals, whatever ComfyUI's code or a pack's does to it."""

import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from contract.client import (
    Client,
    assert_ended_badly,
    assert_heard_only_an_error,
    assert_refusal,
    assert_succeeded,
    node,
    picture,
    save,
    sleep,
    text,
    types_of,
)

ESCAPES = ("cancelled", "system_exit", "generator_exit")
CLASSES = ("FaultValidation", "FaultAsyncValidation")


def validates(does: str, at: str = "dispatch", class_type: str = "FaultValidation"):
    return {"1": node(class_type, does=does, at=at, seed=0), "2": save()}


# What validation may raise. --------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_type", CLASSES)
@pytest.mark.parametrize("does", ESCAPES)
async def test_what_validation_raises_at_dispatch_costs_that_job_and_no_other(client, does, class_type):
    async with client.socket() as socket:
        poison = await client.admitted(validates(does, class_type=class_type), client_id=socket.client_id)
        following = await client.admitted(picture())
        job = await client.settled(poison)
        assert job["error"]["code"] in ("internal_error", "invalid_workflow")
        assert_ended_badly(job, job["error"]["code"])
        assert_succeeded(await client.settled(following))
        assert_heard_only_an_error(await socket.until_end_of(poison))
    assert (await client.request("GET", "/guarded/ready")).status == 200
    assert (await client.get("/guarded/health"))["problems"] == []


@pytest.mark.parametrize("class_type", CLASSES)
@pytest.mark.parametrize("does", ESCAPES)
async def test_what_validation_raises_at_admission_is_a_typed_refusal(client, does, class_type):
    answer = await client.submit(validates(does, at="admission", class_type=class_type))
    assert_refusal(answer, "invalid_workflow", 400)
    await client.assert_takes_jobs()


async def test_a_validation_at_admission_that_never_returns_is_refused_when_the_jobs_time_is_up(client):
    hangs = validates("hang", at="admission", class_type="FaultAsyncValidation")
    assert_refusal(await client.submit(hangs, guard={"timeout_s": 0.5}), "invalid_workflow", 400)
    await client.assert_takes_jobs()


async def test_a_validation_at_dispatch_that_never_returns_costs_its_job_when_its_time_is_up(client):
    hung = await client.admitted(validates("hang", class_type="FaultAsyncValidation"), guard={"timeout_s": 0.5})
    following = await client.admitted(picture())
    assert_ended_badly(await client.settled(hung), "generation_timeout")
    assert_succeeded(await client.settled(following))


async def test_a_job_that_is_cancelled_while_it_is_validated_for_dispatch_never_begins(client):
    job_id = await client.admitted(validates("hang", class_type="FaultAsyncValidation"), guard={"timeout_s": 600})
    await client.reached(job_id, "dispatched")
    assert_ended_badly(await client.cancel(job_id), "cancelled")
    following = await client.admitted(picture())
    assert_succeeded(await client.settled(following))
    job = await client.job(job_id)
    assert_ended_badly(job, "cancelled")
    assert (job["attempts"], job["started_at_ms"]) == (0, None)


async def test_a_dispatcher_that_a_pack_has_ended_shows_and_begins_again(client):
    for _ in range(50):
        assert (await client.request("POST", "/guarded_faults/tasks/dispatcher/cancel")).status == 200
        ready = await client.request("GET", "/guarded/ready")
        if ready.status == 503:
            break
    else:
        raise AssertionError("it never showed")
    assert ready.json["problems"] == ["dispatcher down"]
    await client.polled(lambda: client.request("GET", "/guarded/ready"), lambda answer: answer.status == 200)
    await client.assert_takes_jobs()
    assert "the dispatcher has ended; it is started again" in client.host.log.read_text(errors="replace")


# What packs do to ComfyUI's queue. -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["clear", "replace"])
async def test_a_job_that_a_pack_throws_out_of_comfyuis_queue_ends_and_its_slot_comes_back(client, how):
    async with client.socket() as socket:
        async with client.busy_natively():
            job_id = await client.admitted(text(), client_id=socket.client_id)
            await client.polled(client.native_queue, lambda queue: job_id in queue)
            assert (await client.request("POST", f"/guarded_faults/queue/{how}")).status == 200
            following = await client.admitted(picture())
            assert_ended_badly(await client.settled(job_id), "worker_died")
        assert_succeeded(await client.settled(following))
        assert_heard_only_an_error(await socket.until_end_of(job_id))
    assert (await client.get("/guarded/stats"))["queue"]["running"] == 0


async def test_a_job_that_a_pack_takes_from_those_that_run_ends_and_the_next_one_runs(client):
    job_id = await client.admitted(sleep(2.5, steps=20))
    following = await client.admitted(picture())
    await client.inside_a_node(job_id)
    assert (await client.request("POST", "/guarded_faults/queue/pop_running")).status == 200
    assert_succeeded(await client.settled(job_id))
    assert_succeeded(await client.settled(following))
    # ComfyUI notes in what has run whether it has changed, as NaN, and keeps another copy for its history.
    entry = await client.request("GET", f"/history/{job_id}")
    json.loads(entry.content, parse_constant=pytest.fail)


@contextlib.asynccontextmanager
async def pack(client: Client, how: str) -> AsyncIterator[None]:
    """A pack's wrapper in front of ComfyUI's methods, for as long as the block."""
    assert (await client.request("POST", f"/guarded_faults/packs/{how}")).status == 200
    try:
        yield
    finally:
        await client.request("POST", "/guarded_faults/packs/off")


async def test_whoever_waits_for_the_last_executing_hears_it_although_a_pack_kills_the_worker_before(client):
    async with client.socket() as socket:
        job_id = await client.admitted(sleep(0.5), client_id=socket.client_id)
        await client.running(job_id)
        async with pack(client, "raise_after_task_done"):
            assert_succeeded(await client.settled(job_id))
        heard = types_of(await socket.until_end_of(job_id))
        assert (heard.count("execution_success"), heard.count("executing")) == (1, 3)
    await client.assert_takes_jobs()


@pytest.mark.parametrize("how", ["swallow_task_done", "lose_in_get"])
async def test_a_job_that_a_pack_loses_between_queue_and_worker_ends_and_the_next_one_runs(client, how):
    async with client.socket() as socket:
        if how == "lose_in_get":
            before = await client.admitted(sleep(0.5))
            await client.running(before)
            job_id = await client.admitted(picture(), client_id=socket.client_id)
        else:
            job_id = await client.admitted(sleep(0.5), client_id=socket.client_id)
            await client.running(job_id)
        async with pack(client, how):
            assert_ended_badly(await client.settled(job_id), "worker_died")
        events = await socket.until_end_of(job_id)
        assert_heard_only_an_error(events)
        assert [event["data"]["node"] for event in events if event["type"] == "executing"].count(None) == 1
        assert job_id not in await client.native_running()
    await client.assert_takes_jobs()


async def test_a_pack_that_raises_as_comfyui_tells_of_its_queue_costs_no_job(client):
    async with client.socket() as socket, pack(client, "raise_in_queue_updated"):
        for _ in range(2):
            job_id = await client.admitted(picture(), client_id=socket.client_id)
            assert_succeeded(await client.settled(job_id))
            assert types_of(await socket.until_end_of(job_id)).count("execution_success") == 1
    assert job_id not in await client.native_running()


async def test_a_pack_that_tells_every_client_of_the_queue_under_its_lock_stops_nothing(client):
    async with client.socket() as socket, pack(client, "tell_each_socket"):
        for _ in range(30):
            assert_succeeded(await client.run(text(), client_id=socket.client_id))


async def test_a_pack_that_says_how_a_running_job_ended_is_not_heard(client):
    async with client.socket() as socket:
        job_id = await client.admitted(sleep(0.5), client_id=socket.client_id)
        await client.running(job_id)
        async with pack(client, "send_ends"):
            assert_succeeded(await client.settled(job_id))
        heard = await socket.until_end_of(job_id)
        ends = [kind for kind in types_of(heard) if kind.startswith("execution_") and kind != "execution_cached"]
        assert ends == ["execution_start", "execution_success"]
        assert [event["data"]["node"] for event in heard if event["type"] == "executing"].count(None) == 1
