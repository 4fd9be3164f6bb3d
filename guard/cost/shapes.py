"""Pieces of pictures, pictures side by side, and pictures that are turned."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .names import Role, Trait
from .ranges import ENDLESS, Range, is_certain
from .values import Extent

_FITTED = (Role.EDGE, Role.WIDTH, Role.HEIGHT, Role.STRETCH)
_FONT_SIZES = ("size", "font_size")
#: By how much pictures are turned, as choices say it: `90 degrees`.
_QUARTER = re.compile(r"(?:none|0|90|180|270)(?![\d.])", re.ASCII)


class Picks(NamedTuple):
    """So many pictures are taken out of those that come, each as often as one likes; or, of films, so many moments."""

    most: float
    in_time: bool


class Asked(NamedTuple):
    """One number that a node asks for, and what its input is."""

    name: str
    role: Role
    number: Range | None


def find_largest(asked: Sequence[Asked], role: Role) -> float:
    return max((one.number[1] for one in asked if one.role is role and one.number is not None), default=0.0)


def find_least(number: Range) -> float:
    """What the number may be at least, where a smaller one makes more; the largest, if the run alone can tell."""
    least, most = number
    return most if least == -math.inf and most < ENDLESS else max(least, 1)


def deal_out(extent: Extent, columns: float, rows: float) -> Extent:
    """Rows and columns of pieces, each of which may overlap half of the next. Without rows, pieces are about square."""
    rows = rows or 2 * columns
    across = min(1.5 * extent.width / columns, extent.width)
    down = min(3 * extent.height / rows, extent.height)
    batch = min(extent.batch * columns * rows, ENDLESS)
    return extent._replace(area=across * down or extent.area, width=across, height=down, batch=batch)


def fill_up(incoming: Sequence[Extent], asked: Sequence[Asked], traits: frozenset[Trait]) -> Sequence[Extent]:
    """With those that are not there though they are counted: they are as the first one."""
    missing = find_largest(asked, Role.INPUTS) - len(incoming)
    if not incoming or missing <= 0:
        return incoming
    first = incoming[0]
    if Trait.STITCHES in traits:
        return [*incoming, *[first] * int(min(missing, 10_000))]
    return [*incoming, first._replace(batch=min(first.batch * missing, ENDLESS))]


def cut_up(extent: Extent, asked: Sequence[Asked]) -> Extent:
    """Pieces that overlap: as many as the smallest tiles make, each as large as the largest.

    The smaller side of a tile may lie along either side of the picture. Of a side of which the run alone can tell how
    small it is, the largest counts.
    """
    tiles = [one.number for one in asked if one.role is Role.TILE and one.number is not None]
    overlap = find_largest(asked, Role.OVERLAP)
    steps = [max(find_least(one) - overlap, 1) for one in tiles]
    across = extent.width or math.sqrt(extent.area)
    down = extent.height or math.sqrt(extent.area)
    if len(tiles) == 2 and not extent.turned:
        pieces = math.ceil(across / steps[0]) * math.ceil(down / steps[1])
        width, height = min(tiles[0][1], across), min(tiles[1][1], down)
    else:
        step = min(steps)
        pieces = math.ceil(across / step) * math.ceil(down / step)
        if extent.area > across * down:  # of pictures of several shapes, whose sides are those of one
            slant = max(across, down) / max(min(across, down), 1)
            sides = math.sqrt(extent.area * slant) + math.sqrt(extent.area / slant)
            pieces = max(pieces, math.floor(extent.area / step**2 + sides / step + 1))
        width = height = min(max(most for _least, most in tiles), max(across, down, math.sqrt(extent.area)))
    area = min(width * height, extent.area)
    known = extent.known and all(is_certain(one.number) for one in asked if one.role is Role.TILE)
    batch = min(extent.batch * min(pieces, ENDLESS), ENDLESS)
    return extent._replace(area=area, width=width, height=height, batch=batch, known=known)


def pick(extent: Extent, traits: frozenset[Trait], names: list[str], picks: Picks, runs: float) -> Extent:
    """Who only puts others in their places keeps all that come."""
    count = min(picks.most * runs, ENDLESS)
    if count > extent.pictures:
        names.append("")
    if Trait.TAKES_FILMS in traits and extent.frames:
        return extent._replace(frames=count) if picks.in_time else extent._replace(batch=count)
    count = count if Trait.CUTS in traits else max(count, extent.pictures)
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


def write(extent: Extent, text: str, asked: Sequence[Asked]) -> Extent:
    """A picture as large as its text, of which no sign is wider than twice the size of the font, or so high."""
    lines = text.split("\n")
    size = max((one.number[1] for one in asked if one.name in _FONT_SIZES and one.number), default=0)
    shadow = find_largest(asked, Role.SHADOW)
    width = min(max(map(len, lines)) * 2 * size + shadow, ENDLESS)
    height = min(len(lines) * 2 * size + shadow, ENDLESS)
    return extent._replace(width=width, height=height, area=min(width * height, ENDLESS))


def label(extent: Extent, text: str, asked: Sequence[Asked]) -> Extent:
    """A picture with a strip at one of its sides, which may be as high as its text takes."""
    size = max((one.number[1] for one in asked if one.name in _FONT_SIZES and one.number), default=0)
    lines = math.ceil(len(text) * 2 * size / max(extent.width, 1)) + text.count("\n") + 1
    strip = max(find_largest(asked, Role.HEIGHT), lines * 2 * size)
    width, height = min(extent.width + strip, ENDLESS), min(extent.height + strip, ENDLESS)
    return extent._replace(width=width, height=height, area=min(width * height, ENDLESS))


def unite_sizes(extent: Extent, width: float, height: float) -> Extent:
    """Pictures of either size."""
    across, down = max(extent.width, width), max(extent.height, height)
    return extent._replace(width=across, height=down, area=max(extent.area, width * height))


def pad_mask(extent: Extent, image: Extent | None, mask: Extent | None) -> Extent:
    """The mask of a picture that became so large: one of another size grows by as much."""
    if mask is None:
        return extent
    before = image if image is not None else Extent()
    across, down = (
        max(one - other, 0) for one, other in ((extent.width, before.width), (extent.height, before.height))
    )
    return unite_sizes(extent, mask.width + across, mask.height + down)._replace(
        batch=max(extent.batch, mask.pictures), known=extent.known and mask.known
    )


def put_beside(extent: Extent, incoming: Sequence[Extent], asked: Sequence[Asked]) -> Extent:
    """With another picture beside it, which is made as high."""
    more = extent.height * max(map(find_slant, incoming)) + find_largest(asked, Role.BORDER)
    width = min(extent.width + more, ENDLESS)
    return extent._replace(width=width, area=min(width * extent.height, ENDLESS))


def refit(extent: Extent, asked: Sequence[Asked]) -> Extent:
    """Padded, turned, cropped, and fitted by its longer or shorter side: the worst of those."""
    edges = sum(one.number[1] for one in asked if one.role is Role.EDGE and one.number is not None)
    more = edges + find_largest(asked, Role.MULTIPLE)
    turned = extent.width + extent.height
    wanted = max(find_largest(asked, Role.WIDTH), find_largest(asked, Role.HEIGHT))
    short = max(min(extent.width, extent.height), 1)
    stretch = max(find_largest(asked, Role.STRETCH), 1)
    side = max(turned + edges, wanted) * stretch + more
    long = max(side, wanted * (turned + edges) / short * stretch + more)
    area = min(side * long, ENDLESS)
    known = not any(one.number is None for one in asked if one.role in _FITTED)
    return extent._replace(width=min(long, ENDLESS), height=side, area=area, turned=True, known=extent.known and known)
