"""Templates over HTTP: listed, filled in, admitted like any prompt, and refused with what is missing."""

import io
import json
import os
import shutil
import sys
import uuid
from pathlib import Path

import pytest
from contract.client import assert_refusal, assert_succeeded, connected, node
from contract.conftest import hosts, is_real
from contract.test_form import form, part
from PIL import Image

SKIMAGE = Path(sys.prefix) / "photos" / "skimage" / "data"
SOMEBODY, NOBODY = "wf_somebody.png", "wf_nobody.png"
OURS = {
    "klein_edit", "liveportrait", "ltx2_i2v", "photo_check", "qwen_edit", "sdxl", "sdxl_face", "wan_i2v", "z_image",
}  # fmt: skip
#: Of an operator: text, a number and chance, and nothing to see. It runs everywhere.
OWN = """
outputs = ["1"]
title = { en = "Words" }
description = { en = "Says them." }
[parameters.text]
type = "text"
into = ["1.text"]
help = { en = "Them." }
[parameters.seed]
type = "seed"
into = ["1.seed"]
help = { en = "Chance." }
"""

pytestmark = pytest.mark.skipif(not SKIMAGE.is_dir(), reason="the photos are not there; `make venv` brings them")


@pytest.fixture(autouse=True)
def photos(request):
    """Uploaded, as a bot would have done it."""
    if "client" in request.fixturenames:
        folder = request.getfixturevalue("host").base / "input"
        shutil.copy(SKIMAGE / "astronaut.png", folder / SOMEBODY)
        shutil.copy(SKIMAGE / "coffee.png", folder / NOBODY)


async def post(client, name, parameters=None, query="", headers=None, **body):
    if parameters is not None:
        body["parameters"] = parameters
    return await client.request("POST", f"/guarded/workflows/{name}{query}", body, headers=headers)


@pytest.mark.parametrize("make", [lambda path: path.symlink_to(path.with_name("nothing")), os.mkfifo])
async def test_what_only_has_the_name_of_a_model_is_missing(sandbox, make):
    host = sandbox()
    folder = host.base / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    make(folder / "sd_xl_base_1.0.safetensors")
    async with connected(host) as client:
        (sdxl,) = [each for each in (await client.get("/guarded/workflows"))["workflows"] if each["name"] == "sdxl"]
    assert sdxl["missing"]["models"] == ["sd_xl_base_1.0.safetensors"]
    assert not sdxl["ready"]


async def test_the_list_says_what_each_template_takes_and_what_is_missing_here(client):
    listed = {each["name"]: each for each in (await client.get("/guarded/workflows"))["workflows"]}
    assert set(listed) >= OURS
    assert listed["photo_check"]["ready"]
    assert listed["photo_check"]["missing"] == {"models": [], "node_packs": [], "classes": []}
    assert listed["liveportrait"]["missing"]["node_packs"] == ["ComfyUI-LivePortraitKJ", "ComfyUI-VideoHelperSuite"]
    assert listed["sdxl"]["missing"]["models"] == ["sd_xl_base_1.0.safetensors"]
    assert not listed["sdxl"]["ready"]
    assert listed["sdxl"]["title"] == "SDXL: картинка по тексту"
    english = (await client.get("/guarded/workflows", headers={"Accept-Language": "en"}))["workflows"]
    assert {each["title"] for each in english} >= {"SDXL: text to picture"}


async def test_photo_check_runs_for_real(client):
    answer = await post(
        client, "photo_check", {"photo": SOMEBODY, "size": 256}, "?wait=60", guard={"metadata": {"a": 1}}
    )
    assert answer.status == 200, answer
    guard = answer.json["guard"]
    in_force = {"photo": SOMEBODY, "size": 256, "max_faces": 0}
    assert (guard["template"], guard["parameters"]) == ("photo_check", in_force)
    job = guard["job"]
    assert_succeeded(job)
    assert (job["template"], job["parameters"], job["metadata"]) == ("photo_check", in_force, {"a": 1})
    (artifact,) = job["artifacts"]
    assert (artifact["width"], artifact["height"]) == (256, 256)
    result = await client.request("GET", artifact["url"])
    assert Image.open(io.BytesIO(result.content)).size == (256, 256)


async def test_a_photo_without_a_face_is_refused_before_the_queue(client):
    job_id = str(uuid.uuid4())
    body = assert_refusal(await post(client, "photo_check", {"photo": NOBODY}, prompt_id=job_id), "no_face", 422)
    assert body["error"]["extra_info"]["image"] == NOBODY
    assert (await client.request("GET", f"/guarded/jobs/{job_id}")).status == 404


async def test_the_photo_may_come_with_the_parameters_in_one_form(client):
    raw, content = form(
        part("parameters", b'{"size": 128}'),
        part("photo", (SKIMAGE / "astronaut.png").read_bytes(), "selfie.png", "Content-Type: image/png"),
    )
    answer = await client.request("POST", "/guarded/workflows/photo_check?wait=60", raw=raw, headers=content)
    assert answer.status == 200, answer
    assert_succeeded(answer.json["guard"]["job"])
    assert answer.json["guard"]["parameters"]["size"] == 128


@pytest.mark.parametrize(
    ("parameters", "code", "status", "named"),
    [
        ({}, "invalid_request", 400, ["photo"]),
        ({"photo": 5, "sise": 1}, "invalid_request", 400, ["photo", "sise"]),
        ({"photo": SOMEBODY, "size": 4096}, "policy_violation", 422, ["size"]),
        ({"photo": SOMEBODY, "size": 100, "max_faces": -1}, "policy_violation", 422, ["max_faces", "size"]),
    ],
)
async def test_wrong_parameters_are_refused_by_name(client, parameters, code, status, named):
    body = assert_refusal(await post(client, "photo_check", parameters, guard={"locale": "en"}), code, status)
    assert sorted(body["error"]["extra_info"]["parameters"]) == named
    assert all(name in body["error"]["message"] for name in named)
    assert body["guard"]["user_message"].isascii()


async def test_other_refusals_are_those_of_a_prompt(client):
    body = assert_refusal(await post(client, "no_such", {}), "not_found", 404)
    assert set(body["error"]["extra_info"]["templates"]) >= OURS
    assert_refusal(await post(client, "photo_check", {"photo": "none.png"}), "bad_image", 422)
    assert_refusal(await post(client, "photo_check", {"photo": SOMEBODY}, guard={"what": 1}), "invalid_request", 400)
    assert_refusal(await post(client, "photo_check", prompt={"1": node("LoadImage")}), "invalid_request", 400)
    assert_refusal(await client.request("POST", "/guarded/workflows/photo_check", raw=b"{"), "invalid_request", 400)
    assert_refusal(await client.request("DELETE", "/guarded/workflows/photo_check"), "method_not_allowed", 405)


async def test_what_the_server_lacks_is_named_with_where_to_get_it(client):
    body = assert_refusal(await post(client, "sdxl_face", {"photo": SOMEBODY, "prompt": ""}), "missing_node", 422)
    pack = {"name": "ComfyUI_IPAdapter_plus", "source": "https://github.com/cubiq/ComfyUI_IPAdapter_plus"}
    assert body["error"]["extra_info"]["node_packs"] == [pack]
    assert body["guard"]["refund"]
    if client.host.kind.real:
        body = assert_refusal(await post(client, "sdxl", {"prompt": ""}), "missing_model", 422)
        (model,) = body["error"]["extra_info"]["models"]
        assert (model["file"], model["folder"]) == ("sd_xl_base_1.0.safetensors", "checkpoints")
        assert model["source"].startswith("https://")


async def test_a_repeated_request_is_told_of_the_same_job_and_the_same_seed(sandbox_with_own_template):
    client = sandbox_with_own_template
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    first = await post(client, "words", {"text": "a"}, headers=headers)
    again = await post(client, "words", {"text": "a"}, "?wait=60", headers=headers)
    assert first.status == again.status == 200, again
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json["prompt_id"] == first.json["prompt_id"]
    assert again.json["guard"]["parameters"] == first.json["guard"]["parameters"]
    assert_succeeded(again.json["guard"]["job"])
    assert_refusal(await post(client, "words", {"text": "b"}, headers=headers), "conflict", 409)
    assert_refusal(await post(client, "photo_check", {"text": "a"}, headers=headers), "conflict", 409)
    another = await post(client, "words", {"text": "a"})
    assert another.json["guard"]["parameters"]["seed"] != first.json["guard"]["parameters"]["seed"]


async def test_a_prompt_of_4000_characters_arrives_as_it_was(sandbox_with_own_template):
    words = ('"}]}, {"x": [\\ \n\t %s {0} $y 🎈 кот ' * 200)[:4000]
    answer = await post(sandbox_with_own_template, "words", {"text": words, "seed": 2**31}, "?wait=60")
    assert answer.status == 200, answer
    job = answer.json["guard"]["job"]
    assert_succeeded(job)
    assert job["outputs"]["1"]["text"] == [words]
    assert job["parameters"] == {"text": words, "seed": 2**31}
    assert_refusal(await post(sandbox_with_own_template, "words", {"text": words + "x"}), "policy_violation", 422)


@hosts(is_real)  # the sandbox has no editor
async def test_comfyui_s_template_browser_lists_the_workflows_with_their_previews(client):
    (listed,) = [names for pack, names in (await client.get("/api/workflow_templates")).items() if "Guarded" in pack]
    assert set(listed) == OURS
    workflow = await client.get("/api/workflow_templates/ComfyUI-Guarded/sdxl.json")
    assert workflow["version"] == 0.4
    preview = await client.request("GET", "/api/workflow_templates/ComfyUI-Guarded/sdxl.jpg")
    assert preview.headers["Content-Type"] == "image/jpeg"


@pytest.fixture
async def sandbox_with_own_template(sandbox_client, tmp_path):
    folder = tmp_path / "base0" / "user" / "__guarded" / "workflows"
    folder.mkdir(parents=True)
    (folder / "words.toml").write_text(OWN)
    (folder / "words.json").write_text(json.dumps({"1": node("FaultText", text="", seed=0)}))
    return await sandbox_client()
