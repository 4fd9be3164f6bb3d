"""Find out what a prompt needs of the server that runs it: node classes, models, memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from ..graph import Declared
from ..host_words import MODEL_SUFFIXES
from ..weight import Placement, VramBody

#: Longer texts name no file.
_LONGEST = 300
#: So many models of a prompt are noted, by which a server is preferred that has loaded them.
_MODELS = 16
#: Part of an input's name by which its model is laid over another one, which takes no time.
_LAID_OVER = "lora"


def find_placement(
    graph: Mapping[str, Any], describe: Callable[[str], Declared], vram: VramBody | None = None
) -> Placement:
    """What decides which server may run the prompt, whose nodes have a class and inputs. `describe`: as `Host`'s."""
    classes = {str(node["class_type"]) for node in graph.values()}
    files = set(_list_models(graph, describe))
    min_vram_mb = math.ceil(vram["least_gb"] * 1024) if vram is not None else None
    told = "\n".join([*sorted(classes), "", *sorted({name for _input, name in files}), str(min_vram_mb or "")])
    needs = hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()[:24]
    loaded = sorted({name for of, name in files if _LAID_OVER not in of.lower()})
    return Placement(needs, tuple(loaded[:_MODELS]), min_vram_mb)


def _list_models(graph: Mapping[str, Any], describe: Callable[[str], Declared]) -> Iterator[tuple[str, str]]:
    """(input, file) of all that may name a model: a choice, not a text, that ends as model files do."""
    for node in graph.values():
        declared = describe(str(node["class_type"])).inputs
        for name, value in node["inputs"].items():
            if not isinstance(value, str) or len(value) > _LONGEST or declared.get(name) == "STRING":
                continue
            if PurePosixPath(value.replace("\\", "/")).suffix.lower() in MODEL_SUFFIXES:
                yield str(name), value
