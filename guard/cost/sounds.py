"""Tell how long and how large sounds are, and how long tracks along which things move."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .classes import NodeClass
from .names import Role, Trait
from .ranges import ENDLESS, Range
from .shapes import Asked, find_largest
from .values import Media, Value

TRACKS = "TRACKS"
#: Longer texts of tracks are not read.
_LONGEST_TEXT = 500_000
#: Samples of a pixel: both are floats.
PER_PIXEL = 3
#: Stereo, as models give it.
USUAL_RATE = 48_000 * 2
_SAMPLE_RATE = re.compile(r"(?:.*_)?(?:sample_?rate|sampling_rate|sr|hz)", re.I)
_CHANNELS = re.compile(r"(?:num_|n_)?channels", re.I)
_CUTS = frozenset({Trait.CUTS, Trait.CROPS})


def find_sounds(node_class: NodeClass, asked: Sequence[Asked], linked: Mapping[str, Value]) -> float:
    """The seconds of each sound whose latents a node gives; 0: it gives none."""
    if "LATENT" not in node_class.kinds:
        return 0
    sound = Trait.SOUND in node_class.traits
    before = [value.seconds for value in linked.values() if sound or value.extent is not None]
    if not sound:
        return max(before, default=0)
    return max([*before, find_largest(asked, Role.SECONDS), _find_own(asked)])


def measure_sound(
    node_class: NodeClass,
    inputs: Mapping[str, Any],
    asked: Sequence[Asked],
    linked: Mapping[str, Value],
    read: Callable[[Any], Range | None],
    media: Media | None,
) -> tuple[float, float]:
    """(seconds, samples of all channels together) of the sound that a node gives, or of the film that has one."""
    seconds = min(find_largest(asked, Role.SECONDS), ENDLESS)
    if media is not None:
        if not 0 < seconds < media.seconds:
            return media.seconds, media.samples
        return seconds, media.samples * seconds / media.seconds
    before = [value.seconds for value in linked.values() if value.seconds]
    samples = [value.samples for value in linked.values() if value.samples]
    if samples and not _CUTS.isdisjoint(node_class.traits):
        # What is cut out is kept together with what it was cut out of.
        return min(seconds, max(before, default=0)), max(samples)
    made = seconds * _find_rate(inputs, read)
    if not samples:
        made = max([made, *(_count_latents(value) for value in linked.values())])
    joined = sum(samples) if Trait.JOINS in node_class.traits else max(samples, default=0)
    return max([*before, seconds]), min(max(joined, made), ENDLESS)


def _count_latents(value: Value) -> float:
    batch = value.extent.batch if value.extent is not None else 1
    return min(value.seconds * USUAL_RATE * max(batch, 1), ENDLESS)


def _find_rate(inputs: Mapping[str, Any], read: Callable[[Any], Range | None]) -> float:
    """Samples a second of all channels, as a node is told."""
    rates = [read(value) for name, value in inputs.items() if _SAMPLE_RATE.fullmatch(name[:100])]
    channels = [read(value) for name, value in inputs.items() if _CHANNELS.fullmatch(name[:100])]
    rate = max((found[1] for found in rates if found is not None), default=USUAL_RATE / 2)
    return min(max(rate, 0) * max((found[1] for found in channels if found is not None), default=2), ENDLESS)


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
