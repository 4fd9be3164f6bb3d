"""Count the pictures that a node takes out of a batch by a text of places: `0, 0, 5:9, -1`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .ranges import ENDLESS
from .values import Extent, Value

_PLACES = re.compile(r"(?:.*_)?(?:indexes|indices|indexs|index_list|idxs)", re.I)
#: ComfyUI-KJNodes: places in time, each of which is four frames.
_MOMENTS = "latent_format"


def count_picks(inputs: Mapping[str, Any], linked: Mapping[str, Value], incoming: Sequence[Extent]) -> float | None:
    """How many pictures it picks, at most; None: it picks none by such a text."""
    name = next((name for name in inputs if _PLACES.fullmatch(name[:80])), None)
    if name is None:
        return None
    text = linked[name].text if name in linked else inputs[name]
    if name in linked and text is None:
        return ENDLESS if linked[name].told else None
    if not isinstance(text, str):
        return None
    most = max(each.pictures for each in incoming)
    ranges = text.count(":") and sum(":" in part for part in text.split(","))
    picks = text.count(",") + 1 - ranges + ranges * most
    return min(picks * (4 if _MOMENTS in inputs and any(each.frames for each in incoming) else 1), ENDLESS)
