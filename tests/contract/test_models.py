"""Models that templates lack, downloaded by the running server: as an operator asks for it, and by nobody else."""

import asyncio
import json
import threading

import pytest
from contract.client import PATIENCE_S, KeyedClient, assert_refusal, connected, make_key
from unit.test_models import MODEL, SHA256, Hub

from comfyui_guarded.tests.hosts.launch import HostProcess, sandbox_kind

ONE = {"folder": "checkpoints", "file": "one.bin"}
OTHER = {"folder": "checkpoints", "file": "other.bin"}
MANIFEST = """
outputs = ["1"]
title.en = "Lacking"
title.ru = "Lacking"
description.en = "Lacks models."
description.ru = "Lacks models."
parameters = {}
[[models]]
file = "one.bin"
folder = "checkpoints"
size_mb = 3
source = "https://huggingface.co/a/b"
licence = "MIT"
sha256 = "@SHA256@"
[[models]]
file = "other.bin"
folder = "checkpoints"
size_mb = 3
source = "https://huggingface.co/a/b"
licence = "MIT"
sha256 = "@SHA256@"
[[models]]
file = "by_hand.bin"
folder = "checkpoints"
size_mb = 1
source = "https://example.com/page"
licence = "research only"
[[models]]
file = "huge.bin"
folder = "checkpoints"
size_mb = 10_000_000
source = "https://huggingface.co/a/b"
licence = "MIT"
"""


def put_template(base):
    folder = base / "user" / "__guarded" / "workflows"
    folder.mkdir(parents=True)
    (folder / "lacking.json").write_text(
        json.dumps({"1": {"class_type": "FaultText", "inputs": {"text": "x", "seed": 0}}})
    )
    (folder / "lacking.toml").write_text(MANIFEST.replace("@SHA256@", SHA256))


@pytest.fixture
def hub():
    made = Hub()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
async def operator(hub, tmp_path):
    put_template(tmp_path)
    server = HostProcess(sandbox_kind(), tmp_path, environment={"HF_ENDPOINT": hub.url})
    with server:
        async with connected(server) as client:
            yield client
    assert "Traceback" not in server.log.read_text(errors="replace")


async def told(client, file="one.bin"):
    """What is said of a model that is lacking; None once it is there."""
    models = (await client.get("/guarded/models"))["models"]
    return next((each for each in models if each["file"] == file), None)


async def until(client, wanted, file="one.bin"):
    for _ in range(int(PATIENCE_S * 20)):
        if wanted(model := await told(client, file)):
            return model
        await asyncio.sleep(0.05)
    raise AssertionError(model)


async def test_a_model_is_brought_through_a_stop_a_kill_and_a_broken_connection(hub, operator):
    client, target = operator, operator.base / "models" / "checkpoints" / "one.bin"
    model = await told(client)
    assert (model["size_mb"], model["licence"], model["templates"], model["state"]) == (
        3,
        "MIT",
        ["lacking"],
        "missing",
    )
    assert model["fetchable"] is True
    assert (await told(client, "by_hand.bin"))["fetchable"] is False
    gate = threading.Event()

    def stall(request):
        hub.serve(request, most=1_000_000)
        gate.wait(PATIENCE_S)

    hub.behave = stall
    assert (await client.request("POST", "/guarded/models/fetch", ONE)).status == 200
    await until(client, lambda each: each["state"] == "running" and each["have_bytes"] == 1_000_000)
    assert_refusal(await client.request("POST", "/guarded/models/fetch", ONE), "conflict")
    assert (await client.request("POST", "/guarded/models/fetch", OTHER)).status == 200
    assert (await told(client, "other.bin"))["state"] == "waiting"
    assert (await client.request("POST", "/guarded/models/stop", OTHER)).status == 200
    assert (await client.request("POST", "/guarded/models/stop", ONE)).status == 200
    gate.set()
    await until(client, lambda each: each["state"] == "missing")
    await until(client, lambda each: each["state"] == "missing", "other.bin")
    assert (await told(client))["have_bytes"] == 1_000_000
    assert not target.exists()

    gate.clear()
    hub.asked.clear()
    await client.request("POST", "/guarded/models/fetch", ONE)
    await until(client, lambda each: each["have_bytes"] == 2_000_000)
    client.host.kill()
    gate.set()
    await asyncio.to_thread(client.host.start)
    assert (await told(client))["have_bytes"] == 2_000_000

    hub.behave = lambda request: hub.serve(request, most=300_000)
    await client.request("POST", "/guarded/models/fetch", ONE)
    await until(client, lambda each: each is None)
    assert target.read_bytes() == MODEL
    assert [headers.get("Range") for _path, headers in hub.asked[:2]] == ["bytes=1000000-", "bytes=2000000-"]
    assert list(target.parent.glob("one.bin.*")) == []
    assert_refusal(await client.request("POST", "/guarded/models/fetch", ONE), "not_found")


async def test_what_lies_or_does_not_fit_never_gets_the_name(hub, operator):
    client = operator
    for lie, says in (
        (lambda request: hub.serve(request, b"x" * 3_000_000), "SHA-256"),
        (lambda request: hub.serve(request, b"x" * 9_000_000), "the manifest says 3 MB"),
        (lambda request: request.send_error(403), "403"),
    ):
        hub.behave = lie
        assert (await client.request("POST", "/guarded/models/fetch", ONE)).status == 200
        model = await until(client, lambda each: each["state"] == "failed")
        assert says in model["error"]
        assert list((client.base / "models").rglob("one.bin")) == []
    hub.asked.clear()
    for asked, code in (
        ({"folder": "checkpoints", "file": "huge.bin"}, "disk_full"),
        ({"folder": "checkpoints", "file": "by_hand.bin"}, "invalid_request"),
        ({"folder": "../../outside", "file": "out.bin"}, "not_found"),
        ({"folder": "checkpoints", "file": "unknown.bin"}, "not_found"),
        ({"folder": "..", "file": "x"}, "not_found"),
        ({"folder": "checkpoints"}, "invalid_request"),
        ({**ONE, "url": "http://127.0.0.1/"}, "invalid_request"),
        ({**ONE, "file": 7}, "invalid_request"),
    ):
        assert_refusal(await client.request("POST", "/guarded/models/fetch", asked), code)
    assert_refusal(await client.request("POST", "/guarded/models/stop", ONE), "not_found")
    assert hub.asked == []


async def test_no_bots_key_downloads_anything(hub, operator):
    key = make_key(operator.base, "bot")
    await asyncio.sleep(2.5)  # the server looks every second
    bot = KeyedClient(operator, key)
    assert_refusal(await bot.request("GET", "/guarded/models"), "forbidden")
    for path in ("/guarded/models/fetch", "/guarded/models/stop"):
        assert_refusal(await bot.request("POST", path, ONE), "forbidden")
    answer = await bot.request("POST", "/guarded/workflows/lacking", {"parameters": {}})
    assert_refusal(answer, "missing_model")
    assert hub.asked == []
    assert (await told(operator))["state"] == "missing"
