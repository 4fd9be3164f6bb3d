"""Workflows in the editor's own format, made by chance of the node classes that a server has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from comfyui_guarded.guard.editor.read import Widget
from comfyui_guarded.guard.editor.widgets import Body

#: These have widgets whose value the page makes anew each time.
_LIVE = frozenset({"Load3D", "Load3DAnimation", "Load3DAdvanced", "WebcamCapture", "RecordAudio", "Painter"})
_TEXTS = st.text("ab Zя/%.-_\n\"'", max_size=12)


class Known(dict[str, Any]):
    """What the server says of its classes; `usable` are those that graphs are made of."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        super().__init__(info)
        self.usable = sorted(name for name, one in info.items() if name not in _LIVE and "'remote'" not in str(one))

    def __repr__(self) -> str:
        return f"{len(self)} classes"  # hypothesis would write them all


@st.composite
def workflows(draw: st.DrawFn, info: Known) -> dict[str, Any]:
    """A few nodes with values and links between them; some in subgraphs that show some of their widgets."""
    counter = _Counter()
    definitions = []
    for at in range(draw(st.integers(0, 2))):
        graph = draw(_graphs(info, counter, list(definitions)))
        definitions.append(draw(_closed(f"00000000-0000-4000-8000-00000000000{at}", graph, counter)))
    root = draw(_graphs(info, counter, definitions))
    root["links"] = [[*link.values()] for link in root["links"]]
    state = {"last_node_id": counter.node, "last_link_id": counter.link, "version": 0.4}
    return {**root, **state, "definitions": {"subgraphs": definitions}, "groups": [], "config": {}, "extra": {}}


class _Counter:
    def __init__(self) -> None:
        self.node = self.link = 0

    def next_node(self) -> int:
        self.node += 1
        return self.node

    def next_link(self) -> int:
        self.link += 1
        return self.link


@st.composite
def _graphs(draw: st.DrawFn, info: Known, counter: _Counter, definitions: list[dict[str, Any]]) -> dict[str, Any]:
    nodes: list[dict[str, Any]] = []
    links: list[dict[str, Any]] = []
    sources: list[tuple[dict[str, Any], int, str]] = []

    def connect(source: tuple[dict[str, Any], int, str], target: dict[str, Any], slot: int) -> None:
        number = counter.next_link()
        origin, at, kind = source
        origin["outputs"][at]["links"].append(number)
        target["inputs"][slot]["link"] = number
        links.append(
            {"id": number, "origin_id": origin["id"], "origin_slot": at, "target_id": target["id"], "target_slot": slot,
             "type": kind}
        )  # fmt: skip

    for _ in range(draw(st.integers(1, 6))):
        choice = draw(st.integers(0, 9))
        if choice == 0 and sources:
            node = _make(counter, "Reroute", [{"name": "", "type": "*", "link": None}], ["*"])
            source = draw(st.sampled_from(sources))
            connect(source, node, 0)
            sources.append((node, 0, source[2]))
        elif choice == 1 and definitions:
            definition = draw(st.sampled_from(definitions))
            inputs = [
                {"name": one["name"], "type": one["type"], "link": None}
                | ({"widget": {"name": one["name"]}} if one["shown"] else {})
                for one in definition["inputs"]
            ]
            node = _make(counter, definition["id"], inputs, [one["type"] for one in definition["outputs"]])
            shown = [one["widget"] for one in definition["inputs"] if one["shown"]]
            node["widgets_values"] = [draw(_values(widget)) for widget in shown[: draw(st.integers(0, len(shown)))]]
        else:
            node = draw(_of_a_class(info, counter))
        for slot, wanted in enumerate(node["inputs"]):
            fitting = [source for source in sources if wanted["link"] is None and source[2] == wanted["type"]]
            if fitting and draw(st.integers(0, 2)):
                connect(draw(st.sampled_from(fitting)), node, slot)
        nodes.append(node)
        if node["type"] != "Reroute":
            sources += [(node, at, one["type"]) for at, one in enumerate(node["outputs"])]
    for target in [one for one in nodes if one["type"] in info]:
        free = [at for at, slot in enumerate(target["inputs"]) if "widget" in slot and slot["link"] is None]
        if free and draw(st.integers(0, 5)) == 0:
            slot = draw(st.sampled_from(free))
            kind = target["inputs"][slot]["type"]
            primitive = _make(counter, "PrimitiveNode", [], [kind])
            primitive["outputs"][0]["widget"] = dict(target["inputs"][slot]["widget"])
            widget = next(one for one in _body(info, target).widgets if one.name == target["inputs"][slot]["name"])
            if widget.kind in ("INT", "FLOAT", "BOOLEAN", "STRING") and widget.kind == kind:
                primitive["widgets_values"] = [draw(_values(widget)), "fixed"]
                connect((primitive, 0, kind), target, slot)
                nodes.append(primitive)
    return {"nodes": nodes, "links": links}


def _make(counter: _Counter, kind: str, inputs: list[dict[str, Any]], outputs: list[str]) -> dict[str, Any]:
    return {
        "id": counter.next_node(), "type": kind, "pos": [0, 0], "size": [200, 100], "flags": {}, "order": 0, "mode": 0,
        "inputs": inputs, "outputs": [{"name": one, "type": one, "links": []} for one in outputs], "properties": {},
    }  # fmt: skip


def _body(info: Known, node: dict[str, Any]) -> Body:
    body = Body(node["type"], info[node["type"]])
    body.put(node["widgets_values"])
    return body


@st.composite
def _of_a_class(draw: st.DrawFn, info: Known, counter: _Counter) -> dict[str, Any]:
    kind = draw(st.sampled_from(info.usable))
    body = Body(kind, info[kind])
    values: list[Any] = []
    at = 0
    while at < len(body.widgets):  # a value may bring more widgets
        widget = body.widgets[at]
        if widget.stored:
            values.append(draw(_values(widget)))
            body.set(widget, values[-1])
        at += 1
    values = values[: draw(st.integers(max(0, len(values) - 2), len(values)))]
    body = Body(kind, info[kind])
    body.put(values)
    inputs = [
        {"name": slot.name, "type": slot.kind, "link": None}
        | ({"widget": {"name": slot.widget}} if slot.widget else {})
        for slot in body.inputs
    ]
    outputs = [one if isinstance(one, str) else "COMBO" for one in info[kind].get("output") or ()]
    node = _make(counter, kind, inputs, ["*" if one == "COMFY_MATCHTYPE_V3" else one for one in outputs])
    node["widgets_values"] = values
    node["mode"] = draw(st.sampled_from([0, 0, 0, 0, 0, 2, 4]))
    if draw(st.booleans()):
        node["title"] = draw(st.text("abc ", min_size=1, max_size=5))
    return node


@st.composite
def _closed(draw: st.DrawFn, number: str, graph: dict[str, Any], counter: _Counter) -> dict[str, Any]:
    """The graph as a subgraph: some free inputs lead out of it, and some outputs."""
    inputs: list[dict[str, Any]] = []
    outputs: list[dict[str, Any]] = []
    for node in graph["nodes"]:
        if node["type"] in ("Reroute", "PrimitiveNode") or "-" in node["type"]:
            continue
        for slot, one in enumerate(node["inputs"]):
            if one["link"] is None and "." not in one["name"] and draw(st.integers(0, 3)) == 0:
                link = counter.next_link()
                one["link"] = link
                graph["links"].append(
                    {"id": link, "origin_id": -10, "origin_slot": len(inputs), "target_id": node["id"],
                     "target_slot": slot, "type": one["type"]}
                )  # fmt: skip
                shown = "widget" in one
                inputs.append(
                    {"id": f"{number[:-2]}{len(inputs):02}", "name": f"{one['name']}{len(inputs)}", "type": one["type"],
                     "linkIds": [link], "shown": shown, "widget": Widget(one["name"], one["type"], None, {})}
                )  # fmt: skip
        for at, one in enumerate(node["outputs"]):
            if draw(st.integers(0, 3)) == 0:
                link = counter.next_link()
                one["links"].append(link)
                graph["links"].append(
                    {"id": link, "origin_id": node["id"], "origin_slot": at, "target_id": -20,
                     "target_slot": len(outputs), "type": one["type"]}
                )  # fmt: skip
                outputs.append(
                    {"id": f"{number[:-3]}1{len(outputs):02}", "name": f"{one['type']}{len(outputs)}",
                     "type": one["type"], "linkIds": [link]}
                )  # fmt: skip
    return {
        **graph, "id": number, "name": "made", "version": 1, "revision": 0, "config": {}, "groups": [],
        "state": {"lastGroupId": 0, "lastNodeId": counter.node, "lastLinkId": counter.link, "lastRerouteId": 0},
        "inputNode": {"id": -10, "bounding": [0, 0, 10, 10]}, "outputNode": {"id": -20, "bounding": [0, 0, 10, 10]},
        "inputs": inputs, "outputs": outputs, "widgets": [],
    }  # fmt: skip


def _values(widget: Widget) -> st.SearchStrategy[Any]:
    """Values that the editor may have stored for such a widget."""
    options = widget.options.get("options")
    if widget.kind == "INT":
        return st.integers(-(2**53), 2**53)
    if widget.kind == "FLOAT":
        return st.integers(-(10**6), 10**6).map(lambda number: number / 1000)
    if widget.kind == "BOOLEAN":
        return st.booleans()
    if widget.kind == "COMFY_DYNAMICCOMBO_V3" and options:
        return st.sampled_from([one["key"] for one in options])
    if widget.kind == "COMBO":
        some = options[:50] if isinstance(options, list) else []
        return st.sampled_from([*some, "gone.safetensors"])
    if widget.kind == "CONTROL":
        return st.just("fixed") if widget.value is None else st.just(widget.value)
    if widget.kind in ("STRING", "MARKDOWN", "TEXTAREA", "OPTION"):
        return _TEXTS
    return st.just(widget.value)
