"""`templates check` on the command line: every fault of a template, or a first manifest for a graph without one."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...own_files import FileError
from ..graph import is_link
from .manifest import TemplateError, list_told, read_graph
from .rehearsal import read_template

_MODELS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".onnx", ".gguf")
_FILES = ("image", "video", "audio", "file")
_WRITERS = ("save", "preview", "combine")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["check"])
    parser.add_argument("file", type=Path, help="a manifest (name.toml), or a graph in API format (name.json)")


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """The exit status: 0 all is well, or a first manifest was written out; 1 there are faults."""
    path: Path = arguments.file
    if path.suffix not in (".toml", ".json"):
        say(f"{path}:1: name a manifest (name.toml), or a graph in API format (name.json)")
        return 1
    manifest = path.with_suffix(".toml")
    if path.suffix == ".json" and not os.path.lexists(manifest):
        try:
            graph = read_graph(path)
        except FileError as error:
            for line, told in list_told(error):
                say(f"{path}:{line}: {told}")
            return 1
        say(draft(graph))
        return 0
    try:
        template = read_template(manifest)
    except TemplateError as error:
        for fault in error.faults:
            say(f"{manifest.with_name(fault.file)}:{fault.line}: {fault.text}")
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
        f"outputs = {_write(writers or ends)}",
        '\n[title]\nen = "…"\nru = "…"\n\n[description]\nen = "…"\nru = "…"\n\n[parameters]',
    ]
    parameters: dict[str, str] = {}
    models: list[str] = []
    for node_id, node in graph.items():
        for name, value in node["inputs"].items() if "." not in node_id else ():
            if isinstance(value, str) and value.lower().endswith(_MODELS):
                models += _draft_model(node_id, name, value)
            elif (kind := _guess(node["class_type"], name, value)) is not None:
                word = name if name not in parameters else f"{name}_{len(parameters)}"
                parameters[word] = "\n".join(_draft_parameter(word, f"{node_id}.{name}", *kind))
    return "\n".join([*parts, *parameters.values(), *models])


def _write(value: str | list[str]) -> str:
    """A text, or a list of texts, as TOML writes it: as JSON does, but for signs beyond 16 bits."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _guess(class_type: str, name: str, value: Any) -> tuple[str, Any] | None:
    """(type, the graph's value) of an input that a caller may want to set."""
    if isinstance(value, bool):
        return None
    if name in ("seed", "noise_seed") and isinstance(value, int):
        return "seed", None
    if name in _FILES and isinstance(value, str) and "load" in class_type.lower():
        return "file", None
    if name in ("text", "prompt", "positive") and isinstance(value, str):
        return "text", value
    if name in ("width", "height", "steps", "length", "frame_load_cap") and isinstance(value, int):
        return "integer", value
    return ("number", value) if name in ("cfg", "denoise", "guidance") and isinstance(value, (int, float)) else None


def _draft_parameter(name: str, target: str, kind: str, value: Any) -> Iterator[str]:
    yield f"\n[parameters.{_write(name)}]"
    yield f'type = "{kind}"'
    if kind in ("integer", "number"):
        twice = value * 2 if abs(value) < 2**53 else value  # larger numbers are written by no manifest
        low, high = (0, 1) if 0 <= value <= 1 else (1, twice) if value > 0 else (twice, 1)
        yield f"default = {value}\nmin = {low}\nmax = {high}"
    if kind == "text":
        yield "max_length = 2000"
    yield f'into = [{_write(target)}]\nhelp.en = "…"\nhelp.ru = "…"'


def _draft_model(node_id: str, name: str, value: str) -> Iterator[str]:
    file = value.replace("\\", "/").rpartition("/")[2]
    if not file.isprintable():
        return
    yield (
        f'\n[[models]]\nfile = {_write(file)}\nfolder = "checkpoints"  # below models/\nsize_mb = 1\n'
        f'source = "https://…"\nlicence = "…"\ninto = [{_write(f"{node_id}.{name}")}]'
    )
