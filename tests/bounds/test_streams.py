"""One key opens as many streams as it can: the rest of the server must not notice."""

import asyncio
import contextlib
import os
import statistics
import time
from pathlib import Path

import aiohttp
import pytest
from contract.client import make_key

from comfyui_guarded.tests.hosts.launch import ROOT, HostProcess, sandbox_kind

#: Another one, to see the test fail there.
PACKAGE = Path(os.environ.get("GUARDED_PACKAGE", ROOT))
#: Of each kind. The issue of a crowd is not how fast it comes, so some at a time.
STREAMS = 1500
AT_ONCE = 50
ALLOWED = 50


async def open_many(session, kept, streams, sockets, headers):
    """Try to open many of both kinds and keep them; give the statuses of the answers."""
    room = asyncio.Semaphore(AT_ONCE)

    async def open_stream():
        async with room:
            response = await session.get(streams, headers=headers)
            if response.status == 200:
                kept.append(response)
            else:
                await response.read()
            return response.status

    async def open_socket():
        async with room:
            try:
                kept.append(await session.ws_connect(sockets, headers=headers))
                return 200
            except aiohttp.WSServerHandshakeError as error:
                return error.status

    return await asyncio.gather(*(ask() for _ in range(STREAMS) for ask in (open_stream, open_socket)))


async def close(stream):
    if isinstance(stream, aiohttp.ClientWebSocketResponse):
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stream.close(), 5)
    else:
        stream.close()


async def measure_waits(session, url, until):
    """How long a request to `url` takes, again and again until the task has ended."""
    waits = []
    while not until.done():
        began = time.monotonic()
        async with session.get(url) as response:
            await response.read()
        waits.append(time.monotonic() - began)
        await asyncio.sleep(0.01)
    return waits


@pytest.mark.serial
async def test_a_key_opens_no_more_streams_than_it_may_and_the_server_answers_as_ever(tmp_path):
    environment = {"GUARDED_ACCESS__TRUST_LOOPBACK": "false"}
    ours = HostProcess(sandbox_kind(), tmp_path / "ours", environment=environment, package=PACKAGE)
    bare = HostProcess(sandbox_kind(), tmp_path / "bare", guarded=False)
    key = {"Authorization": f"Bearer {make_key(tmp_path / 'ours', 'bot')}"}
    waits = {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(120)) as session:
        for process, streams, sockets, ready, headers in (
            (ours, "/guarded/events", "/guarded/ws", "/guarded/ready", key),
            (bare, "/queue", "/ws", "/queue", None),
        ):
            kept = []
            await asyncio.to_thread(process.start)
            try:
                opening = asyncio.create_task(
                    open_many(session, kept, process.url + streams, process.url + sockets, headers)
                )
                measured = await measure_waits(session, process.url + ready, opening)
                statuses = opening.result()
                waits[ready] = statistics.quantiles(measured, n=20)[-1]
                if process is ours:
                    assert statuses.count(200) == ALLOWED
                    assert statuses.count(429) == 2 * STREAMS - ALLOWED
                    await close(kept.pop())
                    async with session.get(process.url + "/guarded/jobs", headers=key) as response:
                        assert response.status == 200, "its other requests are answered"
            finally:
                for stream in kept:
                    await close(stream)
                await asyncio.to_thread(process.stop)
    assert waits["/guarded/ready"] <= waits["/queue"] + 0.05, waits


@pytest.mark.serial
async def test_the_next_stream_is_refused_by_name_and_others_open_theirs(guarded_host, key, session):
    """On each kind of host, both kinds of stream together."""
    url = guarded_host.url
    other = {"Authorization": f"Bearer {make_key(guarded_host.base, 'streams')}"}
    await asyncio.sleep(2)  # a new key takes effect within a second
    kept = []
    try:
        for last in [False] * 100 + [True]:  # the server may have yet to hear of the ends of another test's
            try:
                while len(kept) < ALLOWED:
                    if len(kept) % 2:
                        kept.append(await session.ws_connect(f"{url}/guarded/ws?clientId=s{len(kept)}", headers=key))
                    else:
                        opened = await session.get(f"{url}/guarded/events", headers=key)
                        opened.raise_for_status()
                        kept.append(opened)
                break
            except aiohttp.ClientResponseError:
                if last:
                    raise
                await asyncio.sleep(0.1)
        for _ in range(3):
            async with session.get(f"{url}/guarded/events", headers=key) as refused:
                told = await refused.json()
                assert (refused.status, told["guard"]["code"]) == (429, "quota_exceeded")
                assert told["error"]["extra_info"]["of"] == "streams"
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect(f"{url}/guarded/ws", headers=key)
            assert caught.value.status == 429
        async with session.ws_connect(f"{url}/guarded/ws", headers=other) as ws:
            assert (await ws.receive_json(timeout=60))["type"] == "status"
        prompt = {"prompt": {"1": {"class_type": "FaultText", "inputs": {"text": "streams", "seed": int(time.time())}}}}
        for headers in (other, key):
            async with session.post(f"{url}/guarded/prompt?wait=100", json=prompt, headers=headers) as answer:
                assert (await answer.json())["guard"]["job"]["state"] == "succeeded"
        await close(kept.pop())
        for last in [False] * 100 + [True]:  # the server has yet to hear of it
            async with session.get(f"{url}/guarded/events?wait=0", headers=key) as freed:
                if freed.status == 200 or last:
                    break
            await asyncio.sleep(0.1)
        assert freed.status == 200
    finally:
        for stream in kept:
            await close(stream)
