"""What a prompt takes of the card's memory, by the host's figures of its models; and what is over the budget."""

from typing import Any

import pytest
from policy.escapes import Graph, film, latent, node, sampler
from policy.known import describe
from unit.fakes import FakeHost

from comfyui_guarded.guard.client import Client
from comfyui_guarded.guard.cost.vram import Vram, estimate
from comfyui_guarded.guard.errors import PolicyViolationError
from comfyui_guarded.guard.settings import PolicySettings
from comfyui_guarded.guard.submit.costs import Costs
from comfyui_guarded.guard.submit.policy import Policy
from comfyui_guarded.guard.weight import ModelWeight

GIB = 2**30
SDXL = ModelWeight("SDXL", 5 * GIB, 16_000, side=8, frames=1, spare_bytes=GIB, in_parts=True)
WAN = ModelWeight("WAN21_I2V", 14 * GIB, 48_000, side=8, frames=4, spare_bytes=GIB, in_parts=True)
MODELS = {"sdxl.safetensors": SDXL, "wan.safetensors": WAN}
CHECKPOINT = {"m": node("CheckpointLoaderSimple", ckpt_name="sdxl.safetensors")}


def find(graph: Graph, models: dict[str, ModelWeight] = MODELS) -> Vram | None:
    policy = Policy(PolicySettings(), describe=describe)
    return estimate(graph, policy.walk(graph, {}).amounts, policy.classes, models.get)


def photo(width: int = 1024, height: int = 1024, batch: int = 1) -> Graph:
    return {**CHECKPOINT, "1": latent(width, height, batch), "2": sampler(["1", 0])}


def test_a_photo_takes_its_models_weights_and_what_its_size_works_in() -> None:
    vram = find(photo())
    assert vram is not None
    working = 128 * 128 * 16_000
    assert (vram.usual, vram.least) == (5 * GIB + max(2 * working, GIB), max(working, GIB))
    assert (vram.node_id, vram.model, vram.family) == ("2", "sdxl.safetensors", "SDXL")
    assert vram.body() == {
        "least_gb": 1.0, "usual_gb": 6.0, "node_id": "2", "model": "sdxl.safetensors", "family": "SDXL",
    }  # fmt: skip


@pytest.mark.parametrize("times", [2, 8])
def test_what_it_works_in_grows_with_pixels_and_pictures(times: int) -> None:
    large, many = find(photo(4096, 4096)), find(photo(4096, 4096, times))
    assert large is not None
    assert many is not None
    assert many.least == large.least * times
    assert many.usual - 5 * GIB == (large.usual - 5 * GIB) * times


def test_a_film_counts_the_moments_of_its_latents() -> None:
    graph = {
        "m": node("UNETLoader", unet_name="wan.safetensors", weight_dtype="default"),
        "1": film(1280, 720, 81),
        "2": sampler(["1", 2]),
    }
    vram = find(graph)
    assert vram is not None
    assert vram.least == 21 * 160 * 90 * 48_000


def test_a_host_that_holds_all_weights_needs_them_at_least() -> None:
    whole = {"sdxl.safetensors": ModelWeight("SDXL", 5 * GIB, 16_000, 8, 1, GIB, in_parts=False)}
    vram = find(photo(), whole)
    assert vram is not None
    assert vram.least == 6 * GIB


@pytest.mark.parametrize(
    "between",
    [
        {"l": node("LoraLoader", model=["m", 0], clip=["m", 1], lora_name="style.safetensors", strength_model=1.0)},
        {"l": node("ModelSamplingSD3", model=["m", 0], shift=3.0)},
        {"l": node("A pack's own", model=["m", 0])},
    ],
)
def test_the_model_is_found_behind_what_changes_it(between: Graph) -> None:
    graph = {**photo(), **between}
    graph["2"]["inputs"]["model"] = ["l", 0]
    vram = find(graph)
    assert vram is not None
    assert vram.model == "sdxl.safetensors"


def test_the_model_of_a_guider_is_found() -> None:
    graph = {
        **CHECKPOINT,
        "1": latent(),
        "g": node("BasicGuider", model=["m", 0], conditioning=["p", 0]),
        "s": node("BasicScheduler", model=["m", 0], scheduler="simple", steps=20, denoise=1.0),
        "2": node("SamplerCustomAdvanced", noise=["n", 0], guider=["g", 0], sampler=["k", 0], sigmas=["s", 0],
                  latent_image=["1", 0]),
    }  # fmt: skip
    vram = find(graph)
    assert vram is not None
    assert vram.node_id == "2"


def test_the_sampler_that_takes_the_most_is_told() -> None:
    graph = {**photo(), "3": latent(2048, 2048, 4), "4": sampler(["3", 0])}
    vram = find(graph)
    assert vram is not None
    assert vram.node_id == "4"


@pytest.mark.parametrize(
    "graph",
    [
        {**CHECKPOINT, "1": latent()},
        {**photo(), "m": node("CheckpointLoaderSimple", ckpt_name="nobody knows.safetensors")},
        {"1": latent(), "2": sampler(["1", 0])},
    ],
    ids=["no sampler", "no such model", "no model"],
)  # fmt: skip
def test_of_what_nobody_knows_nothing_is_told(graph: Graph) -> None:
    assert find(graph) is None


def test_a_text_encoders_file_is_not_taken_for_the_samplers() -> None:
    graph = {**photo(), "c": node("UNETLoader", unet_name="wan.safetensors", weight_dtype="default")}
    graph["2"]["inputs"]["positive"] = ["c", 0]
    vram = find(graph)
    assert vram is not None
    assert vram.model == "sdxl.safetensors"


async def judge(graph: Graph, client: Client | None = None, **policy: Any) -> Any:
    host = FakeHost()
    host.weights = dict(MODELS)
    costs = Costs(PolicySettings.model_validate(policy), host)
    return await costs.check(graph, client or Client("local", operator=True), {}, 1000)


async def test_what_the_card_cannot_hold_even_in_parts_is_refused() -> None:
    with pytest.raises(PolicyViolationError) as caught:
        await judge(photo(4096, 4096, 8), vram_budget_gb=20)
    error = caught.value
    assert error.details == "policy.vram_budget_gb"
    assert (error.extra_info["node_id"], error.extra_info["limit"]) == ("2", 20)
    assert error.extra_info["value"] == error.extra_info["vram"]["least_gb"] > 20
    assert (await judge(photo(4096, 4096, 4), vram_budget_gb=20))["least_gb"] < 20


async def test_weights_alone_refuse_nothing_where_the_host_can_do_with_a_part() -> None:
    told = await judge(photo(), vram_budget_gb=2)
    assert told["usual_gb"] == 6.0


async def test_without_a_budget_all_is_told_and_nothing_refused() -> None:
    assert (await judge(photo(8192, 8192, 64)))["least_gb"] > 100
