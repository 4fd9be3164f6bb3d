"""One guarded job while ComfyUI has it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from ...guard.graph import is_link
from ...guard.host import Progress
from . import report


class Run:
    """What must be known of a job between dispatch and the worker's letting go.

    Attributes:
        client_id: the websocket that hears of it.
        prompt: the graph, as ComfyUI queued it.
        outputs: ids of the output nodes that it will run.
        held: events that must not be heard before the verdict, in order.
    """

    def __init__(self, job_id: str, client_id: str, prompt: Mapping[str, Any], outputs: Iterable[str]) -> None:
        self.job_id = job_id
        self.client_id = client_id
        self.prompt = prompt
        self.held: list[tuple[Any, Any, Any]] = []
        self._outputs = tuple(outputs)
        self._to_run = needed(prompt, self._outputs)
        self._announced = threading.Lock()

    def holds(self, event: Any, data: Any) -> bool:
        """Whether an event says, or lets a client conclude, how the job ended."""
        if event == "executed":
            return any(report.files_in({"": data.get("output")}))
        return event in ("execution_success", "execution_error", "execution_interrupted")

    def announce_once(self) -> bool:
        """True for the first caller: that one tells the client of the job's error."""
        return self._announced.acquire(blocking=False)

    def progress(self, event: Any, data: Any) -> Progress | None:
        """How far the job is, where the event says so."""
        try:
            if event == "execution_cached":
                self._to_run = needed(self.prompt, self._outputs, frozenset(map(str, data["nodes"])))
            elif event == "progress_state":
                return self._progress(data["nodes"])
        except (AttributeError, TypeError, ValueError, KeyError, OverflowError, ZeroDivisionError):
            pass  # nodes report what they like, and must not fail by it
        return None

    def _progress(self, nodes: Mapping[str, Any]) -> Progress | None:
        done, current = 0.0, None
        for node_id, state in nodes.items():
            if node_id in self._to_run:
                done += min(float(state["value"]) / float(state["max"]), 1.0) if state["max"] else 0.0
            if state["state"] == "running":
                current = state
        if current is None:
            return None
        # A node that another one has put into the graph goes by that one's name.
        node_id = str(current.get("display_node_id") or current["node_id"])
        value, limit = float(current["value"]), float(current["max"])
        if not (math.isfinite(value) and math.isfinite(limit)):
            return None
        percent = min(int(100 * done / max(len(self._to_run), 1)), 100)
        return Progress(value, limit, node_id, title(self.prompt, node_id), percent)


def needed(prompt: Mapping[str, Any], outputs: Iterable[str], cached: frozenset[str] = frozenset()) -> frozenset[str]:
    """The nodes that have to run for those outputs: not the cached ones, nor what only they need."""
    found: set[str] = set()
    waiting = [node_id for node_id in outputs if node_id in prompt]
    while waiting:
        node_id = waiting.pop()
        if node_id not in found and node_id not in cached:
            found.add(node_id)
            links = [value for value in prompt[node_id]["inputs"].values() if is_link(value)]
            waiting += [link[0] for link in links if link[0] in prompt]
    return frozenset(found)


def title(prompt: Mapping[str, Any], node_id: str) -> str | None:
    """What a person calls the node: its title in the editor, else its class."""
    node = prompt.get(node_id) or {}
    given = (node.get("_meta") or {}).get("title")
    return given if isinstance(given, str) and given else node.get("class_type")
