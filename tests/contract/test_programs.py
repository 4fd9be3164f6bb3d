"""What a job's nodes have started ends with the job: its programs, and theirs."""

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
from contract.client import (
    Client,
    KeyedClient,
    assert_ended_badly,
    assert_succeeded,
    connected,
    node,
    picture,
    save,
)
from contract.conftest import kinds

from comfyui_guarded.tests.hosts.launch import HostProcess

pytestmark = pytest.mark.chaos

_seeds = itertools.count(1)


@pytest.fixture(scope="module", params=kinds())
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    environment = {"GUARDED_WATCHDOG__INTERRUPT_GRACE_S": "5"}
    with HostProcess(request.param, tmp_path_factory.mktemp("programs"), environment=environment) as process:
        yield process


@pytest.fixture
async def client(server: HostProcess) -> AsyncIterator[Client]:
    async with connected(server) as client:
        yield client


@pytest.fixture
def mark() -> Iterator[str]:
    mark = f"started-{uuid.uuid4().hex}"
    yield mark
    for process in find(mark):
        process.kill()


def find(mark: str) -> list[psutil.Process]:
    return [
        each
        for each in psutil.process_iter(["cmdline", "status"])
        if mark in (each.info["cmdline"] or []) and each.info["status"] != psutil.STATUS_ZOMBIE
    ]


async def wait_for(mark: str, count: int) -> None:
    for _ in range(1200):
        if len(find(mark)) == count:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"{find(mark)} instead of {count}")


def program(mark: str, then: str) -> dict:
    return {"1": node("FaultProgram", mark=mark, then=then, seed=next(_seeds)), "2": save("1")}


@pytest.mark.parametrize("then", ["waits", "checks"])
async def test_programs_of_a_job_that_is_stopped_end_and_the_worker_is_kept(client, mark, then):
    job_id = await client.admitted(program(mark, then))
    await wait_for(mark, 2)
    await client.cancel(job_id)
    assert_ended_badly(await client.settled(job_id), "cancelled")
    await wait_for(mark, 0)
    assert_succeeded(await client.run(picture()))
    assert (await client.get("/guarded/stats"))["worker"]["replaced"] == 0


async def test_programs_of_a_job_that_runs_too_long_end(client, mark):
    job_id = await client.admitted(program(mark, "waits"), guard={"timeout_s": 10})
    await wait_for(mark, 2)
    assert_ended_badly(await client.settled(job_id), "generation_timeout")
    await wait_for(mark, 0)


async def test_what_an_operators_node_leaves_behind_stays_and_what_a_keys_leaves_ends(client, mark):
    assert_succeeded(await client.run(program(mark, "leaves it")))
    await wait_for(mark, 2)
    made = await client.request("POST", "/guarded/keys", {"name": "bot"})
    bot = KeyedClient(client, made.json["secret"])
    theirs = f"{mark}-theirs"
    assert_succeeded(await bot.run(program(theirs, "leaves it")))
    await wait_for(theirs, 0)
    assert len(find(mark)) == 2
