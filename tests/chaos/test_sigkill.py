"""SIGKILL: what was answered 200 survives it, and nothing succeeds twice."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import aiohttp
import pytest
from chaos.conftest import assert_settled_once, database, newest_real, transitions
from contract.client import (
    Client,
    assert_ended_badly,
    assert_succeeded,
    connected,
    gated,
    open_gate,
    picture,
    sleep,
    text,
    unique,
)

from comfyui_guarded.tests.hosts.launch import sandbox_kind

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


async def is_handed_over(base: Path, job_id: str) -> bool:
    with contextlib.closing(sqlite3.connect(f"file:{database(base)}?mode=ro", uri=True)) as db:
        return db.execute("SELECT handed_over FROM leases WHERE job_id = ?", (job_id,)).fetchone() == (1,)


async def running_for_the(attempt: int, client: Client, job_id: str) -> None:
    await client.polled(lambda: client.job(job_id), lambda job: (job["state"], job["attempts"]) == ("running", attempt))


@pytest.mark.parametrize("kind", [pytest.param(sandbox_kind(), id="sandbox"), *newest_real()])
async def test_a_kill_in_the_middle_of_a_run_loses_none_of_six_jobs_and_repeats_no_success(server, kind):
    host = server(kind).start()
    async with connected(host) as client:
        before = await client.run(picture())
        ids = [await client.admitted(gated(prefix := unique()))]
        ids += [await client.admitted(picture()) for _ in range(5)]
        await client.running(ids[0])
        host.kill()
    open_gate(host.base, prefix)
    host.start()
    async with connected(host) as client:
        jobs = [await client.settled(job_id) for job_id in ids]
        assert await client.job(before["job_id"]) == before, "what had settled stays as it was"
        assert {job["job_id"] for job in await client.jobs()} == {before["job_id"], *ids}
    for job in jobs:
        assert_succeeded(job)
    assert [job["attempts"] for job in jobs] == [2, 1, 1, 1, 1, 1]
    seen = transitions(host.base)
    assert set(seen) == {before["job_id"], *ids}
    for states in seen.values():
        assert_settled_once(states)
        assert states.count("succeeded") == 1
    first_run = ["queued", "dispatched", "running"]
    assert seen[ids[0]] == [*first_run, *first_run, "validating", "succeeded"]


async def test_a_job_that_was_running_at_two_kills_is_given_up_and_the_queue_goes_on(server):
    host = server().start()
    async with connected(host) as client:
        killer = await client.admitted(sleep(3600))
        waiting = await client.admitted(picture())
        await running_for_the(1, client, killer)
        host.kill()
    host.start()
    async with connected(host) as client:
        await running_for_the(2, client, killer)
        host.kill()
    host.start()
    async with connected(host) as client:
        job = await client.settled(killer)
        assert_ended_badly(job, "server_restarted")
        assert job["attempts"] == 2
        assert_succeeded(await client.settled(waiting))
    for states in transitions(host.base).values():
        assert_settled_once(states)


async def test_every_job_that_was_answered_200_is_there_after_a_kill_in_the_middle_of_the_answers(server):
    host = server().start()
    answered: list[str] = []
    enough = asyncio.Event()

    async def post(client: Client) -> None:
        try:
            while True:
                answered.append(await client.admitted(text()))
                if len(answered) >= 60:
                    enough.set()
        except (aiohttp.ClientError, OSError):
            return  # the server has died under this request: nothing was promised

    async with connected(host) as client:
        posting = [asyncio.create_task(post(client)) for _ in range(8)]
        await enough.wait()
        host.kill()
        await asyncio.gather(*posting)
    host.start()
    async with connected(host) as client:
        known = [job["job_id"] for job in await client.jobs()]
        assert set(answered) <= set(known)
        for job_id in known:  # those too whose answer was on its way
            assert_succeeded(await client.settled(job_id))
    for states in transitions(host.base).values():
        assert_settled_once(states)


async def test_a_cancel_that_was_answered_holds_after_a_kill(server):
    host = server().start()
    async with connected(host) as client:
        running = await client.admitted(sleep(3600))
        queued = await client.admitted(picture())
        await client.running(running)
        cancelled = [await client.cancel(queued), await client.cancel(running)]
        host.kill()
    host.start()
    async with connected(host) as client:
        for job in cancelled:
            assert await client.job(job["job_id"]) == job
            assert_ended_badly(job, "cancelled")
        await client.assert_takes_jobs()


async def test_a_job_that_waits_behind_a_native_prompt_is_queued_again_without_an_attempt(server):
    host = server().start()
    async with connected(host) as client:
        await client.native_submit(sleep(3600))
        job_id = await client.admitted(picture())
        # Only now its validation cannot be what kills the process.
        await client.polled(lambda: is_handed_over(host.base, job_id), bool)
        host.kill()
    host.start()
    async with connected(host) as client:
        job = await client.settled(job_id)
    assert_succeeded(job)
    assert job["attempts"] == 1


async def test_api_credentials_are_on_no_disk_and_a_job_that_needs_them_is_refunded(server):
    host = server().start()
    async with connected(host) as client, client.busy():
        secretive = await client.admitted(picture(), extra_data={"api_key_comfy_org": "sesame-4711", "a": 1})
        host.kill()
        content = b"".join(path.read_bytes() for path in database(host.base).parent.glob("guarded.db*"))
        assert b"sesame" not in content
        host.start()
        assert_ended_badly(await client.settled(secretive), "server_restarted")


async def test_ctrl_c_in_the_middle_of_a_run_loses_nothing_either(server):
    host = server().start()
    async with connected(host) as client:
        ids = [await client.admitted(sleep(1.0)), await client.admitted(picture())]
        await client.running(ids[0])
    host.stop()
    host.start()
    async with connected(host) as client:
        for job_id in ids:
            assert_succeeded(await client.settled(job_id))
    for states in transitions(host.base).values():
        assert_settled_once(states)
