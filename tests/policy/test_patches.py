"""Whatever a host's nodes do to a model so that a step calls it more often, by their sources: the walk must know of it.

A sampler behind such a node is judged as one that does more than one call for each step.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packs.conftest import PACKS
from policy.grown import read_declared
from policy.known import read_info
from policy.measured import Comfy

from comfyui_guarded.guard.cost.classes import NodeClasses
from comfyui_guarded.guard.cost.walk import Walk
from comfyui_guarded.guard.graph import Declared
from comfyui_guarded.tests.hosts.launch import real_kinds

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(600)]

#: A call of the model beside the sampler's, windows of which each is a call, a wrapper that calls on more than once, a
#: part that works on more pixels, and a loop of calls.
_MORE = re.compile(
    r"calc_cond_batch\(|\"context_handler\"\]|for .+\n(?:.*\n){0,8}.*executor\(|downscale_factor\b|\brtol\b"
)


def list_patches(folder: Path) -> Iterator[str]:
    """The node classes in whose source there is such a thing."""
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text("utf-8", errors="replace")
        if not _MORE.search(source):
            continue
        tree = ast.parse(source)
        named = {
            value.id: key.value
            for each in ast.walk(tree)
            if isinstance(each, ast.Dict)
            for key, value in zip(each.keys, each.values, strict=True)
            if isinstance(key, ast.Constant) and isinstance(value, ast.Name)
        }
        for each in tree.body:
            if not isinstance(each, ast.ClassDef):
                continue
            body = ast.get_source_segment(source, each) or ""
            if _MORE.search(body):
                yield from re.findall(r"node_id=\"([^\"]+)\"", body) or [str(named.get(each.name, each.name))]


def fill_in(info: Any) -> dict[str, Any]:
    """Its inputs as they are by default; a smaller factor, of those by which something becomes smaller."""
    inputs: dict[str, Any] = {}
    for name, declared in (info["input"].get("required") or {}).items():
        kind, options = read_declared(declared)
        inputs[name] = options.get("default", (options.get("options") or [None])[0] if kind == "COMBO" else ["m", 0])
    return (
        inputs
        | ({"downscale_factor": 0.5} if "downscale_factor" in inputs else {})
        | ({"model": ["m", 0]} if "model" in inputs else {})
    )


def test_each_patch_that_makes_a_step_dearer_is_counted(comfy: Comfy) -> None:
    folders = [real_kinds()[0].main.parent / "comfy_extras", *(sorted(PACKS.iterdir()) if PACKS.is_dir() else ())]
    classes = NodeClasses(lambda kind: read_info(comfy.known[kind]) if kind in comfy.known else Declared())
    found = {name for folder in folders for name in list_patches(folder) if name in comfy.known}
    patches = {name for name in found if {"MODEL", "SAMPLER"} & set(map(str, comfy.known[name]["output"]))}
    assert len(patches) >= 8, patches
    missed = set()
    for name in patches:
        kind = "model" if "MODEL" in comfy.known[name]["output"] else "sampler"
        slot = list(comfy.known[name]["output"]).index(kind.upper())
        sampler = {"sigmas": ["g", 0], "latent_image": ["l", 0], "model": ["m", 0], kind: ["x", slot]}
        graph = {
            "m": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
            "l": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
            "g": {"class_type": "BasicScheduler", "inputs": {"model": ["m", 0], "steps": 20}},
            "x": {"class_type": name, "inputs": fill_in(comfy.known[name])},
            "k": {"class_type": "SamplerCustom", "inputs": sampler},
        }
        (amount,) = [each for each in Walk(graph, classes).amounts if each.node_id == "k"]
        if amount.calls.sum_up(1) <= 1 and amount.extent.area <= 512 * 512:
            missed.add(name)
    assert missed == set()
