"""What a run took, and how a job tells it."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import TypedDict


class NodeTimeBody(TypedDict):
    """How long a node ran."""

    node_id: str
    class_type: str
    s: float


class CostBody(TypedDict):
    """What a job's last run took, in seconds: of the queue, of the worker (`run_s`, and of that for models `load_s`)
    and of the checks; the nodes that took longest."""

    queue_s: float
    run_s: float
    load_s: float
    check_s: float
    vram_peak_bytes: int | None
    nodes: list[NodeTimeBody]


@dataclass(frozen=True)
class NodeTime:
    """A node and its time; `class_type` is empty for one that another node has put into the graph."""

    node_id: str
    class_type: str
    ms: int


@dataclass(frozen=True)
class Spent:
    """What a run took of the worker: its time, what of it went into loading models, the VRAM's peak where a GPU tells
    it, and the nodes that took longest. `ended_at_ms` is when the worker let go of it."""

    run_ms: int
    load_ms: int
    ended_at_ms: int
    vram_peak_bytes: int | None = None
    nodes: tuple[NodeTime, ...] = ()


def make_cost_body(
    spent: Spent | None, created_at_ms: int, started_at_ms: int | None, settled_at_ms: int | None
) -> CostBody | None:
    """A job's cost as JSON; None until it has ended, and where it ended before its run did."""
    if spent is None or started_at_ms is None or settled_at_ms is None:
        return None
    return {
        "queue_s": max(started_at_ms - created_at_ms, 0) / 1000,
        "run_s": spent.run_ms / 1000,
        "load_s": spent.load_ms / 1000,
        "check_s": max(settled_at_ms - spent.ended_at_ms, 0) / 1000,
        "vram_peak_bytes": spent.vram_peak_bytes,
        "nodes": [{"node_id": one.node_id, "class_type": one.class_type, "s": one.ms / 1000} for one in spent.nodes],
    }
