"""Widgets of nodes inside a subgraph that the subgraph's own node shows and sets.

Each is an input of the subgraph that leads to a widget inside. Files of before 1.46 name the widgets instead
(`proxyWidgets`): the editor makes inputs of them when it opens the file, and so does `free_proxies`.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from .read import INPUT_NODE, Graph, Link, Node, Slot, Widget

_PREFIX = re.compile(r"\s*(\d+)\s*:\s*(.+)", re.DOTALL)


def configure_host(node: Node, graph: Graph) -> None:
    """Give a subgraph's node the inputs of the subgraph, with the values that the file has for their widgets."""
    graph.budget.take(len(graph.inputs) + 1)
    graph.hosts.append(node)
    given = {slot.name: slot for slot in node.inputs}
    node.inputs = []
    for port in graph.inputs:
        slot = Slot(port.name, port.kind)
        if port.name in given:
            slot.link = given[port.name].link
        node.inputs.append(slot)
        _promote(slot, port, graph)
    outputs = node.outputs
    node.outputs = [Slot(port.name, port.kind) for port in graph.outputs]
    for slot, old in zip(node.outputs, outputs, strict=False):
        slot.links = old.links
    values = node.values if isinstance(node.values, list) else []
    quarantined = _read_quarantine(node)
    shown = [slot for slot in node.inputs if slot.promoted is not None]
    for slot, value in zip(shown, values, strict=False):
        _set(slot, value)
    for slot in shown:
        if slot.name in quarantined:
            _set(slot, quarantined[slot.name])


def free_proxies(node: Node, graph: Graph) -> None:
    """Make inputs of the widgets that the file names, and give them this node's values."""
    entries = node.properties.get("proxyWidgets")
    if isinstance(entries, str):
        try:
            entries = json.loads(entries)
        except (ValueError, RecursionError):
            return
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        return
    values = node.values if isinstance(node.values, list) else []
    primitives: dict[str, list[Any]] = {}
    late: list[tuple[str, Any]] = []
    for index, entry in enumerate(entries):
        has_value = index < len(values) and values[index] is not None
        value = values[index] if has_value else None
        inner_id, name = entry[0], _find_name(graph, entry[0], entry[1])
        slot = _find_shown(node, graph, inner_id, name)
        inner = graph.nodes.get(inner_id)
        if slot is not None:
            if has_value:
                _set(slot, value)
        elif inner is None:
            if inner_id == "-1" and has_value:
                late.append((entry[1], value))
        elif inner.type == "PrimitiveNode":
            primitives.setdefault(inner_id, []).append((name, has_value, value))
        elif not name.startswith("$$"):
            made = _make_input(node, graph, inner, name)
            if made is not None and has_value:
                _set(made, value)
    for inner_id, cohort in primitives.items():
        _free_primitive(node, graph, graph.nodes[inner_id], cohort)
    for name, value in late:
        for slot in node.inputs:
            if slot.name == name:
                _set(slot, value)
                break


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) in (2, 3) and all(isinstance(part, str) for part in entry)


def _read_quarantine(node: Node) -> dict[str, Any]:
    """Values that an editor could place nowhere when it made inputs of the names, and kept."""
    entries = node.properties.get("proxyWidgetErrorQuarantine")
    found: dict[str, Any] = {}
    for entry in reversed(entries) if isinstance(entries, list) else ():
        origin = entry.get("originalEntry") if isinstance(entry, dict) else None
        if origin is not None and _is_entry(origin) and origin[0] == "-1" and entry.get("hostValue") is not None:
            found[origin[1]] = entry["hostValue"]
    return found


def _set(slot: Slot, value: Any) -> None:
    if slot.promoted is not None:
        slot.promoted.value = value


def _promote(slot: Slot, port: Slot, graph: Graph) -> None:
    """Let the input show the first widget inside that it leads to."""
    slot.promoted = slot.widget = None
    for number in port.links:
        if (found := graph.find_target(number)) is None:
            continue
        inner, target = found
        widget = target.promoted or _find_widget(inner, target.widget)
        if widget is not None:
            slot.promoted, slot.widget = replace(widget, name=slot.name), slot.name
            return


def _find_widget(node: Node, name: str | None) -> Widget | None:
    return next((widget for widget in node.widgets if widget.name == name), None) if name is not None else None


def _find_name(graph: Graph, inner_id: str, name: str) -> str:
    """The widget's name without the ids that old files put before it, where it is none with them."""
    inner = graph.nodes.get(inner_id)
    known = inner is not None and (
        _find_widget(inner, name) is not None or any(slot.name == name and slot.promoted for slot in inner.inputs)
    )
    while not known and (match := _PREFIX.fullmatch(name)) is not None:
        name = match[2]
    return name


def _find_shown(node: Node, graph: Graph, inner_id: str, name: str) -> Slot | None:
    """The input that shows this widget already."""
    for slot, port in zip(node.inputs, graph.inputs, strict=True):
        graph.budget.take(1)
        for number in port.links:
            if (found := graph.find_target(number)) is None:
                continue
            inner, target = found
            if inner.inner is None and _find_widget(inner, target.widget) is None:
                continue
            shown = target.name if inner.inner is not None else target.widget
            if inner.id == inner_id and shown == name:
                return slot
            break
    return None


def _make_input(node: Node, graph: Graph, inner: Node, name: str) -> Slot | None:
    """A new input of the subgraph that leads to a widget inside, and with it one of each of its nodes."""
    if inner.inner is not None:
        target = next((slot for slot in inner.inputs if slot.promoted and slot.name == name), None)
        target = target or next((slot for slot in inner.inputs if slot.promoted and _leads_to(inner, slot, name)), None)
    elif _find_widget(inner, name) is not None:
        target = next((slot for slot in inner.inputs if slot.widget == name), None)
    else:
        target = None
    return None if target is None else _connect(node, graph, name, [(inner, target)])


def _leads_to(node: Node, slot: Slot, name: str) -> bool:
    graph = node.inner
    if graph is None:
        return False
    port = graph.inputs[node.inputs.index(slot)]
    found = (graph.find_target(number) for number in port.links)
    return any(each is not None and name in (each[1].name, each[1].widget) for each in found)


def _connect(node: Node, graph: Graph, name: str, targets: list[tuple[Node, Slot]]) -> Slot:
    """A new input of the subgraph that leads to these, and of every node that stands for it; that of `node`."""
    taken = {port.name for port in graph.inputs}
    unique, count = name, 1
    while unique in taken:
        unique, count = f"{name}_{count}", count + 1
    port = Slot(unique, targets[0][1].kind)
    graph.inputs.append(port)
    graph.budget.take(len(taken) + count)
    for inner, target in targets:
        target.link = graph.make_link(Link(INPUT_NODE, len(graph.inputs) - 1, inner.id, -1))
        port.links.append(target.link)
    for host in graph.hosts:
        slot = Slot(unique, port.kind)
        host.inputs.append(slot)
        _promote(slot, port, graph)
    return node.inputs[-1]


def _free_primitive(node: Node, graph: Graph, primitive: Node, cohort: list[Any]) -> None:
    """Let a new input lead to what a primitive inside set, in its place."""
    links = primitive.outputs[0].links if primitive.outputs else []
    targets = [found for number in links if (found := graph.find_target(number)) is not None]
    if not targets or len({name for name, _has, _value in cohort}) != 1:
        return
    title = primitive.title
    name = title if title and title != "PrimitiveNode" else cohort[0][0]
    primitive.outputs[0].links = []
    made = _connect(node, graph, name, targets)
    given = next((value for _name, has_value, value in cohort if has_value), None)
    if given is None and primitive.values and isinstance(primitive.values, list):
        given = primitive.values[0]
    if given is not None:
        _set(made, given)
