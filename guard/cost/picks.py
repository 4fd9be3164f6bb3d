"""Count the pictures that a node takes out of a batch by a text of places: `0, 0, 5:9, -1`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .ranges import ENDLESS, LONGEST_LIST
from .shapes import Picks
from .values import Extent, Value

_PLACES = re.compile(r"(?:.*_)?(?:indexes|indices|indexs|index_list|idxs)", re.I)
#: ComfyUI-KJNodes: places in time, each of which is four frames.
_MOMENTS = "latent_format"
#: ComfyUI-KJNodes: a picture for each place on a path.
#: ComfyUI_IPAdapter_plus: all pictures for each weight.
_WEIGHTS = "weights"
_PATH = re.compile(r"coordinates|coord_str|coords|track_coords", re.I)


def count_places(inputs: Mapping[str, Any], linked: Mapping[str, Value]) -> float:
    """How many places a text of them has, or weights, at most; 0: there is none, or only the run can tell."""
    most = 0.0
    for name, value in inputs.items():
        if name == "bboxes" and isinstance(value, str):
            most = max(most, value.count("startX"))  # one for each of them
        path = _PATH.fullmatch(name[:80]) is not None
        if path or name == _WEIGHTS:
            text = linked[name].text if name in linked else value
            if isinstance(text, str):
                most = max(most, text.count("{") + text.count("[") if path else text.count(",") + text.count("\n") + 1)
            elif name in linked and linked[name].told and not path:
                most = ENDLESS
    return most


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
