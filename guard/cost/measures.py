"""Tell what a node that has pictures says of them in a number."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .names import Trait
from .ranges import ANYTHING, ENDLESS, Range
from .values import Extent, Value

_SIDE = re.compile(r"(?:.*_)?(?:width|w)", re.I)
_UP = re.compile(r"(?:.*_)?(?:height|h)", re.I)
_BATCH = re.compile(
    r"batch|batch_size|batch_count|(?:.*_)?count|(?:.*_)?frame_count|(?:.*_)?frames|num_frames|length", re.I
)
_CHANNELS = re.compile(r"(?:.*_)?channels", re.I)
#: An output without a name has its kind's.
_NAMELESS = frozenset({"INT", "FLOAT", "NUMBER"})
#: Of latents; LTX's and FLUX.2's have the most.
_MOST_CHANNELS = 128.0
_RATE = re.compile(r"(?:.*_)?(?:fps|frame_rate)", re.I)
_SECONDS = re.compile(r"(?:.*_)?(?:duration|seconds)", re.I)


def measure(
    word: str,
    whole: Value,
    traits: frozenset[Trait],
    others: Sequence[Range | Extent | None],
    *,
    latent: bool = False,
) -> Range | None:
    """The number in an output of that name; None where only the run can tell. A lowest of -inf: it may be another.

    Args:
        latent: it is a latent that is measured, whose sides are smaller than its pictures', and whose films are counted
            by themselves or by their moments.
        others: what the node gets, from which it may make a number such as the place of a crop.
    """
    extent = whole.extent
    assert extent is not None
    number = 0.0
    if _CHANNELS.fullmatch(word):
        return 1.0, _MOST_CHANNELS
    if _SIDE.fullmatch(word) or _UP.fullmatch(word):
        number = extent.width if _SIDE.fullmatch(word) else extent.height
        if extent.turned:
            number = max(extent.width, extent.height)
    elif _BATCH.fullmatch(word) or (Trait.COUNTS in traits and word.upper() in _NAMELESS):
        number = extent.pictures if extent.known else 0
    elif _RATE.fullmatch(word):
        number = whole.rate
    elif _SECONDS.fullmatch(word):
        number = extent.frames / whole.rate if whole.rate else 0
    elif extent.area and extent.known:
        sides = [max(one.width, one.height, one.pictures) for one in (extent, *others) if isinstance(one, Extent)]
        numbers = [max(map(abs, one)) for one in others if isinstance(one, tuple) and not isinstance(one, Extent)]
        return -math.inf, min(max(sides) + sum(one for one in numbers if one < math.inf), ENDLESS)
    if number > 0:
        return 0.0 if latent else number, number
    return ANYTHING if whole.told else None
