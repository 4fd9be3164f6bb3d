"""Refuse nodes that put the prompt back into ComfyUI's queue by themselves, part by part.

A job has one run. Its first part would end as a success without a file, and the other parts would run as nobody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import PolicyViolationError

#: Node class → what does the same in one run. Of 60 packs that were searched for a `put` into the queue, one has it.
_REQUEUE = {
    "VHS_BatchManager": "Without it the film is made in one run; give long ones in parts (skip_first_frames, "
    "frame_load_cap).",
}


def check_requeues(graph: Mapping[str, Any]) -> None:
    """Raises PolicyViolationError; names the node."""
    for node_id, node in graph.items():
        kind = node["class_type"]
        if kind in _REQUEUE:
            raise PolicyViolationError(
                f"{kind} (node {node_id[:100]}) queues the prompt again and again by itself, and a job has one run.",
                details=_REQUEUE[kind],
                extra_info={"node_id": node_id, "class_type": kind},
            )
