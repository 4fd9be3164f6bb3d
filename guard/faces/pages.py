"""Count the pictures of a file that moves, or has pages, as Pillow reads it."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

from PIL import Image, ImageSequence

from ..errors import BadImageError
from .frames import MOST_PICTURES, MOST_PIXELS, check_work, explain
from .gifs import list_gif_pictures
from .photos import PhotoLimits, check_pixels, find_exif_fault, list_formats
from .sounds import UnfitError

#: What stands before each of a file's pictures, by its format.
_MARKS = {"PNG": b"fcTL", "WEBP": b"ANMF"}
#: Formats that draw all pictures on one canvas: each takes the memory of the first.
_ON_ONE_CANVAS = frozenset({"GIF", "PNG", "WEBP", "AVIF", "FLI"})
#: A phone's photo has others: for depth, for a brighter screen. Loaders that leave those out read them first.
_BESIDE = 4


def count_by_pillow(path: Path, known: int, limits: PhotoLimits, name: str) -> int:
    """Decode the pictures of one that moves, as a loader will, and count them: not for ever.

    `known`: so many there seem to be; where all are on one canvas, they count though they are not all decoded.

    Raises UnfitError where it would be too much work to look at all of them, BadImageError where one of them is too
    large, or what Pillow raises.
    """
    with Image.open(path, formats=list_formats()) as image:
        image.seek(getattr(image, "_min_frame", 0))  # as ImageSequence does
        if not getattr(image, "is_animated", False):
            return 1
        alike = image.format in _ON_ONE_CANVAS
        if not alike:
            check_work(known, image.width * image.height)
        seen, left = 0, MOST_PIXELS
        for frame in ImageSequence.Iterator(image):
            if left <= 0 or seen >= MOST_PICTURES:
                if not alike or known <= seen:
                    raise UnfitError(explain(max(known, seen)))
                return known
            check_pixels(frame.width, frame.height, limits, name)
            frame.load()
            if fault := find_exif_fault(frame):
                raise UnfitError(fault)
            seen += 1
            left -= frame.width * frame.height
        return 1 if image.format == "MPO" and seen <= _BESIDE else seen


def count_frames(data: bytes, name: str) -> int:
    """The pictures of one that moves, none of which is drawn for that.

    Raises BadImageError where there are more than any film made of pictures has: to count on would take for ever.
    """
    if data.startswith(b"GIF8"):
        known = sum(1 for _ in itertools.islice(list_gif_pictures(data), MOST_PICTURES + 1))
    else:
        try:
            with Image.open(io.BytesIO(data), formats=list_formats()) as image:
                known = _count_pages(image) if image.format == "TIFF" else int(getattr(image, "n_frames", 1))
                if (mark := _MARKS.get(image.format or "")) is not None:
                    known = min(known, data.count(mark) + 1)  # the header may say anything
        except Exception:
            return 1  # its first picture was fine
    if known > MOST_PICTURES:
        raise BadImageError(
            f"The image {name} holds more than {MOST_PICTURES} pictures.",
            extra_info={"image": name, "max_pictures": MOST_PICTURES},
        )
    return known


def _count_pages(image: Image.Image) -> int:
    """Pillow's own count compares each page with all before it."""
    for page in range(1, MOST_PICTURES + 1):
        try:
            image.seek(page)
        except EOFError:
            return page
    return MOST_PICTURES + 1
