"""Tell how long sounds are, and tracks along which things move."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .classes import NodeClass
from .names import Role, Trait
from .ranges import ENDLESS
from .shapes import Asked, find_largest
from .values import Value

TRACKS = "TRACKS"
#: Longer texts of tracks are not read.
_LONGEST_TEXT = 500_000


def find_sounds(node_class: NodeClass, asked: Sequence[Asked], linked: Mapping[str, Value]) -> float:
    """The seconds of each sound whose latents a node gives; 0: it gives none."""
    if "LATENT" not in node_class.kinds:
        return 0
    sound = Trait.SOUND in node_class.traits
    before = [value.seconds for value in linked.values() if sound or value.extent is not None]
    if not sound:
        return max(before, default=0)
    return max([*before, find_largest(asked, Role.SECONDS), _find_own(asked)])


def _find_own(asked: Sequence[Asked]) -> float:
    """LTXV's sounds are as long as so many frames."""
    frames = find_largest(asked, Role.SOUND_FRAMES)
    rates = [one.number[0] for one in asked if one.role is Role.RATE and one.number is not None]
    return min(frames / rates[0], ENDLESS) if frames and rates and rates[0] > 0 else 0


def count_moments(asked: Sequence[Asked], inputs: Mapping[str, Any], linked: Mapping[str, Value]) -> float:
    """How many frames the longest of the tracks has that a node gives; 0: only the run can tell."""
    most = max([find_largest(asked, Role.FRAMES), *(value.moments for value in linked.values())])
    for name, given in inputs.items():
        text = linked[name].text if name in linked else given
        if isinstance(text, str):
            most = max(most, _count_points(text))
        elif name in linked and linked[name].told and not linked[name].moments and linked[name].number is None:
            most = ENDLESS
    return most


@functools.lru_cache(maxsize=16)  # one text may feed every node
def _count_points(text: str) -> float:
    """The points of the longest track in a text, which ComfyUI reads with either kind of quotes."""
    if len(text) > _LONGEST_TEXT:
        return ENDLESS
    try:
        tracks = json.loads(text.replace("'", '"'))
    except (ValueError, RecursionError):
        return 0
    if not isinstance(tracks, list):
        return 0
    single = len(tracks) if tracks and isinstance(tracks[0], dict) else 0
    return max([single, *(len(track) for track in tracks if isinstance(track, list))])
