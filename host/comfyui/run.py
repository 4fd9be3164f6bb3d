"""One guarded job while ComfyUI has it."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

from ...guard.host import Progress
from . import report


class Run:
    """What must be known of a job between dispatch and the worker's letting go.

    Attributes:
        client_id: the websocket that hears of it.
        prompt: the graph, as ComfyUI queued it.
        held: events that must not be heard before the verdict, in order.
    """

    def __init__(self, job_id: str, client_id: str, prompt: Mapping[str, Any]) -> None:
        self.job_id = job_id
        self.client_id = client_id
        self.prompt = prompt
        self.held: list[tuple[Any, Any, Any]] = []
        self._nodes = max(len(prompt), 1)
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
        if event != "progress_state" or not isinstance(data.get("nodes"), dict):
            return None
        try:
            return self._progress(data["nodes"])
        except (TypeError, ValueError, KeyError, OverflowError, ZeroDivisionError):
            return None  # nodes report what they like, and must not fail by it

    def _progress(self, nodes: Any) -> Progress | None:
        done, current = 0.0, None
        for node_id, state in nodes.items():
            done += min(float(state["value"]) / float(state["max"]), 1.0) if state["max"] else 0.0
            if state["state"] == "running":
                current = (str(node_id), state)
        if current is None:
            return None
        node_id, state = current
        value, limit = float(state["value"]), float(state["max"])
        if not (math.isfinite(value) and math.isfinite(limit)):
            return None
        return Progress(value, limit, node_id, min(int(100 * done / self._nodes), 100))
