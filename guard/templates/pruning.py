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
    links = {
        node_id: [(name, value[0]) for name, value in node["inputs"].items() if is_link(value)]
        for node_id, node in graph.items()
    }
    feeds: dict[str, list[str]] = {}
    for node_id, sources in links.items():
        for _name, source in sources:
            feeds.setdefault(source, []).append(node_id)
    left = {node_id: len(sources) for node_id, sources in links.items()}
    gone = set(absent)
    waiting = [source for source in feeds if source in gone or source not in graph]
    while waiting:
        for node_id in feeds.get(waiting.pop(), ()):
            left[node_id] -= 1
            if not left[node_id] and node_id not in gone:
                gone.add(node_id)
                waiting.append(node_id)
    kept: Graph = {}
    for node_id, node in graph.items():
        if node_id not in gone:
            lost = {name for name, source in links[node_id] if source in gone or source not in graph}
            inputs = {name: value for name, value in node["inputs"].items() if name not in lost}
            kept[node_id] = {**node, "inputs": inputs} if lost else node
    return kept


def drop_unneeded(graph: Graph, outputs: Iterable[str]) -> Graph:
    """The graph with the nodes alone that its outputs need."""
    needed: set[str] = set()
    waiting = list(outputs)
    while waiting:
        node_id = waiting.pop()
        if node_id not in needed and node_id in graph:
            needed.add(node_id)
            waiting += [value[0] for value in graph[node_id]["inputs"].values() if is_link(value)]
    return {node_id: node for node_id, node in graph.items() if node_id in needed}
