"""Read a workflow's file into graphs: nodes, links, and the definitions of subgraphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import GuardError, InvalidWorkflowError

#: The editor's `mode` of nodes that do not run.
MUTED, BYPASSED = 2, 4

#: The ids that stand for a subgraph's own inputs and outputs in its links.
INPUT_NODE, OUTPUT_NODE = "-10", "-20"

#: What a conversion may cost in steps of a microsecond or so. The largest template of ComfyUI takes a hundred a node.
_STEPS, _STEPS_A_NODE = 100_000, 1000

#: The longest name that an answer repeats.
_SHOWN = 100


@dataclass(slots=True)
class Slot:
    """An input of a node, or an output.

    Attributes:
        link: the id of the link into an input.
        links: the ids of the links out of an output.
        widget: the name of the widget that the input stands for.
        promoted: of a subgraph's node: the widget inside that this input sets, with the value for this node.
    """

    name: str
    kind: str = "*"
    link: int | None = None
    links: list[int] = field(default_factory=list)
    widget: str | None = None
    promoted: Widget | None = None


@dataclass(slots=True)
class Widget:
    """What holds a value of a node.

    Attributes:
        kind: the type of the input that it stands for.
        stored: it has a place in the file's `widgets_values`.
        sent: its value goes into the prompt.
    """

    name: str
    kind: str
    value: Any
    options: Mapping[str, Any]
    stored: bool = True
    sent: bool = True


@dataclass(slots=True)
class Link:
    origin: str
    origin_slot: int
    target: str
    target_slot: int


@dataclass(slots=True)
class Node:
    """A node as the file has it; `widgets` come with its class, `inner` is set where it stands for a subgraph."""

    id: str
    type: str
    title: str
    mode: int
    inputs: list[Slot]
    outputs: list[Slot]
    values: list[Any] | dict[str, Any]
    properties: dict[str, Any]
    widgets: list[Widget] = field(default_factory=list)
    virtual: bool = False
    inner: Graph | None = None


class Budget:
    """What one conversion may cost, so that no file takes long, whatever is in it."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def take(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise refuse("too_large", "The workflow is too tangled: to follow its links takes too many steps.")


@dataclass(slots=True)
class Graph:
    """A graph, or the definition of a subgraph with its own inputs and outputs.

    `hosts` are the nodes that stand for it, as far as they are configured.
    """

    nodes: dict[str, Node]
    links: dict[int, Link]
    budget: Budget
    id: str = ""
    name: str = ""
    inputs: list[Slot] = field(default_factory=list)
    outputs: list[Slot] = field(default_factory=list)
    hosts: list[Node] = field(default_factory=list)
    last_made: int = 0

    def make_link(self, link: Link) -> int:
        """Add a link under an id that the file does not use."""
        self.last_made = min(self.last_made or min(self.links, default=0), 0) - 1
        self.links[self.last_made] = link
        return self.last_made

    def find_target(self, number: int) -> tuple[Node, Slot] | None:
        """The node and the input that a link leads to; None where it leads nowhere."""
        link = self.links.get(number)
        node = self.nodes.get(link.target) if link is not None else None
        if node is None:
            return None
        self.budget.take(len(node.inputs) + 1)
        slot = next((slot for slot in node.inputs if slot.link == number), None)
        return None if slot is None else (node, slot)


@dataclass(slots=True)
class Workflow:
    root: Graph
    subgraphs: dict[str, Graph]
    budget: Budget

    def graphs(self) -> Iterator[Graph]:
        yield self.root
        yield from self.subgraphs.values()


def refuse(reason: str, message: str, node: Node | None = None, **facts: Any) -> GuardError:
    """The refusal of a file: `reason` is for programs, and the node is named where it is one's fault."""
    extra: dict[str, Any] = {"reason": reason}
    if node is not None:
        message = f"Node {node.id[:_SHOWN]} ({node.type[:_SHOWN]}) {message}"
        extra |= {"node_id": node.id[:_SHOWN], "class_type": node.type[:_SHOWN]}
    return InvalidWorkflowError(
        message, details="The workflow, in the editor's own format, cannot be converted.", extra_info=extra | facts
    )


def is_workflow(value: object) -> bool:
    """Whether a JSON value is a workflow in the editor's format, and no prompt."""
    return isinstance(value, dict) and isinstance(value.get("nodes"), list) and "class_type" not in value


def read(file: Mapping[str, Any], max_nodes: int) -> Workflow:
    """Read the file. Raises InvalidWorkflowError; `max_nodes` counts the nodes of all definitions together."""
    definitions = _list_definitions(file)
    written = sum(len(_list(each, "nodes")) for each in (file, *definitions))
    if written > max_nodes:
        raise refuse("too_large", f"The workflow has {written} nodes; {max_nodes} are allowed.", max_nodes=max_nodes)
    budget = Budget(_STEPS + _STEPS_A_NODE * written)
    root = _read_graph(file, budget)
    subgraphs: dict[str, Graph] = {}
    for each in definitions:
        graph = _read_graph(each, budget)
        graph.id, graph.name = _text(each, "id"), _text(each, "name")
        if not graph.id or graph.id in subgraphs:
            raise refuse("malformed", f"The subgraph {graph.name[:_SHOWN]!r} has no id of its own.")
        graph.inputs, graph.outputs = (
            [_read_slot(slot, "linkIds") for slot in _list(each, side)] for side in ("inputs", "outputs")
        )
        subgraphs[graph.id] = graph
    workflow = Workflow(root, subgraphs, budget)
    _make_ids_unique(workflow, file)
    for graph in workflow.graphs():
        for node in graph.nodes.values():
            node.inner = subgraphs.get(node.type)
            node.virtual = node.inner is not None
    return workflow


def _list_definitions(file: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The definitions of the subgraphs, with those that stand inside others."""
    found: list[Mapping[str, Any]] = []
    holders = [file]
    while holders:
        definitions = holders.pop().get("definitions") or {}
        if not isinstance(definitions, dict):
            raise refuse("malformed", "definitions must be an object.")
        holders += (inner := _list(definitions, "subgraphs"))
        found += inner
    return found


def _read_graph(file: Mapping[str, Any], budget: Budget) -> Graph:
    nodes: dict[str, Node] = {}
    for each in _list(file, "nodes"):
        node = _read_node(each)
        if node.id in nodes:
            raise refuse("malformed", "shares its id with another node.", node)
        nodes[node.id] = node
    links: dict[int, Link] = {}
    for item in _list_of_any(file, "links"):
        if item is not None:
            number, link = _read_link(item)
            links[number] = link
    return Graph(nodes, links, budget)


def _read_node(file: Mapping[str, Any]) -> Node:
    node_id, kind = _id(file.get("id")), file.get("type")
    if node_id is None or not isinstance(kind, str) or not kind:
        raise refuse("malformed", f"A node has no usable id or type: {str(file.get('id'))[:_SHOWN]}.")
    mode, values, properties = file.get("mode") or 0, file.get("widgets_values"), file.get("properties")
    node = Node(node_id, kind, _text(file, "title"), 0, [], [], [], {})
    if isinstance(mode, bool) or not isinstance(mode, int):
        raise refuse("malformed", "has a mode that is no number.", node)
    if not isinstance(values, (list, dict, type(None))):
        raise refuse("malformed", "has widgets_values that are no list.", node)
    if not isinstance(properties, (dict, list, type(None))):
        raise refuse("malformed", "has properties that are no object.", node)
    node.mode, node.values = mode, [] if values is None else values
    node.properties = properties if isinstance(properties, dict) else {}
    node.inputs = [_read_slot(slot, "links") for slot in _list(file, "inputs")]
    node.outputs = [_read_slot(slot, "links") for slot in _list(file, "outputs")]
    return node


def _read_slot(file: Mapping[str, Any], links: str) -> Slot:
    kind, widget = file.get("type"), file.get("widget")
    named = widget.get("name") if isinstance(widget, dict) else None
    return Slot(
        _text(file, "name"),
        kind if isinstance(kind, str) else "COMBO" if isinstance(kind, list) else "*",
        _number(file.get("link")),
        [number for each in _list_of_any(file, links) if (number := _number(each)) is not None],
        named if isinstance(named, str) else None,
    )


def _read_link(item: object) -> tuple[int, Link]:
    """A link as a list `[id, origin, slot, target, slot, type]`, or as an object."""
    if isinstance(item, dict):
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
        given = [item.get(name) for name in names]
    elif isinstance(item, list) and len(item) >= 5:
        given = item[:5]
    else:
        raise refuse("malformed", "A link is neither a list of five or more nor an object.")
    number, origin, target = _number(given[0]), _id(given[1]), _id(given[3])
    origin_slot, target_slot = _number(given[2]), _number(given[4])
    if number is None or origin is None or target is None or origin_slot is None:
        raise refuse("malformed", f"Link {str(given[0])[:_SHOWN]} does not say from where to where it goes.")
    return number, Link(origin, origin_slot, target, -1 if target_slot is None else target_slot)


def _list(file: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    items = _list_of_any(file, name)
    if not all(isinstance(each, dict) for each in items):
        raise refuse("malformed", f"{name} must be a list of objects.")
    return items


def _list_of_any(file: Mapping[str, Any], name: str) -> list[Any]:
    items = file.get(name)
    if items is not None and not isinstance(items, list):
        raise refuse("malformed", f"{name} must be a list.")
    return items or []


def _text(file: Mapping[str, Any], name: str) -> str:
    value = file.get(name)
    return value if isinstance(value, str) else ""


def _number(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _id(value: object) -> str | None:
    if isinstance(value, str):
        return value or None
    number = _number(value)
    return None if number is None else str(number)


def _make_ids_unique(workflow: Workflow, file: Mapping[str, Any]) -> None:
    """Give nodes of subgraphs whose ids are taken the next free ones, as the editor does when it opens the file."""
    used = {node_id for node_id in workflow.root.nodes if _is_number(node_id)}
    state = file.get("state")
    last = _number(file.get("last_node_id")) or 0
    if isinstance(state, dict):
        last = max(last, _number(state.get("lastNodeId")) or 0)
    renamed: dict[str, dict[str, str]] = {}
    for graph in workflow.subgraphs.values():
        new: dict[str, str] = {}
        for node in graph.nodes.values():
            if node.id in used:
                last += 1
                while str(last) in used:
                    last += 1
                new[node.id] = node.id = str(last)
            elif _is_number(node.id):
                last = max(last, int(node.id))
            used.add(node.id)
        if not new:
            continue
        renamed[graph.id] = new
        graph.nodes = {node.id: node for node in graph.nodes.values()}
        for link in graph.links.values():
            link.origin, link.target = new.get(link.origin, link.origin), new.get(link.target, link.target)
    for graph in workflow.graphs():
        for node in graph.nodes.values():
            entries = node.properties.get("proxyWidgets")
            if node.type in renamed and isinstance(entries, list):
                new = renamed[node.type]
                node.properties["proxyWidgets"] = [
                    [new.get(str(entry[0]), entry[0]), *entry[1:]] if isinstance(entry, list) and entry else entry
                    for entry in entries
                ]


def _is_number(node_id: str) -> bool:
    return node_id.isascii() and node_id.isdigit() and str(int(node_id[:20])) == node_id
