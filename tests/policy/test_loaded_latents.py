"""Latents are as large as their file's header says, and a file that holds none is refused before there is a job."""

import pytest
from policy.known import describe
from policy.test_loaded import CLASSES, opened  # noqa: F401
from results.corpus import tensors

from comfyui_guarded.guard.cost.values import Media
from comfyui_guarded.guard.errors import BadImageError, PolicyViolationError
from comfyui_guarded.guard.settings import PolicySettings
from comfyui_guarded.guard.submit.policy import Policy

CLASSES["LoadLatent"] = ("latent", (("LATENT", "LATENT"),))


def test_latents_are_as_large_as_their_header_says(opened):  # noqa: F811
    assert opened("LoadLatent", tensors((1, 4, 8, 16))) == Media(128, 64)
    assert opened("LoadLatent", tensors((3, 4, 8, 8)), "three") == Media(64, 64, 3)
    assert opened("LoadLatent", tensors((1, 16, 5, 8, 8)), "film") == Media(64, 64, 17)
    assert opened("LoadLatent", tensors((1, 64, 300)), "sound") == Media()


@pytest.mark.parametrize(
    "data",
    [
        tensors()[:-9], tensors()[:40], b"no latent" * 30, b"", tensors((4, 8)),
        tensors().replace(b"latent_tensor", b"another_thing"), tensors(dtype="F64"),
    ],
)  # fmt: skip
def test_what_holds_no_latents_is_refused(opened, data):  # noqa: F811
    with pytest.raises(BadImageError):
        opened("LoadLatent", data)


@pytest.mark.parametrize(("side", "passes"), [(64, True), (1536, False)])
def test_large_latents_count(side, passes):
    policy = Policy(PolicySettings.model_validate({"profile": "a5000"}), describe=describe)
    graph = {
        "1": {"class_type": "LoadLatent", "inputs": {"latent": "a.latent"}},
        "2": {
            "class_type": "LatentUpscaleBy",
            "inputs": {"samples": ["1", 0], "upscale_method": "nearest-exact", "scale_by": 2.0},
        },
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }
    media = {"1": Media(side * 8, side * 8)}
    if passes:
        policy.check(graph, media)
        return
    with pytest.raises(PolicyViolationError):
        policy.check(graph, media)
