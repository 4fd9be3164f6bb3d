"""Floods of what is cheap to send: the loop goes on turning for everybody else, and who floods is shown out."""

import asyncio
import base64
import contextlib
import http.client
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from bounds.conftest import KEYED
from bounds.judges import MIB, Patient, read_peak
from contract.client import make_key

from comfyui_guarded.tests.hosts.launch import ROOT, HostProcess, sandbox_kind

#: Another one, to see the test fail there.
PACKAGE = Path(os.environ.get("GUARDED_PACKAGE", ROOT))
STALL_S = 0.15
#: The largest that a stranger gets: four hundred of them fit into no socket's buffer.
LARGE = "/guarded/panel/en.json"
#: aiohttp looks for a route at each of their slashes, before anybody else hears of the request.
DEEP, MANY_SLASHES = "/guarded" + "/a" * 3900, "/" * 7900 + "guarded/jobs"
EMPTY_MASK = bytes(4)
PING = b"\x89\x80" + EMPTY_MASK
PONG = b"\x8a\x80" + EMPTY_MASK
WORD = b"\x81\x81" + EMPTY_MASK + b"x"


def connect(host: HostProcess) -> socket.socket:
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    link.connect(("127.0.0.1", host.port))
    return link


@contextlib.contextmanager
def pipelining(host: HostProcess, count: int, path: str, **headers: str) -> Iterator[list[socket.socket]]:
    """Connections that ask again and again, and read nothing."""
    lines = [f"GET {path} HTTP/1.1", "Host: a", *(f"{name}: {value}" for name, value in headers.items())]
    asked = "\r\n".join([*lines, "", ""]).encode() * 400
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(connect(host)) for _ in range(count)]
        for link in links:
            link.setblocking(False)
            with contextlib.suppress(OSError):  # its buffer is full, or the server has closed it
                link.send(asked)
        yield links


async def find_stall_s(ours: Patient, flood) -> float:
    """The shortest of three: what else the process had to do is no stall of the flood's."""
    told = []
    for _ in range(3):
        await ours.read_stall_s()
        await flood()
        told.append(await ours.read_stall_s())
        if told[-1] <= STALL_S:
            break
    print(told)  # noqa: T201
    return min(told)


@pytest.mark.serial
@pytest.mark.parametrize("path", [LARGE, "/nowhere", DEEP, MANY_SLASHES], ids=["large", "none", "deep", "slashes"])
async def test_strangers_who_pipeline_do_not_stall_the_loop(path: str, ours: Patient):
    async def flood():
        with pipelining(ours.host, 300, path):
            await asyncio.sleep(3)

    assert await find_stall_s(ours, flood) <= STALL_S


@pytest.mark.serial
async def test_what_waits_behind_answers_that_nobody_reads_fills_no_memory(ours: Patient):
    """Each request has as many headers as it may, of as many bytes, and twenty come in one behind the other."""
    headers = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 8000) for number in range(100))
    asked = (b"GET %s HTTP/1.1\r\nHost: a\r\n" % LARGE.encode() + headers + b"\r\n") * 20
    before = read_peak(ours.host.pid, afresh=True)
    with contextlib.ExitStack() as stack:
        left = {stack.enter_context(connect(ours.host)): memoryview(asked) for _ in range(20)}
        for link in left:
            link.setblocking(False)
        idle = 0
        while idle < 20:  # until the server takes no more of any of them
            idle += 1
            for link, rest in left.items():
                with contextlib.suppress(OSError):
                    taken = link.send(rest)
                    left[link], idle = rest[taken:], 0 if taken else idle
            await asyncio.sleep(0.05)
        grown = read_peak(ours.host.pid) - before
    print(f"+{grown / MIB:.0f} MiB")  # noqa: T201
    assert grown < 20 * 5 * MIB


def open_socket(host: HostProcess, key: str, number: int) -> socket.socket:
    """A websocket; those of the flood before may count for some seconds more."""
    nonce = base64.b64encode(os.urandom(16)).decode()
    asked = (
        f"GET /guarded/ws?clientId=flood{number} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {nonce}\r\nAuthorization: Bearer {key}\r\n\r\n"
    )
    for _ in range(60):
        link = socket.create_connection(("127.0.0.1", host.port), timeout=60)
        link.sendall(asked.encode())
        answer = link.recv(65536)
        if answer.startswith(b"HTTP/1.1 101"):
            return link
        link.close()
        assert answer.startswith(b"HTTP/1.1 429"), answer
        time.sleep(1)
    pytest.fail("a websocket that has been closed goes on counting")


def read_to_the_end(link: socket.socket) -> bytes:
    came = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := link.recv(65536):
            came += data
            if b"\x88" in data and len(came) > 10**6:
                break
    return bytes(came)


@pytest.mark.serial
@pytest.mark.parametrize("frame", [PING, PONG, WORD], ids=["pings", "pongs", "words"])
async def test_small_frames_do_not_stall_the_loop(frame: bytes, ours: Patient):
    key = KEYED[ours.host.url]

    async def flood():
        with contextlib.ExitStack() as stack:
            links = [stack.enter_context(open_socket(ours.host, key, number)) for number in range(40)]
            for link in links:
                link.setblocking(False)
                with contextlib.suppress(OSError):
                    link.send(frame * 40_000)
            await asyncio.sleep(3)

    assert await find_stall_s(ours, flood) <= STALL_S


async def test_who_floods_with_pings_is_closed_by_name_and_who_pings_now_and_then_is_answered(ours, key, session):
    with open_socket(ours.host, KEYED[ours.host.url], 0) as link:
        link.settimeout(30)
        with contextlib.suppress(ConnectionError):
            await asyncio.to_thread(link.sendall, PING * 20_000)
        came = await asyncio.to_thread(read_to_the_end, link)
        assert came.count(b"\x8a\x00") < 2_000
        assert b"too many pings" in came
    async with session.ws_connect(f"{ours.host.url}/guarded/ws", headers=key) as ws:
        for _ in range(100):
            await ws.ping(b"a")
        async with session.get(f"{ours.host.url}/guarded/ready") as ready:
            assert ready.status == 200
        assert not ws.closed


async def test_strangers_who_take_no_answers_give_way_to_who_has_a_key(tmp_path):
    """Also where they have taken every connection: whoever comes has one at once."""
    bound = 16
    environment = {"GUARDED_ACCESS__TRUST_LOOPBACK": "false", "GUARDED_LIMITS__MAX_CONNECTIONS": str(bound)}
    host = HostProcess(sandbox_kind(), tmp_path, environment=environment, package=PACKAGE)
    key = {"Authorization": f"Bearer {make_key(tmp_path, 'bot')}"}
    with host, pipelining(host, bound, LARGE) as links:
        for _ in range(20):  # until every one waits for its client to read
            sent = 0
            for link in links:
                with contextlib.suppress(OSError):
                    sent += link.send(f"GET {LARGE} HTTP/1.1\r\nHost: a\r\n\r\n".encode() * 400)
            await asyncio.sleep(0.3)
            if not sent:
                break
        statuses = []
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
            for _ in range(3 * bound):
                async with session.get(f"{host.url}/guarded/jobs", headers={**key, "Connection": "close"}) as got:
                    statuses.append(got.status)
        assert statuses == [200] * len(statuses)


def test_a_file_of_the_page_leaves_its_connection_open_and_no_traceback(guarded_host):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", guarded_host.port, timeout=60)) as connection:
        for _ in range(3):
            connection.request("GET", LARGE)
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("Connection")) == (200, None)
            assert len(answer.read()) > 10_000
            link = connection.sock
            assert link is not None
        connection.request("GET", "/guarded/ready")
        assert connection.getresponse().read()
        assert connection.sock is link, "the same connection all along"
    assert "Unhandled exception" not in guarded_host.log.read_text()
