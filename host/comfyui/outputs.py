"""Have each output node of a guarded job run, so that its files are the job's own; what is upstream stays cached."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import nodes

from .run import Run

try:
    from comfy_execution.caching import CacheKeySetInputSignature
except ImportError:
    CacheKeySetInputSignature = None

log = logging.getLogger("guarded.host")

#: The extra input of an output node that bears the job's id. The node never sees it, but it is part of the signature
#: under which ComfyUI caches its result.
OWN_INPUT = "_guarded"


class Outputs:
    """Makes the signature of each output node the job's own: by an extra input where the node ignores it, and in the
    signature itself for nodes that take any input, which it could break.
    """

    def __init__(self, find_run: Callable[[], Run | None]) -> None:
        """`find_run` gives the guard's job that a thread works for."""
        self._find_run = find_run
        #: Whether a node class ignores an input that it never declared, by class.
        self._ignores: dict[type, bool] = {}

    def install(self) -> None:
        """Patch. The main thread, once, before the worker starts."""
        if CacheKeySetInputSignature is None:
            log.warning("output nodes that take any input may answer from ComfyUI's cache: their jobs have no result")
            return
        native = CacheKeySetInputSignature.get_immediate_node_signature
        find_run = self._find_run

        async def get_immediate_node_signature(
            keys: Any, dynprompt: Any, node_id: str, *args: Any, **kwargs: Any
        ) -> Any:
            signature = await native(keys, dynprompt, node_id, *args, **kwargs)
            run = find_run()
            if run is None or not dynprompt.has_node(node_id):
                return signature
            node = dynprompt.get_node(node_id)
            is_marked = OWN_INPUT in node["inputs"]
            if is_marked or not _is_output(nodes.NODE_CLASS_MAPPINGS.get(node["class_type"])):
                return signature
            return [*signature, (OWN_INPUT, run.job_id)]

        CacheKeySetInputSignature.get_immediate_node_signature = get_immediate_node_signature

    def mark(self, job_id: str, prompt: dict[str, Any]) -> None:
        """Give the output nodes of a job's prompt its id. Event loop; asks node classes for their inputs."""
        for node in prompt.values():
            node_class = nodes.NODE_CLASS_MAPPINGS.get(node["class_type"])
            if node_class is not None and _is_output(node_class):
                if node_class not in self._ignores:
                    self._ignores[node_class] = not _takes_any_input(node_class)
                if self._ignores[node_class]:
                    node["inputs"][OWN_INPUT] = job_id


def _is_output(node_class: Any) -> bool:
    return getattr(node_class, "OUTPUT_NODE", False) is True


def _takes_any_input(node_class: Any) -> bool:
    """Whether ComfyUI would pass a node an input that it never declared, which could break it."""
    if getattr(node_class, "ACCEPT_ALL_INPUTS", False):
        return True
    # Some packs declare inputs with a dict that claims to contain every name.
    return any(OWN_INPUT in section for section in node_class.INPUT_TYPES().values() if type(section) is not dict)
