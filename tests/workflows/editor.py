"""A template's graph between the two formats: the API's, and the editor's own.

`api` reads the editor's format as the editor exports it; the tests hold both files of a template against each other
with it. Run as a program, this file draws the editor's file and the preview anew from the API graph:
`python tests/workflows/editor.py`.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import conftest  # noqa: F401  registers the alias package

from workflows import specs

ROOT = Path(__file__).parents[2]
#: API graphs and manifests; and what ComfyUI's template browser lists.
API, WORKFLOWS = ROOT / "workflows" / "api", ROOT / "example_workflows"

#: These keep their widgets' values by name.
_BY_NAME = "VHS_"
#: Loaders of pictures, whose choice is left to the editor: it takes the first picture that there is, where one that is
#: named here would be missing on every server.
_CHOSEN = {"LoadImage": "photo.png"}
_WIDGETS = ("image", "upload")
#: Loaders whose file may be uploaded have one widget more, the button.
_UPLOADS = {"LoadImage": "image", "GuardedLoadFaceImage": "image", "GuardedLoadSound": "image"}
_NODE, _GAP, _LINE = (300, 70), (80, 40), 24
_COLOURS = {"Guarded": (63, 120, 79), "Load": (70, 84, 128), "": (72, 72, 78)}


def api(workflow: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt that the editor would send for a workflow in its own format."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    return {str(node["id"]): _api_node(node, links, known) for node in workflow["nodes"]}


def _api_node(node: Mapping[str, Any], links: Mapping[int, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    given = {each["name"]: links[each["link"]] for each in node["inputs"] if each.get("link") is not None}
    if "widgets_values" not in node:
        return {
            "class_type": node["type"],
            "inputs": {"image": _CHOSEN[node["type"]]},
            "_meta": {"title": node["title"]},
        }
    values = node["widgets_values"]
    by_name = values if isinstance(values, dict) else dict(zip(_widgets(node["type"], known), values, strict=True))
    spec = known[node["type"]]["inputs"]
    inputs = {
        name: given[name] if name in given else by_name[name]
        for name in spec
        if name in given or (name in by_name and not specs.is_socket(spec[name]))
    }
    return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node["title"]}}


def _widgets(class_type: str, known: Mapping[str, Any]) -> list[str]:
    """The names of a node's widgets in the editor's order; those that are no inputs have names of their own."""
    names = []
    for name, spec in known[class_type]["inputs"].items():
        if not specs.is_socket(spec):
            names.append(name)
            if name in specs.SEEDS:
                names.append("control_after_generate")
    return [*names, "upload"] if class_type in _UPLOADS else names


def drawn(name: str, graph: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """A workflow in the editor's format for an API graph, its nodes in columns from left to right."""
    links: list[list[Any]] = []
    out: dict[tuple[str, int], list[int]] = {}
    nodes = []
    for order, (node_id, node) in enumerate(graph.items()):
        spec = known[node["class_type"]]
        inputs = []
        for name_, wanted in spec["inputs"].items():
            value = node["inputs"].get(name_)
            if isinstance(value, list):
                link = [len(links) + 1, int(value[0]), value[1], int(node_id), len(inputs), wanted["type"]]
                links.append(link)
                out.setdefault((value[0], value[1]), []).append(link[0])
                inputs.append({"name": name_, "type": wanted["type"], "link": link[0]})
            elif specs.is_socket(wanted):
                inputs.append({"name": name_, "type": wanted["type"], "link": None, "shape": 7})
        nodes.append(
            {
                "id": int(node_id),
                "type": node["class_type"],
                "title": node["_meta"]["title"],
                "pos": [],
                "size": [],
                "flags": {},
                "order": order,
                "mode": 0,
                "inputs": inputs,
                "outputs": [{"name": kind, "type": kind, "links": None} for kind in spec["outputs"]],
                "properties": {"Node name for S&R": node["class_type"]},
                **({} if node["class_type"] in _CHOSEN else {"widgets_values": _widget_values(node, known)}),
            }
        )
    for node in nodes:
        for slot, output in enumerate(node["outputs"]):
            output["links"] = out.get((str(node["id"]), slot))
    for node, (column, top) in zip(nodes, _places(graph, nodes), strict=True):
        node["pos"] = [column * (_NODE[0] + _GAP[0]), top]
        node["size"] = [_NODE[0], _height(node)]
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"comfyui_guarded/{name}")),
        "revision": 0,
        "last_node_id": max(map(int, graph)),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _widget_values(node: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    given = node["inputs"]
    names = _widgets(node["class_type"], known)
    if node["class_type"].startswith(_BY_NAME):
        return {name: given[name] for name in names if name in given and not isinstance(given[name], list)}
    own = {"control_after_generate": specs.AFTER_SEED, "upload": "image"}
    inputs = known[node["class_type"]]["inputs"]
    return [_widget_value(given, inputs, name) if name in inputs else own[name] for name in names]


def _widget_value(given: Mapping[str, Any], inputs: Mapping[str, Any], name: str) -> Any:
    """The widget's own value; its default where the input is linked or left out."""
    value = given.get(name)
    return inputs[name].get("default") if value is None or isinstance(value, list) else value


def _height(node: Mapping[str, Any]) -> int:
    rows = len(node.get("widgets_values", _WIDGETS)) + max(len(node["inputs"]), len(node["outputs"]))
    return _NODE[1] + _LINE * rows + (120 if node["type"] == "CLIPTextEncode" else 0)


def _places(graph: Mapping[str, Any], nodes: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(column, top) of each node: one column behind whatever feeds it."""
    columns: dict[str, int] = {}

    def column(node_id: str) -> int:
        if node_id not in columns:
            sources = [value[0] for value in graph[node_id]["inputs"].values() if isinstance(value, list)]
            columns[node_id] = max((column(source) + 1 for source in sources), default=0)
        return columns[node_id]

    filled: dict[int, int] = {}
    places = []
    for node in nodes:
        at = column(str(node["id"]))
        places.append((at, filled.get(at, 0)))
        filled[at] = filled.get(at, 0) + _height(node) + _GAP[1]
    return places


def preview(workflow: Mapping[str, Any]) -> Image.Image:
    """The graph as a small picture."""
    nodes = workflow["nodes"]
    width = max(node["pos"][0] + node["size"][0] for node in nodes)
    height = max(node["pos"][1] + node["size"][1] for node in nodes)
    scale = min(760 / width, 400 / height)
    picture = Image.new("RGB", (800, 450), (32, 33, 36))
    left, top = (800 - width * scale) / 2, (450 - height * scale) / 2
    draw = ImageDraw.Draw(picture)
    boxes = {
        node["id"]: (
            left + node["pos"][0] * scale,
            top + node["pos"][1] * scale,
            left + (node["pos"][0] + node["size"][0]) * scale,
            top + (node["pos"][1] + node["size"][1]) * scale,
        )
        for node in nodes
    }
    for _link, source, _slot, target, _target_slot, _kind in workflow["links"]:
        start, end = boxes[source], boxes[target]
        draw.line((start[2], (start[1] + start[3]) / 2, end[0], (end[1] + end[3]) / 2), (150, 150, 160), 2)
    font = ImageFont.load_default(max(9.0, 30 * scale))
    for node in nodes:
        colour = next(colour for start, colour in _COLOURS.items() if node["type"].startswith(start))
        box = boxes[node["id"]]
        draw.rounded_rectangle(box, 5, colour, (170, 170, 176))
        title = node["title"]
        while title and draw.textlength(title, font) > box[2] - box[0] - 10:
            title = title[:-1]
        draw.text((box[0] + 5, box[1] + 4), title, (240, 240, 240), font)
    return picture


def main() -> None:
    known = specs.all_nodes()
    for manifest in sorted(API.glob("*.toml")):
        graph = json.loads(manifest.with_suffix(".json").read_text())
        workflow = drawn(manifest.stem, graph, known)
        target = WORKFLOWS / manifest.with_suffix(".json").name
        target.write_text(json.dumps(workflow, ensure_ascii=False, indent=1) + "\n")
        preview(workflow).save(target.with_suffix(".jpg"), quality=85, optimize=True)


if __name__ == "__main__":
    main()
