"""Node classes as they declare themselves: ComfyUI 0.33.0's, KJNodes', VideoHelperSuite's, and some of other packs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfyui_guarded.guard.graph import Declared, list_most, list_parts

_HERE = Path(__file__).parent
_CLASSES = json.loads((_HERE / "classes.json").read_text("utf-8"))
TEMPLATES = json.loads((_HERE / "templates.json").read_text("utf-8"))


def describe(class_type: str) -> Declared:
    found = _CLASSES.get(class_type)
    if found is None:
        return Declared()
    outputs = tuple((kind, name) for kind, name in found["outputs"])
    lists, lazy = frozenset(found.get("lists", ())), frozenset(found.get("lazy", ()))
    parts = {
        name: {value: frozenset(names) for value, names in options.items()}
        for name, options in found.get("parts", {}).items()
    }
    takes_lists = found.get("takes_lists", False)
    return Declared(
        found["inputs"], outputs, takes_lists, lists, lazy, parts, takes_more=found.get("takes_more", False)
    )


def read_info(info: Mapping[str, Any]) -> Declared:
    """What `/object_info` says of one class."""
    inputs = {
        name: given[0] if isinstance(given[0], str) else "COMBO"
        for section in ("required", "optional")
        for name, given in (info["input"].get(section) or {}).items()
    }
    outputs = tuple((str(kind), str(name)) for kind, name in zip(info["output"], info["output_name"], strict=True))
    lists = frozenset(at for at, is_list in enumerate(info.get("output_is_list") or ()) if is_list)
    lazy = frozenset(
        name
        for section in ("required", "optional")
        for name, given in (info["input"].get(section) or {}).items()
        if len(given) > 1 and isinstance(given[1], dict) and given[1].get("lazy")
    )
    hidden = frozenset(info["input"].get("hidden") or {})
    return Declared(
        inputs,
        outputs,
        bool(info.get("is_input_list")),
        lists,
        lazy,
        list_parts(info["input"]),
        hidden,
        bool(info.get("takes_more")),
        most=list_most(info["input"]),
    )
