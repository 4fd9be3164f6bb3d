"""Tell what a node class takes and gives, as it declares it."""

from __future__ import annotations

import logging
from typing import Any

import nodes

from ...guard.host import Declared

log = logging.getLogger("guarded.host")

_NOTHING = Declared()


class Declarations:
    """Read declarations once each, since types do not change while the server runs. Event loop, as in ComfyUI."""

    def __init__(self) -> None:
        self._known: dict[type, Declared] = {}

    def find(self, class_type: str) -> Declared:
        """What a class declares; a list of choices is a `COMBO`."""
        node_class = nodes.NODE_CLASS_MAPPINGS.get(class_type)
        if node_class is None:
            return _NOTHING
        if node_class not in self._known:
            self._known[node_class] = Declared(_read_inputs(class_type, node_class), _read_outputs(node_class))
        return self._known[node_class]


def _read_inputs(class_type: str, node_class: Any) -> dict[str, str]:
    types: dict[str, str] = {}
    try:
        declared = node_class.INPUT_TYPES()
        for section in ("required", "optional"):
            for name, info in (declared.get(section) or {}).items():
                types[str(name)] = info[0] if isinstance(info[0], str) else "COMBO"
    except Exception:
        log.debug("%s does not say what it takes", class_type, exc_info=True)
    return types


def _read_outputs(node_class: Any) -> tuple[tuple[str, str], ...]:
    try:
        kinds = [str(kind) if isinstance(kind, str) else "COMBO" for kind in node_class.RETURN_TYPES]
        names = [str(name) for name in getattr(node_class, "RETURN_NAMES", None) or kinds]
    except Exception:
        return ()
    return tuple((kind, names[at] if at < len(names) else kind) for at, kind in enumerate(kinds))
