"""Estimate what a prompt takes of the card's memory, where it is known what its models are and how large it works.

ComfyUI holds a sampler's weights and the memory that it works in at the same time; text encoders and decoders come
before and after, and it decodes in tiles where the card is full. So the sampler that needs the most decides. Two
figures are told, since ComfyUI itself plans with two (`comfy.sampler_helpers.estimate_memory`): `usual` has all weights
on the card, and works on what is wanted and what is not at once; with `least` it takes them one after the other, and
leaves on the card only those weights that it just needs. With less, the job ends as `out_of_memory`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ..graph import is_link
from ..weight import ModelWeight, VramBody
from .classes import NodeClasses
from .ranges import ENDLESS
from .values import Amount

#: What brings a sampler its model, by an input's kind, and by its name where nobody knows the class.
_MODEL_KINDS = re.compile(r"(?!.*UPSCALE|.*VISION|.*CLIP|.*VAE).*(?:MODEL|GUIDER)", re.I)
_MODEL_NAMES = re.compile(r"model\d*|.*_model|guider|pipe", re.I)
_FILE = re.compile(r".+\.(?:safetensors|sft)")
#: So many nodes are looked at on the way from a sampler to its model.
_FARTHEST = 200
_GIB = 2**30

Weigh = Callable[[str], ModelWeight | None]


class Vram(NamedTuple):
    """An estimate. Bytes."""

    least: float
    usual: float
    node_id: str
    model: str
    family: str

    def body(self) -> VramBody:
        return VramBody(
            least_gb=round(self.least / _GIB, 1),
            usual_gb=round(self.usual / _GIB, 1),
            node_id=self.node_id,
            model=self.model,
            family=self.family,
        )


def names_models(graph: Mapping[str, Any]) -> bool:
    """Whether any input names a file that may be a model's."""
    return any(
        isinstance(value, str) and value.endswith((".safetensors", ".sft"))
        for node in graph.values()
        for value in node["inputs"].values()
    )


def estimate(graph: Mapping[str, Any], amounts: list[Amount], classes: NodeClasses, weigh: Weigh) -> Vram | None:
    """The most that one of its samplers takes; None where of none it is known. `weigh` may wait for the disk."""
    found = []
    for amount in amounts:
        if not amount.steps or not amount.extent.area:
            continue
        for name in _find_files(graph, amount.node_id, classes):
            if (weight := weigh(name)) is not None:
                found.append(_estimate_one(amount, name, weight))
    return max(found, key=lambda each: (each.least, each.usual), default=None)


def _estimate_one(amount: Amount, name: str, weight: ModelWeight) -> Vram:
    extent = amount.extent
    steps_in_time = (max(extent.frames, 1) - 1) // weight.frames + 1
    # A list's items come one after the other.
    cells = (
        math.ceil(min(extent.batch, ENDLESS) / amount.runs) * steps_in_time * math.ceil(extent.area / weight.side**2)
    )
    working = cells * weight.cell_bytes
    return Vram(
        least=max(working, weight.spare_bytes) + (0 if weight.in_parts else weight.weights_bytes),
        usual=max(2 * working, weight.spare_bytes) + weight.weights_bytes,
        node_id=amount.node_id,
        model=name,
        family=weight.family,
    )


def _find_files(graph: Mapping[str, Any], node_id: str, classes: NodeClasses) -> Iterator[str]:
    """The files that a sampler's model may come from."""
    waiting, seen = [node_id], {node_id}
    while waiting and len(seen) <= _FARTHEST:
        node = graph[waiting.pop()]
        declared = classes.find(str(node["class_type"])).inputs
        for name, value in node["inputs"].items():
            if isinstance(value, str) and len(value) < 1000 and _FILE.fullmatch(value):
                yield value
            elif is_link(value) and value[0] in graph and value[0] not in seen and _brings_model(name, declared):
                seen.add(value[0])
                waiting.append(value[0])


def _brings_model(name: str, declared: Mapping[str, str]) -> bool:
    if (kind := declared.get(name)) is not None and kind not in ("*", "COMFY_MATCHTYPE_V3"):
        return _MODEL_KINDS.fullmatch(kind) is not None
    return len(name) < 100 and (_MODEL_NAMES.fullmatch(name) is not None or kind is not None)
