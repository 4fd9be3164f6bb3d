"""A body that nobody wants is neither unpacked nor waited for, and its sender still learns why."""

import asyncio
import json
import subprocess
import sys
import textwrap
import time

import pytest
from bounds.judges import MIB, Patient
from contract.conftest import hosts
from contract.test_hardening import Raw

#: aiohttp and our own code, whichever host is behind them.
pytestmark = hosts(lambda kind: not kind.real, "host_kind")

UPLOAD = 10 * MIB

#: One process each: clients as they come, which know nothing of each other.
CLIENTS = {
    "curl": ["curl", "-s", "-o", "-", "-w", "\n%{http_code}", "-H", "Expect:", "--data-binary", "@{file}", "{url}"],
    "requests": [
        sys.executable,
        "-c",
        "import requests,sys; r = requests.post(sys.argv[2], data=open(sys.argv[1], 'rb'));"
        "print(r.text); print(r.status_code)",
        "{file}",
        "{url}",
    ],
    "aiohttp": [
        sys.executable,
        "-c",
        textwrap.dedent("""
            import aiohttp, asyncio, sys
            async def main():
                async with aiohttp.ClientSession() as session:
                    async with session.post(sys.argv[2], data=open(sys.argv[1], "rb")) as answer:
                        print(await answer.text()); print(answer.status)
            asyncio.run(main())
        """),
        "{file}",
        "{url}",
    ],
}


@pytest.mark.parametrize("name", CLIENTS)
async def test_ten_megabytes_with_a_bad_key_get_their_answer(name: str, ours: Patient, tmp_path):
    file = tmp_path / "photo.bin"
    file.write_bytes(b"\x89PNG" + bytes(UPLOAD))
    url = f"{ours.host.url}/guarded/face-check"
    command = [part.replace("{file}", str(file)).replace("{url}", url) for part in CLIENTS[name]]
    told = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told
    body, _, status = told.stdout.strip().rpartition("\n")
    assert (status, json.loads(body)["guard"]["code"]) == ("401", "unauthorized"), told


async def test_what_is_sent_after_the_refusal_is_taken_for_a_moment_and_then_the_connection_closes(ours: Patient):
    for head in ({"Content_Length": str(10**10)}, {"Transfer_Encoding": "chunked"}):
        async with Raw(ours.host) as raw:
            await raw.head("POST", "/guarded/prompt", **head)
            status, headers, body = await raw.answer()
            assert (status, json.loads(body)["guard"]["code"], headers["connection"]) == (401, "unauthorized", "close")
            chunk, sent = b"%x\r\n%s\r\n" % (2**16, b"x" * 2**16), 0
            while await raw.send(chunk):
                sent += len(chunk)
                assert sent < 64 * MIB, "everything is read, for as long as it comes"


async def test_who_sends_nothing_after_the_refusal_is_let_go(ours: Patient):
    async with Raw(ours.host) as raw:
        await raw.head("POST", "/guarded/prompt", Content_Length="1000")
        await raw.answer()
        begun_s = time.monotonic()
        assert await raw.reader.read() == b""
        while await raw.send(b"x"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        assert time.monotonic() - begun_s < 8, "aiohttp's ten seconds"


async def test_a_refused_request_whose_body_has_come_leaves_the_connection_open(ours: Patient):
    async with Raw(ours.host) as raw:
        for _ in range(2):
            await raw.send(b"POST /guarded/prompt HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
            status, headers, _body = await raw.answer()
            assert status == 401
            assert headers.get("connection") != "close"


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/guarded" + "/a" * 300, {}), ("/" * 300 + "guarded/jobs", {}), ("/guarded/prompt", {"Expect": "200-ok"}),
     ("/api/guarded/nothing", {"Expect": "x"})],
    ids=["deep", "slashes", "expectation", "mirror"],
)  # fmt: skip
async def test_what_aiohttp_answers_before_it_asks_anybody_is_refused_by_name(path: str, headers, ours: Patient, key):
    status, answer = await ours.send(path, b"{}", {**headers, **key})
    assert (status, json.loads(answer)["guard"]["code"]) == (400, "invalid_request"), answer


async def test_who_asks_whether_to_go_on_is_told_so(ours: Patient, key: dict[str, str]):
    async with Raw(ours.host) as raw:
        await raw.head("POST", "/guarded/queue", Content_Length="2", Expect="100-continue", **key)
        assert (await raw.reader.readline()).startswith(b"HTTP/1.1 100")
        await raw.reader.readline()
        await raw.send(b"{}")
        status, _headers, _body = await raw.answer()
        assert status == 200
