"""Files over HTTP: what the server keeps for a client that does not take them."""

import asyncio
import io
import os
import socket
import sys

import pytest
from aiohttp import ClientPayloadError, test_utils, web

from comfyui_guarded.server_routes.sending import OpenFile, send

CONTENT = bytes(range(256)) * 2**15  # 8 MiB
#: For a client that takes nothing the transport holds no more.
MOST_KEPT = 2**15 + 4096


class Reads(io.BytesIO):
    """Knows the largest part that was ever read of it."""

    largest = 0

    def read(self, size=-1):
        self.largest = max(self.largest, size)
        return super().read(size)


@pytest.fixture
async def served():
    """(address, the transports and files of the requests so far) of a server with one file."""
    sent = []

    async def handle(request):
        file = Reads(CONTENT)
        sent.append((request.transport, file))
        return await send(request, OpenFile(file, "x.bin", len(CONTENT), "tag", 0.0), stalled_s=60)

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    link = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, link).start()
    yield link.getsockname(), sent
    await runner.cleanup()


async def connect(address):
    link = socket.socket()
    link.setblocking(False)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(link, address)
    await loop.sock_sendall(link, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 8)
    return link


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nothing tells what a client has taken")
async def test_little_is_kept_for_clients_that_read_nothing(served):
    address, sent = served
    links = [await connect(address) for _ in range(10)]
    try:
        seen, before = [0], []
        while len(sent) < len(links) or seen != before:
            await asyncio.sleep(0.5)
            before, seen = seen, [file.tell() for _, file in sent]
        assert all(size < len(CONTENT) for size in seen), "the system took all of it, so this shows nothing"
        assert max(transport.get_write_buffer_size() for transport, _ in sent) <= MOST_KEPT
        assert max(file.largest for _, file in sent) <= 2**15
    finally:
        for link in links:
            link.close()


async def test_who_reads_after_a_while_gets_every_byte_and_soon_large_pieces(served):
    address, sent = served
    link = await connect(address)
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0.5)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
    got = bytearray()
    while len(got) < 2 * len(CONTENT):
        got += await loop.sock_recv(link, 2**20)
    link.close()
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body[: len(CONTENT)] == CONTENT
    assert body[len(CONTENT) :].startswith(b"HTTP/1.1 200")
    assert sent[0][1].largest == 2**17


async def test_what_is_overwritten_while_it_is_sent_is_broken_off(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(CONTENT)

    async def handle(request):
        with path.open("rb") as file:
            return await send(request, OpenFile(file, "x.bin", len(CONTENT), "tag", path.stat().st_mtime), stalled_s=60)

    app = web.Application()
    app.router.add_get("/", handle)
    async with test_utils.TestClient(test_utils.TestServer(app)) as client:
        async with client.get("/") as answer:
            assert await answer.read() == CONTENT
        async with client.get("/") as answer:
            assert await answer.content.readexactly(1000) == CONTENT[:1000]
            before = path.stat().st_mtime_ns
            path.write_bytes(bytes(len(CONTENT)))
            os.utime(path, ns=(before, before + 10**7))
            with pytest.raises(ClientPayloadError):
                await answer.read()
