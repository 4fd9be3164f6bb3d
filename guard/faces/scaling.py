"""Convert pictures to 8-bit RGB, and make them smaller."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from . import Pixels

#: Pillow scales by whole factors first, which looks the same and is several times faster for large pictures.
_GAP = 2.0
#: A picture is converted in tiles of so many pixels on each side.
_TILE = 1024


def shrink(pixels: Pixels, max_pixels: int) -> Pixels:
    """Scale a picture down to `max_pixels` where it has more."""
    height, width = pixels.shape[:2]
    if width * height <= max_pixels:
        return pixels
    return np.asarray(_shrink(Image.fromarray(pixels), max_pixels))


def _shrink(image: Image.Image, max_pixels: int) -> Image.Image:
    size = _find_size(image.size, max_pixels)
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=_GAP)


def _find_size(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    width, height = size
    scale = min((max_pixels / (width * height)) ** 0.5, 1)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _find_factors(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """By which whole numbers Pillow divides the sides of a picture before it scales it: see Image.resize."""
    across, down = (int(side / new / _GAP) or 1 for side, new in zip(size, _find_size(size, max_pixels), strict=True))
    return across, down


def shrink_to_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    """The same as to convert the whole and then to scale it, tile by tile: what a conversion makes on its way takes up
    to thirty times the memory of the file."""
    factors = _find_factors(image.size, max_pixels)
    if factors == (1, 1) and image.mode == "RGB":
        return _shrink(to_rgb(image), max_pixels)
    scale = _find_scale(image)
    across, down = factors
    small = Image.new("RGB", (-(-image.width // across), -(-image.height // down)))
    for left, top, tile in _cut(image, across, down):
        part = to_rgb(tile, scale)
        small.paste(part.reduce(factors) if factors != (1, 1) else part, (left // across, top // down))
    size = _find_size(image.size, max_pixels)
    return small.resize(size, Image.Resampling.BILINEAR, (0, 0, image.width / across, image.height / down))


def _cut(image: Image.Image, across: int = 1, down: int = 1) -> Iterator[tuple[int, int, Image.Image]]:
    """Tiles of a picture with their places; their sides are multiples of these numbers, where they have room."""
    wide, high = (max(_TILE // factor, 1) * factor for factor in (across, down))
    for top in range(0, image.height, high):
        for left in range(0, image.width, wide):
            box = left, top, min(left + wide, image.width), min(top + high, image.height)
            tile = image.crop(box)
            tile.info = image.info  # a palette's transparency
            yield left, top, tile


def to_rgb(image: Image.Image, scale: float | None = None) -> Image.Image:
    """Convert any mode to 8-bit RGB: transparency over white, 16 bits by their upper 8, floats from 0..1.

    `scale`: of the picture that this is a part of, see _find_scale.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_eight_bits(image, scale or _find_scale(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        ground.alpha_composite(layer)
        return ground.convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image, scale: float) -> Pixels:
    """Convert a grey picture of more than 8 bits."""
    return np.clip(np.nan_to_num(np.asarray(image, np.float64)) * scale, 0, 255).astype(np.uint8)


def _find_scale(image: Image.Image) -> float:
    """What to multiply a grey picture with. Mode I comes from 16-bit files, F from TIFFs, mostly as 0..1."""
    if image.mode not in ("I", "F"):
        return 1 / 257
    most = max(
        float(np.max(np.nan_to_num(np.asarray(tile, np.float64)), initial=0.0)) for _left, _top, tile in _cut(image)
    )
    if image.mode == "F":
        return 255.0 if most <= 1.0 else 1.0
    return 1.0 if most <= 255 else 1 / 257
