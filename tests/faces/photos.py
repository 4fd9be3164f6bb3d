"""The photos that scikit-image and insightface bring, and what becomes of a photo on its way to a server."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / ".venv" / "photos"
_SKIMAGE, _INSIGHTFACE = "skimage/data", "insightface/data/images"

#: Photo → how many faces it shows.
WITH_FACES = {
    f"{_SKIMAGE}/astronaut.png": 1,
    f"{_SKIMAGE}/camera.png": 1,
    f"{_INSIGHTFACE}/Tom_Hanks_54745.png": 1,
    f"{_INSIGHTFACE}/t1.jpg": 6,
}
#: A cat, things, textures, a horse's outline, an eye from inside; and medical masks without anybody in them.
WITHOUT = [
    f"{_SKIMAGE}/{name}"
    for name in (
        "chelsea.png", "coffee.png", "rocket.jpg", "coins.png", "moon.png", "text.png", "horse.png", "color.png",
        "retina.jpg",
    )
] + [f"{_INSIGHTFACE}/mask_{colour}.jpg" for colour in ("black", "blue", "green", "white")]  # fmt: skip

#: Orientation tag → what must have been done to the picture for the tag to undo it (Exif 2.32, table 6).
UNDONE_BY_EXIF = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def raw(name: str) -> bytes:
    """The photo's own bytes; skips where the photos are not there."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"{name} is not there; `make venv` unpacks the photos into .venv/photos")
    return path.read_bytes()


def photo(name: str) -> Image.Image:
    """The photo as RGB, over white."""
    with Image.open(io.BytesIO(raw(name))) as image:
        layer = image.convert("RGBA")
    ground = Image.new("RGBA", layer.size, "white")
    ground.alpha_composite(layer)
    return ground.convert("RGB")


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def jpeg(image: Image.Image, quality: int = 92, orientation: int | None = None) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(file, "JPEG", quality=quality, exif=exif)
    return file.getvalue()


def turned(image: Image.Image, orientation: int) -> bytes:
    return jpeg(image.transpose(UNDONE_BY_EXIF[orientation]), orientation=orientation)


def sized(image: Image.Image, longer_side: int) -> Image.Image:
    scale = longer_side / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def with_alpha(image: Image.Image) -> bytes:
    layer = image.copy()
    layer.putalpha(255)
    return png(layer)


#: What becomes of a photo on its way.
VARIANTS: dict[str, Callable[[Image.Image], bytes]] = {
    "as it is": png,
    "on its head by EXIF": lambda image: turned(image, 3),
    "on its right side by EXIF": lambda image: turned(image, 6),
    "on its left side by EXIF": lambda image: turned(image, 8),
    "256 pixels": lambda image: png(sized(image, 256)),
    "4096 pixels": lambda image: jpeg(sized(image, 4096)),
    "JPEG quality 30": lambda image: jpeg(image, 30),
    "greyscale": lambda image: png(image.convert("L")),
    "with alpha": with_alpha,
    "256 pixels, JPEG quality 30": lambda image: jpeg(sized(image, 256), 30),
}
