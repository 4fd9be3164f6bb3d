"""Measure what a run takes of the worker: its time, by node, that for loading models, and the VRAM's peak."""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.utils

from ...guard.spent import NodeTime, Spent
from .patching import Native, replace_function

#: The nodes that a job tells of: those that took longest.
NODES = 10
#: A node's id and class are told up to this length.
NAMED = 100

#: By thread: whether it is inside a function that loads, which may call another one.
_loading = threading.local()


class Meter:
    """One run's. The worker's thread; `stop` also another one's, for a worker that was left behind."""

    def __init__(self) -> None:
        self._began_s: float | None = None
        self._node: str | None = None
        self._since_s = 0.0
        self._nodes: dict[str, float] = defaultdict(float)
        self.loaded_s = 0.0

    def begin(self) -> None:
        """The worker has the run, and goes on with it."""
        if (cuda := _find_cuda()) is not None:
            cuda.reset_peak_memory_stats()
        self._began_s = self._since_s = time.monotonic()

    def enter(self, data: Any) -> None:
        """ComfyUI says which node runs (`executing`)."""
        self._leave()
        node = data.get("node") if isinstance(data, Mapping) else None
        self._node = node if isinstance(node, str) else None

    def _leave(self) -> None:
        now_s = time.monotonic()
        if self._node is not None:
            self._nodes[self._node] += now_s - self._since_s
        self._since_s = now_s

    def stop(self, prompt: Mapping[str, Any]) -> Spent | None:
        """The worker has let go of the run; None where it never had it, or this was asked before."""
        if self._began_s is None:
            return None
        self._leave()
        run_s, self._began_s = self._since_s - self._began_s, None
        cuda = _find_cuda()
        longest = sorted(self._nodes.items(), key=lambda item: -item[1])[:NODES]
        return Spent(
            run_ms=round(run_s * 1000),
            load_ms=round(min(self.loaded_s, run_s) * 1000),
            ended_at_ms=int(time.time() * 1000),
            vram_peak_bytes=int(cuda.max_memory_allocated()) if cuda is not None else None,
            nodes=tuple(
                NodeTime(node_id[:NAMED], _find_class(prompt, node_id), round(node_s * 1000))
                for node_id, node_s in longest
            ),
        )


def _find_class(prompt: Mapping[str, Any], node_id: str) -> str:
    """Its class; empty for a node that another one has put into the graph."""
    node = prompt.get(node_id)
    kind = node.get("class_type") if isinstance(node, Mapping) else None
    return kind[:NAMED] if isinstance(kind, str) else ""


def _find_cuda() -> Any:
    """`torch.cuda` where a GPU is in use that counts its memory."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    try:
        return cuda if cuda is not None and cuda.is_initialized() else None
    except Exception:  # a driver that has failed
        return None


def watch_loading(find_meter: Callable[[], Meter | None]) -> None:
    """Count the time of ComfyUI's functions that load models, for the run on whose behalf they do. The main thread."""
    for module, name in ((comfy.model_management, "load_models_gpu"), (comfy.utils, "load_torch_file")):
        native: Native | None = getattr(module, name, None)
        if native is not None:
            replace_function(native, _time(native, find_meter))


def _time(native: Native, find_meter: Callable[[], Meter | None]) -> Native:
    def load(*args: Any, **kwargs: Any) -> Any:
        if getattr(_loading, "is_inside", False) or (meter := find_meter()) is None:
            return native(*args, **kwargs)
        began_s = time.monotonic()
        _loading.is_inside = True
        try:
            return native(*args, **kwargs)
        finally:
            _loading.is_inside = False
            meter.loaded_s += time.monotonic() - began_s

    load.__name__ = native.__name__
    return load
