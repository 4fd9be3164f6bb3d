"""Read prompts as graphs: their nodes' declarations, links and circles, and the shape that tells how long one runs."""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard


class Names(enum.Enum):
    """What the text in a node's input names."""

    FILE = enum.auto()  # a file or folder in one of the host's folders, by default input
    PATH = enum.auto()  # any path of the machine


@dataclass(frozen=True, slots=True)
class Declared:
    """A node class as it declares itself: inputs by name with their types, outputs with type and name. An input that
    offers a choice of texts is a `COMBO`. Empty: nobody knows the class, or it does not say.

    Attributes:
        takes_lists: it gets each list whole; other nodes run once for each item.
        lists: the outputs that give lists, by place.
        lazy: the inputs that are made only if the node asks for them.
        parts: of an input whose value decides which others there are, their names by that value; by "" those that there
            are whatever it is.
        hidden: inputs that it gets though nobody sees them.
        takes_more: it gets whatever a prompt gives it, or nobody knows all that it takes.
        most: the largest number that its widget has, of each that says so. The host holds only constants to that.
        opens_with: what its code gives a file to first: `libav`, which must then take a picture, too; `opencv`, which
            reads fewer films; `ffmpeg`, the program; `pillow`; "".
    """

    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[tuple[str, str], ...] = ()
    takes_lists: bool = False
    lists: frozenset[int] = frozenset()
    lazy: frozenset[str] = frozenset()
    parts: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    takes_more: bool = False
    opens_with: str = ""
    most: Mapping[str, float] = field(default_factory=dict)


def list_parts(sections: Mapping[str, Any], before: str = "") -> dict[str, dict[str, frozenset[str]]]:
    """:attr:`Declared.parts` of a declaration as `/object_info` gives it, after comfy_api/latest/_io.py.

    Raises KeyError, TypeError and AttributeError for one that is not as ComfyUI makes it.
    """
    parts: dict[str, dict[str, frozenset[str]]] = {}
    for section in ("required", "optional"):
        for name, info in (sections.get(section) or {}).items():
            full, kind = f"{before}{name}", info[0]
            if kind == "COMFY_AUTOGROW_V3":
                template = info[1]["template"]
                names = template.get("names") or [f"{template['prefix']}{at}" for at in range(template["max"])]
                parts[full] = {"": frozenset(f"{full}.{each}" for each in names)}
            elif kind == "COMFY_DYNAMICCOMBO_V3":
                for option in info[1]["options"]:
                    # One that is a member of an enumeration reads as its name.
                    _add_part(parts, full, "".join(option["key"]), option["inputs"])
            elif kind == "COMFY_DYNAMICSLOT_V3":
                _add_part(parts, full, "", info[1]["inputs"])
    return parts


def list_most(sections: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """:attr:`Declared.most` of a declaration; raises as `list_parts` does."""
    most: dict[str, float] = {}
    for section in ("required", "optional"):
        for name, info in (sections.get(section) or {}).items():
            full, kind = f"{before}{name}", info[0]
            options = info[1] if len(info) > 1 and isinstance(info[1], Mapping) else {}
            if kind in ("INT", "FLOAT") and isinstance(options.get("max"), (int, float)):
                most[full] = options["max"]
            elif kind == "COMFY_AUTOGROW_V3":
                template = options["template"]
                names = template.get("names") or [f"{template['prefix']}{at}" for at in range(template["max"])]
                inner = list_most(template["input"])
                most |= {f"{full}.{each}": number for each in names for number in inner.values()}
            elif kind == "COMFY_DYNAMICCOMBO_V3":
                for option in options["options"]:
                    for within, number in list_most(option["inputs"], f"{full}.").items():
                        most[within] = max(number, most.get(within, number))
    return most


def _add_part(parts: dict[str, dict[str, frozenset[str]]], full: str, value: str, sections: Mapping[str, Any]) -> None:
    names = {f"{full}.{name}" for section in ("required", "optional") for name in sections.get(section) or {}}
    known = parts.setdefault(full, {})
    known[value] = known.get(value, frozenset()) | names
    for within, options in list_parts(sections, f"{full}.").items():
        known = parts.setdefault(within, {})
        for option, more in options.items():
            known[option] = known.get(option, frozenset()) | more


def is_link(value: object) -> TypeGuard[list[Any]]:
    """Whether an input's value is `[node id, output index]`, by ComfyUI's own test (comfy_execution/graph_utils.py).

    So the index may be a float, or a boolean, and a tuple is no link.
    """
    if not isinstance(value, list) or len(value) != 2:
        return False
    return isinstance(value[0], str) and isinstance(value[1], (int, float))


def name_kind(value: object) -> str:
    """What a value of JSON is, for a sentence that says what it should be."""
    return {list: "a list", str: "a string", type(None): "null", bool: "a boolean"}.get(type(value), "a number")


def find_fault(graph: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first of :func:`list_faults`; None: all are sound."""
    return next(list_faults(graph), None)


def list_faults(graph: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(node id, what is wrong with it) of nodes whose shape the host cannot take."""
    for node_id, node in graph.items():
        if not isinstance(node, dict):
            yield node_id, f"must be an object, not {name_kind(node)}"
            continue
        if not isinstance(node.get("class_type"), str) or not node["class_type"]:
            yield node_id, "has no class_type"
        if not isinstance(node.get("_meta", {}), dict):
            yield node_id, "has a _meta that is no object"
        if not isinstance(node.get("inputs"), dict):
            yield node_id, "has no inputs (an empty object will do)"
            continue
        for name, value in node["inputs"].items():
            if is_link(value) and value[0] not in graph:
                yield node_id, f"takes {name[:100]} from node {value[0][:100]!r}, which the prompt does not have"


def find_circle(graph: Mapping[str, Any]) -> list[str] | None:
    """The ids of nodes that feed each other in a circle, the first one again at the end; None where there is none.

    Finds a circle that no output needs, too.
    """
    if _is_in_order(graph):
        return None
    done: set[str] = set()
    for start in graph:
        if start in done:
            continue
        path: list[str] = []
        on_path: set[str] = set()
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            node_id, leaving = stack.pop()
            if leaving:
                on_path.discard(path.pop())
                done.add(node_id)
            elif node_id in on_path:
                return [*path[path.index(node_id) :], node_id]
            elif node_id not in done:
                path.append(node_id)
                on_path.add(node_id)
                stack.append((node_id, True))
                stack += [(value[0], False) for value in graph[node_id]["inputs"].values() if is_link(value)]
    return None


def _is_in_order(graph: Mapping[str, Any]) -> bool:
    """Whether each node takes from those before it alone, as in what the editor sends: then there is no circle."""
    before: set[str] = set()
    for node_id, node in graph.items():
        for value in node["inputs"].values():
            if is_link(value) and value[0] not in before:
                return False
        before.add(node_id)
    return True


def list_in_order(graph: Mapping[str, Any]) -> Iterator[str]:
    """Each node after those that it takes from. Nodes in a circle never come; ComfyUI cannot run them either."""
    needs: dict[str, int] = {}
    feeds: dict[str, list[str]] = {}
    ready: list[str] = []
    for node_id, node in graph.items():
        count = 0
        for value in node["inputs"].values():
            if is_link(value) and value[0] in graph:
                count += 1
                feeds.setdefault(value[0], []).append(node_id)
        needs[node_id] = count
        if not count:
            ready.append(node_id)
    while ready:
        node_id = ready.pop()
        yield node_id
        for fed in feeds.get(node_id, ()):
            needs[fed] -= 1
            if not needs[fed]:
                ready.append(fed)


def find_upstream(graph: Mapping[str, Any], outputs: Iterable[str]) -> set[str]:
    """The ids of the nodes that `outputs` need, and their own."""
    alive: set[str] = set()
    waiting = [node_id for node_id in outputs if node_id in graph]
    while waiting:
        node_id = waiting.pop()
        if node_id not in alive:
            alive.add(node_id)
            links = [value for value in graph[node_id]["inputs"].values() if is_link(value)]
            waiting += [link[0] for link in links if link[0] in graph]
    return alive


def measure_chain(graph: Mapping[str, Any]) -> int:
    """The most nodes that follow each other, each fed by the one before. The graph has no circle."""
    needs = dict.fromkeys(graph, 0)
    feeds: dict[str, list[str]] = {node_id: [] for node_id in graph}
    for node_id, node in graph.items():
        for value in node["inputs"].values():
            if is_link(value) and value[0] in feeds:
                needs[node_id] += 1
                feeds[value[0]].append(node_id)
    level, length = [node_id for node_id, count in needs.items() if not count], 0
    while level:
        length += 1
        following: list[str] = []
        for node_id in level:
            for fed in feeds[node_id]:
                needs[fed] -= 1
                if not needs[fed]:
                    following.append(fed)
        level = following
    return length


def shape(prompt: Mapping[str, Any]) -> str:
    """A short name that prompts of the same node classes share, whatever their values."""
    classes = "\n".join(sorted(node["class_type"] for node in prompt.values()))
    return f"{zlib.crc32(classes.encode('utf-8', 'replace')):08x}"


def find_workflow_id(body: Mapping[str, Any]) -> str | None:
    """The id of the editor's workflow that rides along with a request; None where there is none."""
    found: Any = body
    for key in ("extra_data", "extra_pnginfo", "workflow", "id"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else None
