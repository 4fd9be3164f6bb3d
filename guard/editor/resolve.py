"""Follow a workflow's links through subgraphs, reroutes and bypassed nodes, and write the prompt."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .configure import Describe, configure
from .read import BYPASSED, INPUT_NODE, MUTED, Graph, Node, Slot, Widget, Workflow, read, refuse
from .texts import SAVERS, choose, replace
from .widgets import find_index


@dataclass(slots=True, eq=False)
class _Instance:
    """A graph where it stands: the root, or a subgraph in the place of one node. `path` ends with a colon."""

    graph: Graph
    path: str = ""
    host: Node | None = None
    outer: _Instance | None = None
    children: dict[str, _Instance] = field(default_factory=dict)


#: Where a link ends: at an output of a node that runs, or at a value that a subgraph's node holds; or nowhere.
_End = tuple[str, int] | Widget | None

#: A place on the way there: an input of a node (True) or an output, with the type that is looked for.
_Place = tuple[_Instance, Node, bool, int, "str | None"]


def convert(file: Mapping[str, Any], describe: Describe, max_nodes: int, now: datetime | None = None) -> dict[str, Any]:
    """The prompt that the editor would send for this workflow.

    Any thread but the event loop's: it takes as long as the file is large. `describe` is asked once for each class.

    Raises:
        InvalidWorkflowError: what is wrong; `extra_info` has `reason`, and `node_id` and `class_type` of the node.
        MissingNodeError: the host lacks the class of a node that is to run.
    """
    known: dict[str, Mapping[str, Any] | None] = {}

    def ask(class_type: str) -> Mapping[str, Any] | None:
        if class_type not in known:
            known[class_type] = describe(class_type)
        return known[class_type]

    workflow = read(file, max_nodes)
    configure(workflow, ask)
    return _Writer(workflow, max_nodes, now or datetime.now().astimezone()).write()


class _Writer:
    def __init__(self, workflow: Workflow, max_nodes: int, now: datetime) -> None:
        self._workflow = workflow
        self._max_nodes = max_nodes
        self._now = now
        self._pick = random.SystemRandom()
        self._ends: dict[tuple[int, str, bool, int, str | None], _End] = {}
        self._count = 0

    def write(self) -> dict[str, Any]:
        prompt: dict[str, Any] = {}
        for instance in self._expand():
            for node in instance.graph.nodes.values():
                if node.virtual or node.mode in (MUTED, BYPASSED):
                    continue
                node_id = instance.path + node.id
                if node_id in prompt:
                    raise refuse("malformed", "gets an id that another node has.", node)
                inputs = {widget.name: self._send(node, widget) for widget in node.widgets if widget.sent}
                for index, slot in enumerate(node.inputs):
                    if slot.link is None:
                        continue
                    end = self._resolve(instance, node, index)
                    if isinstance(end, Widget):
                        inputs[slot.name] = _wrap(end, _fill(end))
                    elif end is not None:
                        inputs[slot.name] = list(end)
                prompt[node_id] = {"inputs": inputs, "class_type": node.type, "_meta": {"title": node.title}}
        for node in prompt.values():
            ends = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
            for name, value in ends.items():
                if value[0] not in prompt:
                    del node["inputs"][name]
        if not prompt:
            raise refuse("empty", "The workflow has no node that would run.")
        return prompt

    def _expand(self) -> list[_Instance]:
        """The root, and each subgraph where it stands."""
        found = [_Instance(self._workflow.root)]
        for instance in found:  # it grows meanwhile
            self._count += len(instance.graph.nodes)
            if self._count > self._max_nodes:
                raise refuse(
                    "too_large",
                    f"With its subgraphs the workflow has more than {self._max_nodes} nodes.",
                    max_nodes=self._max_nodes,
                )
            for node in instance.graph.nodes.values():
                # As in the editor: of a muted node inside a subgraph, the nodes inside run all the same.
                if node.inner is not None and (instance.outer is not None or node.mode not in (MUTED, BYPASSED)):
                    child = _Instance(node.inner, f"{instance.path}{node.id}:", node, instance)
                    instance.children[node.id] = child
                    found.append(child)
        return found

    def _send(self, node: Node, widget: Widget) -> Any:
        value = _fill(widget)
        if widget.kind == "INDEX":
            return find_index(node.widgets)
        if isinstance(value, str):
            if widget.options.get("dynamicPrompts") is True:
                value = choose(value, self._pick)
            elif widget.name == "filename_prefix" and node.type in SAVERS:
                value = replace(value, self._find_value, self._now)
        return _wrap(widget, value)

    def _find_value(self, name: str, widget_name: str) -> Any:
        """The value of a widget, by the name that its node goes by in file names."""
        nodes = [node for graph in self._workflow.graphs() for node in graph.nodes.values()]
        self._workflow.budget.take(len(nodes))
        found = next(
            (node for node in nodes if node.properties.get("Node name for S&R", node.type) == name),
            None,
        ) or next((node for node in nodes if node.title == name), None)
        if found is None:
            raise KeyError(name)
        return next(_fill(widget) for widget in found.widgets if widget.name == widget_name)

    def _resolve(self, instance: _Instance, node: Node, index: int) -> _End:
        """Where the link into an input comes from in the end."""
        place: _Place | None = (instance, node, True, index, None)
        passed: dict[tuple[int, str, bool, int, str | None], None] = {}
        end: _End = None
        while place is not None:
            where = (id(place[0]), place[1].id, *place[2:])
            if where in self._ends:
                end = self._ends[where]
                break
            if where in passed:
                raise refuse("circle", "is in a circle of links.", place[1])
            passed[where] = None
            self._workflow.budget.take(len(place[1].inputs) + 1)
            end, place = self._follow_input(place) if place[2] else self._follow_output(place)
        self._ends.update(dict.fromkeys(passed, end))
        return end

    def _follow_input(self, place: _Place) -> tuple[_End, _Place | None]:
        instance, node, _is_input, index, kind = place
        if index >= len(node.inputs):
            return None, None
        slot = node.inputs[index]
        if slot.link is None:
            return slot.promoted if instance.graph is not None and node.inner is not None else None, None
        link = instance.graph.links.get(slot.link)
        if link is None:
            raise refuse("link", f"has a link into {slot.name[:100]!r} that the workflow does not have.", node)
        if link.origin == INPUT_NODE and instance.outer is not None and instance.host is not None:
            if not 0 <= link.origin_slot < len(instance.host.inputs):
                raise refuse("link", f"takes {slot.name[:100]!r} from an input that its subgraph lacks.", node)
            return None, (instance.outer, instance.host, True, link.origin_slot, None)
        origin = instance.graph.nodes.get(link.origin)
        if origin is None:
            raise refuse("link", f"takes {slot.name[:100]!r} from a node that the workflow does not have.", node)
        return None, (instance, origin, False, link.origin_slot, kind or slot.kind)

    def _follow_output(self, place: _Place) -> tuple[_End, _Place | None]:
        instance, node, _is_input, index, kind = place
        if node.mode == MUTED:
            return None, None
        if node.mode == BYPASSED:
            matching = _find_bypass(node, index, kind or "*")
            return None, None if matching is None else (instance, node, True, matching, None)
        if node.inner is not None:
            return self._enter(instance, node, index, kind)
        if node.virtual:
            return None, (instance, node, True, index, kind) if 0 <= index < len(node.inputs) else None
        return (instance.path + node.id, index), None

    def _enter(self, instance: _Instance, node: Node, index: int, kind: str | None) -> tuple[_End, _Place | None]:
        """Go into a subgraph, to what feeds one of its outputs."""
        child = instance.children[node.id]
        if not 0 <= index < len(child.graph.outputs):
            raise refuse("link", "has no such output.", node)
        links = child.graph.outputs[index].links
        link = next((child.graph.links[number] for number in links if number in child.graph.links), None)
        if link is None:
            return None, None
        if link.origin == INPUT_NODE:  # from an input straight to an output
            return None, (instance, node, True, link.origin_slot, kind)
        origin = child.graph.nodes.get(link.origin)
        if origin is None:
            raise refuse("link", "has an output that comes from no node.", node)
        return None, (child, origin, False, link.origin_slot, kind)


def _fill(widget: Widget) -> Any:
    """A widget's value; the first choice where a list of choices has none."""
    choices = widget.options.get("options")
    if widget.value is None and widget.kind == "COMBO" and isinstance(choices, list) and choices:
        return choices[0]
    return widget.value


def _wrap(widget: Widget, value: Any) -> Any:
    """A list, so that it is not taken for a link."""
    if not isinstance(value, list):
        return value
    return {"__type__": "CURVE", "__value__": value} if widget.kind == "CURVE" else {"__value__": value}


def _find_bypass(node: Node, index: int, kind: str) -> int | None:
    """The input that takes the place of a bypassed node's output."""
    inputs = node.inputs
    output = node.outputs[index].kind if 0 <= index < len(node.outputs) else "*"
    if kind in ("*", ""):
        return index if index < len(inputs) else 0 if inputs else None

    def fits(slot: Slot) -> bool:
        return _match(slot.kind, output) and _match(slot.kind, kind)

    if 0 <= index < len(inputs) and fits(inputs[index]):
        return index
    exact = next((at for at, slot in enumerate(inputs) if slot.kind == kind), None)
    return exact if exact is not None else next((at for at, slot in enumerate(inputs) if fits(slot)), None)


def _match(one: str, other: str) -> bool:
    """Whether the editor lets these types be connected."""
    if one in ("", "*") or other in ("", "*") or one == other:
        return True
    ones, others = (set(kind.lower().split(",")) for kind in (one, other))
    return bool(ones & others) or bool({"", "*"} & (ones | others))
