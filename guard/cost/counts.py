"""Tell how many pictures a node gives, by the numbers of its inputs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .names import Role, Trait
from .ranges import ENDLESS
from .shapes import Asked
from .values import Extent, Media

#: Inputs by which a film is shown backwards after it was shown.
_BACK = re.compile(r"(?:.*[_.])?(?:ping_?pong|boomerang|palindrome|bounce|yo_?yo|there_and_back)", re.I)


def count(
    extent: Extent,
    asked: Sequence[Asked],
    traits: frozenset[Trait],
    names: list[str],
    media: Media | None,
    makes: bool,
    runs: float,
) -> Extent:
    """The pictures with their number, as batches, films, copies and caps make it.

    Args:
        names: the inputs by which the node asks for more; those found here are added.
        media: the file that it loads.
        makes: whether it makes pictures rather than passes on what it gets.
        runs: how often a list runs it.
    """
    batch, frames, known, layers, held = extent.batch, extent.frames, extent.known, 1.0, 0.0
    repeats = Trait.REPEATS in traits or Trait.INTERPOLATES in traits
    for one in asked:
        number = one.number[1] if one.number is not None else None
        match one.role:
            case Role.BATCH if makes:
                if number is None:
                    known = False
                elif number > 0:
                    batch = number * runs
                    names.append(one.name)
            case Role.LAYERS if number is not None and number > 0:
                layers = number + 1  # and the picture that they make together
                names.append(one.name)
            case Role.REPEAT if number is None and repeats:
                known = False
            case Role.COPIES | Role.BETWEEN | Role.INPUTS | Role.LAYERS if number is None:
                known = False
            case Role.COPIES if number is not None and number > 0:
                batch *= number
                names.append(one.name)
            case Role.BETWEEN if number is not None and number > 0:
                batch *= 1 + number
                names.append(one.name)
            case Role.REPEAT if repeats and number is not None and number > 0:
                names.append(one.name)
                if Trait.INTERPOLATES in traits:
                    batch, frames = 1, max(frames, 1) * batch * number
                elif one.name.rpartition(".")[2].lower() in ("size", "count"):
                    batch = number * runs
                else:
                    batch *= number
            case Role.FRAMES if Trait.CUTS in traits:
                if number is not None and number > 0:
                    if Trait.PICKS in traits:  # the same ones again, where there are fewer
                        frames, batch = (number * runs, 1) if frames else (frames, number * runs)
                        names.append(one.name)
                    elif frames:
                        frames = min(frames, number * runs)
                    else:
                        batch = min(batch, number * runs)
            case Role.FRAMES:
                if number is None:
                    known = False
                elif number > 0:
                    frames, batch = number, max(batch, runs)
                    names.append(one.name)
            case Role.START if Trait.HOLDS in traits:
                known = known and number is not None
                held = max(number or 0, held)
            case Role.FORCED_RATE if media is not None and number is not None and number > 0 and media.seconds:
                frames = math.ceil(media.seconds * number)
            case Role.CAP:
                if media is None or not media.frames:
                    known = known and bool(number)
                    frames, batch = number or frames, max(batch, runs)
                elif number:
                    frames, batch = min(frames, number), max(batch, runs)
                names.append(one.name)
    if held > 0:
        frames, batch = max(frames, 2) + held, max(batch, runs)
    return extent._replace(batch=min(batch * layers, ENDLESS), frames=min(frames, ENDLESS), known=known)


def go_back(extent: Extent, kinds: Mapping[str, str], inputs: Mapping[str, Any]) -> Extent:
    """The pictures that a film has which is shown to its end and back, without its first and last once more.

    Args:
        kinds: what each of the node's inputs takes.
        inputs: what it is given; what comes along a link may be true.
    """
    if not any(kinds.get(name) == "BOOLEAN" and value and _BACK.fullmatch(name) for name, value in inputs.items()):
        return extent
    if extent.frames > 1:
        return extent._replace(frames=min(extent.frames * 2 - 2, ENDLESS))
    return extent._replace(batch=min(max(extent.batch * 2 - 2, extent.batch), ENDLESS))
