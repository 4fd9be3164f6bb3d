"""Bound how often what a node gives holds what was given to others: conditions, lists, hooks and whatever packs have.

Two of a kind that become one are put together, so who gives a thing twice to each of forty nodes has it 2^40 times, of
which nothing is more than a link. What a node hands on it does not multiply: where as many come out as went in, each
is one of those. Texts and numbers are followed in `labour`, pictures and sounds in `walk`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..graph import is_link
from .classes import PICTURES, PLAIN, NodeClass, NodeClasses
from .names import Trait

#: Conditions put together cost a pass through the model each, and a prompt of a key has 400 nodes.
MOST_PARTS = 256
#: Some packs' numbers are lists. Formulas use theirs several times, too.
MOST_NUMBERS = 65_536
_NUMBERS = frozenset({"INT", "FLOAT", "NUMBER"})
_COUNTED_ELSEWHERE = (PLAIN - _NUMBERS) | PICTURES | {"AUDIO"}
_OPEN = re.compile(r"\*|COMFY_MATCHTYPE|COMFY_MULTITYPED|,")


class Growth:
    """One graph; its nodes are visited each after those that it takes from."""

    def __init__(self, graph: Mapping[str, Any], classes: NodeClasses) -> None:
        self._graph = graph
        self._classes = classes
        self._parts: dict[str, dict[str, float]] = {}

    def visit(self, node_id: str) -> tuple[float, float]:
        """(the parts of the largest thing that the node gives, how many there may be)."""
        node = self._graph[node_id]
        node_class = self._classes.find(node["class_type"])
        if node_class.kinds and node_class.kinds <= _COUNTED_ELSEWHERE:
            return 1, MOST_PARTS
        links = [value for value in node["inputs"].values() if is_link(value)]
        given = [(self._kind_of(link), self.parts_of(link)) for link in links]
        given = [(kind, parts) for kind, parts in given if kind not in _COUNTED_ELSEWHERE or node_class.gathers]
        if len(given) < 2 and not any(parts > 1 for _kind, parts in given):
            return 1, MOST_PARTS
        found = {kind: self._put_together(node_class, kind, given) for kind in node_class.kinds or {"*"}}
        self._parts[node_id] = found
        things = max((parts for kind, parts in found.items() if kind not in _NUMBERS), default=0)
        numbers = max(found.values())
        return (things, MOST_PARTS) if things > MOST_PARTS else (numbers, MOST_NUMBERS)

    def parts_of(self, link: Any) -> float:
        found = self._parts.get(link[0])
        if found is None:
            return 1
        return found.get(self._kind_of(link)) or max(found.values())

    def _put_together(self, node_class: NodeClass, kind: str, given: list[tuple[str, float]]) -> float:
        if kind in _COUNTED_ELSEWHERE:
            return 1
        if kind not in _NUMBERS:
            given = [(each, parts) for each, parts in given if each not in _NUMBERS or node_class.gathers]
            if not given:
                return 1
        is_open = _is_open(kind)
        alike = [parts for each, parts in given if is_open or each == kind or _is_open(each)]
        # What holds other things, such as a pipe, holds what those hold.
        largest = max(parts for _kind, parts in given)
        outputs = sum(each == kind for each, _name in node_class.outputs) or 1
        if Trait.SWITCH in node_class.traits or len(alike) <= outputs:
            return largest
        return max(largest, min(sum(alike), math.ceil(len(alike) / outputs) * max(alike)))

    def _kind_of(self, link: Any) -> str:
        node = self._graph.get(link[0])
        outputs = self._classes.find(node["class_type"]).outputs if node is not None else []
        at = int(link[1]) if math.isfinite(link[1]) else len(outputs)
        return outputs[at][0] if -len(outputs) <= at < len(outputs) else "*"


def _is_open(kind: str) -> bool:
    return _OPEN.search(kind) is not None
