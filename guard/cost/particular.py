# Over 400 lines: a short function for each node that nothing else tells of, and what they share to read its inputs.

"""Nodes whose inputs' names do not tell what they make, or make on the way: each by its source.

ComfyUI 0.33's `comfy_extras/nodes_mask.py`, `nodes_compositor.py`, `nodes_latent.py`, `nodes_wandancer.py`,
`nodes_wanmove.py` and `nodes_rtdetr.py`, KJNodes' `curve_nodes.py` and `ltxv_nodes.py`, and
ComfyUI_essentials' `mask.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ..graph import is_link
from .classes import PICTURES, PLAIN, NodeClass
from .names import Trait
from .ranges import ENDLESS, Range, read_number
from .values import Extent, Value, find_places

#: No side of a canvas may be longer (`nodes.MAX_RESOLUTION`).
_LONGEST = 16384.0
#: Longer states of an editor are not read.
_LONGEST_STATE = 500_000
#: How many pixels a side of a latent is smaller by, in nearly all formats.
USUAL_SCALE = 8.0
_SCALES: tuple[tuple[float, re.Pattern[str]], ...] = (
    (32.0, re.compile(r"ltx|hunyuan[\W_]*image", re.I)),
    (16.0, re.compile(r"flux[\W_]*2|klein|hunyuan[\W_]*video[\W_]*1\D?5|wan[\W_]*2[\W_]*2[\W_]*(?:vae|image)", re.I)),
)
#: No latent is scaled to fewer pixels on a side.
_LEAST = 64.0
#: A side of the canvas for boxes that are not there.
_EMPTY_CANVAS = 640.0
BOXES = frozenset({"BOUNDING_BOX", "BBOX"})
#: Inputs that are written into a prompt as they are, and tell no size; widgets have some, too.
_WRITTEN = (
    PLAIN | PICTURES | {"*", "COLOR", "COLORS", "CURVE", "LOAD_3D", "WEBCAM", "AUDIO_RECORD", "IMAGECOMPARE", "MODEL"}
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE]\+?\d{1,3})?")


class Node(NamedTuple):
    """One node: what its inputs hold, what its links bring, and how to read a number of either."""

    inputs: Mapping[str, Any]
    linked: Mapping[str, Value]
    read: Callable[[Any], Range | None]

    def extent(self, name: str) -> Extent:
        value = self.linked.get(name)
        return value.extent if value is not None and value.extent is not None else Extent()

    def most(self, name: str, default: float = 0.0) -> float:
        """The largest that a number may be."""
        if name not in self.inputs:
            return default
        known = self.read(self.inputs[name])
        return known[1] if known is not None else default

    def text(self, name: str) -> str | None:
        value = self.linked[name].text if name in self.linked else self.inputs.get(name)
        return value if isinstance(value, str) else None

    def may_be_set(self, name: str) -> bool:
        """Whether a switch may be on: any text is, for ComfyUI."""
        value = self.inputs.get(name, False)
        if is_link(value):
            return self.read(value) != (0, 0)
        return bool(value)


class Made(NamedTuple):
    """What a node gives, and the most that it works on, if that is more.

    Attributes:
        seconds: of the sounds that it gives; 0: as long as those that it gets.
        hidden: the input by which there are more, of which only the run can tell by how many; empty: there is none.
    """

    gives: Extent
    works: Extent
    seconds: float = 0
    hidden: str = ""


def make(class_type: str, node: Node, extent: Extent) -> Made | None:
    """What a node makes of that which its name would tell; None: there is nothing special about it."""
    rule = _RULES.get(class_type)
    return rule(node, extent) if rule is not None else None


def find_scale(name: str) -> float:
    """By how much the latents are smaller that a node makes, or a file, by its name; 0: it does not say."""
    return next((scale for scale, known in _SCALES if known.search(name[:200])), 0.0)


def find_compression(inputs: Mapping[str, Any]) -> float:
    """The same, where the node is told it (Stable Cascade)."""
    return read_number(inputs.get("compression")) or 0.0


def enlarge(extent: Extent, before: Extent, *, crops: bool) -> Extent:
    """A latent of a size that was told in pixels, by a node that takes each latent for eight times smaller."""
    by = extent.scale / USUAL_SCALE
    if by <= 1:
        return extent
    if crops:
        most = before.area or ENDLESS
        width, height = extent.width * by, extent.height * by
    else:
        most = ENDLESS
        width, height = max(extent.width, _LEAST) * by, max(extent.height, _LEAST) * by
    area = max(extent.area * by * by, 0 if crops else width * height)
    return extent._replace(width=width, height=height, area=min(area, most, ENDLESS))


def _composite(node: Node, _extent: Extent) -> Made:
    """All pictures of the source are scaled, and all of the mask, before those are left that there is a place for."""
    ground, source, mask = (node.extent(name) for name in ("destination", "source", "mask"))
    area = max(ground.area, source.area) if node.may_be_set("resize_source") else source.area
    works = [ground, source._replace(area=area), mask._replace(area=max(area, mask.area))]
    known = all(each.known for each in works)
    worst = max(works, key=lambda each: each.pixels or each.pictures)
    return Made(ground, worst._replace(known=known))


def _add_layer(node: Node, _extent: Extent) -> Made:
    image, below = node.extent("image"), node.extent("layers")
    width, height = (
        node.most(name) if node.most(name) > 0 else side
        for name, side in (("width", image.width), ("height", image.height))
    )
    across, down = _bound(width, height, turned=image.turned or node.inputs.get("rotation", 0) not in (0, 0.0))
    right = max(below.width, node.most("x") + width / 2 + across / 2)
    bottom = max(below.height, node.most("y") + height / 2 + down / 2)
    return Made(_canvas(right, bottom, image, below), Extent(across, down, min(across * down, ENDLESS)))


def _add_boxes(node: Node, _extent: Extent) -> Made:
    image, below = node.extent("image"), node.extent("layers")
    text = node.text("bboxes")
    if text is None and "bboxes" not in node.linked:
        text = json.dumps(node.inputs.get("bboxes"))
    if text is None and "bboxes" in node.linked and node.linked["bboxes"].told:
        side = ENDLESS
    else:
        numbers = map(read_number, _NUMBER.findall((text or "")[:_LONGEST_STATE]))
        side = max((number for number in numbers if number is not None), default=0.0)
        if text is not None and "bbox" in text:  # parts of the canvas
            side = max(side, min(side * max(node.most("canvas_width"), node.most("canvas_height")), ENDLESS))
        if text is not None and len(text) > _LONGEST_STATE:
            side = ENDLESS
    width, height = max(side, image.width), max(side, image.height)
    across, down = node.most("canvas_width"), node.most("canvas_height")
    right, bottom = max(across, below.width, side + width), max(down, below.height, side + height)
    return Made(_canvas(right, bottom, image, below), Extent(width, height, min(width * height, ENDLESS)))


def _compose(node: Node, _extent: Extent) -> Made:
    """On a canvas that holds all layers, or that a saved composition names."""
    canvas = node.extent("layers")
    canvas = canvas._replace(batch=1, frames=0)
    works = [canvas, *_read_state(node.inputs.get("compositor"))]
    worst = max(works, key=lambda each: each.area)
    return Made(worst, worst)


def _canvas(right: float, bottom: float, *of: Extent) -> Extent:
    right, bottom = min(max(right, 1), _LONGEST), min(max(bottom, 1), _LONGEST)
    return Extent(right, bottom, right * bottom, known=all(each.known for each in of))


def _bound(width: float, height: float, *, turned: bool) -> tuple[float, float]:
    """The box around a picture at any angle."""
    if not turned:
        return width, height
    side = math.hypot(width, height)
    return side, side


def _read_state(state: Any) -> Iterator[Extent]:
    while isinstance(state, dict) and "__value__" in state:
        state = state["__value__"]
    if isinstance(state, str):
        try:
            state = json.loads(state) if len(state) <= _LONGEST_STATE else {"canvas": {"w": ENDLESS, "h": ENDLESS}}
        except (ValueError, RecursionError):
            return
    if not isinstance(state, dict) or not isinstance(state.get("layers"), list):
        return
    for each in (state.get("canvas"), *(one.get("transform") for one in state["layers"] if isinstance(one, dict))):
        if isinstance(each, dict):
            width, height = (min(abs(read_number(each.get(side)) or 0), ENDLESS) for side in ("w", "h"))
            width, height = _bound(width, height, turned=bool(each.get("rotation")))
            yield Extent(width, height, min(width * height, ENDLESS))


def _cut_to_batch(node: Node, extent: Extent) -> Made:
    dim = node.text("dim")
    if dim is not None and "x" not in dim and "y" not in dim:
        return Made(extent, extent)  # in time: as many moments as before
    known = node.read(node.inputs["slice_size"]) if "slice_size" in node.inputs else None
    least = max(known[0], 1) if known is not None else 1
    sides = (extent.width, extent.height)
    if dim is None or extent.turned or not all(sides):
        side = max(*sides, math.sqrt(extent.area))
    else:
        side = sides[0] if "x" in dim else sides[1]
    scale = extent.scale or USUAL_SCALE
    pieces = max(math.ceil(side / scale / least), 1)
    gives = extent._replace(batch=min(extent.batch * pieces, ENDLESS), turned=True)
    if known is not None and known[0] == known[1] and side:
        part = min(known[1] * scale, side)
        width, height = (part, sides[1]) if side == sides[0] else (sides[0], part)
        gives = gives._replace(width=width, height=height, area=extent.area * part / side)
    return Made(gives, gives)


def _concat(node: Node, extent: Extent) -> Made:
    """Side by side, or one after the other; of the second as many as of the first."""
    one, other = node.extent("samples1"), node.extent("samples2")
    dim, frames = node.text("dim"), max(one.frames, other.frames)
    if dim is None or "t" in dim:
        frames = min(max(one.frames, 1) + max(other.frames, 1), ENDLESS)
    width, height, area = max(one.width, other.width), max(one.height, other.height), max(one.area, other.area)
    if dim is None or "t" not in dim:
        area = min(one.area + other.area, ENDLESS)
        if dim is None or "x" in dim:
            width = one.width + other.width
        if dim is None or "y" in dim:
            height = one.height + other.height
    gives = extent._replace(
        width=width, height=height, area=area, batch=max(one.batch, other.batch), frames=frames, turned=dim is None
    )
    return Made(gives, gives)


def _take_items(node: Node, extent: Extent) -> Made:
    """Of a batch of films some, each whole."""
    before = node.extent("samples")
    gives = before if before.frames > 1 else extent
    return Made(gives, gives)


def _make_masks(node: Node, extent: Extent) -> Made:
    """One for each number of a list, and of a text."""
    count, hidden = 0.0, ""
    for name in ("input_values", "values", "str_values"):
        value, text = node.linked.get(name), node.text(name)
        given = node.inputs.get(name)
        if text is not None:
            count += text.count(",") + 1 if text or name != "str_values" else 0
        elif value is None:
            count += _count_items(given)
        elif places := find_places(value):
            count += places
        elif value.told:
            count = ENDLESS
        else:
            hidden = name
    extent = extent._replace(batch=min(extent.batch * max(count, 1), ENDLESS), known=extent.known and not hidden)
    return Made(extent, extent, hidden=hidden)


def _count_items(value: Any) -> int:
    while isinstance(value, dict) and "__value__" in value:
        value = value["__value__"]
    return len(value) if isinstance(value, list) else value is not None


def bound_boxes(node: Node) -> Range | None:
    """(0, how far the boxes reach) that a node gets, finds in pictures or makes of numbers; None: nobody knows."""
    most = side = 0.0
    unknown = False
    for name, value in node.inputs.items():
        linked = node.linked.get(name)
        if linked is None or linked.text is not None:
            most = max(most, _reach(linked.text if linked is not None else value))
        elif linked.number is not None or linked.told:
            most = max(most, linked.number[1] if linked.number is not None else ENDLESS)
        elif linked.extent is not None:
            side = max(side, linked.extent.width, linked.extent.height)
        else:
            unknown = True
    if unknown and not side:
        return None
    if node.inputs.keys() <= {"bboxes", "image"}:
        return 0.0, most
    # Of a box that is made of numbers, a side is where it begins and how long it is; or they are parts of a canvas.
    if "width" in node.inputs and "x" not in node.inputs:
        side = max(side, node.most("width", ENDLESS), node.most("height", ENDLESS))
        most *= max(side, 1)
    return 0.0, min(max(2 * most, side), ENDLESS)


def measure_constant(value: Any, *, texts: bool = True) -> tuple[float, float]:
    """(the largest number in a constant, its longest list). Of numbers as texts, two that are put together, too.

    Args:
        texts: numbers in other texts count, too.
    """
    largest, longest = 0.0, 0.0
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += one.values()
            short = [each for each in one.values() if isinstance(each, str) and len(each) < 20][:8]
            joined = [read_number(each + other) or 0.0 for each in short for other in short]
            largest = max([largest, *joined])
        elif isinstance(one, list):
            longest = max(longest, len(one))
            waiting += one
        elif isinstance(one, str) and read_number(one) is None:
            if not texts:
                continue
            numbers = [read_number(each) or 0.0 for each in _NUMBER.findall(one[:_LONGEST_STATE])]
            largest = max([ENDLESS if len(one) > _LONGEST_STATE else 0.0, largest, *numbers])
        else:
            largest = max(largest, abs(read_number(one) or 0.0))
    return min(largest, ENDLESS), longest


def _reach(value: Any) -> float:
    """How far a box reaches that is a constant: from where it begins, as far as it is long."""
    return min(2 * measure_constant(value)[0], ENDLESS)


def spread_constants(node_class: NodeClass, inputs: Mapping[str, Any], extent: Extent, names: list[str]) -> Extent:
    """Pictures by what stands in place of a link: a canvas's size in it, and one for each part of a list."""
    if Trait.CROPS in node_class.traits or node_class.given is None:
        return extent
    for name, kind in node_class.inputs.items():
        value = inputs.get(name)
        if not isinstance(value, (dict, list)) or is_link(value) or kind in _WRITTEN or kind.startswith("COMFY_"):
            continue
        side, count = measure_constant(value, texts=False)
        if side > max(extent.width, extent.height):
            names.append(name)
            extent = extent._replace(width=side, height=side, area=min(max(extent.area, side * side), ENDLESS))
        if count > extent.pictures:
            names.append(name)
            extent = extent._replace(batch=count, frames=0)
    return extent


def _draw_boxes(node: Node, extent: Extent) -> Made:
    """On a picture; on a canvas that is as large as the boxes, where there is none."""
    if "image" in node.inputs:
        return Made(extent, extent)
    known = bound_boxes(node)
    side = max(known[1] if known is not None else 0, _EMPTY_CANVAS)
    extent = Extent(side, side, min(side * side, ENDLESS), known=known is not None)
    return Made(extent, extent, hidden="" if known is not None else "bboxes")


def _mask_in_time(node: Node, extent: Extent) -> Made:
    """`pad` makes what is shorter as long as the end says."""
    if node.text("max_length") not in ("pad", None):
        return Made(extent, extent)
    film = node.extent("video_latent")
    end, rate = node.most("video_end_time", ENDLESS), node.most("video_fps", ENDLESS)
    if "video_latent" in node.inputs:
        extent = film._replace(frames=min(max(film.frames, end * rate, 1), ENDLESS))
    sounds = max(node.most("audio_end_time", ENDLESS), 0) if "audio_latent" in node.inputs else 0
    return Made(extent, extent, seconds=min(sounds, ENDLESS))


def _pad_segments(node: Node, extent: Extent) -> Made:
    """It holds the films of all segments at once."""
    count = max(node.most("num_segments", 1), 1)
    return Made(extent, extent._replace(batch=min(extent.batch * count, ENDLESS)))


def _draw_tracks(node: Node, extent: Extent) -> Made:
    """The pictures again and again, for as long as the tracks are."""
    tracks = node.linked.get("tracks")
    if tracks is not None and tracks.moments:
        extent = extent._replace(batch=max(extent.pictures, tracks.moments), frames=0)
    elif tracks is not None:
        extent = extent._replace(known=False)
        return Made(extent, extent, hidden="tracks")
    return Made(extent, extent)


_RULES: dict[str, Callable[[Node, Extent], Made]] = {
    "ImageCompositeMasked": _composite,
    "LatentCompositeMasked": _composite,
    "AddLayer": _add_layer,
    "LayersFromBoundingBoxes": _add_boxes,
    "ImageCompositor": _compose,
    "LatentCutToBatch": _cut_to_batch,
    "LatentConcat": _concat,
    "LatentFromBatch": _take_items,
    "FloatToMask": _make_masks,
    "MaskFromList+": _make_masks,
    "DrawBBoxes": _draw_boxes,
    "LTXVAudioVideoMask": _mask_in_time,
    "WanDancerPadKeyframesList": _pad_segments,
    "WanMoveVisualizeTracks": _draw_tracks,
}
