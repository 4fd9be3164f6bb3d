"""Attacks over HTTP: bodies that are huge, slow, lying or compressed, names that go into headers, idle connections."""

import asyncio
import contextlib
import gzip
import json
import os
import re
import resource
import socket
import struct
import uuid
import zlib
from pathlib import Path

import pytest
from contract.client import Client, assert_refusal, assert_succeeded, node, text
from contract.test_access import opened

from comfyui_guarded.tests.hosts.launch import HostProcess, sandbox_kind

MIB = 2**20


def resident_bytes(host: HostProcess) -> int:
    pages = int(Path(f"/proc/{host.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


on_linux = pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads /proc")


class Raw:
    """A connection on which every byte is ours."""

    def __init__(self, host: HostProcess) -> None:
        self._port = host.port

    async def __aenter__(self) -> "Raw":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def send(self, data: bytes) -> bool:
        """False: the server has closed."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except OSError:
            return False
        return True

    async def head(self, method: str, path: str, **headers: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower-case) and what came of the body until the server closed or all was there."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 60)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(first.split()[1]), headers, body


def code(body: bytes) -> str:
    return str(json.loads(body)["guard"]["code"])


# Bodies. ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def small(sandbox_client) -> Client:
    return await sandbox_client(
        GUARDED_POLICY__MAX_BODY_BYTES=str(MIB),
        GUARDED_LIMITS__BODY_TIMEOUT_S="1",
        GUARDED_UPLOADS__MAX_FILE_BYTES=str(MIB),
        GUARDED_UPLOADS__MAX_REQUEST_BYTES=str(MIB),
    )


async def test_bodies_that_are_huge_slow_lying_or_compressed_are_refused_and_cost_nothing(small):
    host = small.host
    before = resident_bytes(host) if Path("/proc").is_dir() else 0
    await asyncio.gather(
        declared_too_large(host),
        endless_chunks(host),
        never_coming(host, "/guarded/prompt"),
        never_coming(host, "/guarded/face-check"),
        dripping(host),
        dripping_form(host),
        coming_steadily(host),
        lying_about_its_length(host),
        both_lengths(host),
        *(inflating(host, encoding) for encoding in ("gzip", "deflate")),
        not_what_it_says(host, "gzip"),
        not_what_it_says(host, "br"),
        not_what_it_says(host, "x-unknown"),
    )
    if before:
        assert resident_bytes(host) - before < 64 * MIB
    await small.assert_takes_jobs()


async def declared_too_large(host):
    """Refused by what it says, without waiting for a byte of it."""
    async with Raw(host) as raw:
        await raw.head("POST", "/guarded/prompt", Content_Length=str(10**12))
        status, _headers, body = await raw.answer()
        assert (status, code(body)) == (413, "payload_too_large")


async def endless_chunks(host):
    """Answered while it is still coming in."""
    async with Raw(host) as raw:
        await raw.head("POST", "/guarded/prompt", Transfer_Encoding="chunked")
        answering = asyncio.create_task(raw.answer())
        chunk = b"%x\r\n%s\r\n" % (2**16, b"x" * 2**16)
        while await raw.send(chunk):
            done, _pending = await asyncio.wait([answering], timeout=0)
            if done:
                break
        status, _headers, body = await answering
        assert (status, code(body)) == (413, "payload_too_large")


async def never_coming(host, path):
    async with Raw(host) as raw:
        await raw.head("POST", path, Content_Length="1000")
        status, headers, body = await raw.answer()
        assert (status, code(body)) == (400, "invalid_request")
        assert "slowly" in json.loads(body)["error"]["message"]
        assert headers["connection"] == "close"
        assert await raw.reader.read() == b"", "and the connection is gone"


async def dripping(host):
    async with Raw(host) as raw:
        await raw.head("POST", "/guarded/prompt", Content_Length="100000")
        answering = asyncio.create_task(raw.answer())
        while await raw.send(b"x"):
            done, _pending = await asyncio.wait([answering], timeout=0.05)
            if done:
                break
        status, _headers, body = await answering
        assert (status, code(body)) == (400, "invalid_request")


async def dripping_form(host):
    async with Raw(host) as raw:
        await raw.head(
            "POST", "/guarded/prompt", Content_Type="multipart/form-data; boundary=b", Transfer_Encoding="chunked"
        )
        start = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\n'
        await raw.send(b"%x\r\n%s\r\n" % (len(start), start))
        answering = asyncio.create_task(raw.answer())
        while await raw.send(b"1\r\nx\r\n"):
            done, _pending = await asyncio.wait([answering], timeout=0.05)
            if done:
                break
        status, _headers, body = await answering
        assert (status, code(body)) == (400, "invalid_request")


async def coming_steadily(host):
    """Slower than the time that a body has, but no slower than 1 KiB a second."""
    body = json.dumps({"prompt": text("x" * 20_000)}).encode()
    async with Raw(host) as raw:
        await raw.head("POST", "/guarded/prompt", Content_Length=str(len(body)))
        for at in range(0, len(body), 1500):
            await raw.send(body[at : at + 1500])
            await asyncio.sleep(0.2)
        status, _headers, answer = await raw.answer()
        assert status == 200, answer


async def lying_about_its_length(host):
    """Shorter than said, and then gone: nobody waits for the rest, and no job comes of it."""
    body = json.dumps({"prompt": text()}).encode()
    async with Raw(host) as raw:
        await raw.head("POST", "/guarded/prompt", Content_Length=str(len(body) + 1))
        await raw.send(body)
        raw.writer.write_eof()
        assert b"200 OK" not in await raw.reader.read()


async def both_lengths(host):
    """Two readers of such a request may disagree about where it ends."""
    async with Raw(host) as raw:
        await raw.head("POST", "/guarded/prompt", Content_Length="4", Transfer_Encoding="chunked")
        await raw.send(b"0\r\n\r\nGET /guarded/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        status, _headers, _body = await raw.answer()
        assert status == 400
        assert b"200 OK" not in await raw.reader.read(), "a second request was found in the body of the first"


async def inflating(host, encoding):
    """64 MiB of zeros in 64 KiB."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    body = b"".join(pack.compress(bytes(MIB)) for _ in range(64)) + pack.flush()
    for path in ("/guarded/prompt", "/guarded/face-check"):
        async with Raw(host) as raw:
            await raw.head("POST", path, Content_Length=str(len(body)), Content_Encoding=encoding)
            await raw.send(body)
            status, _headers, answer = await raw.answer()
            assert 400 <= status < 500, answer


async def not_what_it_says(host, encoding):
    body = json.dumps({"prompt": text()}).encode()
    async with Raw(host) as raw:
        await raw.head("POST", "/guarded/prompt", Content_Length=str(len(body)), Content_Encoding=encoding)
        await raw.send(body)
        status, _headers, answer = await raw.answer()
        assert status < 500, answer
        if encoding != "x-unknown":  # as if it were not there
            assert status == 400, answer


async def test_a_client_that_stops_reading_a_file_is_let_go(sandbox_client):
    """Each would hold an open file, for ever."""
    client = await sandbox_client(GUARDED_LIMITS__BODY_TIMEOUT_S="3")
    size = 64 * MIB
    with open(client.base / "input" / "large.bin", "wb") as file:
        file.truncate(size)
    async with Raw(client.host) as raw:
        await raw.head("GET", "/guarded/view?type=input&filename=large.bin")
        await asyncio.sleep(8)
        got = 0
        with contextlib.suppress(OSError):
            while chunk := await asyncio.wait_for(raw.reader.read(MIB), 60):
                got += len(chunk)
        assert 0 < got < size
    whole = await client.request("GET", "/guarded/view?type=input&filename=large.bin")
    assert len(whole.content) == size, "whoever reads gets all of it"
    assert "/ComfyUI-Guarded/server_routes/" not in client.host.log.read_text(errors="replace"), "no traceback"


async def test_a_compressed_body_is_read_as_what_it_holds(client):
    body = gzip.compress(json.dumps({"prompt": text()}).encode())
    answer = await client.request("POST", "/guarded/prompt", raw=body, headers={"Content-Encoding": "gzip"})
    assert answer.status == 200, answer


def bomb(kind: str) -> bytes:
    """A picture of 60,000 × 60,000 pixels, in a few kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    if kind == "png":
        head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
        pack = zlib.compressobj(9)
        rows = b"".join(pack.compress(bytes(MIB)) for _ in range(8)) + pack.flush()
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    if kind == "gif":
        return (
            b"GIF89a"
            + struct.pack("<HH", 60_000, 60_000)
            + b"\x80\0\0\0\0\0\xff\xff\xff"
            + (b"," + struct.pack("<HHHH", 0, 0, 60_000, 60_000) + b"\0\x02\x02\x44\x01\0;")
        )
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, *[0] * 6)


@on_linux
@pytest.mark.parametrize("kind", ["png", "gif", "bmp"])
async def test_a_picture_that_unpacks_to_gigabytes_is_a_bad_image(client, kind):
    before = resident_bytes(client.host)
    answers = await asyncio.gather(*(client.request("POST", "/guarded/face-check", raw=bomb(kind)) for _ in range(8)))
    for answer in answers:
        assert_refusal(answer, "bad_image", 422)
    assert resident_bytes(client.host) - before < 512 * MIB, "eight of 10 GB each"


# Names that go into headers. -------------------------------------------------------------------------------------

NASTY = [
    "a\r\nSet-Cookie: x=1\r\n\r\n<script>",
    'a"; filename="evil.html',
    "a\\",
    "ключ; a=b",
    "%0d%0aX: y",
    "\u2028",
    "🙂",
]


@pytest.mark.parametrize("name", NASTY, ids=range(len(NASTY)))
async def test_a_name_cannot_leave_its_header(client, name):
    """The file names of results are the prompt's: ComfyUI takes whatever the file system does."""
    prompt = {
        "1": node("FaultSleep", seconds=0.0, checks_interrupt=True, steps=0, seed=0),
        "2": node("SaveImage", images=["1", 0], filename_prefix=f"n{uuid.uuid4().hex[:8]}{name}".replace("/", "_")),
    }
    job = await client.run(prompt)
    if job["state"] != "succeeded":
        return  # this host or file system does not take such a name
    (artifact,) = job["artifacts"]
    for query in ("", "?download=1", "?preview=webp;80;32"):
        answer = await client.request("GET", artifact["url"] + query)
        assert answer.status == 200, answer
        assert "Set-Cookie" not in answer.headers
        assert "X" not in answer.headers
        disposition = answer.headers["Content-Disposition"]
        assert re.fullmatch(
            r"""(inline|attachment); filename="[^"\\\r\n]*"; filename\*=UTF-8''[A-Za-z0-9%._~-]+""", disposition
        ), disposition


@pytest.mark.parametrize("header", ["Idempotency-Key", "Accept-Language", "Authorization", "X-Request-ID"])
async def test_what_a_request_header_says_does_not_come_back_as_another(client, header):
    async with Raw(client.host) as raw:
        body = json.dumps({"prompt": text()}).encode()
        head = f"POST /guarded/prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        await raw.send(f"{head}{header}: a\x0b\x85b\t;=\xff\r\n\r\n".encode("latin-1") + body)
        status, headers, _body = await raw.answer()
        assert status < 500
        assert not any("\x85" in value or "\x0b" in value for value in headers.values())


# Ids. ------------------------------------------------------------------------------------------------------------


async def test_an_id_that_a_native_prompt_has_is_a_conflict_or_settles(client):
    """ComfyUI checks no id for uniqueness; two jobs of one id would share a history entry."""
    async with client.busy_natively() as prompt_id:
        answer = await client.request("POST", "/guarded/prompt?wait=60", {"prompt": text(), "prompt_id": prompt_id})
        if answer.status == 200:
            assert answer.json["guard"]["job"]["state"] == "failed", answer
        else:
            assert_refusal(answer, "conflict", 409)
    await client.assert_takes_jobs()


async def test_an_id_that_anothers_job_has_is_a_conflict_that_tells_nothing_of_it(tmp_path):
    async with opened(sandbox_kind(), tmp_path) as box:
        prompt_id = str(uuid.uuid4())
        body = {"prompt": text("a secret"), "prompt_id": prompt_id}
        assert (await box.ask("owner", "POST", "/guarded/prompt?wait=60", body=body)).status == 200
        for who in ("other", "owner"):
            answer = await box.ask(who, "POST", "/guarded/prompt", body={"prompt": text(), "prompt_id": prompt_id})
            assert_refusal(answer, "conflict", 409)
            assert b"secret" not in answer.content
            assert b"owner" not in answer.content
        assert_refusal(await box.ask("other", "GET", f"/guarded/jobs/{prompt_id}"), "not_found", 404)
        assert_refusal(await box.ask("other", "DELETE", f"/guarded/jobs/{prompt_id}"), "not_found", 404)
        # The same Idempotency-Key of two owners is two keys.
        answers = [
            await box.ask(who, "POST", "/guarded/prompt", body={"prompt": text()}, headers={"Idempotency-Key": "k"})
            for who in ("owner", "other")
        ]
        assert answers[0].json["prompt_id"] != answers[1].json["prompt_id"]


# CORS. -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST"])
@pytest.mark.parametrize(
    "path", ["/guarded/prompt", "/guarded/jobs", "/guarded/health", "/guarded/nope", "/guarded/queue"]
)
async def test_no_page_of_another_site_is_told_that_it_may_read_the_answer(client, method, path):
    answer = await client.request(
        method,
        path,
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
    assert answer.status >= 400 or path == "/guarded/health"


# Idle connections. -----------------------------------------------------------------------------------------------


@on_linux
async def test_two_thousand_idle_connections_and_half_requests_hold_nobody_up(sandbox_client):
    client = await sandbox_client()
    count = min(2000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200)
    before = resident_bytes(client.host)
    idle: list[socket.socket] = []
    try:
        for at in range(count):
            connection = socket.create_connection(("127.0.0.1", client.host.port))
            idle.append(connection)
            if at % 3 == 1:
                connection.sendall(b"GET /guarded/hea")
            elif at % 3 == 2:
                connection.sendall(b"POST /guarded/prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
            if at % 100 == 0:
                await asyncio.sleep(0)
        for _ in range(5):
            assert_succeeded(await client.run(text()))
        assert resident_bytes(client.host) - before < 256 * MIB
    finally:
        for connection in idle:
            connection.close()
    await client.assert_takes_jobs()
