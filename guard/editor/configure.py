"""Give each node of a workflow the inputs and widgets of its class, with the values of the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard

from ..errors import MissingNodeError
from .promoted import configure_host, free_proxies
from .read import BYPASSED, MUTED, Graph, Node, Slot, Widget, Workflow, refuse
from .widgets import Body

#: The host's description of a node class, as `/object_info` has it; None where the host has no such class.
Describe = Callable[[str], Mapping[str, Any] | None]

#: Nodes that only the editor itself knows.
_NOTES = frozenset({"Note", "MarkdownNote"})
PRIMITIVE, REROUTE = "PrimitiveNode", "Reroute"
OF_THE_EDITOR = _NOTES | {PRIMITIVE, REROUTE}

#: Nodes that only a pack's own script knows, and that no server has. Their names start or end so.
_OF_PACKS = ("Fast Groups ", "Fast Bypasser", "Fast Muter", "Mute / Bypass ", "Node Collector", "Bookmark", "Label ",
             "Anything Everywhere", "Prompts Everywhere", "Seed Everywhere", "SetNode", "GetNode", "easy setNode",
             "easy getNode", "PrimitiveNode")  # fmt: skip
#: How deep subgraphs may be nested.
MAX_DEPTH = 50

_OF_GROUPS = ("workflow>", "workflow/")


def configure(workflow: Workflow, describe: Describe) -> None:
    """Configure all graphs, those first that others are made of.

    Raises InvalidWorkflowError, and MissingNodeError for nodes that are to run and whose class the host lacks.
    """
    missing: list[Node] = []
    for graph in _sort(workflow):
        for node in graph.nodes.values():
            if node.inner is not None:
                configure_host(node, node.inner)
            elif node.type in OF_THE_EDITOR:
                node.virtual = True
            elif (info := describe(node.type)) is not None:
                _configure_node(node, info)
            elif node.mode not in (MUTED, BYPASSED):
                _check_known(node)
                missing.append(node)
        for node in graph.nodes.values():
            if node.inner is not None:
                free_proxies(node, node.inner)
    if missing:
        raise _explain_missing(missing)
    for graph in workflow.graphs():
        for node in graph.nodes.values():
            if node.type == PRIMITIVE:
                _apply_primitive(node, graph)


def _sort(workflow: Workflow) -> Iterable[Graph]:
    """The graphs in use, each after those that its nodes stand for. Raises InvalidWorkflowError for a circle."""
    done: dict[str, Graph] = {}
    path: list[str] = []
    stack: list[tuple[Graph, bool]] = [(workflow.root, False)]
    while stack:
        graph, leaving = stack.pop()
        if leaving:
            path.pop()
            done[graph.id] = graph
        elif len(path) > MAX_DEPTH:
            raise refuse("too_deep", f"The workflow's subgraphs are nested more than {MAX_DEPTH} deep.")
        elif graph.id in path:
            names = [*path[path.index(graph.id) :], graph.id]
            raise refuse("circle", "The workflow's subgraphs hold each other in a circle.", subgraphs=names[:100])
        elif graph.id not in done:
            path.append(graph.id)
            stack.append((graph, True))
            inner = {node.type: node.inner for node in graph.nodes.values() if node.inner is not None}
            stack += [(each, False) for each in inner.values()]
    return done.values()


def _configure_node(node: Node, info: Mapping[str, Any]) -> None:
    drawn = frozenset(slot.widget for slot in node.inputs if slot.widget and slot.widget == slot.name)
    body = Body(node.type, info, drawn)
    if isinstance(node.values, dict):
        body.put_by_name(node.values)
    else:
        body.put(node.values)
    known = {slot.name: slot for slot in node.inputs}
    defined = {slot.name for slot in body.inputs}
    names = {widget.name for widget in body.widgets}
    for slot in body.inputs:
        given = known.get(slot.name)
        slot.link = given.link if given is not None else None
    combos = tuple(f"{widget.name}." for widget in body.widgets if widget.kind == "COMFY_DYNAMICCOMBO_V3")
    grown = tuple(f"{spec.name}." for spec in body.specs if spec.socket == "COMFY_AUTOGROW_V3")
    more = [
        slot
        for slot in node.inputs
        if slot.name not in defined
        and (slot.widget is None or slot.widget in names)
        and (not slot.name.startswith(combos) or _has_grown(slot.name, defined) or slot.name.startswith(grown))
    ]
    node.inputs, node.widgets = [*body.inputs, *more], body.widgets
    kinds = [kind if isinstance(kind, str) else "COMBO" for kind in info.get("output") or ()]
    for index, kind in enumerate(kinds):
        if index == len(node.outputs):
            node.outputs.append(Slot(""))
        node.outputs[index].kind = "*" if kind == "COMFY_MATCHTYPE_V3" else kind
    if not node.title:
        node.title = str(info.get("display_name") or node.type)


def _has_grown(name: str, defined: set[str]) -> bool:
    """Whether an input that the class did not begin with belongs to a list that grows within a choice."""
    group = name.rpartition(".")[0]
    return any(other.rpartition(".")[0] == group for other in defined) and name[-1].isdigit()


def _check_known(node: Node) -> None:
    """Raise InvalidWorkflowError for nodes that no server has."""
    if node.type.startswith(_OF_GROUPS):
        raise refuse(
            "group_node", "is a group node of an old editor; open and save it in a newer one, which makes a subgraph.",
            node,
        )  # fmt: skip
    if node.type.startswith(_OF_PACKS) or node.type.endswith("(rgthree)"):
        raise refuse(
            "frontend_only", "exists in the editor only: a script of its pack knows what it does, not the server.",
            node,
        )  # fmt: skip


def _explain_missing(missing: list[Node]) -> MissingNodeError:
    classes = sorted({node.type[:100] for node in missing})
    return MissingNodeError(
        f"This server lacks the node class {classes[0]!r}.",
        extra_info={
            "reason": "unknown_class",
            "node_id": missing[0].id[:100],
            "class_type": missing[0].type[:100],
            "classes": classes[:100],
        },
    )


def _apply_primitive(node: Node, graph: Graph) -> None:
    """Put a primitive's value into the widgets that it is connected to."""
    links = node.outputs[0].links if node.outputs else []
    targets = [graph.find_target(number) for number in links]
    fields = [_find_field(*found) if found is not None else None for found in targets]
    if not fields or fields[0] is None:
        return  # the editor makes a primitive's own field after the first of its links
    first = fields[0]
    value = node.values[0] if isinstance(node.values, list) and node.values else first.value
    if first.kind in ("INT", "FLOAT") and _is_number(value):
        low, high = _find_common_range(first, [field for field in fields if field is not None])
        value = _round(first, low if value < low else high if value > high else value, low, high)
    for field in fields:
        if field is not None:
            field.value = _round(field, value, *_find_range(field, 0, 2048))


def _find_field(node: Node, slot: Slot) -> Widget | None:
    """The widget that an input stands for."""
    if slot.promoted is not None:
        return slot.promoted
    return next((widget for widget in node.widgets if widget.name == slot.widget), None)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _find_common_range(first: Widget, fields: list[Widget]) -> tuple[float, float]:
    """What all fields of a primitive allow; those whose range is another altogether do not count."""
    low, high = _find_range(first, -math.inf, math.inf)
    for field in fields:
        if field.kind == first.kind:
            other_low, other_high = _find_range(field, -math.inf, math.inf)
            if max(low, other_low) <= min(high, other_high):
                low, high = max(low, other_low), min(high, other_high)
    return low, high


def _find_range(widget: Widget, lowest: float, highest: float) -> tuple[float, float]:
    low, high = widget.options.get("min"), widget.options.get("max")
    return low if _is_number(low) else lowest, high if _is_number(high) else highest


def _round(widget: Widget, value: Any, low: float, high: float) -> Any:
    """A number as the editor's own field rounds it when it is set there."""
    if not _is_number(value) or abs(value) > 2**53:
        return value
    step, unit = widget.options.get("step"), widget.options.get("round")
    if widget.kind == "INT":
        step = step if _is_number(step) and step else 1
        offset = math.fmod(low, step) if step != 1 and math.isfinite(low) else 0
        return math.floor((value - offset) / step + 0.5) * step + offset
    if widget.kind == "FLOAT":
        step = step if _is_number(step) and step > 0 else 0.5
        digits = max(0, -math.floor(math.log10(step)))
        if not unit and digits:
            unit = 10.0**-digits
        if _is_number(unit) and unit > 0:
            return min(max(round(math.floor(value / unit + 0.5) * unit, digits), low), high)
    return value
