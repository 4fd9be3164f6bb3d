"""`templates check` on the command line: every fault of a template, or a first manifest for a graph without one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...own_files import FileError, read_json
from ..graph import is_link
from .manifest import Template, TemplateError, check_graph

_MODELS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".onnx", ".gguf")
_FILES = ("image", "video", "audio", "file")
_WRITERS = ("save", "preview", "combine")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["check"])
    parser.add_argument("file", type=Path, help="a manifest (name.toml), or a graph in API format (name.json)")


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """The exit status: 0 all is well, or a first manifest was written out; 1 there are faults."""
    path: Path = arguments.file
    manifest = path.with_suffix(".toml")
    if path.suffix == ".json" and not manifest.exists():
        try:
            graph = read_json(path)
            check_graph(graph)
        except FileError as error:
            say(f"{path}:{error.line or 1}: {error.reason}")
            return 1
        except (OSError, ValueError) as error:
            say(f"{path}: {error}")
            return 1
        say(draft(graph))
        return 0
    try:
        template = Template.read(manifest)
    except TemplateError as error:
        for line, text in error.faults:
            say(f"{manifest}:{line or 1}: {text}")
        return 1
    required = [name for name, each in template.manifest.parameters.items() if each.is_needed]
    say(f"{manifest}: nothing is wrong. Needed of callers: {', '.join(required) or 'nothing'}.")
    return 0


def draft(graph: Mapping[str, Any]) -> str:
    """A first manifest for a graph: what its nodes' inputs look like, to be gone over."""
    linked = {value[0] for node in graph.values() for value in node["inputs"].values() if is_link(value)}
    ends = [node_id for node_id in graph if node_id not in linked]
    writers = [each for each in ends if any(word in graph[each]["class_type"].lower() for word in _WRITERS)]
    parts = [
        f"outputs = {json.dumps(writers or ends)}",
        '\n[title]\nen = "…"\nru = "…"\n\n[description]\nen = "…"\nru = "…"',
    ]
    parameters: dict[str, str] = {}
    models = []
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and value.lower().endswith(_MODELS):
                models.append(_draft_model(node_id, name, value))
            elif (kind := _guess(node["class_type"], name, value)) is not None:
                word = name if name not in parameters else f"{name}_{node_id}"
                parameters[word] = "\n".join(_draft_parameter(word, f"{node_id}.{name}", *kind))
    return "\n".join([*parts, *parameters.values(), *models])


def _guess(class_type: str, name: str, value: Any) -> tuple[str, Any] | None:
    """(type, the graph's value) of an input that a caller may want to set."""
    if name in ("seed", "noise_seed") and isinstance(value, int):
        return "seed", None
    if name in _FILES and isinstance(value, str) and "load" in class_type.lower():
        return "file", None
    if name in ("text", "prompt", "positive") and isinstance(value, str):
        return "text", value
    if isinstance(value, bool):
        return None
    if name in ("width", "height", "steps", "length", "frame_load_cap") and isinstance(value, int):
        return "integer", value
    return ("number", value) if name in ("cfg", "denoise", "guidance") and isinstance(value, (int, float)) else None


def _draft_parameter(name: str, target: str, kind: str, value: Any) -> Iterator[str]:
    yield f"\n[parameters.{json.dumps(name)}]"
    yield f'type = "{kind}"'
    if kind in ("integer", "number"):
        yield f"default = {value}\nmin = 1\nmax = {max(value * 2, 1)}"
    if kind == "text":
        yield "max_length = 2000"
    yield f'into = ["{target}"]\nhelp.en = "…"\nhelp.ru = "…"'


def _draft_model(node_id: str, name: str, value: str) -> str:
    file = value.replace("\\", "/").rpartition("/")[2]
    return (
        f'\n[[models]]\nfile = {json.dumps(file)}\nfolder = "checkpoints"  # below models/\nsize_mb = 1\n'
        f'source = "https://…"\nlicence = "…"\ninto = ["{node_id}.{name}"]'
    )
