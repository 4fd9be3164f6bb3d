"""Servers whose addresses callers name answer without end: webhooks' receivers, and sources of pictures."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import pytest
from bounds.judges import Patient
from bounds.shapes import JSON, node, text

STALL_S = 0.15
LINKS = 8
#: What is read of an answer that says nothing, and what the system has taken of it meanwhile.
TAKEN_BYTES = 2**20

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
#: What an answer begins with, and what comes again and again then. Headers and trailers without end aiohttp ends.
ENDLESS = {
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
    "chunks of a byte": (CHUNKED, b"1\r\na\r\n" * 10_000),
    "an extension": (CHUNKED + b"1;", b"a" * 65_536),
}


class Endless:
    """A server that says one thing and then another for ever, on every connection."""

    def __init__(self, head: bytes, block: bytes) -> None:
        self.asked = 0
        #: Bytes on the connection that took most of them.
        self.sent = 0
        self._head = head
        self._block = block
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listening.getsockname()[1]

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _address = self._listening.accept()
                threading.Thread(target=self._answer, args=(link,), daemon=True).start()

    def _answer(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
            link.settimeout(60)
            link.recv(65_536)
            self.asked += 1
            link.sendall(self._head)
            rest, sent = memoryview(self._block), 0
            while True:
                taken = link.send(rest)
                rest, sent = rest[taken:] or memoryview(self._block), sent + taken
                self.sent = max(self.sent, sent)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@contextlib.contextmanager
def endless(name: str) -> Iterator[Endless]:
    server = Endless(*ENDLESS[name])
    threading.Thread(target=server.serve, daemon=True).start()
    try:
        yield server
    finally:
        server.close()


@pytest.mark.serial
@pytest.mark.parametrize("name", ["100 Continue", "an extension"])  # of chunks little is read
async def test_webhooks_receivers_do_not_stall_the_loop(name: str, ours: Patient, key: dict[str, str]):
    with endless(name) as server:
        told = []
        for attempt in range(3):
            asked = server.asked
            await ours.read_stall_s()
            for number in range(LINKS):
                hook = {"url": f"http://127.0.0.1:{server.port}/{attempt}/{number}"}
                body = json.dumps({"prompt": text(f"{name} {attempt} {number}"), "guard": {"webhook": hook}})
                status, answer = await ours.send("/guarded/prompt", body.encode(), {**JSON, **key})
                assert status == 200, answer[:500]
            for _ in range(100):
                if server.asked >= asked + LINKS:
                    break
                await asyncio.sleep(0.1)
            assert server.asked > asked, "nothing was sent"
            await asyncio.sleep(1)
            told.append(await ours.read_stall_s())
            if told[-1] <= STALL_S:
                break
        assert server.sent < TAKEN_BYTES, "it is read for as long as it comes"
    print(told)  # noqa: T201
    assert min(told) <= STALL_S


@pytest.mark.serial
@pytest.mark.parametrize("name", ENDLESS)
async def test_sources_of_pictures_do_not_stall_the_loop(name: str, ours: Patient, key: dict[str, str]):
    told = []
    for attempt in range(3):
        with endless(name) as server:
            asking = []
            await ours.read_stall_s()
            for number in range(4):
                url = f"http://127.0.0.1:{server.port}/{attempt}/{number}.png"
                prompt = {
                    "1": node("LoadImage", image=url),
                    "2": node("SaveImage", images=["1", 0], filename_prefix="p"),
                }
                body = json.dumps({"prompt": prompt}).encode()
                asking.append(asyncio.create_task(ours.send("/guarded/prompt", body, {**JSON, **key})))
            await asyncio.sleep(2)
            told.append(await ours.read_stall_s())
            answers = await asyncio.gather(*asking)
        assert [status for status, _answer in answers] == [422] * 4, answers[0]
        assert server.asked > 0, answers[0]
        assert server.sent < TAKEN_BYTES, "it is read for as long as it comes"
        if told[-1] <= STALL_S:
            break
    print(told)  # noqa: T201
    assert min(told) <= STALL_S
