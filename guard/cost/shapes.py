"""Pieces of pictures, pictures side by side, and pictures that are turned."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .names import Role, Trait
from .ranges import ENDLESS, Range
from .values import Extent

#: By how much pictures are turned, as choices say it: `90 degrees`.
_QUARTER = re.compile(r"(?:none|0|90|180|270)(?![\d.])", re.ASCII)


class Asked(NamedTuple):
    """One number that a node asks for, and what its input is."""

    name: str
    role: Role
    number: Range | None


def find_largest(asked: Sequence[Asked], role: Role) -> float:
    return max((one.number[1] for one in asked if one.role is role and one.number is not None), default=0.0)


def deal_out(extent: Extent, asked: Sequence[Asked], pieces: float) -> Extent:
    """Rows and columns of pieces, each of which may overlap half of the next."""
    across = min(1.5 * extent.width / find_largest(asked, Role.COLUMNS), extent.width)
    down = min(1.5 * extent.height / find_largest(asked, Role.ROWS), extent.height)
    batch = min(extent.batch * pieces, ENDLESS)
    return extent._replace(area=across * down or extent.area, width=across, height=down, batch=batch)


def cut_up(extent: Extent, asked: Sequence[Asked]) -> Extent:
    """Pieces that overlap. The smaller side of a tile may lie along either side of the picture."""
    sides = [one.number[1] for one in asked if one.role is Role.TILE and one.number is not None]
    overlap = find_largest(asked, Role.OVERLAP)
    step = max(min(sides) - overlap, 1)
    across = extent.width or math.sqrt(extent.area)
    down = extent.height or math.sqrt(extent.area)
    if len(sides) == 2 and not extent.turned:
        steps = [max(side - overlap, 1) for side in sides]
        pieces = math.ceil(across / steps[0]) * math.ceil(down / steps[1])
        area = min(sides[0], across) * min(sides[1], down)
    else:
        pieces = math.ceil(across / step) * math.ceil(down / step)
        area = min(max(sides) ** 2, extent.area)
    return extent._replace(area=area, width=0, height=0, batch=min(extent.batch * pieces, ENDLESS))


def pick(extent: Extent, traits: frozenset[Trait], names: list[str], picks: float) -> Extent:
    """Who only puts others in their places keeps all that come."""
    if picks > extent.pictures:
        names.append("")
    count = min(picks if Trait.CUTS in traits else max(picks, extent.pictures), ENDLESS)
    if not extent.frames:
        return extent._replace(batch=count)
    return extent._replace(batch=1, frames=count)


def turn(extent: Extent, texts: Mapping[str, str]) -> Extent:
    """A picture that lies on its side, or at an angle in one that holds it whole."""
    angle = next((found[0] for text in texts.values() if (found := _QUARTER.match(text[:20]))), None)
    if angle in ("none", "0", "180"):
        return extent
    if angle is not None:
        return extent._replace(width=extent.height, height=extent.width)
    side = extent.width + extent.height
    return extent._replace(turned=True, area=min(max(extent.area, side * side / 2), ENDLESS))


def find_slant(extent: Extent) -> float:
    """How much longer one side is than the other."""
    if not extent.width or not extent.height:
        return 1.0
    return max(extent.width / extent.height, extent.height / extent.width)


def stitch(incoming: Sequence[Extent], extent: Extent, spacing: float) -> Extent:
    """One picture of several side by side. Each may be scaled to the side of the first, whichever that is."""
    area = longest = 0.0
    for each in incoming:
        side = max(incoming[0].width, incoming[0].height)
        scaled = side * side * find_slant(each) if find_slant(each) != find_slant(incoming[0]) else 0
        area += max(each.area, incoming[0].area, scaled)
        longest = max(longest, each.width, each.height)
    # Or stands on a ground as high as the highest.
    across = sum(each.width for each in incoming) * max(each.height for each in incoming)
    down = sum(each.height for each in incoming) * max(each.width for each in incoming)
    area = min(max(area, across, down) + spacing * longest * (len(incoming) - 1), ENDLESS)
    long = min(longest * len(incoming) + spacing, ENDLESS)
    return extent._replace(area=area, width=long, height=area / long if long else 0, turned=True)
