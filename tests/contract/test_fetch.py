"""A file by address or as a `data:` URL, on every host: for a loader, a template's parameter and a face check."""

import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from contract.client import assert_refusal, assert_succeeded, folder_of, photo_copy
from contract.conftest import FILES_FROM, PHOTO
from contract.test_form import fresh, uploaded
from PIL import Image

from comfyui_guarded.tests.hosts.launch import free_port


def as_data(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


@pytest.fixture
async def pictures() -> AsyncIterator[tuple[str, dict[str, bytes]]]:
    """The address of a web server, and what lies there by its path."""
    lying: dict[str, bytes] = {}

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path not in lying:
            raise web.HTTPNotFound
        return web.Response(body=lying[request.path])

    app = web.Application()
    app.router.add_get("/{rest:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, FILES_FROM, port).start()
    yield f"http://{FILES_FROM}:{port}", lying
    await runner.cleanup()


@pytest.mark.parametrize("way", ["data", "address"])
@pytest.mark.parametrize("owner", ["local", "mine"])
async def test_a_loader_gets_the_file_and_its_owner_keeps_it(client, keys, pictures, way, owner):
    who = client if owner == "local" else keys.of(client, owner)
    content, (address, lying), before = fresh(), pictures, uploaded(client.base)
    lying["/a/me.png"] = content
    source = as_data(content) if way == "data" else f"{address}/a/me.png?signature=secret"
    job = await who.run(photo_copy(source))
    assert_succeeded(job)
    result = await who.request("GET", job["artifacts"][0]["url"])
    inverted, given = Image.open(io.BytesIO(result.content)), Image.open(io.BytesIO(content))
    np.testing.assert_allclose(255.0 - np.asarray(inverted.convert("RGB")), np.asarray(given), atol=1)
    (stored,) = uploaded(client.base) - before
    assert stored.startswith(f"input/{folder_of(client.base, owner)}/")
    kept = json.dumps([job, await who.get(f"/guarded/jobs/{job['job_id']}/prompt")])
    assert "base64" not in kept
    assert "secret" not in kept, "an address may be signed"
    assert b"secret" not in result.content
    assert "secret" not in client.host.log.read_text(errors="replace")
    # What it was stored as, its owner may name again.
    assert_succeeded(await who.run(photo_copy(Path(stored).name if owner != "local" else stored.partition("/")[2])))


async def test_a_file_that_cannot_be_had_is_refused_before_there_is_a_job(client, keys, pictures):
    mine, (address, lying), before = keys.of(client, "mine"), pictures, uploaded(client.base)
    lying["/page.png"] = b"<html></html>"
    for source, code in (
        (f"{address}/gone.png", "fetch_failed"),
        (f"{address}/page.png", "bad_image"),
        ("https://127.0.0.2/a.png", "policy_violation"),
        ("https://elsewhere.example/a.png", "policy_violation"),
        ("data:image/png;base64,@@", "bad_image"),
    ):
        body = assert_refusal(await mine.submit(photo_copy(source)), code)
        assert body["guard"]["refund"] is True
        assert body["error"]["extra_info"]["node_id"] == "1"
    assert uploaded(client.base) == before


async def test_the_face_check_and_the_policy_look_at_what_was_fetched(client, keys, pictures):
    mine, (address, lying), before = keys.of(client, "mine"), pictures, uploaded(client.base)
    lying["/noise.png"] = fresh()
    lying["/list.png"] = b"RIFF\0\0\0\0WAVE#EXTM3U"
    refused = await mine.submit(photo_copy(f"{address}/noise.png"), guard={"face_check": True})
    body = assert_refusal(refused, "no_face")
    assert body["error"]["extra_info"]["image"] == "noise.png", "as it was named"
    for source in (f"{address}/noise.png", as_data(lying["/noise.png"])):
        asked = await mine.request("POST", "/guarded/face-check", {"image": source})
        assert_refusal(asked, "no_face")
    assert_refusal(await mine.request("POST", "/guarded/face-check", {"image": f"{address}/gone"}), "fetch_failed")
    assert_refusal(await mine.request("POST", "/guarded/face-check", {"image": "https://[::1]/"}), "policy_violation")
    assert uploaded(client.base) == before


async def test_a_templates_parameter_may_be_one_too(client, keys, pictures):
    mine, (address, lying) = keys.of(client, "mine"), pictures
    somebody = (client.base / "input" / PHOTO).read_bytes()
    lying["/somebody.png"] = somebody
    for source in (f"{address}/somebody.png?signature=secret", as_data(somebody)):
        answer = await mine.request(
            "POST", "/guarded/workflows/photo_check?wait=60", {"parameters": {"photo": source, "size": 256}}
        )
        assert answer.status == 200, answer
        assert_succeeded(answer.json["guard"]["job"])
        assert answer.json["guard"]["parameters"]["photo"].endswith(".png")
        assert "/" not in answer.json["guard"]["parameters"]["photo"], "its owner's own name for it"
        assert "secret" not in str(answer)
        again = {"parameters": answer.json["guard"]["parameters"]}
        answer = await mine.request("POST", "/guarded/workflows/photo_check?wait=60", again)
        assert_succeeded(answer.json["guard"]["job"])
