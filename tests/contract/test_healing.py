"""A queue that heals, whatever ComfyUI's code or a pack's does to it."""

import pytest
from contract.client import (
    assert_ended_badly,
    assert_heard_only_an_error,
    assert_refusal,
    assert_succeeded,
    node,
    picture,
    save,
    sleep,
    text,
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
