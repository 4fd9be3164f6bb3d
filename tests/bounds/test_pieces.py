"""What comes in on a websocket is gone through in pieces, however it came: in one go, over TLS, before the answer."""

import asyncio
import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from aiohttp.web_protocol import RequestHandler

from comfyui_guarded.server_routes.connections import Connections
from comfyui_guarded.server_routes.reading import SOCKET_READ_BYTES, read_sockets_evenly

WORD = b"\x81\x81" + bytes(4) + b"x"
WORDS = 40_000
ASKED = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def make_certificate(folder: Path) -> Path:
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - day).not_valid_after(now + day).sign(key, hashes.SHA256())
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = folder / "tls.pem"
    path.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, form, serialization.NoEncryption()))
    return path


class Server:
    """aiohttp's server with one websocket, and what its reader of frames was given: (turn of the loop, bytes)."""

    def __init__(self) -> None:
        self.given: list[tuple[int, int]] = []
        self.heard = 0
        self.heard_all = asyncio.Event()
        self.port = 0
        self._turn = 0

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            self.heard += message.type is WSMsgType.TEXT
            if self.heard == WORDS:
                self.heard_all.set()
        return ws

    def count_turns(self) -> None:
        self._turn += 1
        asyncio.get_running_loop().call_soon(self.count_turns)

    @contextlib.contextmanager
    def watching(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        receive, set_parser = RequestHandler.data_received, RequestHandler.set_parser

        def data_received(handler: RequestHandler, data: bytes) -> None:
            if handler._payload_parser is not None:
                self.given.append((self._turn, len(data)))
            receive(handler, data)

        def set_parser_of(handler: RequestHandler, *args: Any, **kwargs: Any) -> None:
            self.given.append((self._turn, len(handler._message_tail)))
            set_parser(handler, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(RequestHandler, "data_received", data_received)
            patch.setattr(RequestHandler, "set_parser", set_parser_of)
            yield


@contextlib.asynccontextmanager
async def serving(tls: ssl.SSLContext | None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    server = Server()
    application = web.Application()
    monkeypatch.setattr(web.Server, "connection_made", web.Server.connection_made)  # to be taken back
    monkeypatch.setattr(web.Server, "connection_lost", web.Server.connection_lost)
    Connections(application, 100).watch()
    application.on_response_prepare.append(read_sockets_evenly)
    application.router.add_get("/ws", server.serve)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("waits", [False, True], ids=["at_once", "after_the_answer"])
async def test_a_flood_of_frames_is_gone_through_a_piece_in_each_turn(
    waits: bool, is_secure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if is_secure else None
    if tls is not None:
        tls.load_cert_chain(make_certificate(tmp_path))
    async with serving(tls, monkeypatch) as server:

        def flood() -> None:
            with socket.create_connection(("127.0.0.1", server.port), timeout=120) as plain:
                trusting = ssl.create_default_context()
                trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
                link = trusting.wrap_socket(plain) if is_secure else plain
                if waits:
                    link.sendall(ASKED)
                    assert link.recv(4096).startswith(b"HTTP/1.1 101")
                link.sendall((b"" if waits else ASKED) + WORD * WORDS)
                gone.wait(120)
                if is_secure:
                    link.close()

        gone = threading.Event()
        with server.watching(monkeypatch):
            server.count_turns()
            flooding = asyncio.create_task(asyncio.to_thread(flood))
            hearing = asyncio.create_task(server.heard_all.wait())
            await asyncio.wait({hearing, flooding}, return_when=asyncio.FIRST_COMPLETED, timeout=120)
            gone.set()
            await flooding
    assert server.heard == WORDS, "none is lost, and the connection is read on"
    assert max(size for _turn, size in server.given) <= SOCKET_READ_BYTES
    turns = [turn for turn, _size in server.given]
    assert len(set(turns)) >= len(turns) * 0.9, "others have theirs in between"
