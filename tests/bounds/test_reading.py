"""What comes in is handed on a little at a time, and what is dear to take apart waits behind everybody else."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from bounds.judges import Patient
from bounds.shapes import FORM, JSON, text, upload
from contract.conftest import hosts

from comfyui_guarded.server_routes.evenly import Turns
from comfyui_guarded.server_routes.reading import FRAMED_FREE_BYTES, FRAMED_TIMES, READ_BYTES, Line, Reading

HEAD = b"POST %s HTTP/1.1\r\nHost: a\r\n"


class Server:
    """aiohttp's server behind `Reading`, with a clock of work: each read takes as long as `work_s` says."""

    def __init__(self) -> None:
        self.line = Line()
        self.worked_s = 0.0
        self.work_s = 0.0
        self.given: list[int] = []
        self.bodies: list[int] = []
        self.port = 0

    def count_s(self) -> float:
        self.worked_s += self.work_s / 2
        return self.worked_s

    async def answer(self, request: web.Request) -> web.Response:
        reading = request.transport.get_protocol() if request.transport is not None else None
        assert isinstance(reading, Reading)
        reading.expect(request)
        self.bodies.append(len(await request.read()))
        return web.Response()


@contextlib.asynccontextmanager
async def serving(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    server = Server()
    application = web.Application(client_max_size=2**30)
    application.router.add_post("/", server.answer)
    made, received = web.Server.connection_made, RequestHandler.data_received

    def connection_made(self: Any, handler: Any, transport: Any) -> None:
        made(self, handler, transport)
        transport.set_protocol(Reading(handler, transport, server.line, Turns(1), server.count_s))

    def data_received(handler: RequestHandler, data: bytes) -> None:
        if data:
            server.given.append(len(data))
        received(handler, data)

    with monkeypatch.context() as patch:
        patch.setattr(web.Server, "connection_made", connection_made)
        patch.setattr(RequestHandler, "data_received", data_received)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.port = runner.addresses[0][1]
        try:
            yield server
        finally:
            await runner.cleanup()


def exchange(port: int, data: bytes, answers: int = 1) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        with contextlib.suppress(ConnectionError):
            link.sendall(data)
        came = b""
        with contextlib.suppress(ConnectionError):
            while came.count(b"HTTP/1.1 ") < answers or b"Connection: close" in came:
                if not (more := link.recv(2**16)):
                    break
                came += more
        return came


@pytest.mark.parametrize("work_s", [0.0, 0.001], ids=["cheap", "dear"])
async def test_all_of_a_body_comes_through_and_dear_pieces_stay_small(work_s: float, monkeypatch: pytest.MonkeyPatch):
    async with serving(monkeypatch) as server:
        server.work_s = work_s
        chunks = HEAD % b"/" + b"Transfer-Encoding: chunked\r\n\r\n" + b"3\r\nabc\r\n" * 50_000 + b"0\r\n\r\n"
        answer = await asyncio.to_thread(exchange, server.port, chunks)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert server.bodies == [150_000]
        assert max(server.given) <= (READ_BYTES if work_s else 4 * READ_BYTES)


async def test_a_body_of_a_declared_length_comes_in_large_pieces_that_end_where_it_does(
    monkeypatch: pytest.MonkeyPatch,
):
    """Whatever comes behind it is read in small ones."""
    async with serving(monkeypatch) as server:
        size = 20 * 2**20
        request = HEAD % b"/" + b"Content-Length: %d\r\n\r\n" % size + b"a" * size
        answers = await asyncio.to_thread(exchange, server.port, request * 2, 2)
        assert answers.count(b"HTTP/1.1 200") == 2
        assert server.bodies == [size, size]
        assert len(server.given) < 2.5 * size / READ_BYTES / 4, "a large body is not read in small pieces"
        at, first = 0, len(request)
        for piece in server.given:
            assert piece <= 4 * READ_BYTES or not at < first < at + piece, "not beyond its end"
            at += piece


async def test_who_has_taken_least_goes_first_and_each_waits_for_what_the_others_take():
    line, order = Line(), []
    loop = asyncio.get_running_loop()
    began = loop.time()
    done = asyncio.Event()

    def make(name: str) -> Any:
        def go_on() -> None:
            order.append((name, loop.time()))
            if len(order) == 3:
                done.set()

        return SimpleNamespace(go_on=go_on)

    line.wait(make("most"), 0.02, 0.9)
    line.wait(make("least"), 0.02, 0.02)
    line.wait(make("more"), 0.02, 0.5)
    await asyncio.wait_for(done.wait(), 60)
    assert [name for name, _at in order] == ["least", "more", "most"]
    assert order[0][1] - began >= 3 * 0.02, "the loop is others' meanwhile"


def frame(body: bytes, size: int, path: bytes, key: dict[str, str]) -> bytes:
    fields = b"".join(b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in key.items())
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + size]), body[at : at + size])
                      for at in range(0, len(body), size))  # fmt: skip
    return HEAD % path + fields + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@pytest.mark.parametrize("path", ["/guarded/prompt", "/prompt", "/guarded/upload/image", "/upload/image"])
async def test_a_body_in_chunks_of_a_byte_is_refused_by_name_after_its_first_bytes(
    path: str, ours: Patient, key: dict[str, str]
):
    """On ComfyUI's own routes as well as on ours."""
    is_form = path.endswith("image")
    body = b" " * (FRAMED_FREE_BYTES // 2)
    sent = frame(upload(body) if is_form else body, 1, path.encode(), {**(FORM if is_form else JSON), **key})
    answer = await asyncio.to_thread(exchange, ours.host.port, sent)
    assert answer.startswith(b"HTTP/1.1 400"), answer
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert told["guard"]["code"] == "invalid_request"
    assert "small pieces" in told["error"]["message"]
    assert told["error"]["extra_info"]["bytes_on_the_wire"] < 2 * FRAMED_FREE_BYTES
    assert "Traceback" not in ours.host.log.read_text()


async def test_who_writes_json_word_by_word_is_served(ours: Patient, key: dict[str, str]):
    body = json.dumps({"prompt": text("a" * 3 * FRAMED_FREE_BYTES)}).encode()
    sent = frame(body, 2, b"/guarded/prompt", {**JSON, **key})
    assert len(sent) < FRAMED_TIMES * len(body)
    answer = await asyncio.to_thread(exchange, ours.host.port, sent)
    assert answer.startswith(b"HTTP/1.1 200"), answer


@hosts(lambda kind: not kind.real, "host_kind")
async def test_a_short_body_may_come_as_it_likes(ours: Patient, key: dict[str, str]):
    sent = frame(json.dumps({"prompt": text()}).encode(), 1, b"/guarded/prompt", {**JSON, **key})
    assert (await asyncio.to_thread(exchange, ours.host.port, sent)).startswith(b"HTTP/1.1 200")
