"""Cut a graph down to what a request needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from ..graph import is_link

Graph = dict[str, Any]


def drop_absent(graph: Graph, absent: Collection[str]) -> Graph:
    """The graph without the nodes `absent`, and without what stood for nothing else.

    An input that was linked to such a node is left out. A node that has lost all its links goes as well: whatever was
    done to a file that is not there.
    """
    kept = {node_id: node for node_id, node in graph.items() if node_id not in absent}
    while True:
        changed = False
        for node_id, node in list(kept.items()):
            lost = [name for name, value in node["inputs"].items() if is_link(value) and value[0] not in kept]
            if not lost:
                continue
            changed = True
            inputs = {name: value for name, value in node["inputs"].items() if name not in lost}
            if any(is_link(value) for value in inputs.values()):
                kept[node_id] = {**node, "inputs": inputs}
            else:
                del kept[node_id]
        if not changed:
            return kept


def drop_unneeded(graph: Graph, outputs: Iterable[str]) -> Graph:
    """The graph with the nodes alone that its outputs need."""
    needed: set[str] = set()
    waiting = list(outputs)
    while waiting:
        node_id = waiting.pop()
        if node_id not in needed:
            needed.add(node_id)
            waiting += [value[0] for value in graph[node_id]["inputs"].values() if is_link(value)]
    return {node_id: node for node_id, node in graph.items() if node_id in needed}
