"""Guarded and native prompts beside each other, and what ComfyUI's own buttons do to guarded jobs."""

import pytest
from contract.client import (
    assert_ended_badly,
    assert_heard_only_an_error,
    assert_native_error,
    assert_succeeded,
    picture,
    sleep,
    text,
    types_of,
)


async def test_a_native_interrupt_ends_the_running_job_as_interrupted(client):
    async with client.socket() as socket:
        job_id = await client.admitted(sleep(3600, steps=100_000), client_id=socket.client_id)
        following = await client.admitted(text())
        await client.inside_a_node(job_id)
        assert (await client.request("POST", "/interrupt", {})).status == 200
        job = await client.settled(job_id)
        assert_ended_badly(job, "interrupted")
        assert job["error"]["retryable"] is True
        assert_succeeded(await client.settled(following))
        events = await socket.until_end_of(job_id)
    assert_heard_only_an_error(events)
    types = types_of(events)
    assert types.index("execution_error") < types.index("execution_interrupted"), "the one that all clients know first"
    assert_native_error(await client.native_entry(job_id))


async def test_native_prompts_run_beside_guarded_ones(client):
    native = await client.native_submit(picture())
    guarded = await client.admitted(picture())
    later = await client.native_submit(picture())
    assert_succeeded(await client.settled(guarded))
    for prompt_id in (native, later):
        entry = await client.native_entry(prompt_id)
        assert entry["status"]["status_str"] == "success"
        (item,) = entry["outputs"]["2"]["images"]
        assert (client.base / "output" / item["filename"]).is_file()
    assert (await client.request("GET", f"/guarded/jobs/{native}")).status == 404


async def test_a_native_prompt_that_fails_is_none_of_the_guards_business(client):
    prompt_id = await client.native_submit({"1": {"class_type": "FaultTinyFile", "inputs": _inputs()}})
    entry = await client.native_entry(prompt_id)
    assert entry["status"]["status_str"] == "success"
    (item,) = entry["outputs"]["1"]["images"]
    assert (client.base / "output" / item["filename"]).stat().st_size == 10


def _inputs() -> dict[str, object]:
    return {"filename_prefix": "native", "seed": 0}


async def test_a_native_clients_events_are_untouched(client):
    async with client.socket() as socket:
        prompt_id = await client.native_submit(picture(), client_id=socket.client_id)
        events = await socket.until_end_of(prompt_id)
    types = [kind for kind in types_of(events) if not kind.startswith("progress")]
    assert types == [
        *("execution_start", "execution_cached", "executing", "executing"),
        *("executed", "execution_success", "executing"),
    ]


async def test_a_guarded_job_behind_a_native_one_is_dispatched_and_the_rest_waits(client):
    async with client.busy_natively():
        first = await client.admitted(text())
        second = await client.admitted(text())
        await client.reached(first, "dispatched")
        queue = await client.native_queue()
        assert first in queue
        assert second not in queue
        assert (await client.job(second))["state"] == "queued"
    for job_id in (first, second):
        assert_succeeded(await client.settled(job_id))


@pytest.mark.parametrize("how", ["delete", "clear"])
async def test_deleting_a_dispatched_job_from_comfyuis_queue_cancels_it_and_frees_the_slot(client, how):
    async with client.busy_natively(), client.socket() as socket:
        job_id = await client.admitted(text(), client_id=socket.client_id)
        following = await client.admitted(text())
        await client.reached(job_id, "dispatched")
        body = {"delete": [job_id]} if how == "delete" else {"clear": True}
        assert (await client.request("POST", "/queue", body)).status == 200
        assert_ended_badly(await client.settled(job_id), "cancelled")
        assert types_of(await socket.until_end_of(job_id)) == ["execution_error", "executing"]
        assert (await client.reached(following, "dispatched"))["state"] == "dispatched"
        assert await client.get(f"/history/{job_id}") == {}
    assert_succeeded(await client.settled(following))


async def test_an_interrupt_by_id_of_a_native_prompt_leaves_the_waiting_guarded_job_alone(client):
    async with client.busy_natively():
        job_id = await client.admitted(picture())
        await client.reached(job_id, "dispatched")
    assert_succeeded(await client.settled(job_id))


async def test_freeing_memory_between_jobs_harms_none(client):
    ids = [await client.admitted(picture()) for _ in range(3)]
    assert (await client.request("POST", "/free", {"unload_models": True, "free_memory": True})).status == 200
    ids += [await client.admitted(picture())]
    for job_id in ids:
        assert_succeeded(await client.settled(job_id))
