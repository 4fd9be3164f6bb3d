"""A raw prompt posted to a real ComfyUI with stand-in weights: what it takes of the card is told, or refuses it.

The checkpoint has the header that SDXL's would have, and no weights; the host takes the CPU for a card.
"""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from contract.client import Answer, PlainClient, Prompt, node, save
from policy.test_weights import weigh

from comfyui_guarded.tests.hosts.launch import HostProcess, real_kinds

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(300)]

CARD = "import comfy.model_management as m\nm.vram_state = m.VRAMState.NORMAL_VRAM\nNODE_CLASS_MAPPINGS = {}\n"
BUDGET = 20
LIMITS = {"GUARDED_POLICY__VRAM_BUDGET_GB": str(BUDGET), "GUARDED_POLICY__MAX_PIXEL_STEPS": str(4 * 10**10)}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainClient]:
    if not real_kinds():
        pytest.skip("no ComfyUI is found; COMFYUI_PATH names one")
    newest = real_kinds()[0]
    folder = tmp_path_factory.mktemp("told")
    weigh(newest, folder / "weights")
    base = folder / "host"
    base.mkdir()
    process = HostProcess(newest, base, environment=LIMITS)
    (base / "models" / "checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "weights" / "models" / "checkpoints" / "sdxl.safetensors", base / "models" / "checkpoints")
    (base / "custom_nodes" / "card").mkdir(parents=True)
    (base / "custom_nodes" / "card" / "__init__.py").write_text(CARD)
    with process:
        client = PlainClient(process)
        yield client
        client.close()


def post(client: PlainClient, side: int, batch: int, **more: Any) -> Answer:
    prompt: Prompt = {
        "m": node("CheckpointLoaderSimple", ckpt_name="sdxl.safetensors"),
        "p": node("CLIPTextEncode", clip=["m", 1], text="a fox"),
        "1": node("EmptyLatentImage", width=side, height=side, batch_size=batch),
        "2": node(
            "KSampler", model=["m", 0], positive=["p", 0], negative=["p", 0], latent_image=["1", 0], seed=1, steps=20,
            cfg=7.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "3": node("VAEDecode", samples=["2", 0], vae=["m", 2]),
        "4": save("3"),
        **more,
    }  # fmt: skip
    return client.post(json.dumps({"prompt": prompt}).encode())


def test_the_answer_tells_what_the_prompt_takes_of_the_card(client: PlainClient) -> None:
    answer = post(client, 1024, 1)
    assert answer.status == 200, answer
    vram = answer.json["guard"]["vram"]
    assert (vram["node_id"], vram["model"], vram["family"]) == ("2", "sdxl.safetensors", "SDXL")
    # How much it works in goes by the host's attention; SDXL's weights that sample are 5.135 GB.
    working = vram["usual_gb"] - 5.135e9 / 2**30
    assert 0.5 < vram["least_gb"] < 4
    assert vram["least_gb"] - 0.2 < working < 2 * vram["least_gb"] + 0.2
    larger = post(client, 2048, 2)
    assert larger.json["guard"]["vram"]["usual_gb"] > vram["usual_gb"]


def test_what_is_over_the_budget_is_refused_with_the_estimate(client: PlainClient) -> None:
    jobs = client.get("/guarded/jobs").json
    answer = post(client, 8192, 16)
    assert answer.status == 422, answer
    error = answer.json["error"]
    assert (error["type"], error["details"]) == ("policy_violation", "policy.vram_budget_gb")
    extra = error["extra_info"]
    assert (extra["node_id"], extra["limit"]) == ("2", BUDGET)
    assert extra["value"] == extra["vram"]["least_gb"] > BUDGET
    assert len(client.get("/guarded/jobs").json["jobs"]) == len(jobs["jobs"]), "there is no job of it"


def test_a_list_that_the_host_makes_counts_with_all_its_items(client: PlainClient) -> None:
    if "CreateList" not in client.get("/object_info/CreateList").json:
        pytest.skip("this ComfyUI has no node that makes lists")
    doubled = {
        f"l{at}": node("CreateList", **{f"inputs.input{side}": [f"l{at - 1}", 0] for side in range(2)})
        for at in range(1, 13)
    }
    lists = {"l0": node("CLIPTextEncode", clip=["m", 1], text="a hare"), **doubled}
    sampled = post(client, 1024, 1).json["guard"]["vram"]
    few, many = (
        post(
            client, 1024, 1, **lists,
            **{"2": node(
                "KSampler", model=["m", 0], positive=[source, 0], negative=["p", 0], latent_image=["1", 0], seed=1,
                steps=20, cfg=7.0, sampler_name="euler", scheduler="normal", denoise=1.0,
            )},
        )
        for source in ("l3", "l12")
    )  # fmt: skip
    assert few.status == 200, few
    assert few.json["guard"]["vram"] == sampled, "one item after the other"
    assert many.status == 422, many
    assert many.json["error"]["details"] == "policy.max_pixel_steps"


def latent_by(route: str, side: int, batch: int) -> Prompt:
    """A latent of that size, made in one way or another, as the node 1."""
    empty = node("EmptyLatentImage", width=side, height=side, batch_size=batch)
    ways: dict[str, Prompt] = {
        "a number": {
            "w": node("PrimitiveInt", value=side),
            "1": node("EmptyLatentImage", width=["w", 0], height=["w", 0], batch_size=batch),
        },
        "copies": {
            "e": node("EmptyLatentImage", width=side, height=side, batch_size=1),
            "1": node("RepeatLatentBatch", samples=["e", 0], amount=batch),
        },
        "a factor": {
            "e": node("EmptyLatentImage", width=side // 2, height=side // 2, batch_size=batch),
            "1": node("LatentUpscaleBy", samples=["e", 0], upscale_method="nearest-exact", scale_by=2.0),
        },
        "a picture": {
            "e": node("EmptyImage", width=side, height=side, batch_size=batch, color=0),
            "1": node("VAEEncode", pixels=["e", 0], vae=["m", 2]),
        },
        "a crop": {
            "e": node("EmptyLatentImage", width=2 * side, height=2 * side, batch_size=batch),
            "1": node("LatentCrop", samples=["e", 0], width=side, height=side, x=0, y=0),
        },
    }
    return ways.get(route, {"1": empty})


@pytest.mark.parametrize(("side", "batch"), [(512, 1), (1024, 3), (4096, 32)])
def test_the_same_latent_takes_the_same_whichever_way_it_is_made(client: PlainClient, side: int, batch: int) -> None:
    def tell(route: str) -> tuple[int, Any]:
        answer = post(client, side, batch, **latent_by(route, side, batch))
        body = answer.json
        return answer.status, body["guard"]["vram"] if answer.status == 200 else body["error"]["extra_info"].get("vram")

    status, vram = tell("directly")
    assert status == (422 if vram["least_gb"] > BUDGET else 200)
    told = {route: tell(route) for route in ("a number", "copies", "a factor", "a picture", "a crop")}
    assert told == dict.fromkeys(told, (status, vram))


def test_what_the_host_drops_makes_nothing_smaller(client: PlainClient) -> None:
    sampled = {
        "seed": 1, "steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        "model": ["m", 0], "positive": ["p", 0], "negative": ["p", 0],
    }  # fmt: skip
    newer = "ResizeImageMaskNode" in client.get("/object_info/ResizeImageMaskNode").json
    by = {"resize_type": "scale by multiplier", "resize_type.multiplier": 8.0}
    for left in ({}, {"width": 64, "height": 64}, {"resize_type.longer_size": 64}, {"resize_type.megapixels": 0.1}):
        old = {
            "u": node("LatentUpscaleBy", samples=["1", 0], upscale_method="bilinear", scale_by=8.0, **left),
            "2": node("KSampler", latent_image=["u", 0], **sampled, **left),
        }
        new = {
            "i": node("EmptyImage", width=8192, height=8192, batch_size=1, color=0),
            "r": node("ResizeImageMaskNode", input=["i", 0], scale_method="area", **by, **left),
            "e": node("VAEEncode", pixels=["r", 0], vae=["m", 2]),
            "2": node("KSampler", latent_image=["e", 0], **sampled, **left),
        }
        for more in (old, new) if newer else (old,):
            answer = post(client, 8192, 1, **more)
            assert answer.status == 422, answer
            assert answer.json["error"]["details"] == "policy.max_pixel_steps", more
