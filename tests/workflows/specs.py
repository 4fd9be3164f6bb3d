"""What nodes take and give: recorded from their sources for other packs, read from the classes for ours.

Run as a program, this file records core nodes anew, those that are there and others by name, from a ComfyUI without
models: `python tests/workflows/specs.py http://127.0.0.1:8188 COMMIT [CLASS …]`.
"""

from __future__ import annotations

import json
import math
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import conftest  # noqa: F401  registers the alias package

from comfyui_guarded import nodes

#: One file per source, made from what it said at the commit that stands in it.
FOLDER = Path(__file__).parent / "specs"

#: A widget that the editor puts behind every seed, and what it is set to in the files.
AFTER_SEED = "randomize"
SEEDS = ("seed", "noise_seed")


def recorded() -> dict[str, dict[str, Any]]:
    """Source → {source, commit, nodes}."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def all_nodes() -> dict[str, dict[str, Any]]:
    """Class → {inputs: {name: spec}, outputs: [types]}; inputs in the order of the editor's widgets."""
    known = {name: spec for source in recorded().values() for name, spec in source["nodes"].items()}
    return known | {name: _ours(node_class) for name, node_class in nodes.NODE_CLASS_MAPPINGS.items()}


def _ours(node_class: Any) -> dict[str, Any]:
    inputs = {}
    sections = node_class.INPUT_TYPES()
    for section in ("required", "optional"):
        for name, (kind, *options) in sections.get(section, {}).items():
            spec: dict[str, Any] = {"choices": kind} if isinstance(kind, list) else {"type": kind}
            if any(each.endswith("_upload") for option in options for each in option):
                spec = {"files": "input"}  # whichever lie there
            inputs[name] = (
                spec | (options[0] if options else {}) | ({"optional": True} if section == "optional" else {})
            )
    return {"inputs": inputs, "outputs": list(node_class.RETURN_TYPES)}


#: Inputs that list files: the folder of each; by class where a name means another one there.
_FOLDERS = {
    "ckpt_name": "checkpoints",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "vae_name": "vae",
    "lora_name": "loras",
    "text_encoder": "text_encoders",
    "CLIPVisionLoader.clip_name": "clip_vision",
}


_LIMITS = ("default", "min", "max", "step")


def record(info: Mapping[str, Any]) -> dict[str, Any]:
    """What one class of `/object_info` takes and gives, as the files here say it."""
    inputs = {}
    for section in ("required", "optional"):
        for name, (kind, *more) in info["input"].get(section, {}).items():
            options = more[0] if more else {}
            if folder := _FOLDERS.get(f"{info['name']}.{name}", _FOLDERS.get(name)):
                spec: dict[str, Any] = {"models": folder}
            elif options.get("image_upload"):
                spec = {"files": "input"}
            elif isinstance(kind, list):
                spec = {"choices": kind}
            elif "options" in options:
                spec = {"choices": [each["key"] if isinstance(each, dict) else each for each in options["options"]]}
            else:
                spec = {"type": kind.split(",")[0]} | {
                    each: options[each] for each in _LIMITS if options.get(each) is not None
                }
            inputs[name] = spec | ({"optional": True} if section == "optional" else {})
    return {"inputs": inputs, "outputs": info["output"]} | ({"output_node": True} if info["output_node"] else {})


def main(url: str, commit: str, *more: str) -> None:
    path = FOLDER / "comfyui.json"
    known = json.loads(path.read_text())
    with urllib.request.urlopen(f"{url}/object_info") as answer:
        info = json.load(answer)
    nodes_ = {name: record(info[name]) for name in dict.fromkeys((*known["nodes"], *more))}
    path.write_text(json.dumps({**known, "commit": commit, "nodes": nodes_}, ensure_ascii=False, indent=1) + "\n")


def is_socket(spec: Mapping[str, Any]) -> bool:
    """Whether an input has no widget, only a place for a link."""
    return spec.get("type") not in (None, "INT", "FLOAT", "STRING", "BOOLEAN")


def faults(graph: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Everything in an API graph that its nodes would not take, as ComfyUI checks it; empty where there is nothing."""
    return [fault for node_id, node in graph.items() for fault in _node_faults(node_id, node, graph, known)]


def _node_faults(node_id: str, node: Any, graph: Any, known: Any) -> list[str]:
    spec = known.get(node["class_type"])
    if spec is None:
        return [f"{node_id}: no node {node['class_type']}"]
    found = [f"{node_id}: no input {name}" for name in node["inputs"] if name not in spec["inputs"]]
    for name, wanted in spec["inputs"].items():
        if name not in node["inputs"]:
            if not wanted.get("optional"):
                found.append(f"{node_id}: {name} is missing")
        elif fault := _input_fault(node["inputs"][name], wanted, graph, known):
            found.append(f"{node_id}.{name}: {fault}")
    return found


def _input_fault(value: Any, wanted: Any, graph: Any, known: Any) -> str | None:
    if isinstance(value, list):
        source, slot = value
        given = known[graph[source]["class_type"]]["outputs"][slot] if source in graph else None
        return None if given == wanted.get("type") else f"{given} is no {wanted.get('type')}"
    if is_socket(wanted):
        return f"{value!r} where a link belongs"
    if "choices" in wanted:
        return None if value in wanted["choices"] else f"{value!r} is none of {wanted['choices']}"
    kind = wanted.get("type", "STRING")
    fits = {
        "INT": type(value) is int,
        "FLOAT": type(value) in (int, float) and math.isfinite(value),
        "STRING": isinstance(value, str),
        "BOOLEAN": type(value) is bool,
    }
    if not fits[kind]:
        return f"{value!r} is no {kind}"
    if kind in ("INT", "FLOAT") and not wanted.get("min", -math.inf) <= value <= wanted.get("max", math.inf):
        return f"{value!r} is beyond {wanted.get('min')} to {wanted.get('max')}"
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
