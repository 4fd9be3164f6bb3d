"""Constants, and a node that shows any value as text."""

import json
import sys
from typing import Any


class _Primitive:
    """Pass on one input, `value`. ComfyUI has these as V3 nodes of the same names and inputs."""

    FUNCTION = "execute"
    CATEGORY = "utilities/primitive"

    def execute(self, value: Any) -> tuple[Any]:
        return (value,)


def _primitive(kind: str, **options: Any) -> type:
    def input_types(cls: type) -> dict[str, Any]:
        return {"required": {"value": (kind, dict(options))}}

    return type("Primitive", (_Primitive,), {"INPUT_TYPES": classmethod(input_types), "RETURN_TYPES": (kind,)})


class PreviewAny:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"source": ("*", {})}}

    RETURN_TYPES = ("STRING",)
    FUNCTION = "main"
    OUTPUT_NODE = True
    CATEGORY = "utilities"
    DESCRIPTION = "Preview any input value as text."

    def main(self, source: Any = None) -> dict[str, Any]:
        if isinstance(source, str):
            text = source
        elif source is None or isinstance(source, int | float):
            text = str(source)
        else:
            try:
                text = json.dumps(source, indent=4, ensure_ascii=False)
            except (TypeError, ValueError):
                text = str(source)
        return {"ui": {"text": (text,)}, "result": (text,)}


NODE_CLASS_MAPPINGS = {
    "PrimitiveString": _primitive("STRING"),
    "PrimitiveStringMultiline": _primitive("STRING", multiline=True),
    "PrimitiveInt": _primitive("INT", min=-sys.maxsize, max=sys.maxsize, control_after_generate="fixed"),
    "PrimitiveFloat": _primitive("FLOAT", min=-sys.maxsize, max=sys.maxsize, step=0.1),
    "PrimitiveBoolean": _primitive("BOOLEAN"),
    "PreviewAny": PreviewAny,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PrimitiveString": "Text",
    "PrimitiveStringMultiline": "Text (Multiline)",
    "PrimitiveInt": "Int",
    "PrimitiveFloat": "Float",
    "PrimitiveBoolean": "Boolean",
    "PreviewAny": "Preview as Text",
}
