"""Tell the types of a node's inputs, as its class declares them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import nodes

log = logging.getLogger("guarded.host")


class InputTypes:
    """Read declarations once each, since types do not change while the server runs. Event loop, as in ComfyUI."""

    def __init__(self) -> None:
        self._known: dict[type, dict[str, str]] = {}

    def find(self, class_type: str) -> Mapping[str, str]:
        """Map each declared input to its type; a list of choices is a `COMBO`."""
        node_class = nodes.NODE_CLASS_MAPPINGS.get(class_type)
        if node_class is None:
            return {}
        if node_class not in self._known:
            types: dict[str, str] = {}
            try:
                declared = node_class.INPUT_TYPES()
                for section in ("required", "optional"):
                    for name, info in (declared.get(section) or {}).items():
                        types[str(name)] = info[0] if isinstance(info[0], str) else "COMBO"
            except Exception:
                log.debug("%s does not say what it takes", class_type, exc_info=True)
            self._known[node_class] = types
        return self._known[node_class]
