"""Servers that we ask may answer what they like, for ever: little of it is taken at once, and little of it in all."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest

from comfyui_guarded.server_routes.hearing import make_connector
from comfyui_guarded.server_routes.reading import FRAMED_FREE_BYTES, FRAMED_TIMES
from comfyui_guarded.server_routes.sender import read_on

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
HEADS = {
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"a:\r\n" * 10_000),
    "a header": (b"HTTP/1.1 200 OK\r\nX: ", b"a" * 65_536),
}
BODIES = {
    "chunks of a byte": (CHUNKED, b"1\r\na\r\n" * 10_000),
    "a chunk's extension": (CHUNKED + b"1;", b"a" * 65_536),
    "trailers": (CHUNKED + b"1\r\na\r\n0\r\n", b"a: b\r\n" * 10_000),
}


class Endless:
    """A server that begins with one text, and then sends another for ever."""

    def __init__(self, head: bytes, block: bytes) -> None:
        self.port = 0
        self._head = head
        self._block = block

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self._head)
            while True:
                writer.write(self._block)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def asking(
    head: bytes, block: bytes, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[aiohttp.ClientSession, str, list[int]]]:
    """A session, the address of such a server, and the sizes of what aiohttp was given."""
    given: list[int] = []
    receive = aiohttp.client_proto.ResponseHandler.data_received

    def data_received(handler: aiohttp.client_proto.ResponseHandler, data: bytes) -> None:
        given.append(len(data))
        receive(handler, data)

    monkeypatch.setattr(aiohttp.client_proto.ResponseHandler, "data_received", data_received)
    endless = Endless(head, block)
    server = await asyncio.start_server(endless.answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=make_connector(), timeout=timeout, auto_decompress=False) as session:
        try:
            yield session, url, given
        finally:
            server.close()


def assert_little(given: list[int]) -> None:
    assert max(given) <= 2**14, "at once"
    assert sum(given) <= FRAMED_FREE_BYTES + 2**14, "in all"


@pytest.mark.parametrize("name", HEADS)
async def test_a_head_without_end_is_given_up(name: str, monkeypatch: pytest.MonkeyPatch):
    async with asking(*HEADS[name], monkeypatch) as (session, url, given):
        with pytest.raises(aiohttp.ClientError):
            await session.post(url, data=b"x")
    assert_little(given)


@pytest.mark.parametrize("name", BODIES)
async def test_only_the_status_of_an_answer_counts_that_is_not_read(name: str, monkeypatch: pytest.MonkeyPatch):
    async with asking(*BODIES[name], monkeypatch) as (session, url, given):
        try:
            response = await session.post(url, data=b"x")
        except aiohttp.ClientResponseError:
            if name != "trailers":  # aiohttp may find them in what brings the status, and then gives up both
                raise
        else:
            await read_on(response)
            assert response.status == 200
            response.close()
    assert_little(given)


@pytest.mark.parametrize("name", BODIES)
async def test_a_file_in_small_pieces_is_given_up(name: str, monkeypatch: pytest.MonkeyPatch):
    async with asking(*BODIES[name], monkeypatch) as (session, url, given):
        with pytest.raises(aiohttp.ClientError, match=r"small pieces|Too many headers"):
            async with session.get(url) as response:
                await response.read()
    assert_little(given)


async def test_an_answer_of_any_length_comes_in_whole_and_its_connection_is_used_again(
    monkeypatch: pytest.MonkeyPatch,
):
    content = bytes(range(256)) * 4096
    piece = b"3\r\nabc\r\n"
    assert len(piece) <= FRAMED_TIMES * 3
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content,
        CHUNKED + piece * 50_000 + b"0\r\n\r\n",
    ]
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            for number in range(4):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answers[number % 2])
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with aiohttp.ClientSession(connector=make_connector()) as session:
        for number in range(4):
            async with session.get(url) as response:
                assert await response.read() == (b"abc" * 50_000 if number % 2 else content)
    server.close()
    assert connections == 1
