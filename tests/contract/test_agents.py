"""Agents over MCP, with the SDK's own client: over stdio, and over HTTP in both eras of the protocol."""

import ast
import asyncio
import base64
import contextlib
import io
import json
import re
import sys
from pathlib import Path

import httpx2
import pytest
from contract.client import PATIENCE_S, KeyedClient, assert_refusal, make_key, raises, sleep, text
from contract.conftest import hosts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp import Client, MCPError
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from PIL import Image

from comfyui_guarded.guard.errors import FAMILY
from comfyui_guarded.tests.hosts.launch import ROOT, real_kinds

SKIMAGE = Path(sys.prefix) / "photos" / "skimage" / "data"
GENERAL = {"run_workflow", "follow_job", "cancel_job", "list_jobs"}
TRANSPORTS = ("stdio", "http", "http-legacy")
ONE_REAL = {kind.name for kind in real_kinds()[:1]}

pytestmark = pytest.mark.skipif(not SKIMAGE.is_dir(), reason="the photos are not there; `make venv` brings them")
TWO = hosts(lambda kind: not kind.real or kind.name in ONE_REAL)
#: Where the host makes no difference.
ALONE = hosts(lambda kind: not kind.real)


def as_data(name):
    return "data:image/png;base64," + base64.b64encode((SKIMAGE / name).read_bytes()).decode()


@contextlib.asynccontextmanager
async def agent(url, key, transport="http", *options):
    """An agent with that key."""
    if transport == "stdio":
        command = [str(ROOT), "mcp", "--url", url, *map(str, options)]
        at = StdioServerParameters(command=sys.executable, args=command, env={"GUARDED_KEY": key or ""})
        async with Client(at, read_timeout_seconds=PATIENCE_S) as client:
            yield client
        return
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(headers=headers, timeout=PATIENCE_S) as http:
        at = streamable_http_client(f"{url}/guarded/mcp", http_client=http)
        mode = "legacy" if transport == "http-legacy" else "auto"
        async with Client(at, mode=mode, read_timeout_seconds=PATIENCE_S) as client:
            yield client


def words_of(result):
    return "\n".join(item.text for item in result.content if item.type == "text")


def assert_failed(result, code, refund=True):
    """An error that an agent can act on: its code, whether it costs anything, and what to do."""
    facts = result.structured_content
    assert result.is_error, words_of(result)
    assert facts["error"]["code"] == code, facts
    assert facts["refund"] is refund, facts
    assert code in words_of(result)
    assert len(words_of(result).splitlines()) > 1, "nothing says what to do"
    assert "Traceback" not in words_of(result)
    return facts


@TWO
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_each_template_is_a_tool_with_bounds(host, keys, transport):
    async with agent(host.url, keys.made["mine"], transport) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert tools.keys() >= {"make_photo_check", "make_sdxl", "make_sdxl_face", "make_liveportrait", *GENERAL}
    check = tools["make_photo_check"].input_schema
    size = check["properties"]["size"]
    assert (size["type"], size["minimum"], size["maximum"], size["default"]) == ("integer", 64, 2048, 512)
    assert check["required"] == ["photo"]
    assert check["additionalProperties"] is False
    assert "sd_xl_base_1.0.safetensors" in tools["make_sdxl"].description
    for tool in tools.values():
        assert len(tool.description.split()) > 5, tool.name
        for name, schema in tool.input_schema["properties"].items():
            assert schema["description"], (tool.name, name)
    pictures = check["properties"]["photo"]["description"]
    assert ("a path on this machine" in pictures) is (transport == "stdio")


@TWO
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_photo_goes_in_and_a_picture_comes_out(host, keys, transport, tmp_path):
    photo = str(SKIMAGE / "astronaut.png") if transport == "stdio" else as_data("astronaut.png")
    async with agent(host.url, keys.made["mine"], transport, "--save", tmp_path) as client:
        wanted = {"photo": photo, "size": 128, "wait_s": PATIENCE_S, "idempotency_key": f"agent-{transport}"}
        result = await client.call_tool("make_photo_check", wanted)
        assert not result.is_error, words_of(result)
        facts = result.structured_content
        assert (facts["state"], facts["refund"], facts["error"]) == ("succeeded", False, None)
        (shown,) = [item for item in result.content if item.type == "image"]
        assert Image.open(io.BytesIO(base64.b64decode(shown.data))).size == (128, 128)
        (link,) = [item for item in result.content if item.type == "resource_link"]
        (whole,) = (await client.read_resource(link.uri)).contents
        assert whole.mime_type == "image/png"
        assert Image.open(io.BytesIO(base64.b64decode(whole.blob))).size == (128, 128)
        assert link.uri in {str(each.uri) for each in (await client.list_resources()).resources}
        (job,) = (await client.read_resource(f"guarded://jobs/{facts['job_id']}")).contents
        assert json.loads(job.text)["job_id"] == facts["job_id"]
        if transport == "stdio":
            (saved,) = facts["saved"]
            assert Path(saved).read_bytes() == base64.b64decode(whole.blob)
        again = await client.call_tool("make_photo_check", wanted)
        assert again.structured_content["job_id"] == facts["job_id"], "the same key has made a second job"
        other = await client.call_tool("make_photo_check", {**wanted, "size": 64})
        assert assert_failed(other, "conflict", refund=False)["job_id"] == facts["job_id"]


@TWO
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_progress_is_told_and_a_cancelled_job_refunded(host, keys, transport):
    heard, told = [], asyncio.Event()

    async def hear(progress, total, message):
        heard.append((progress, total, message))
        if "FaultSleep" in message or "runs:" in message:
            told.set()

    async with agent(host.url, keys.made["mine"], transport) as client:
        wanted = {"prompt": sleep(3600, steps=100_000), "wait_s": PATIENCE_S}
        calling = asyncio.create_task(client.call_tool("run_workflow", wanted, progress_callback=hear))
        await asyncio.wait_for(told.wait(), PATIENCE_S)
        (job,) = (await client.call_tool("list_jobs", {"state": "running"})).structured_content["jobs"]
        behind = await client.call_tool("run_workflow", {"prompt": text(), "wait_s": 0})
        assert behind.structured_content["state"] == "queued", "another job runs beside it"
        assert "place 1 in the queue" in words_of(behind)
        stopped = await client.call_tool("cancel_job", {"job_id": job["job_id"]})
        assert stopped.structured_content["state"] == "cancelled"
        result = await asyncio.wait_for(calling, PATIENCE_S)
        assert result.structured_content["job_id"] == job["job_id"]
        assert result.structured_content["refund"] is True
        assert "refund" in words_of(result)
        after = await client.call_tool(
            "follow_job", {"job_id": behind.structured_content["job_id"], "wait_s": PATIENCE_S}
        )
        assert after.structured_content["state"] == "succeeded"
    assert [progress for progress, *_ in heard] == sorted({progress for progress, *_ in heard}), "it must grow"
    assert all(total == 100 for _progress, total, _message in heard)


@TWO
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_failures_are_typed_and_say_what_to_do(host, keys, transport):
    async with agent(host.url, keys.made["mine"], transport) as client:
        failed = await client.call_tool("run_workflow", {"prompt": raises("value_error"), "wait_s": PATIENCE_S})
        assert_failed(failed, "generation_failed")
        assert "on purpose" in words_of(failed)
        nobody = await client.call_tool("make_photo_check", {"photo": as_data("coffee.png")})
        assert assert_failed(nobody, "no_face")["job_id"] is None
        assert "nothing is owed" in words_of(nobody)
        large = await client.call_tool("make_photo_check", {"photo": as_data("coffee.png"), "size": 10**6})
        assert assert_failed(large, "invalid_request")["error"]["extra_info"]["field"] == "size"
        assert_failed(await client.call_tool("make_photo_check", {"photo": "data:,x"}), "bad_image")
        assert_failed(await client.call_tool("make_sdxl_face", {"photo": "x.png", "prompt": ""}), "missing_node")
        assert_failed(await client.call_tool("follow_job", {"job_id": "nothing"}), "not_found", refund=None)
        assert_failed(await client.call_tool("no_such_tool", {}), "not_found", refund=None)
        with pytest.raises(MCPError, match="not_found"):
            await client.read_resource("guarded://jobs/nothing/artifacts/0")


@TWO
async def test_two_keys_cannot_see_each_other(host, keys):
    async with agent(host.url, keys.made["mine"]) as mine, agent(host.url, keys.made["yours"]) as yours:
        made = await mine.call_tool(
            "make_photo_check", {"photo": as_data("astronaut.png"), "size": 64, "wait_s": PATIENCE_S}
        )
        job_id = made.structured_content["job_id"]
        assert_failed(await yours.call_tool("follow_job", {"job_id": job_id}), "not_found", refund=None)
        assert_failed(await yours.call_tool("cancel_job", {"job_id": job_id}), "not_found", refund=None)
        theirs = (await yours.call_tool("list_jobs", {"limit": 100})).structured_content["jobs"]
        assert job_id not in {job["job_id"] for job in theirs}
        assert not any(job_id in str(each.uri) for each in (await yours.list_resources()).resources)
        for uri in (f"guarded://jobs/{job_id}", f"guarded://jobs/{job_id}/artifacts/0"):
            with pytest.raises(MCPError, match="not_found"):
                await yours.read_resource(uri)
        assert (await mine.read_resource(f"guarded://jobs/{job_id}")).contents


@TWO
async def test_a_key_has_no_more_rights_here_than_elsewhere(host, keys):
    async with agent(host.url, keys.made["templates"]) as client:
        assert_failed(await client.call_tool("run_workflow", {"prompt": text()}), "forbidden")
    async with agent(host.url, "gk_nobody", "stdio") as client:
        assert_failed(await client.call_tool("list_jobs", {}), "unauthorized", refund=None)
        with pytest.raises(MCPError, match="unauthorized"):
            await client.list_tools()


@TWO
async def test_the_route_is_guarded_like_every_other(client, keys):
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}

    async def post(raw, **more):
        async with client.session.post(
            client.host.url + "/guarded/mcp", data=io.BytesIO(raw.encode()), headers={**headers, **more}
        ) as response:
            return response.status, response.headers.copy(), await response.read()

    status, _, told = await post(json.dumps(body), Authorization="Bearer gk_nobody")
    assert (status, json.loads(told)["guard"]["code"]) == (401, "unauthorized")
    status, _, _ = await post(json.dumps(body), Origin="https://elsewhere.example")
    assert status == 403  # ComfyUI refuses that by itself
    for raw in ("{", "[" * 100_000, "\x00", ""):
        status, _, told = await post(raw)
        assert (status, json.loads(told)["guard"]["code"]) == (400, "invalid_request")
    status, _, told = await post(json.dumps({**body, "params": {"x": "y" * 2**21}}))
    assert (status, json.loads(told)["guard"]["code"]) == (413, "payload_too_large")
    for wrong in ([], {}, [body], {**body, "method": 5}, {**body, "jsonrpc": "1"}, {**body, "params": []}, 7, None):
        status, _, told = await post(json.dumps(wrong))
        assert status < 500, told
        assert b"Traceback" not in told
    for language, title in (("*", "Photo check"), ("ru", "Проверка фото"), ("en-GB", "Photo check")):
        _, _, told = await post(json.dumps(body), **{"Accept-Language": language})
        assert title in told.decode() or json.dumps(title)[1:-1] in told.decode(), told
    assert_refusal(await client.request("GET", "/guarded/mcp/none"), "not_found")
    async with client.session.get(client.host.url + "/guarded/mcp") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
    with_key = KeyedClient(client, keys.made["mine"])
    await with_key.assert_takes_jobs()


@ALONE
async def test_a_call_counts_as_a_stream(host):
    key = make_key(host.base, "one-stream", max_streams=1)
    await asyncio.sleep(2.5)  # the server looks every second
    async with agent(host.url, key) as client, agent(host.url, key) as second:
        wanted = {"prompt": sleep(3600, steps=100_000), "wait_s": PATIENCE_S, "idempotency_key": "held"}
        heard = asyncio.Event()

        async def hear(_progress, _total, _message):
            heard.set()

        calling = asyncio.create_task(client.call_tool("run_workflow", wanted, progress_callback=hear))
        await asyncio.wait_for(heard.wait(), PATIENCE_S)
        async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as http:
            answer = await http.post(f"{host.url}/guarded/mcp", json={})
        assert (answer.status_code, answer.json()["guard"]["code"]) == (429, "quota_exceeded")
        async with agent(host.url, key, "stdio") as beside:
            (job,) = (await beside.call_tool("list_jobs", {})).structured_content["jobs"]
            await beside.call_tool("cancel_job", {"job_id": job["job_id"]})
        assert (await asyncio.wait_for(calling, PATIENCE_S)).structured_content["state"] == "cancelled"
        assert len((await second.call_tool("list_jobs", {})).structured_content["jobs"]) == 1


@ALONE
async def test_who_stops_listening_stops_no_job(host, keys):
    heard = asyncio.Event()

    async def hear(_progress, _total, message):
        if "runs:" in message:
            heard.set()

    for transport in TRANSPORTS:
        heard.clear()
        async with agent(host.url, keys.made["mine"], transport) as client:
            wanted = {"prompt": sleep(3600, steps=100_000), "wait_s": PATIENCE_S}
            calling = asyncio.create_task(client.call_tool("run_workflow", wanted, progress_callback=hear))
            await asyncio.wait_for(heard.wait(), PATIENCE_S)
            calling.cancel()
            await asyncio.wait([calling])
            (job,) = (await client.call_tool("list_jobs", {"state": "running"})).structured_content["jobs"]
            await client.call_tool("cancel_job", {"job_id": job["job_id"]})


async def test_a_call_outlives_a_kill_of_the_server(sandbox):
    server = sandbox()
    heard = asyncio.Event()

    async def hear(_progress, _total, message):
        if "runs:" in message:
            heard.set()

    async with agent(server.url, "", "stdio") as client:
        wanted = {"prompt": sleep(3, steps=30), "wait_s": PATIENCE_S, "idempotency_key": "through-a-kill"}
        calling = asyncio.create_task(client.call_tool("run_workflow", wanted, progress_callback=hear))
        await asyncio.wait_for(heard.wait(), PATIENCE_S)
        server.kill()
        await asyncio.sleep(1.5)
        await asyncio.to_thread(server.start)
        result = await asyncio.wait_for(calling, PATIENCE_S)
        assert result.structured_content["state"] == "succeeded", words_of(result)
        (job,) = (await client.call_tool("list_jobs", {})).structured_content["jobs"]
        assert job["idempotency_key"] == "through-a-kill"
        server.kill()
        away = await client.call_tool("list_jobs", {})
        assert_failed(away, "server_away", refund=None)


async def test_without_the_package_the_route_says_so_and_the_rest_works(sandbox_client, tmp_path):
    folder = tmp_path / "broken" / "mcp"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'mcp'\", name='mcp')\n")
    client = await sandbox_client(PYTHONPATH=str(folder.parent))
    for _ in range(2):
        async with client.session.post(client.host.url + "/guarded/mcp", json={}) as response:
            told = await response.json()
        assert (response.status, told["guard"]["code"]) == (404, "not_found")
        assert "pip install -r requirements-mcp.txt" in told["error"]["message"]
    await client.assert_takes_jobs()
    lacking = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT), "mcp", env={"PYTHONPATH": str(folder.parent)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, told = await lacking.communicate()
    assert (lacking.returncode, out) == (2, b"")
    assert b"pip install -r requirements-mcp.txt" in told


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40)
LISTS = st.lists(LEAVES, max_size=3)
JSON = LEAVES | LISTS | st.dictionaries(st.text(max_size=8), LEAVES | LISTS, max_size=3)
NAMES = st.sampled_from(
    ["photo", "size", "max_faces", "prompt", "files", "job_id", "state", "limit", "before", "user", "idempotency_key"]
)
#: A wait of any other length is a wait; nothing here waits.
WAITS = st.sampled_from([{}, {"wait_s": 0}, {"wait_s": "0"}, {"wait_s": -1}, {"wait_s": None}, {"wait_s": 1e300}])
ARGUMENTS = st.builds(
    lambda given, wait: {**given, **wait}, st.dictionaries(NAMES | st.text(max_size=8), JSON, max_size=4), WAITS
)
TOOLS = st.sampled_from([*sorted(GENERAL), "make_photo_check", "make_sdxl"]) | st.text(max_size=20)


@ALONE
async def test_whatever_the_arguments_a_tool_answers_with_a_type(host, keys):
    loop = asyncio.get_running_loop()
    async with agent(host.url, keys.made["mine"]) as client:

        def call(name, arguments):
            return asyncio.run_coroutine_threadsafe(client.call_tool(name, arguments), loop).result(PATIENCE_S)

        @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
        @given(TOOLS, ARGUMENTS)
        def fuzz(name, arguments):
            result = call(name, arguments)
            assert "Traceback" not in words_of(result)
            if result.is_error:
                assert result.structured_content["error"]["code"] in FAMILY.keys() - {"internal_error"}
            else:
                assert name in GENERAL
            assert len(words_of(result)) < 10_000

        await asyncio.to_thread(fuzz)
    assert "/ComfyUI-Guarded/agents/" not in host.log.read_text(errors="replace"), "a traceback through a tool"


async def test_the_five_lines_of_the_manual_make_a_picture(sandbox):
    server = sandbox()
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "agents.md").read_text(encoding="utf-8"), re.S)
    assert len([line for line in code.splitlines() if line]) == 5
    (command,) = re.findall(r"`python first.py (.*?)`", (ROOT / "docs" / "agents.md").read_text(encoding="utf-8"))
    (server.base / "me.jpg").write_bytes((SKIMAGE / "astronaut.png").read_bytes())
    key = make_key(server.base, "agent", templates_only=True)
    await asyncio.sleep(2.5)  # the server looks every second
    known = {"ComfyUI-Guarded": "custom_nodes/ComfyUI-Guarded", "$GUARDED_URL": server.url, "$GUARDED_KEY": key}
    words = [known.get(word, word) for word in command.split()]
    ran = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *words),
        cwd=server.base,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, told = await ran.communicate()
    assert ran.returncode == 0, told.decode()
    (saved,) = ast.literal_eval(out.decode())
    with Image.open(saved) as picture:
        assert picture.size == (512, 512)
