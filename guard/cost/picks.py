"""Count the pictures that a node takes out of a batch by a text of places: `0, 0, 5:9, -1`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..graph import is_link
from .ranges import ENDLESS, LONGEST_LIST, read_text
from .shapes import Picks
from .values import Extent, Value, count_marks, find_places

_PLACES = re.compile(r"(?:.*_)?(?:indexes|indices|indexs|index_list|idxs)", re.I)
#: ComfyUI-KJNodes: places in time, each of which is four frames.
_MOMENTS = "latent_format"
#: ComfyUI-KJNodes: a picture for each place on a path.
#: ComfyUI_IPAdapter_plus: all pictures for each weight.
_WEIGHTS = "weights"
_PATH = re.compile(r"coordinates|coord_str|coords|track_coords", re.I)
#: Nodes that give as many places as they get in those inputs, in their texts and lists: of ComfyUI-KJNodes and
#: ComfyUI_essentials.
_HANDED: Mapping[str, tuple[str, ...]] = {
    "SplineEditor": ("coordinates",),
    "PointsEditor": ("coordinates", "neg_coordinates", "bboxes"),
    "InterpolateCoords": ("interpolation_curve",),
    "SomethingToString": ("input", "prefix", "suffix"),
    "DisplayAny": ("input", "mode"),
}


def count_places(inputs: Mapping[str, Any], linked: Mapping[str, Value], *, lists: bool) -> tuple[float, str]:
    """(how many places a text of them has at most, or weights, or a list; an input of which only the run can tell).

    Args:
        lists: a list of constants counts, too, whatever it is for.
    """
    most, hidden = 0.0, ""
    for name, value in inputs.items():
        if name == "bboxes" and isinstance(value, str):
            most = max(most, value.count("startX"))  # one for each of them
        if lists and (length := _measure_list(value)):
            most = max(most, length)
        path = _PATH.fullmatch(name[:80]) is not None
        if name in linked and _PLACES.fullmatch(name[:80]) and linked[name].text is None and not linked[name].told:
            hidden = name
        if not path and name != _WEIGHTS:
            continue
        text = linked[name].text if name in linked else value
        if isinstance(text, str):
            most = max(most, count_marks(text) if path else text.count(",") + text.count("\n") + 1)
        elif name not in linked:
            continue
        elif path and (places := find_places(linked[name])):
            most = max(most, places)
        elif linked[name].told:
            most = ENDLESS
        elif path:
            hidden = name
    return most, hidden


def _measure_list(value: Any) -> int:
    """How long a list of constants is, which ComfyUI unwraps."""
    while isinstance(value, dict) and "__value__" in value:
        value = value["__value__"]
        if isinstance(value, list):
            return len(value)
    if not isinstance(value, list) or is_link(value) or (value and isinstance(value[0], (dict, list))):
        return 0  # boxes, of which each picture has some
    return len(value)


def hand_places(class_type: str, inputs: Mapping[str, Any], linked: Mapping[str, Value]) -> float:
    """How many places the texts and lists have at most that a node makes of others; 0: nobody knows."""
    if (names := _HANDED.get(class_type)) is None:
        return 0
    parts = [find_places(linked[name]) if name in linked else _count(inputs[name]) for name in names if name in inputs]
    if not all(parts):
        return 0
    again = inputs.get("repeat_output", 1)
    known = linked["repeat_output"].number if "repeat_output" in linked else read_text(again)
    return min(sum(parts) * max(known[1], 1), ENDLESS) if known is not None else 0


def _count(value: Any) -> float:
    return max(count_marks(value if isinstance(value, str) else str(value)), _measure_list(value))


def count_picks(inputs: Mapping[str, Any], linked: Mapping[str, Value], incoming: Sequence[Extent]) -> Picks | None:
    """What it picks by a text of places, at most; None: there is no such text, or only the run can tell."""
    name = next((name for name in inputs if _PLACES.fullmatch(name[:80])), None)
    if name is None:
        return None
    in_time = inputs.get(_MOMENTS, "BCHW") != "BCHW"
    text = linked[name].text if name in linked else inputs[name]
    if name in linked and text is None:
        return Picks(ENDLESS, in_time) if linked[name].told else None
    if not isinstance(text, str):
        return None
    if len(text) > LONGEST_LIST:
        return Picks(ENDLESS, in_time)
    most = max(each.pictures for each in incoming)
    ranges = text.count(":") and sum(":" in part for part in text.split(","))
    picks = text.count(",") + 1 - ranges + ranges * most
    return Picks(min(picks * (4 if in_time else 1), ENDLESS), in_time)
