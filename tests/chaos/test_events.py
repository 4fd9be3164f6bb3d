"""Readers of server-sent events, while the server is killed under them: they hear every state once, in order."""

import asyncio
import contextlib
import random
from contextlib import aclosing

import aiohttp
import pytest
from chaos.conftest import newest_real, transitions
from contract.client import TERMINAL, connected, sleep
from contract.sse import Reader

from comfyui_guarded.tests.hosts.launch import sandbox_kind

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


async def cut_off(reader: Reader, chance: random.Random) -> None:
    """One connection, for a while."""
    stream = reader.events()

    async def read() -> None:
        async for _told in stream:
            pass

    async with aclosing(stream):
        with contextlib.suppress(asyncio.TimeoutError, aiohttp.ClientError, ConnectionError):
            await asyncio.wait_for(read(), chance.uniform(0.05, 1.0))
    await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("kind", "kills", "jobs"), [pytest.param(sandbox_kind(), 3, 10, id="sandbox"), *[
        pytest.param(*parameter.values, 1, 3, id=parameter.id, marks=parameter.marks) for parameter in newest_real()
    ]],
)  # fmt: skip
async def test_readers_of_a_server_that_is_killed_hear_every_state_once(server, kind, kills, jobs):
    host = server(kind).start()
    chance = random.Random(7)
    async with connected(host) as client:
        first = Reader(client.session, f"{host.url}/guarded/events?wait=0")
        async for _told in first.events():
            pass
        ids = [await client.admitted(sleep(0.3, steps=5)) for _ in range(jobs)]
        readers = [Reader(client.session, f"{host.url}/guarded/jobs/{job_id}/events") for job_id in ids]
        readers += [Reader(client.session, f"{host.url}/guarded/events") for _ in range(3)]
        for reader in readers:
            reader.last_id = first.last_id

        async def follow(reader: Reader, wanted: set[str]) -> None:
            while not wanted <= {told.data["job_id"] for told in reader.seen if told.data.get("state") in TERMINAL}:
                await cut_off(reader, chance)

        wanted = [*({job_id} for job_id in ids), *[set(ids)] * 3]
        following = asyncio.gather(*map(follow, readers, wanted))
        for _ in range(kills):
            await asyncio.sleep(chance.uniform(0.2, 0.8))
            await asyncio.to_thread(host.kill)
            await asyncio.to_thread(host.start)
        await following
        seen = transitions(host.base)
    for reader, own in zip(readers, wanted, strict=True):
        for job_id in own:
            told = [
                told.data["state"] for told in reader.seen if told.name == "state" and told.data["job_id"] == job_id
            ]
            assert told == seen[job_id]
        numbers = [told.id for told in reader.seen if told.name == "state"]
        assert numbers == sorted(set(numbers))
