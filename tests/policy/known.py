"""Node classes as they declare themselves: ComfyUI 0.33.0's, KJNodes', VideoHelperSuite's, and some of other packs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfyui_guarded.guard.host import Declared

_HERE = Path(__file__).parent
_CLASSES = json.loads((_HERE / "classes.json").read_text("utf-8"))
TEMPLATES = json.loads((_HERE / "templates.json").read_text("utf-8"))


def describe(class_type: str) -> Declared:
    found = _CLASSES.get(class_type)
    if found is None:
        return Declared()
    return Declared(found["inputs"], tuple((kind, name) for kind, name in found["outputs"]))


def read_info(info: Mapping[str, Any]) -> Declared:
    """What `/object_info` says of one class."""
    inputs = {
        name: given[0] if isinstance(given[0], str) else "COMBO"
        for section in ("required", "optional")
        for name, given in (info["input"].get(section) or {}).items()
    }
    return Declared(
        inputs, tuple((str(kind), str(name)) for kind, name in zip(info["output"], info["output_name"], strict=True))
    )
