"""Tell what a node makes of the pictures that it gets, by its inputs' names and its class's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from .classes import NodeClass
from .counts import count
from .names import Role, Trait
from .ranges import ENDLESS
from .shapes import (
    Asked,
    Picks,
    cut_up,
    deal_out,
    fill_up,
    find_largest,
    find_least,
    find_slant,
    label,
    pick,
    put_beside,
    refit,
    stitch,
    turn,
    unite_sizes,
    write,
)
from .values import Extent, Media, Value

#: A size in a text, as pickers offer them: `1024x1024 (1:1)`.
_SIZE_TEXT = re.compile(r"(?<!\d)(\d{2,5})\s*[x×*]\s*(\d{2,5})(?!\d)", re.ASCII)
_RATIO_TEXT = re.compile(r"(?<![\d.])(\d{1,3}(?:\.\d{1,3})?)\s*:\s*(\d{1,3}(?:\.\d{1,3})?)(?![\d.])", re.ASCII)
_SIZE_NAME = re.compile(r"res|size|dim|aspect|preset|ratio|format", re.I)
_LONGEST_CHOICE = 60

#: What a model that makes pictures larger is taken for where its name does not say.
USUAL_FACTOR = 4.0
_FACTOR = re.compile(r"(?<![a-z0-9])(?:x([2348])|([2348])x)(?![a-z0-9]*\d)|[a-z_-]x([248])(?=plus|[_.-])", re.I)


def read_factor(name: str) -> float:
    """By how much a model makes a picture larger, by the name of its file."""
    found = _FACTOR.search(name[:200])
    return float(next(part for part in found.groups() if part)) if found is not None else USUAL_FACTOR


def combine(
    incoming: Sequence[Extent],
    asked: Sequence[Asked],
    texts: Mapping[str, str],
    traits: frozenset[Trait],
    *,
    factor: float = 0,
    media: Media | None = None,
    times: float = 1,
    runs: float = 1,
    picks: Picks | None = None,
) -> tuple[list[str], Extent]:
    """The inputs by which a node asks for more, and the pictures that it gives.

    Args:
        incoming: the pictures that it gets.
        factor: of the model that makes them larger; 0: it takes none.
        media: the file that it loads.
        times: how often a loop runs it.
        runs: how often a list runs it; the pictures are those of all runs together.
        picks: what it takes out of those that it gets; None: all, as they are.
    """
    names: list[str] = []
    incoming = fill_up(incoming, asked, traits)
    extent = _join(incoming, asked, traits, names, times, runs)
    if picks is not None:
        extent = pick(extent, traits, names, picks, runs)
    if Trait.TURNS in traits and incoming:
        extent = turn(extent, texts)
    if media is not None and media.width:
        area = media.width * media.height
        extent = Extent(media.width, media.height, area, runs, media.frames)
    elif not incoming:
        extent = extent._replace(known=media is None)
    # The size may be that of another picture.
    others = max(incoming[1:], key=lambda each: each.area, default=None) if Trait.SCALES in traits else None
    if Trait.LABELS in traits and incoming:
        names.append("height")
        extent = label(extent, "\n".join(texts.get(name, "") for name in ("text", "caption")), asked)
    elif Trait.REFITS in traits and incoming:
        names.append(next((one.name for one in asked if one.role is Role.WIDTH), ""))
        extent = refit(extent, asked)
    else:
        extent = _resize(extent, asked, texts, traits, names, factor, times, others)
    if Trait.ENLARGES in traits and incoming:
        side = max(extent.width, extent.height) * max(find_largest(asked, Role.STRETCH), 1)
        extent = unite_sizes(extent, side, side)
    if Trait.FOR_CLIP in traits:
        extent = unite_sizes(extent, _CLIP, _CLIP)
    elif Trait.KEEPS in traits and incoming:
        extent = unite_sizes(extent, max(one.width for one in incoming), max(one.height for one in incoming))
    elif Trait.BESIDE in traits and incoming:
        extent = put_beside(extent, incoming, asked)
    if not incoming and media is None and (lines := texts.get("text")) is not None and "font" in texts:
        names.append("text")
        extent = write(extent, lines, asked)
    # Of what a node gets, it takes so many at a time; of what it makes, so many.
    makes = not incoming or bool(names)
    if Trait.SOUND in traits and not incoming and not extent.area and media is None:
        extent = extent._replace(area=1)
    extent = _pad(extent, asked, traits, names)
    return names, count(extent, asked, traits, names, media, makes, runs)


def _join(
    incoming: Sequence[Extent],
    asked: Sequence[Asked],
    traits: frozenset[Trait],
    names: list[str],
    times: float,
    runs: float,
) -> Extent:
    if not incoming:
        return Extent(batch=runs)
    known = all(each.known for each in incoming)
    largest = max(incoming, key=lambda each: each.area)
    most = max(incoming, key=lambda each: each.pictures)
    turned = largest.turned
    if any((each.width, each.height) != (largest.width, largest.height) for each in incoming):
        turned, largest = True, max(incoming, key=find_slant)._replace(area=largest.area)
    extent = largest._replace(batch=most.batch, frames=most.frames, known=known, turned=turned)
    if runs > 1 and len(incoming) > 1:
        # Of each pair the larger one may decide, now this and now that.
        batch, frames = sum(each.batch for each in incoming), max(each.frames for each in incoming)
        extent = extent._replace(batch=min(batch, ENDLESS), frames=frames)
    if Trait.TILES in traits and find_largest(asked, Role.TILE):
        names.append(next(one.name for one in asked if one.role is Role.TILE))
        extent = cut_up(extent, asked)
    elif Trait.TILES in traits and (columns := find_largest(asked, Role.COLUMNS)) >= 1:
        names.append(next(one.name for one in asked if one.role is Role.COLUMNS))
        extent = deal_out(extent, columns, find_largest(asked, Role.ROWS))
    if Trait.SHEET in traits:
        names.append("")
        columns = max(find_largest(asked, Role.COLUMNS), 1)
        fewest = [find_least(one.number) for one in asked if one.role is Role.COLUMNS and one.number is not None]
        rows = math.ceil(extent.pictures / min(fewest, default=1)) if extent.pictures < ENDLESS else ENDLESS
        across = find_largest(asked, Role.CELL_WIDTH) or max(largest.width, math.sqrt(largest.area))
        down = find_largest(asked, Role.CELL_HEIGHT) or max(largest.height, math.sqrt(largest.area))
        spacing = find_largest(asked, Role.SPACING)
        width, height = columns * (across + spacing), rows * (down + spacing)
        return Extent(width, height, min(width * height, ENDLESS), runs, 0, known)
    if len(incoming) > 1 and Trait.STITCHES in traits:
        names.append("")
        return stitch(incoming, extent, find_largest(asked, Role.SPACING))
    if len(incoming) > 1 and Trait.JOINS in traits:
        names.append("")
        if any(each.frames for each in incoming):
            return extent._replace(batch=1, frames=min(sum(each.pictures for each in incoming) * times, ENDLESS))
        return extent._replace(batch=min(sum(each.batch for each in incoming) * times, ENDLESS))
    return extent


def _resize(
    extent: Extent,
    asked: Sequence[Asked],
    texts: Mapping[str, str],
    traits: frozenset[Trait],
    names: list[str],
    factor: float,
    times: float,
    others: Extent | None,
) -> Extent:
    sizes = [size for size in _list_sizes(extent, asked, texts, traits) if size[1] > 0]
    if not sizes and Trait.SCALES in traits and extent.area and not factor and not _asks_for_scale(asked):
        # To a size of its own, that for which its models were trained.
        names.append("")
        area = max(extent.area, _OWN_AREA)
        ratio = extent.width / extent.height if extent.width and extent.height else 1.0
        across = math.sqrt(area * ratio)
        return extent._replace(area=area, width=across, height=across / ratio)
    if sizes:
        name, area, width, height, exact = max(sizes, key=lambda size: size[1])
        names.append(name)
        within = (Trait.CROPS in traits and Trait.SCALES not in traits) or Trait.LIMITS in traits
        if extent.area > area and (not exact or Trait.PADS in traits - {Trait.SCALES}):
            return extent
        if extent.area > area and any(_WHERE.fullmatch(name[:20]) and texts[name] != "always" for name in texts):
            return extent
        if Trait.FLAT in traits and extent.frames:
            return extent
        if within and extent.area:
            across, down = extent.width or width, extent.height or height
            if extent.turned:
                across = down = max(across, down)
            width, height = min(width, across), min(height, down)
            area = min(area, extent.area, width * height)
        # What is rounded to less is within what a limit may be exceeded by.
        if (more := find_largest(asked, Role.MULTIPLE) - _ROUNDED) > 0:
            width, height = width + more, height + more
            area = max(area, width * height)
        extent = extent._replace(area=area, width=width, height=height, known=True)
        if name in texts and any(one.role is Role.SWAP and (one.number is None or any(one.number)) for one in asked):
            extent = extent._replace(turned=True)
        if others and others.area > area:
            extent = extent._replace(area=others.area, width=others.width, height=others.height)
    scale = factor
    for one in asked:
        strong = one.name.rpartition(".")[2].lower() in _SCALES or one.name.startswith("resize_type.")
        if one.role is not Role.SCALE or not (strong or Trait.SCALES in traits):
            continue
        if one.number is None:
            extent = extent._replace(known=False)
        elif one.number[1] > 0:
            names.append(one.name)
            scale = max(scale, one.number[1])
    if scale:
        scale = min(scale ** min(times, 100.0), ENDLESS) if scale > 1 else scale
        if factor and not names:
            names.append("upscale_model")
        area = min(extent.area * scale * scale, ENDLESS)
        extent = extent._replace(area=area, width=extent.width * scale, height=extent.height * scale)
    return extent


_ROUNDED = 64
#: The side of the pictures that CLIP's models look at.
_CLIP = 224
#: ComfyUI_essentials: `if smaller area` and the like leave a picture as it came.
_WHERE = re.compile(r"condition")
#: What nodes that name no size scale to: a megapixel, and some more for odd shapes.
_OWN_AREA = 1.1 * 2**20


def _asks_for_scale(asked: Sequence[Asked]) -> bool:
    return any(one.role in (Role.SCALE, *_SIDES) for one in asked)


_SIDES = (
    Role.WIDTH, Role.HEIGHT, Role.MOST_WIDTH, Role.MOST_HEIGHT, Role.MEGAPIXELS, Role.SIDE, Role.SHORT_SIDE,
    Role.SQUARE,
)  # fmt: skip
_SCALES = frozenset({"scale_by", "upscale_by", "upscale_factor", "scale_factor", "rescale_factor"})


def _list_sizes(
    extent: Extent, asked: Sequence[Asked], texts: Mapping[str, str], traits: frozenset[Trait]
) -> list[tuple[str, float, float, float, bool]]:
    """(input, area, width, height, whether the pictures come out so large) of every size that the node names."""
    sizes: list[tuple[str, float, float, float, bool]] = []
    by_name = {one.name: one for one in asked}
    multiple = find_largest(asked, Role.MULTIPLE)
    ratio = extent.width / extent.height if extent.width and extent.height else _read_ratio(texts)
    slant = 1 / ratio  # of the height to the width
    if extent.turned:
        ratio = slant = max(ratio, slant)
    for one in asked:
        side = one.number[1] if one.number is not None else 0
        if side <= 0:
            continue
        match one.role:
            case Role.MEGAPIXELS:
                across = math.sqrt(side * 2**20 * ratio)  # 2**20: as ComfyUI's ImageScaleToTotalPixels counts them
                sizes.append((one.name, side * 2**20, across, across / ratio, True))
            case Role.SIDE:
                short = side / find_slant(extent)
                width, height = (side, short) if ratio >= 1 else (short, side)
                sizes.append((one.name, side * (side if extent.turned else short), width, height, True))
            case Role.SHORT_SIDE:
                width, height = (side * ratio, side) if ratio >= 1 else (side, side / ratio)
                sizes.append((one.name, width * height, width, height, True))
            case Role.SQUARE:
                sizes.append((one.name, side * side, side, side, True))
            case Role.WIDTH | Role.MOST_WIDTH:
                height = _find_other(by_name.get(one.name.replace("width", "height")), side * slant)
                sizes.append((one.name, side * height, side, height, one.role is Role.WIDTH))
                # A side that is cut down to none follows from the other.
                if 0 < side < multiple:
                    sizes.append((one.name, height * height * ratio, height * ratio, height, one.role is Role.WIDTH))
                if 0 < height < multiple:
                    sizes.append((one.name, side * side * slant, side, side * slant, one.role is Role.WIDTH))
            case Role.REPEAT if one.name.rpartition(".")[2] == "size" and Trait.REPEATS not in traits:
                sizes.append((one.name, side * side, side, side, False))
            case Role.HEIGHT | Role.MOST_HEIGHT:
                other = by_name.get(one.name.replace("height", "width"))
                if other is None or other.number is None or other.number[1] <= 0:
                    width = _find_other(other, side * ratio)
                    sizes.append((one.name, side * width, width, side, one.role is Role.HEIGHT))
    overridden = any(size[4] for size in sizes)
    for name, text in texts.items():
        if overridden or len(text) > _LONGEST_CHOICE or not _SIZE_NAME.search(name):
            continue
        if (found := _SIZE_TEXT.search(text)) is not None:
            width, height = float(found[1]), float(found[2])
            sizes.append((name, width * height, width, height, True))
    return sizes


def _read_ratio(texts: Mapping[str, str]) -> float:
    """The shape that a choice names, such as `9:16 (Portrait)`; 1: none does."""
    for name, text in texts.items():
        if len(text) <= _LONGEST_CHOICE and _SIZE_NAME.search(name) and (found := _RATIO_TEXT.search(text)):
            across, down = float(found[1]), float(found[2])
            if across > 0 and down > 0:
                return across / down
    return 1.0


def _find_other(other: Asked | None, following: float) -> float:
    """The other side: `following` where the picture's shape decides; one pixel at least where only the run can tell."""
    if other is None:
        return following
    if other.number is None:
        return 1
    return other.number[1] if other.number[1] > 0 else following


def _pad(extent: Extent, asked: Sequence[Asked], traits: frozenset[Trait], names: list[str]) -> Extent:
    across = down = 0.0
    for one in asked:
        side = one.name.rpartition(".")[2].lower()
        strong = Trait.PADS in traits or side.startswith(("pad", "expand", "extend"))
        if one.role not in (Role.EDGE, Role.EDGES) or not strong:
            continue
        if one.number is None:
            extent = extent._replace(known=False)
        elif one.number[1] > 0:
            names.append(one.name)
            if one.role is Role.EDGES or side.endswith(("left", "right")):
                across += one.number[1] * (2 if one.role is Role.EDGES else 1)
            if one.role is Role.EDGES or side.endswith(("top", "bottom")):
                down += one.number[1] * (2 if one.role is Role.EDGES else 1)
    if not across and not down:
        return extent
    # It may lie on its side.
    side_most = max(extent.width, extent.height, math.sqrt(extent.area))
    area = min(extent.area + (across + down) * side_most + across * down, ENDLESS)
    if extent.width and extent.height and not extent.turned:
        area = (extent.width + across) * (extent.height + down)
    return extent._replace(width=extent.width + across, height=extent.height + down, area=min(area, ENDLESS))


def list_extents(node_class: NodeClass, linked: Mapping[str, Value]) -> list[Extent]:
    """The pictures that come in: those of the kind that goes out, where there are such."""
    found: list[tuple[str, Extent]] = []
    for name, value in linked.items():
        if value.extent is not None and "audio" not in name and (kind := node_class.takes_pictures(name)) is not None:
            found.append((kind, value.extent))
    if len(found) > 1 and node_class.given is not None:
        same = [extent for kind, extent in found if kind in (node_class.given, "*")]
        if same:
            # Of masks it may take as many as there are, each with the picture.
            masks = max((extent.pictures for kind, extent in found if kind == "MASK"), default=0)
            if node_class.given == "IMAGE" and masks > max(extent.pictures for extent in same):
                same.append(same[0]._replace(batch=masks, frames=0))
            return same
    return [extent for _kind, extent in found]
