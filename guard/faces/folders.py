"""How much a folder of pictures is that a loader names."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from PIL import Image

from ..cost.ranges import ENDLESS
from ..cost.values import Media

#: So many pictures of a folder are counted.
_MOST_FILES = 20_000


def count_folder(path: Path) -> Media | None:
    """A folder of pictures, by all of them: loaders make them as large as most are, or as the first is."""
    names = sorted(entry.name for entry in itertools.islice(os.scandir(path), _MOST_FILES + 1) if entry.is_file())
    largest: Media | None = None
    for name in names:
        try:
            with Image.open(path / name, formats=("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")) as image:
                if largest is None or image.width * image.height > largest.width * largest.height:
                    largest = Media(image.width, image.height, len(names))
        except Exception:
            continue
    if largest is not None and len(names) > _MOST_FILES:
        return largest._replace(frames=int(ENDLESS))
    return largest
