"""Templates on a real ComfyUI: its own validation of every graph, and a real KSampler, on a checkpoint of our own.

The checkpoint is Stable Diffusion 1.x in miniature under SDXL's names (tests/workflows/tiny_checkpoint.py says why not
SDXL), so that the `sdxl` template's whole graph, the refiner included, runs on a processor.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from contract.client import assert_ended_badly, assert_refusal, assert_succeeded, connected, make_sampled, node
from workflows import specs
from workflows.studio import ASTRONAUT, MOTION, PHOTO, TEMPLATES, furnish

from comfyui_guarded.tests.hosts.launch import HostProcess, real_kinds

TESTS = Path(__file__).parents[1]
BASE, REFINER = "sd_xl_base_1.0.safetensors", "sd_xl_refiner_1.0.safetensors"
#: The version that tests/workflows/specs/comfyui.json says the nodes of.
RECORDED_AT = "0.33.0"
#: Far more than anybody waits for.
ENDLESS = 1000

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.timeout(360),
    pytest.mark.skipif(not ASTRONAUT.is_file(), reason="the photos are not there; `make venv` brings them"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    kind = real_kinds()[0]
    path = tmp_path_factory.mktemp("models") / BASE
    subprocess.run(
        [kind.python, str(TESTS / "workflows" / "tiny_checkpoint.py"), str(path)],
        cwd=kind.main.parent, check=True, capture_output=True,
    )  # fmt: skip
    yield path
    path.unlink()  # 300 MB, which pytest would keep for three runs


@pytest.fixture(scope="module", params=[pytest.param(kind, id=kind.name.replace(" ", "-")) for kind in real_kinds()])
def studio(request, checkpoint, tmp_path_factory):
    """A ComfyUI with everything that the templates want: the checkpoint is real, the rest has the right names."""
    base = tmp_path_factory.mktemp("studio")
    # With a thread per core, a core that somebody else has keeps all of torch waiting: 40 times as long, measured.
    process = HostProcess(request.param, base, environment={"OMP_NUM_THREADS": "1"})
    furnish(base)
    for name in (BASE, REFINER):
        (base / "models" / "checkpoints" / name).unlink()
    # As people sort them: the template finds it, whatever folder it lies in.
    (base / "models" / "checkpoints" / "sdxl").mkdir()
    os.link(checkpoint, base / "models" / "checkpoints" / "sdxl" / BASE)
    os.link(checkpoint, base / "models" / "checkpoints" / REFINER)
    with process:
        yield process
    shutil.rmtree(base / "models")


@pytest.fixture
async def client(studio):
    async with connected(studio) as client:
        yield client


async def post(client, name, query="", guard=None, **parameters):
    body = {"parameters": parameters, "guard": guard or {}}
    answer = await client.request("POST", f"/guarded/workflows/{name}{query}", body)
    assert answer.status == 200, answer.json
    return answer.json


def sampled(steps, seed=1, size=64):
    """A graph of ComfyUI's own nodes around a KSampler; small, so that a step takes milliseconds."""
    saver = node("GuardedSaveImage", images=["5", 0], filename_prefix="sampled", format="png")
    return make_sampled(REFINER, saver, steps, seed, size)


async def inside_the_sampler(client, job_id):
    """Once it has made a few steps."""
    return await client.polled(
        lambda: client.job(job_id),
        lambda job: (
            job["settled_at_ms"] or ((job["progress"] or {}).get("max") == ENDLESS and job["progress"]["value"] > 1)
        ),
    )


@pytest.mark.parametrize("name", sorted(TEMPLATES))
async def test_comfyui_itself_accepts_every_template_that_is_ready(client, name):
    listed = {each["name"]: each for each in (await client.get("/guarded/workflows"))["workflows"]}
    if not listed[name]["ready"]:
        reason = listed[name]["reasons"][0]
        assert reason.startswith(f"It needs ComfyUI {TEMPLATES[name].manifest.comfyui} or later; "), listed[name]
        assert is_before(client, TEMPLATES[name].manifest.comfyui)
        answer = await client.request("POST", f"/guarded/workflows/{name}", {"parameters": all_of(name)})
        assert "Update ComfyUI" in assert_refusal(answer, "missing_node", 422)["error"]["message"]
        return
    async with client.busy():
        for asked in (all_of(name), all_of(name, wants_all=True)):
            answer = await post(client, name, **asked)
            await client.cancel(answer["prompt_id"])


def all_of(name, wants_all=False):
    """Values for what a template needs; or also for the files that may be left out, and what its conditions ask for."""
    manifest = TEMPLATES[name].manifest
    files = {"photo": PHOTO, "motion": MOTION, "sound": MOTION}
    asked = {each: files.get(each, "a cat") for each, parameter in manifest.parameters.items() if parameter.is_needed}
    if wants_all:
        asked |= {each: files.get(each, PHOTO) for each, of in manifest.parameters.items() if not of.required}
        asked |= {
            each: value
            for wiring in manifest.wiring
            for each, value in wiring.when.items()
            if manifest.parameters[each].required
        }
    return asked


def is_before(client, version):
    here = client.host.kind.name.removeprefix("ComfyUI ")
    return tuple(map(int, here.split("."))) < tuple(map(int, version.split(".")))


async def test_comfyui_s_nodes_still_take_what_was_recorded(client):
    """On an older one, those nodes that the templates for it use, which may take less there."""
    info = await client.get("/object_info")
    recorded = specs.recorded()["comfyui"]["nodes"]
    listed = {each["name"]: each for each in (await client.get("/guarded/workflows"))["workflows"]}
    used = {
        node["class_type"]
        for name, template in TEMPLATES.items()
        if listed[name]["ready"]
        for node in template.graph.values()
    }
    is_old = is_before(client, RECORDED_AT)
    for name in recorded.keys() & used:
        here, then = specs.record({"name": name, **info[name]}), recorded[name]
        if is_old:
            assert list(here["inputs"]) == [each for each in then["inputs"] if each in here["inputs"]], name
        else:
            assert list(here["inputs"]) == list(then["inputs"]), name
            assert here["outputs"] == then["outputs"], name
        for each, spec in here["inputs"].items():
            limits = [{key: of.get(key) for key in ("type", "min", "max")} for of in (spec, then["inputs"][each])]
            assert limits[0] == limits[1], (name, each)
            if "choices" in spec and not is_old:
                assert set(then["inputs"][each]["choices"]) <= set(spec["choices"]), (name, each)


async def test_the_sdxl_template_runs_whole_with_its_refiner(client):
    asked = {"prompt": 'a "cat" }{ 🎈', "width": 512, "height": 512, "steps": 1, "seed": 5, "refiner": True}
    answer = await post(client, "sdxl", "?wait=300", **asked)
    job = answer["guard"]["job"]
    assert_succeeded(job)
    assert asked.items() <= job["parameters"].items()
    (picture,) = job["artifacts"]
    assert (picture["width"], picture["height"]) == (512, 512)


async def test_the_seed_decides(client):
    jobs = [await client.run(sampled(2, seed)) for seed in (1, 2, 1)]
    first, another, again = ([each["sha256"] for each in job["artifacts"]] for job in jobs)
    assert first == again != another != []


async def test_progress_is_the_samplers_own(client):
    job_id = await client.admitted(sampled(ENDLESS))
    job = await inside_the_sampler(client, job_id)
    assert job["state"] == "running", job
    assert (job["progress"]["node_id"], job["progress"]["max"]) == ("4", ENDLESS)
    assert 0 <= job["progress"]["percent"] < 100
    assert_ended_badly(await client.cancel(job_id), "cancelled")


async def test_a_sampler_over_its_time_is_stopped_and_the_next_one_runs(client):
    job_id = await client.admitted(sampled(ENDLESS, seed=3), guard={"timeout_s": 2})
    job = await client.settled(job_id)
    assert_ended_badly(job, "generation_timeout")
    assert_succeeded(await client.run(sampled(2, seed=4)))
    health = await client.get("/guarded/health")
    assert health["hung_workers"] == 0, health


async def test_a_cancelled_sampler_lets_go_at_its_next_step(client):
    job_id = await client.admitted(sampled(ENDLESS, seed=6))
    await inside_the_sampler(client, job_id)
    behind = await client.admitted(sampled(2, seed=7))
    assert_ended_badly(await client.cancel(job_id), "cancelled")
    assert_succeeded(await client.settled(behind))


async def test_an_interrupt_in_comfyui_ends_the_sampler_and_is_told_apart(client):
    job_id = await client.admitted(sampled(ENDLESS, seed=8))
    await inside_the_sampler(client, job_id)
    await client.request("POST", "/interrupt", {"prompt_id": job_id})
    assert_ended_badly(await client.settled(job_id), "interrupted")
    assert_succeeded(await client.run(sampled(2, seed=9)))


@pytest.mark.parametrize("name", ["wan_i2v", "ltx2_i2v"])
async def test_the_end_of_a_film_template_is_a_film(client, name):
    """What comes after the decoding, with two pictures in the place of what a model would have made."""
    graph = TEMPLATES[name].graph
    (check,) = [node_id for node_id, each in graph.items() if each["class_type"] == "GuardedValidateVideo"]
    (create,) = [node_id for node_id, each in graph.items() if each["class_type"] == "CreateVideo"]
    (output,) = TEMPLATES[name].manifest.outputs
    size = {"upscale_method": "bilinear", "width": 512, "height": 512, "crop": "center"}
    created = {each: value for each, value in graph[create]["inputs"].items() if each != "audio"}
    checked = graph[check]["inputs"] | {"images": ["p3", 0], "width": 512, "height": 512, "frames": 2}
    job = await client.run(
        {
            "p1": node("LoadImage", image=PHOTO),
            "p2": node("ImageScale", image=["p1", 0], **size),
            "p4": node("ImageInvert", image=["p2", 0]),
            "p3": node("ImageBatch", image1=["p2", 0], image2=["p4", 0]),
            check: node("GuardedValidateVideo", **checked),
            create: node("CreateVideo", **created),
            output: node("SaveVideo", **graph[output]["inputs"]),
        }
    )
    assert_succeeded(job)
    (film,) = job["artifacts"]
    assert (film["kind"], film["frames"], film["filename"].rpartition(".")[2]) == ("video", 2, "mp4")
