"""The templates that need packs, on the real packs: validated by their own nodes, and `liveportrait` run to its end.

Beside the packs this needs what they import (mediapipe, pykalman, onnx, onnxruntime, insightface), in the host's Python
or in `GUARDED_PACKS_SITE`: docs/deploy.md has the lines, and tests/package/test_fresh.py makes such a folder.
LivePortrait runs on weights drawn by chance (portrait.py); SDXL has no small form, so `sdxl_face` is validated only.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.client import assert_refusal, assert_succeeded, connected
from packs.conftest import NEEDED, PACKS
from results import corpus, pictures
from workflows import specs
from workflows.studio import ASTRONAUT, PHOTO, TEMPLATES, furnish

from comfyui_guarded.guard.templates.render import choose_values, render
from comfyui_guarded.tests.hosts.launch import HostProcess, real_kinds

LIVE_PORTRAIT = PACKS / "ComfyUI-LivePortraitKJ"
LOADED = (LIVE_PORTRAIT, PACKS / "ComfyUI-VideoHelperSuite", PACKS / "ComfyUI_IPAdapter_plus")
SITE = Path(os.environ.get("GUARDED_PACKS_SITE") or Path.home() / "comfy" / "packs-site")
IMPORTS = "import cv2, insightface, mediapipe, onnx, onnxruntime, pykalman"
SILENT, SOUNDING, NOBODY = "silent.mp4", "sounding.mp4", "chelsea.png"
VHS_FORMAT = {"pix_fmt", "crf", "save_metadata", "trim_to_audio"}
ASKED = {
    "liveportrait": {"photo": PHOTO, "motion": SILENT, "frames": 2},
    "sdxl_face": {"photo": PHOTO, "prompt": "an astronaut"},
}

pytestmark = pytest.mark.skipif(not ASTRONAUT.is_file(), reason="the photos are not there; `make venv` brings them")
every_template = pytest.mark.parametrize("name", sorted(ASKED))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, id=kind.name.replace(" ", "-"), marks=[pytest.mark.comfyui, pytest.mark.timeout(900)])
        for kind in real_kinds()
    ]
    or [pytest.param(None, id="no ComfyUI")],
)
def studio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    kind = request.param
    if kind is None or not all(pack.is_dir() for pack in LOADED):
        pytest.skip(NEEDED)
    environment = {"PYTHONPATH": str(SITE), "OMP_NUM_THREADS": "2"} if SITE.is_dir() else {"OMP_NUM_THREADS": "2"}
    run = {"env": {**os.environ, **environment}, "capture_output": True, "text": True}
    if subprocess.run([kind.python, "-c", IMPORTS], **run).returncode:
        pytest.skip("needs what the packs import, in GUARDED_PACKS_SITE; docs/deploy.md has the lines")
    base = tmp_path_factory.mktemp("portraits")
    process = HostProcess(kind, base, environment=environment)
    furnish(base)
    (base / "custom_nodes" / "recorded_packs").unlink()
    for pack in LOADED:
        (base / "custom_nodes" / f"zz_{pack.name}").symlink_to(pack, target_is_directory=True)
    models = base / "models" / "liveportrait"
    shutil.rmtree(models)
    maker = Path(__file__).with_name("portrait.py")
    made = subprocess.run([kind.python, str(maker), str(LIVE_PORTRAIT), str(models)], **run)
    assert made.returncode == 0, made.stderr
    frames = [pictures.landscape(128, seed=number) for number in range(4)]
    (base / "input" / SILENT).write_bytes(corpus.film(frames, fps=25))
    (base / "input" / SOUNDING).write_bytes(corpus.film(frames, fps=25, sound=corpus.tone(2)))
    shutil.copy(ASTRONAUT.with_name(NOBODY), base / "input" / NOBODY)
    with process:
        yield process
    shutil.rmtree(base / "models")


@pytest.fixture
async def client(studio):
    async with connected(studio, silent_s=630) as client:  # a film takes minutes where others want the processor
        yield client


async def by_route(client, name, query="", **parameters):
    return await client.request("POST", f"/guarded/workflows/{name}{query}", {"parameters": parameters})


def filled(name, **parameters):
    return render(TEMPLATES[name], choose_values(TEMPLATES[name], parameters))


async def test_the_packs_nodes_take_what_was_recorded(client):
    info = await client.get("/object_info")
    for source in ("ipadapter_plus", "liveportrait_kj", "video_helper_suite"):
        for name, then in specs.recorded()[source]["nodes"].items():
            here = specs.record({"name": name, **info[name]})
            # What a format of VideoHelperSuite's takes besides stands in a file of its own.
            own = VHS_FORMAT if name == "VHS_VideoCombine" else set()
            shared = [each for each in here["inputs"] if each in then["inputs"]]
            assert shared == [each for each in then["inputs"] if each not in own], name
            required = info[name]["input"].get("required", {})
            assert set(required) <= set(then["inputs"]), name
            assert here["outputs"] == then["outputs"], name


@every_template
async def test_the_template_is_ready_and_taken_raw_and_by_its_route(client, name):
    listed = {each["name"]: each for each in (await client.get("/guarded/workflows"))["workflows"]}
    assert listed[name]["ready"], listed[name]["reasons"]
    async with client.busy():
        answer = await by_route(client, name, **ASKED[name])
        assert answer.status == 200, answer.json
        raw = await client.request("POST", "/guarded/prompt", {"prompt": filled(name, **ASKED[name])})
        assert raw.status == 200, raw.json
        for taken in (answer, raw):
            await client.cancel(taken.json["prompt_id"])


@pytest.mark.parametrize(
    ("motion", "sound", "is_heard"), [(SILENT, None, False), (SOUNDING, None, True), (SILENT, SOUNDING, True)]
)
async def test_liveportrait_makes_a_film_with_and_without_sound(client, motion, sound, is_heard):
    asked = {**ASKED["liveportrait"], "motion": motion} | ({"sound": sound} if sound else {})
    answer = await by_route(client, "liveportrait", "?wait=600", **asked)
    assert answer.status == 200, answer.json
    job = answer.json["guard"]["job"]
    assert_succeeded(job)
    (film,) = job["artifacts"]
    assert (film["kind"], film["width"], film["height"], film["frames"]) == ("video", 512, 512, 2)
    assert ("no_audio" not in film["warnings"]) is is_heard


async def test_liveportrait_runs_raw_as_well(client):
    job = await client.run(filled("liveportrait", **ASKED["liveportrait"]))
    assert_succeeded(job)


@every_template
async def test_a_photo_without_a_face_is_refused_by_its_route_and_raw_without_our_nodes(client, name):
    asked = {**ASKED[name], "photo": NOBODY}
    assert_refusal(await by_route(client, name, **asked), "no_face", 422)
    graph = json.loads(json.dumps(filled(name, **asked)))
    checks = [node_id for node_id, node in graph.items() if node["class_type"] == "GuardedFaceCheck"]
    for node_id in checks:
        source = graph.pop(node_id)["inputs"]["image"]
        for node in graph.values():
            for each, value in node["inputs"].items():
                if value == [node_id, 0]:
                    node["inputs"][each] = source
    assert checks
    assert_refusal(await client.request("POST", "/guarded/prompt", {"prompt": graph}), "no_face", 422)
