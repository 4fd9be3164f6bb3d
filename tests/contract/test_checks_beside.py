"""The worker goes on while results are checked: who hears what, when, and whom an interrupt hits."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from contract.client import Client, assert_ended_badly, assert_succeeded, sleep, text, types_of, unique
from contract.conftest import kinds
from contract.test_sockets import GOOD

from comfyui_guarded.guard.life.check_places import WAITING
from comfyui_guarded.tests.hosts.launch import HostProcess


@pytest.fixture(scope="module", params=kinds())
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A server on which no other test has given a file the name of another, or SaveImage is checked on the worker."""
    with HostProcess(request.param, tmp_path_factory.mktemp("checks")) as process:
        yield process


@contextlib.asynccontextmanager
async def held_checks(client: Client) -> AsyncIterator[None]:
    """Let no check end inside the block; whatever was held ends behind it."""
    for _ in range(2):  # the guard lets the worker go on once it has seen that the node names each file anew
        assert_succeeded(await client.run(sleep(0, prefix=unique())))
    await client.request("POST", "/guarded_faults/checks/hold")
    try:
        yield
    finally:
        await client.request("POST", "/guarded_faults/checks/release")


async def test_the_next_job_runs_and_nobody_hears_of_the_end_before_it_is_known(client):
    mine, another = uuid.uuid4().hex, uuid.uuid4().hex
    async with client.socket("/ws", mine) as socket, client.socket("/guarded/ws", another) as others:
        async with held_checks(client):
            checked = await client.admitted(sleep(0), client_id=mine)
            await client.reached(checked, "validating")
            running = await client.admitted(sleep(30, steps=100), client_id=mine)
            await client.taken(running)
            assert set(await client.native_running()) == {checked, running}
            assert await client.get(f"/history/{checked}") == {}
            assert (await client.job(checked))["state"] == "validating"
            await client.cancel(running)
            third = await client.admitted(sleep(30), client_id=another)
            await others.until(lambda event: event["type"] == "executing" and event["data"]["prompt_id"] == third)
            await client.cancel(third)
            assert not {"execution_success", "execution_error"}.intersection(types_of(socket.seen))
            assert socket.about(running) == []
        await socket.until_end_of(running)
        heard = [event for event in socket.seen if event["data"].get("prompt_id") in (checked, running)]
        split = next(index for index, event in enumerate(heard) if event["data"]["prompt_id"] == running)
        assert all(event["data"]["prompt_id"] == running for event in heard[split:])
        assert [kind for kind in types_of(heard[:split]) if kind in GOOD and kind != "executing"] == GOOD[:-1]
        assert heard[split - 1]["data"].get("node", "") is None
    assert_succeeded(await client.settled(checked))
    assert (await client.native_entry(checked))["status"]["status_str"] == "success"
    assert checked not in await client.native_running()


@pytest.mark.parametrize("named", [True, False], ids=["that-names-it", "that-names-nobody"])
async def test_a_native_interrupt_never_hits_what_runs_after_the_one_it_names(client, named):
    async with held_checks(client):
        checked = await client.admitted(sleep(0))
        await client.reached(checked, "validating")
        running = await client.admitted(sleep(0.5 if named else 60))
        await client.inside_a_node(running)
        body = {"prompt_id": checked} if named else {}
        assert (await client.request("POST", "/interrupt", body)).status == 200
        await client.reached(running, "validating", "succeeded", "cancelled", "failed")
    assert_succeeded(await client.settled(checked))
    if named:
        assert_succeeded(await client.settled(running))
    else:
        assert_ended_badly(await client.settled(running), "interrupted")


async def test_a_job_that_is_cancelled_while_it_is_checked_ends_once_and_alone(client):
    async with client.socket("/guarded/ws") as socket, held_checks(client):
        checked = await client.admitted(sleep(0), client_id=socket.client_id)
        await client.reached(checked, "validating")
        running = await client.admitted(sleep(0.2), client_id=socket.client_id)
        await client.running(running)
        job = await client.cancel(checked)
        assert job["state"] == "cancelled"
        heard = await socket.until_end_of(checked)  # at once, although its check goes on
        assert checked not in await client.native_running()
        assert "execution_success" not in types_of(heard)
        assert types_of(heard).count("execution_error") == 1
        await client.request("POST", "/guarded_faults/checks/release")
        await socket.until_end_of(running)
    assert_succeeded(await client.settled(running))
    assert (await client.job(checked))["state"] == "cancelled"
    assert "execution_success" not in types_of(socket.about(checked))
    assert (await client.native_entry(checked))["status"]["status_str"] == "error"


async def test_at_most_so_many_wait_for_their_checks_and_their_owner_for_the_worker(client):
    async with held_checks(client):
        ids = [await client.admitted(sleep(0)) for _ in range(2 + WAITING + 3)]
        await client.reached(ids[2 + WAITING - 1], "validating")
        await asyncio.sleep(0.5)
        assert (await client.job(ids[-1]))["state"] == "queued"
        assert (await client.request("GET", "/guarded/ready")).status == 200
    for job_id in ids:
        assert_succeeded(await client.settled(job_id))


async def test_native_prompts_run_meanwhile(client):
    async with held_checks(client):
        checked = await client.admitted(sleep(0))
        await client.reached(checked, "validating")
        native = await client.native_submit(text())
        assert (await client.native_entry(native))["status"]["status_str"] == "success"
        assert (await client.job(checked))["state"] == "validating"
    assert_succeeded(await client.settled(checked))


async def test_our_interrupt_without_an_id_ends_what_runs_and_spares_what_is_checked(client):
    async with held_checks(client):
        checked = await client.admitted(sleep(0))
        await client.reached(checked, "validating")
        running = await client.admitted(sleep(60))
        await client.running(running)
        assert (await client.request("POST", "/guarded/interrupt", {})).status == 200
        assert_ended_badly(await client.settled(running), "cancelled")
    assert_succeeded(await client.settled(checked))
