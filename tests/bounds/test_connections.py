"""Connections that say nothing, or hardly anything, do not shut others out."""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from contract.client import connected, make_key, text
from contract.conftest import kinds
from contract.test_hardening import Raw

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess

resource = pytest.importorskip("resource")
OPEN_FILES = 512


@contextlib.contextmanager
def few_files() -> Iterator[None]:
    """What this process starts in the block may have so many open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def start(kind: HostKind, base: Path, **environment: str) -> HostProcess:
    host = HostProcess(kind, base, environment={"GUARDED_ACCESS__TRUST_LOOPBACK": "false", **environment})
    with few_files():
        host.spawn()
    host.wait_ready()
    return host


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("said", [b"", b"GET /guarded/ready HTTP/1.1\r\nHost: a\r\nX: "], ids=["silent", "half_a_head"])
async def test_idle_connections_beyond_the_limit_of_open_files_shut_nobody_out(kind: HostKind, said: bytes, tmp_path):
    key = make_key(tmp_path, "bot")
    host = start(kind, tmp_path)
    try:
        async with contextlib.AsyncExitStack() as stack:
            idle = []
            for _ in range(OPEN_FILES + 100):
                raw = await stack.enter_async_context(Raw(host))
                await raw.send(said)
                idle.append(raw)
            written = host.log.stat().st_size
            async with connected(host) as client:
                answer = await asyncio.wait_for(client.request("GET", "/guarded/ready"), 30)
                assert answer.status == 200, answer
                headers = {"Authorization": f"Bearer {key}"}
                sent = await asyncio.wait_for(client.submit(text(), wait_s=60, headers=headers), 90)
                assert sent.json["guard"]["job"]["state"] == "succeeded", sent
            log = host.log.read_bytes()
            assert len(log) - written < 50_000
            assert b"Too many open files" not in log
    finally:
        host.stop()


async def hold(session: aiohttp.ClientSession, host: HostProcess, key: str) -> aiohttp.ClientResponse:
    """A stream of events, which keeps its connection busy."""
    response = await session.get(f"{host.url}/guarded/events", headers={"Authorization": f"Bearer {key}"})
    assert response.status == 200
    return response


async def test_where_all_connections_are_busy_operators_still_get_through(tmp_path):
    bound = 16
    bot, operator = make_key(tmp_path, "bot"), make_key(tmp_path, "boss", "operate")
    (kind,) = [param.values[0] for param in kinds(lambda kind: not kind.real)]
    host = start(kind, tmp_path, GUARDED_LIMITS__MAX_CONNECTIONS=str(bound))
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            held = [await hold(session, host, bot) for _ in range(bound)]
            async with connected(host) as client:
                refused = await client.request("GET", "/guarded/jobs", headers={"Authorization": f"Bearer {bot}"})
                assert (refused.status, refused.code) == (503, "server_unavailable")
                assert refused.headers["Retry-After"] == "5"
                assert (await client.request("GET", "/guarded/jobs")).status == 401
                ready = await client.request("GET", "/guarded/jobs", headers={"Authorization": f"Bearer {operator}"})
                assert ready.status == 200
            for response in held:
                response.close()
            deadline = time.monotonic() + 30
            while True:
                async with session.get(
                    f"{host.url}/guarded/jobs", headers={"Authorization": f"Bearer {bot}"}
                ) as answer:
                    if answer.status == 200:
                        break
                    assert time.monotonic() < deadline, "freed connections are not given to others"
                await asyncio.sleep(0.1)
    finally:
        host.stop()


async def test_slow_senders_go_first_and_streams_stay(tmp_path):
    bound = 16
    bot = make_key(tmp_path, "bot")
    (kind,) = [param.values[0] for param in kinds(lambda kind: not kind.real)]
    host = start(kind, tmp_path, GUARDED_LIMITS__MAX_CONNECTIONS=str(bound))
    try:
        async with contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            stream = await hold(session, host, bot)
            slow = [await stack.enter_async_context(Raw(host)) for _ in range(3 * bound)]
            for raw in slow:
                await raw.send(b"GET /guarded/ready HTTP/1.1\r\nX: ")
            for raw in slow[:bound]:  # the oldest are closed
                with contextlib.suppress(ConnectionResetError):
                    assert await raw.reader.read() == b""
            async with connected(host) as client:
                answer = await client.submit(text(), headers={"Authorization": f"Bearer {bot}"})
                assert answer.status == 200, answer
            line = await asyncio.wait_for(stream.content.readuntil(b"\n\n"), 60)
            assert line, "the stream hears of the job"
            stream.close()
        assert json.loads(answer.content)["prompt_id"]
    finally:
        host.stop()
