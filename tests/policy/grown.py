"""Grow graphs out of what a host declares: whatever makes numbers, pictures or latents of such, and needs no model.

Nobody steers which nodes follow each other, nor what they are told.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

from comfyui_guarded.guard.graph import is_link

Graph = dict[str, Any]
Link = list[Any]

#: What a graph may hold, and what stands in for the models that some nodes take; see `measure_graphs`.
PLAIN = ("INT", "FLOAT", "BOOLEAN", "STRING")
PICTURES = ("IMAGE", "MASK", "LATENT", "VIDEO")
STAND_INS = {"VAE": ("TestVae", "TestFlatVae"), "CONDITIONING": ("TestConditioning",)}
_ANYTHING = (*PICTURES, *PLAIN)
#: What says how large or how many pictures are, beside numbers and texts.
BOXES = "BOUNDING_BOX"
#: What reads or writes places, waits for somebody, or learns.
_LEFT_OUT = re.compile(
    r"^Load|^Save|Preview|Record|Webcam|Train|Dataset|Folder|Upload|Download|(?<!On)Path|Guarded|^Test|API|Debug|Sleep|Stop|"
    r"BatchManager|Screencap|Widget|FontText|Audio|VHS_Load|SelectFilename|SelectLatest|PruneOutputs|PlaySound|Superprompt|"
    # Latents of another scale than `measure_graphs` takes them for, or that must be a film's.
    r"StableCascade|SD_4XUpscale|HunyuanRefiner"
)
#: Files that lie in the host's input folder; `media` in test_search.py says what they hold.
FILES = {"LoadImage": ("image", ("photo.png", "strip.png", "moves.gif")), "LoadVideo": ("file", ("film.mp4",))}

#: Latents of each format: not all are eight times smaller than their pictures.
_LATENTS = (
    "EmptyFlux2LatentImage", "EmptyHunyuanImageLatent", "EmptyHunyuanVideo15Latent", "EmptyHunyuanLatentVideo",
    "EmptyLTXVLatentVideo", "EmptySD3LatentImage",
)  # fmt: skip
#: What may be left over in a node of an earlier version of it, or be put there.
_LEFT = (
    "width", "height", "batch_size", "target_width", "target_height", "longer_side", "longest_side", "megapixels",
    "scale_by", "resize_type.longer_size", "resize_type.width", "resize_type.multiplier", "resolution", "steps",
    "length", "frames", "num_frames", "fps", "seconds", "text", "indexes", "dim", "shape", "switch", "value", "amount",
    "left", "zero.one",
)  # fmt: skip

#: A minimum below this is none.
_DEEPEST = 20_000
_SIZES = (16, 64, 96, 128, 256, 384, 512, 640, 768)
_FEW = (0, 1, 2, 3, 4, 5, 7, 8, 12, 17, 25)
_PARTS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
_TEXTS = (
    "a", "a * b", "a + b", "max(a, b)", "a if a > b else b", "min(a, 4) * 64", "a ** 2", "round(a / 3)", "a // 2 + b",
    "128", "3.5", "0", "20, 25", "512x384", "", "ceil(a * 1.5)", "int(sqrt(a)) + 1", "sum(values)",
    "a" * 300, "ß" * 90, "a640b96 17", "0, 0, 0, 0, 0, 0",
)  # fmt: skip


def _list_places(count: int) -> str:
    return json.dumps([{"x": at * 7, "y": at} for at in range(count)])


#: What texts are for, by the names of their inputs; half of them are drawn of these.
_LIKELY: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(names), texts)
    for names, texts in (
        (r"index|idx", ("0", "0, 0, 0, 0, 0, 0, 0, 0", "0,-1,0", "0:2, 0:2, ::-1", "0," * 40 + "0")),
        (
            r"express|formula|^value|on_true|on_false",
            (
                "2**7",
                "a**2",
                "len(a) * 64",
                "a[1] * 4",
                "round(a, -2)",
                "640",
                "log(a, 1.1)",
                "a and 640",
                "-a * -3",
                "1 / a",
            ),
        ),
        (r"json", ('{"a": 640, "b": "96"}', '{"a": {"b": 5}}', "[1]")),
        (r"key", ("a", "b")),
        (r"pattern", (r"\d+", "a", r"(\d)", ".")),
        (r"find|substring", ("a", "ß", "6", "")),
        (r"replace|fix|delim", ("aa", "b" * 50, "640", "")),
        (r"coord", tuple(_list_places(count) for count in (1, 2, 40))),
        (r"^str_values|^values", ("1", "0, 0.5, 1", "1," * 40 + "1", "")),
        (r"f_string", ("{a}", "{a}{a}", "{a:>300}", "1{a}", "{a!r}")),
    )
)
_COLOURS = ("#000080", "#000280", "#ffffff", "#000010ff")


@dataclass
class Kind:
    """A class that a graph may hold."""

    name: str
    inputs: dict[str, tuple[bool, Any]]
    outputs: list[str]

    def takes(self, kind: str) -> bool:
        return any(declared[0] == kind for _required, declared in self.inputs.values())


@dataclass
class Grown:
    """A graph, and the links that bring something, by what they bring."""

    graph: Graph = field(default_factory=dict)
    links: dict[str, list[Link]] = field(default_factory=dict)

    def add(self, class_type: str, inputs: Mapping[str, Any], outputs: list[str]) -> None:
        node_id = str(len(self.graph) + 1)
        self.graph[node_id] = {"class_type": class_type, "inputs": dict(inputs)}
        for slot, kind in enumerate(outputs):
            self.links.setdefault(kind, []).append([node_id, slot])


class CannotError(Exception):
    """There is nothing to feed that input with."""


def find_kinds(known: Mapping[str, Any]) -> dict[str, list[Kind]]:
    """The classes that a graph may hold, by purpose: `numbers` (of those `texts`), `pictures`; some make `lists`."""
    found: dict[str, list[Kind]] = {"numbers": [], "texts": [], "pictures": [], "lists": []}
    for name, info in sorted(known.items()):
        if _LEFT_OUT.search(name) or info.get("output_node") or info.get("api_node"):
            continue
        outputs = [kind if isinstance(kind, str) else "COMBO" for kind in info["output"]]
        given = {*PICTURES, *PLAIN, BOXES, "*", "COMFY_MATCHTYPE_V3"}.intersection(outputs)
        inputs = {
            each: (section == "required", declared)
            for section in ("required", "optional")
            for each, declared in (info["input"].get(section) or {}).items()
        }
        if not given or not all(_can_feed(declared) for required, declared in inputs.values() if required):
            continue
        numbers = given <= set(PLAIN) and not any(_names_pictures(declared) for _needed, declared in inputs.values())
        kind = Kind(name, inputs, outputs)
        found["numbers" if numbers else "pictures"].append(kind)
        if numbers and any("STRING" in str(declared[0]) for _needed, declared in inputs.values()):
            found["texts"].append(kind)
        if info.get("is_input_list") or any(info.get("output_is_list") or ()):
            # One alone makes them of anything.
            found["lists"] += [kind] * (8 if "COMFY_MATCHTYPE_V3" in outputs else 1)
    return found


def read_declared(declared: Any) -> tuple[str, Mapping[str, Any]]:
    kind = declared[0]
    options = declared[1] if len(declared) > 1 and isinstance(declared[1], dict) else {}
    if not isinstance(kind, str):
        return "COMBO", {**options, "options": list(kind)}
    return kind, options


def _can_feed(declared: Any) -> bool:
    kind, options = read_declared(declared)
    if kind == "COMBO":
        return bool(options.get("options"))
    if kind == "COMFY_AUTOGROW_V3":
        return all(_can_feed(each) for part in options["template"]["input"].values() for each in part.values())
    if kind in ("COMFY_DYNAMICCOMBO_V3", "COLOR", BOXES):
        return True
    return kind in ("*", "COMFY_MATCHTYPE_V3", *STAND_INS) or bool(set(kind.split(",")) & set(_ANYTHING))


def _names_pictures(declared: Any) -> bool:
    kind, _options = read_declared(declared)
    return bool(set(kind.split(",")) & set(PICTURES))


def grow(draw: Random, kinds: Mapping[str, list[Kind]], most: int = 7) -> tuple[Graph, Link, str]:
    """(graph, link, what it brings) of a graph of a few nodes."""
    grown = Grown()
    _start(draw, grown, draw.choice(_LATENTS) if draw.random() < 0.5 else "EmptyLatentImage")
    if draw.random() < 0.5:
        grown.add("LoadImage", {"image": draw.choice(FILES["LoadImage"][1])}, ["IMAGE", "MASK"])
    if draw.random() < 0.25:
        grown.add("LoadVideo", {"file": "film.mp4"}, ["VIDEO"])
    listed = draw.random() < 0.5
    purposes = ("pictures", "pictures", "numbers", "texts", *(("lists",) * 3 if listed else ()))
    if not listed and draw.random() < 0.3:
        purposes = ("numbers", "texts", "texts")
    for _ in range(draw.randint(1, most)):
        chosen = draw.choice(kinds[draw.choice(purposes)])
        _add(draw, grown, chosen)
    ends = [kind for kind in ("LATENT", "IMAGE", "VIDEO", "INT") if grown.links.get(kind)]
    latest = max(ends, key=lambda each: int(grown.links[each][-1][0]))
    kind = latest if listed or draw.random() < 0.5 else draw.choice(ends)
    link = grown.links[kind][-1]
    return keep_needed(grown.graph, link), link, kind


def _start(draw: Random, grown: Grown, latent: str) -> None:
    for class_type, gives in (("EmptyImage", "IMAGE"), (latent, "LATENT")):
        sides = {"width": draw.choice(_SIZES), "height": draw.choice(_SIZES)}
        more = {"color": 0} if gives == "IMAGE" else {"length": draw.choice((1, 9, 25))} if "Video" in latent else {}
        grown.add(class_type, {**sides, "batch_size": draw.randint(1, 5), **more}, [gives])
    grown.add("PrimitiveInt", {"value": draw.choice(_SIZES + _FEW)}, ["INT"])
    grown.add("PrimitiveFloat", {"value": draw.choice(_PARTS)}, ["FLOAT"])
    grown.add("SolidMask", {"value": 1.0, "width": draw.choice(_SIZES), "height": draw.choice(_SIZES)}, ["MASK"])


def grow_latent(draw: Random, kinds: Mapping[str, list[Kind]]) -> tuple[Graph, Link, str]:
    """A graph in which a latent of any format goes through one node or several that take latents and give them."""
    grown = Grown()
    _start(draw, grown, draw.choice(_LATENTS))
    through = [kind for kind in kinds["pictures"] if "LATENT" in kind.outputs and kind.takes("LATENT")]
    for _ in range(draw.randint(1, 3)):
        _add(draw, grown, draw.choice(through))
    link = grown.links["LATENT"][-1]
    return keep_needed(grown.graph, link), link, "LATENT"


def leave(draw: Random, graph: Graph, known: Mapping[str, Any]) -> Graph:
    """The same graph with constants in its nodes that their classes do not declare: ComfyUI drops them."""
    return {node_id: _leave_some(draw, node, known[node["class_type"]]) for node_id, node in graph.items()}


def lower(draw: Random, graph: Graph, known: Mapping[str, Any]) -> Graph:
    """The same graph with numbers as small as their classes take them: of some a smaller one makes more."""
    return {node_id: _lower_some(draw, node, known[node["class_type"]]) for node_id, node in graph.items()}


def _lower_some(draw: Random, node: dict[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    inputs = dict(node["inputs"])
    for section in ("required", "optional"):
        for name, declared in (info["input"].get(section) or {}).items():
            kind, options = read_declared(declared)
            given = inputs.get(name)
            if kind not in ("INT", "FLOAT") or isinstance(given, (list, str, type(None))) or draw.random() < 0.5:
                continue
            least = options.get("min", 0)
            inputs[name] = least if least >= -_DEEPEST else draw.choice((-1, 0, 1))
    return {**node, "inputs": inputs}


def _leave_some(draw: Random, node: dict[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    if info.get("takes_more"):
        return node
    declared = {each for names in info["input"].values() if isinstance(names, dict) for each in names}
    grown = {name.partition(".")[0] for name in declared}
    left = {
        name: draw.choice((8, 64, 0, 0.1, "64", "64x64", "x", True, 16384))
        for name in draw.sample(_LEFT, draw.randint(1, 5))
        if name not in declared and (name.partition(".")[0] not in grown or "resize_type" in grown)
    }
    return {
        **node,
        "inputs": {**{name: value for name, value in left.items() if name not in node["inputs"]}, **node["inputs"]},
    }


def _add(draw: Random, grown: Grown, chosen: Kind) -> None:
    inputs: dict[str, Any] = {}
    matched: dict[str, str] = {}
    for name, (required, declared) in chosen.inputs.items():
        if not required and not (_can_feed(declared) and draw.random() < 0.5):
            continue
        try:
            inputs.update(_feed(draw, grown, name, declared, matched))
        except CannotError:
            if required:
                return
    first = next((_find_kind(grown, value) for value in inputs.values() if isinstance(value, list)), "")
    outputs = [
        next(iter(matched.values()), first) if kind == "COMFY_MATCHTYPE_V3" else first if kind == "*" else kind
        for kind in chosen.outputs
    ]
    grown.add(chosen.name, inputs, outputs)


def _find_kind(grown: Grown, link: Link) -> str:
    return next((kind for kind, links in grown.links.items() if link in links), "")


def _feed(draw: Random, grown: Grown, name: str, declared: Any, matched: dict[str, str]) -> Iterator[tuple[str, Any]]:
    kind, options = read_declared(declared)
    if kind == "COMFY_DYNAMICCOMBO_V3":
        option = draw.choice(options["options"])
        yield name, option["key"]
        for section in ("required", "optional"):
            for each, inner in (option["inputs"].get(section) or {}).items():
                if section == "required" or draw.random() < 0.5:
                    yield from _feed(draw, grown, f"{name}.{each}", inner, matched)
    elif kind == "COMFY_AUTOGROW_V3":
        template = options["template"]
        names = template.get("names") or [f"{template['prefix']}{at}" for at in range(template["max"])]
        inner = next(each for part in template["input"].values() for each in part.values())
        for each in names[: draw.randint(max(template["min"], 1), min(len(names), template["min"] + 3))]:
            yield from _feed(draw, grown, f"{name}.{each}", inner, matched)
    elif kind == "COMFY_MATCHTYPE_V3":
        template = options["template"]
        allowed = str(template.get("allowed_types", "*"))
        wanted = matched.get(template["template_id"])
        kinds = [wanted] if wanted else [each for each in _ANYTHING if allowed == "*" or each in allowed.split(",")]
        link, found = _link_any(draw, grown, kinds)
        matched[template["template_id"]] = found
        yield name, link
    elif kind in STAND_INS:
        node_id = str(len(grown.graph) + 1)
        grown.graph[node_id] = {"class_type": draw.choice(STAND_INS[kind]), "inputs": {}}
        yield name, [node_id, 0]
    elif kind == BOXES:
        links = grown.links.get(BOXES, ())
        yield name, draw.choice(links) if links and draw.random() < 0.7 else _draw_boxes(draw)
    elif kind == "COLOR":
        yield name, draw.choice(_COLOURS)
    elif kind in PLAIN or kind == "COMBO":
        yield name, _draw_plain(draw, grown, name, kind, options)
    else:
        wanted_kinds = list(_ANYTHING) if kind == "*" else [each for each in kind.split(",") if each in _ANYTHING]
        if kind != "*" and set(wanted_kinds) <= set(PLAIN) and draw.random() < 0.5:
            yield name, _draw_plain(draw, grown, name, wanted_kinds[0], options)
        else:
            yield name, _link_any(draw, grown, wanted_kinds)[0]


def _draw_boxes(draw: Random) -> Any:
    boxes = [
        {side: draw.choice(_SIZES + _FEW) for side in ("x", "y", "width", "height")} for _ in range(draw.randint(1, 3))
    ]
    return draw.choice((boxes[0], boxes, [boxes]))


def _link_any(draw: Random, grown: Grown, kinds: list[str]) -> tuple[Link, str]:
    """A link of one of these kinds; the latest ones more often."""
    there = [(link, kind) for kind in kinds for link in grown.links.get(kind, ())]
    if not there:
        raise CannotError(kinds)
    there.sort(key=lambda each: -int(each[0][0]))
    return cast(tuple[Link, str], there[draw.randrange(min(len(there), draw.choice((1, 3, 20))))])


def _draw_plain(draw: Random, grown: Grown, name: str, kind: str, options: Mapping[str, Any]) -> Any:
    links = [*grown.links.get(kind, ()), *(grown.links.get("INT", ()) if kind == "FLOAT" else ())]
    if kind != "COMBO" and links and draw.random() < 0.5:
        return draw.choice(links)
    if kind == "COMBO":
        return draw.choice(list(options["options"]))
    if kind == "BOOLEAN":
        return draw.random() < 0.5
    default = options.get("default")
    if kind == "STRING":
        likely = next((texts for names, texts in _LIKELY if names.search(name)), None)
        if likely is not None and draw.random() < 0.5:
            return draw.choice(likely)
        return draw.choice((*((default,) if isinstance(default, str) else ()), *_TEXTS))
    low, high = options.get("min", 0), options.get("max", 1 << 20)
    numbers = _SIZES + _FEW if kind == "INT" else _PARTS
    fitting = [number for number in numbers if low <= number <= high]
    if isinstance(default, (int, float)) and low <= default <= min(high, 2048):
        fitting.append(default)
    return draw.choice(fitting) if fitting else low


def keep_needed(graph: Graph, link: Link) -> Graph:
    needed: set[str] = set()
    waiting = [link[0]]
    while waiting:
        node_id = waiting.pop()
        if node_id not in needed:
            needed.add(node_id)
            waiting += [value[0] for value in graph[node_id]["inputs"].values() if is_link(value)]
    return {node_id: node for node_id, node in graph.items() if node_id in needed}
