"""What agents send that is no message: every line and every request is answered, by the protocol or in our words."""

import asyncio
import contextlib
import json
import os
import sys

import aiohttp
import pytest
from contract.client import PATIENCE_S, make_key, sleep
from contract.conftest import hosts
from contract.test_agents import SKIMAGE
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from comfyui_guarded.agents.messages import LINE_BYTES
from comfyui_guarded.tests.hosts.launch import ROOT

pytestmark = pytest.mark.skipif(not SKIMAGE.is_dir(), reason="the photos are not there; `make venv` brings them")
#: The host makes no difference.
ALONE = hosts(lambda kind: not kind.real)
SEARCHES = int(os.environ.get("GUARDED_AGENTS", "60"))


class Stdio:
    """A server over stdio, spoken to in bytes."""

    def __init__(self, process):
        self.process = process
        self.sent = 0

    async def send(self, line: bytes, *, waits: bool = True) -> list[dict]:
        """What comes back on a line before the answer to a ping after it; with `waits`, an answer at least."""
        self.sent += 1
        ping = f"ping-{self.sent}"
        more = json.dumps({"jsonrpc": "2.0", "id": ping, "method": "ping"}).encode()
        self.process.stdin.write(line + b"\n" + more + b"\n")
        await self.process.stdin.drain()
        told, is_over = [], False
        while not is_over or (waits and not any("method" not in answer for answer in told)):
            raw = await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_S)
            assert raw, "the server has ended"
            answer = json.loads(raw)
            if answer.get("id") == ping:
                assert answer["result"] == {}
                is_over = True
            else:
                told.append(answer)
        return told


@contextlib.asynccontextmanager
async def stdio(url, key=""):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT), "mcp", "--url", url),
        env={**os.environ, "GUARDED_KEY": key},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=2**26,
    )
    try:
        served = Stdio(process)
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
        await served.send(json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}).encode())
        await served.send(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}', waits=False)
        yield served
        process.stdin.close()
        told = await process.stderr.read()
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
        assert b"Traceback" not in told, told.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


CALL = {"jsonrpc": "2.0", "id": 7, "method": "tools/call"}
ODD = {
    "half of a pair of surrogates": (b'{"jsonrpc":"2.0","id":7,"method":"ping","params":{"x":"\\ud83d"}}', 7),
    "half of one as the id": (b'{"jsonrpc":"2.0","id":"\\ud83d","method":"ping"}', "?"),
    "half an object": (b'{"jsonrpc":"2.0","id":7,"meth', None),
    "words": (b"hello there", None),
    "no UTF-8": (b'{"jsonrpc":"2.0","id":7,"method":"\xff"}', None),
    "a list": (b"[]", None),
    "a batch": (b'[{"jsonrpc":"2.0","id":7,"method":"ping"}]', None),
    "nothing in it": (b"{}", None),
    "null": (b"null", None),
    "a number": (b"7", None),
    "3,000 levels": (b'{"jsonrpc":"2.0","id":7,"method":"ping","params":' + b'{"a":' * 3000 + b"1" + b"}" * 3001, None),
    "150 levels": (b'{"jsonrpc":"2.0","id":7,"method":"ping","params":' + b'{"a":' * 150 + b"1" + b"}" * 151, 7),
    "a long number": (b'{"jsonrpc":"2.0","id":' + b"7" * 5000 + b',"method":"ping"}', None),
    "half an id": (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', None),
    "no id": (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', None),
    "a flag as the id": (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', None),
    "a list of parameters": (b'{"jsonrpc":"2.0","id":7,"method":"ping","params":[]}', 7),
    "an old version": (b'{"jsonrpc":"1.0","id":7,"method":"ping"}', 7),
    "a method that is a number": (b'{"jsonrpc":"2.0","id":7,"method":7}', 7),
    "a key that stands twice": (b'{"jsonrpc":"2.0","id":7,"id":8,"method":"ping"}', 8),
    "NaN": (b'{"jsonrpc":"2.0","id":7,"method":"ping","params":{"x":NaN}}', 7),
}


@ALONE
async def test_every_line_is_answered(host, keys):
    async with stdio(host.url, keys.made["mine"]) as served:
        for name, (line, known) in ODD.items():
            answers = await served.send(line)
            assert len(answers) == 1, (name, answers)
            assert answers[0]["jsonrpc"] == "2.0"
            assert answers[0]["id"] == known, (name, answers)
            assert answers[0]["error"]["code"] in (-32700, -32600, -32602), (name, answers)
        (tools,) = await served.send(b'{"jsonrpc": "2.0", "id": 9, "method": "tools/list"}')
        assert tools["result"]["tools"]


@ALONE
async def test_a_line_without_end_is_answered_and_the_next_one_read(host, keys):
    async with stdio(host.url, keys.made["mine"]) as served:
        (answer,) = await served.send(b'{"jsonrpc":"2.0","id":7,"method":"' + b"x" * LINE_BYTES + b'"}')
        assert (answer["id"], answer["error"]["code"]) == (None, -32600)
        (tools,) = await served.send(b'{"jsonrpc": "2.0", "id": 9, "method": "tools/list"}')
        assert tools["result"]["tools"]


ODD_IDS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
METHODS = st.sampled_from(
    ["ping", "tools/list", "tools/call", "resources/read", "resources/list", "initialize", "logging/setLevel",
     "completion/complete", "prompts/list", "server/discover", "notifications/cancelled", "notifications/progress"]
)  # fmt: skip
PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["list_jobs", "follow_job", "cancel_job", "run_workflow"]) | VALUES,
        "arguments": st.fixed_dictionaries({}, optional={"job_id": VALUES, "wait_s": st.just(0), "prompt": VALUES}),
        "uri": st.sampled_from(["guarded://jobs/x", "guarded://jobs/x/artifacts/0", "file:///etc/passwd"]) | VALUES,
        "_meta": st.fixed_dictionaries({}, optional={"progressToken": VALUES}) | VALUES,
        "requestId": ODD_IDS,
        "progressToken": VALUES,
    },
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.sampled_from(["2.0"] * 4 + ["1.0"]) | VALUES,
        "id": ODD_IDS,
        "method": METHODS | VALUES,
        "params": PARAMS | VALUES,
        "result": VALUES,
        "error": VALUES,
    },
)
LINES = (
    MESSAGES.map(lambda message: json.dumps(message).encode())
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=60).map(lambda raw: raw.replace(b"\n", b" ").replace(b"\r", b" "))
)


def is_owed_an_answer(line: bytes) -> bool:
    """By JSON-RPC: everything but notifications and responses, which nobody answers; and empty lines."""
    if not line.strip():
        return False
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return True
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        return True
    if "method" not in message:
        return "result" not in message and "error" not in message
    return "id" in message or not isinstance(message["method"], str)


@ALONE
async def test_whatever_comes_over_stdio_is_answered_once(host, keys):
    loop = asyncio.get_running_loop()
    async with stdio(host.url, keys.made["mine"]) as served:

        @settings(max_examples=SEARCHES, suppress_health_check=[HealthCheck.too_slow], deadline=None)
        @example(b'\xef\xbb\xbf{"jsonrpc":"2.0","id":7,"method":"ping"}')
        @example(b'{"jsonrpc":"2.0","id":7,"error":{"code":1,"message":""}}')
        @given(LINES)
        def search(line):
            is_owed = is_owed_an_answer(line)
            answers = asyncio.run_coroutine_threadsafe(served.send(line, waits=is_owed), loop).result(PATIENCE_S)
            own = [answer for answer in answers if "method" not in answer]
            assert len(own) <= 1, own
            if own:
                assert "result" in own[0] or own[0]["error"]["code"] < 0

        await asyncio.to_thread(search)


BODY = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


async def post(client, key, raw, **headers):
    sent = {**ACCEPT, "Authorization": f"Bearer {key}", **headers}
    sent = {name.replace("_", "-"): value for name, value in sent.items() if value is not None}
    skip = ("Content-Type",) if headers.get("Content_Type", "") is None else ()
    async with client.session.post(
        client.host.url + "/guarded/mcp", data=raw, headers=sent, skip_auto_headers=skip
    ) as response:
        return response.status, await response.read()


@ALONE
@pytest.mark.parametrize("era", [None, "2025-06-18", "2026-07-28"])
async def test_over_http_a_request_with_an_odd_id_is_answered(client, keys, era):
    version = {"MCP_Protocol_Version": era} if era else {}
    for odd in (None, 1.5, True, [], {}):
        status, told = await post(client, keys.made["mine"], json.dumps({**BODY, "id": odd}).encode(), **version)
        assert (status, json.loads(told)["error"]["code"], json.loads(told)["id"]) == (400, -32600, None), (odd, told)
    for wrong in ([], [BODY], 7, {}, {**BODY, "params": []}, {**BODY, "method": 5}):
        status, told = await post(client, keys.made["mine"], json.dumps(wrong).encode(), **version)
        assert (status, json.loads(told)["error"]["code"]) == (400, -32600), (wrong, told)


@ALONE
@pytest.mark.parametrize("era", [None, "2025-06-18", "2026-07-28", "no-version"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/octet-stream"},
        {"Content_Type": "application/json5"},
        {"Content_Type": None},
        {"Accept": "text/html"},
        {"Accept": ""},
        {"Content_Encoding": "br"},
        {"Content_Encoding": "gzip"},
    ],
    ids=str,
)
async def test_over_http_what_the_package_refuses_is_json(client, keys, era, headers):
    version = {"MCP_Protocol_Version": era} if era else {}
    lines = len(client.host.log.read_text(errors="replace").splitlines())
    status, told = await post(client, keys.made["mine"], json.dumps(BODY).encode(), **version, **headers)
    assert 200 <= status < 500, told
    assert isinstance(json.loads(told), dict) if status >= 400 else told
    if status >= 400:
        body = json.loads(told)
        assert body.get("guard", {}).get("code") == "invalid_request" or body["error"]["code"] < 0, body
    since = client.host.log.read_text(errors="replace").splitlines()[lines:]
    assert not [line for line in since if "Traceback" in line], since


@ALONE
async def test_whatever_comes_over_http_is_answered_as_json(host, keys):
    loop = asyncio.get_running_loop()
    headers = st.fixed_dictionaries(
        {},
        optional={
            "Content-Type": st.sampled_from(
                ["text/plain", "application/json; charset=x", "application/json;", "x", "/"]
            ),
            "Content-Encoding": st.sampled_from(["br", "zstd", "gzip", "deflate", "x", "identity", ""]),
            "Accept": st.sampled_from(["*/*", "application/json", "text/event-stream", "x", ""]),
            "MCP-Protocol-Version": st.sampled_from(["2024-11-05", "2025-06-18", "2026-07-28", "x", ""]),
            "Mcp-Session-Id": st.sampled_from(["x", ""]),
            "Mcp-Method": st.sampled_from(["tools/list", "x"]),
            "Mcp-Name": st.sampled_from(["list_jobs", "x"]),
            "Last-Event-ID": st.sampled_from(["1", "x"]),
            "Accept-Language": st.sampled_from(["ru", "*", "x;q=y", ""]),
        },
    )
    async with aiohttp.ClientSession() as session:

        async def send(raw, more):
            sent = {**ACCEPT, "Authorization": f"Bearer {keys.made['mine']}", **more}
            async with session.post(f"{host.url}/guarded/mcp", data=raw, headers=sent) as response:
                return response.status, response.content_type, await response.read()

        @settings(max_examples=SEARCHES, suppress_health_check=[HealthCheck.too_slow], deadline=None)
        @given(LINES, headers)
        def search(line, more):
            status, kind, told = asyncio.run_coroutine_threadsafe(send(line, more), loop).result(PATIENCE_S)
            assert status < 500, told
            if status >= 400:
                assert kind == "application/json", told
                body = json.loads(told)
                assert "guard" in body or body["error"]["code"] < 0, body
            elif status == 202:
                assert not is_owed_an_answer(line), "it is never answered"

        await asyncio.to_thread(search)
    log = host.log.read_text(errors="replace")
    assert "Error handling" not in log, "a traceback for what a stranger sends"
    assert "/ComfyUI-Guarded/agents/" not in log


@ALONE
async def test_a_call_that_is_cut_off_at_any_point_makes_one_job_at_most_and_gives_its_room_back(host):
    key = make_key(host.base, "cut-off", max_streams=1)
    await asyncio.sleep(2.5)  # the server looks every second
    loop = asyncio.get_running_loop()
    headers = {**ACCEPT, "Authorization": f"Bearer {key}", "MCP-Protocol-Version": "2025-06-18"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def call(name, arguments, cut_s=None):
            params = {"name": name, "arguments": arguments, "_meta": {"progressToken": "t"}}
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            timeout = aiohttp.ClientTimeout(total=cut_s)
            async with session.post(f"{host.url}/guarded/mcp", json=body, timeout=timeout) as response:
                return response.status, await response.text()

        async def cut_off(delay_s, idempotency_key):
            wanted = {"prompt": sleep(0.3, steps=3), "wait_s": 600, "idempotency_key": idempotency_key}
            with contextlib.suppress(asyncio.TimeoutError, aiohttp.ClientError):
                await call("run_workflow", wanted, delay_s)
            for _ in range(int(PATIENCE_S)):
                status, told = await call("list_jobs", {"limit": 100})
                if status == 200:
                    break
                assert json.loads(told)["guard"]["code"] == "quota_exceeded", told
                await asyncio.sleep(0.2)
            assert status == 200, "its room is gone"
            assert told.count(f'"idempotency_key":"{idempotency_key}"') <= 1
            again = await call("run_workflow", wanted)
            assert "succeeded" in again[1], again

        @settings(max_examples=max(SEARCHES // 10, 3), suppress_health_check=[HealthCheck.too_slow], deadline=None)
        @given(st.floats(0.001, 0.6), st.uuids())
        def search(delay_s, number):
            asyncio.run_coroutine_threadsafe(cut_off(delay_s, str(number)), loop).result(2 * PATIENCE_S)

        await asyncio.to_thread(search)
