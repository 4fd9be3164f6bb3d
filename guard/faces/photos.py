"""Open photos as users send them, within bounds.

Their content tells what they are, not their name. Every fault of a photo is a BadImageError.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from ..errors import BadImageError
from ..files.jpegs import find_end
from ..files.pieces import check_pieces, has_whole_png
from ..results.containers import iterate_boxes
from ..results.rows import load_whole
from . import Pixels
from .gifs import list_gif_frames
from .scaling import shrink_to_rgb

#: What Pillow opens and this does not: EPS, which it gives to Ghostscript; WMF, which Windows draws; ICNS, whose
#: pictures may be larger than it says; those of which it reads no more than the header. All else a loader opens, too.
_CLOSED = frozenset({"EPS", "WMF", "ICNS", "BUFR", "GRIB", "HDF5", "MPEG", "FPX", "MIC"})
#: The beginning of icons and pointers, whose pictures each have a header of their own.
_ICONS = (b"\0\0\1\0", b"\0\0\2\0")
_PNG = b"\x89PNG"
_JPEG = b"\xff\xd8"
#: The EXIF tag that says how the camera was held, and what undoes it: see ImageOps.exif_transpose.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = frozenset(_TURNS[orientation] for orientation in (5, 6, 7, 8))
#: The brands by which an ISO media file says that it is HEIC or HEIF (ISO/IEC 23008-12, annex B).
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")


@dataclass(frozen=True)
class PhotoLimits:
    """How large a picture may be.

    Attributes:
        max_bytes: of the file. A 12,000-pixel panorama has about 100 MB as PNG.
        max_pixels: of the picture. A phone's 108-megapixel photo passes; 150 million take 450 MB when decoded.
    """

    max_bytes: int = 128 * 2**20
    max_pixels: int = 150_000_000


@dataclass(frozen=True)
class Photo:
    """A decoded picture, upright.

    Attributes:
        image: perhaps a smaller draft of it.
        width, height: its full size.
        exif_fault: why a loader that turns it by its EXIF data fails on them.
    """

    image: Image.Image
    width: int
    height: int
    exif_fault: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture as the search gets it.

    Attributes:
        pixels: upright, perhaps smaller than the picture.
        width, height: of the upright picture itself, in pixels.
    """

    pixels: Pixels
    width: int
    height: int


def read(source: Path | bytes, limits: PhotoLimits, name: str = "") -> bytes:
    """Read the file's bytes. Raises BadImageError where it is missing, no file, or too large."""
    if isinstance(source, bytes):
        _check_size(len(source), limits, name)
        return source
    name = name or source.name
    try:
        with open(source, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadImageError(f"{name} is not a file.", extra_info={"image": name})
            _check_size(status.st_size, limits, name)
            return file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = "is not there" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise BadImageError(f"The image {name} {why}.", extra_info={"image": name}) from None


def _check_size(size: int, limits: PhotoLimits, name: str) -> None:
    if size > limits.max_bytes:
        raise BadImageError(
            f"{_name_picture(name)} has {size} bytes; {limits.max_bytes} are allowed.",
            extra_info={"image": name, "bytes": size, "max_bytes": limits.max_bytes},
        )


def _name_picture(name: str) -> str:
    return f"The image {name}" if name else "The image"


def decode(data: bytes, limits: PhotoLimits, name: str = "", at_least: int | None = None) -> Photo:
    """Decode a picture: its first frame, upright, in the mode that it has.

    Args:
        at_least: the pixels on each side that are enough. A JPEG is then decoded at a half, a quarter or an eighth of
            its size where that still has them, which is several times faster.

    Raises:
        BadImageError: it is no picture, cut off or broken, or has more than `limits.max_pixels`.
    """
    try:
        return _turn(_load(data, limits, name, at_least))
    except BadImageError:
        raise
    except Exception as error:
        # Pillow's readers raise almost anything on hostile input: SyntaxError, struct.error, IndexError, MemoryError.
        raise _refuse(name, error) from None


def _load(data: bytes, limits: PhotoLimits, name: str, at_least: int | None) -> Photo:
    """Decode a picture as it lies in the file."""
    for side, other in _list_icons(data):
        check_pixels(side, other, limits, name)
    image = _open_heif(data) if is_boxed(data) and data[8:12] in _HEIF_BRANDS else _open_with_pillow(data)
    width, height = image.size
    check_pixels(width, height, limits, name)
    if at_least is not None and isinstance(image, JpegImageFile):
        image.draft(None, (at_least, at_least))
    if isinstance(image, Image.Image):
        load_whole(image, lambda: data)
        return Photo(image, width, height)
    loaded = image.to_pillow()
    loaded.load()
    return Photo(loaded, width, height)


def _turn(photo: Photo, image: Image.Image | None = None) -> Photo:
    """The photo upright, with a smaller `image` of it in its place. Broken EXIF data does not say how to turn it."""
    fault = find_exif_fault(photo.image)
    turn = None
    with contextlib.suppress(Exception):
        turn = _TURNS.get(photo.image.getexif().get(_ORIENTATION, 1))
    image = photo.image if image is None else image
    if turn is None:
        return Photo(image, photo.width, photo.height, fault)
    sides = (photo.height, photo.width) if turn in _ON_ITS_SIDE else (photo.width, photo.height)
    return Photo(image.transpose(turn), *sides, fault)


def find_exif_fault(image: Image.Image) -> str:
    """What ImageOps.exif_transpose, with which loaders turn a picture, raises at EXIF data that Pillow cannot read.

    ComfyUI's loaders try once more where that is an OSError or a ValueError (`pillow` in `node_helpers.py`), and Pillow
    then takes what it has read for all. It remembers what it has read, so look before anything else does.
    """
    fault = ""
    for _attempt in range(2):
        try:
            exif = image.getexif()
            if exif.get(_ORIENTATION) in _TURNS and "exif" in image.info:
                exif.tobytes()  # without the turn
        except (OSError, ValueError) as error:
            fault = f"its EXIF data cannot be read: {error}"
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises almost anything on hostile input
            return f"its EXIF data cannot be read: {error}"
        else:
            return ""
    return fault


def check_pixels(width: int, height: int, limits: PhotoLimits, name: str) -> None:
    if width * height > limits.max_pixels:
        raise BadImageError(
            f"{_name_picture(name)} has {width} × {height} pixels; {limits.max_pixels} are allowed.",
            extra_info={"image": name, "width": width, "height": height, "max_pixels": limits.max_pixels},
        )


def _list_icons(data: bytes) -> list[tuple[int, int]]:
    """The sizes of an icon's pictures, by their own headers: Pillow decodes one as it opens the file."""
    sizes = []
    if data[:4] in _ICONS:
        for at in range(6, min(6 + 16 * int.from_bytes(data[4:6], "little"), len(data)), 16):
            start = int.from_bytes(data[at + 12 : at + 16], "little")
            png = data[start : start + 4] == b"\x89PNG"
            sides = data[start + 16 : start + 24] if png else data[start + 4 : start + 12]
            order: Literal["big", "little"] = "big" if png else "little"
            sizes.append((int.from_bytes(sides[:4], order), int.from_bytes(sides[4:], order)))
    return sizes


def _refuse(name: str, error: Exception) -> BadImageError:
    if isinstance(error, UnidentifiedImageError):
        why = "Its format is not known here."  # Pillow's own words name an object in memory
    else:
        why = f"{type(error).__name__}: {error}"
    return BadImageError(
        f"{_name_picture(name)} cannot be read as a picture.",
        details=why,
        extra_info={"image": name},
    )


def open_picture(data: bytes, limits: PhotoLimits, max_pixels: int, name: str = "") -> Picture:
    """Decode a picture and scale it down to `max_pixels` where it has more. Raises BadImageError."""
    try:
        photo = _load(data, limits, name, round(max_pixels**0.5))
        opened = _turn(photo, shrink_to_rgb(photo.image, max_pixels))
        return Picture(np.asarray(opened.image), opened.width, opened.height)
    except BadImageError:
        raise
    except Exception as error:
        raise _refuse(name, error) from None


@cache
def list_formats() -> tuple[str, ...]:
    """Those that this Pillow can open, in its order."""
    Image.init()
    return tuple(name for name in Image.ID if name in Image.OPEN and name not in _CLOSED)


def _open_with_pillow(data: bytes) -> Image.Image:
    # `decode` limits the pixels itself, because other packs switch Pillow's limit off for the whole process.
    check_pieces(data)
    image = Image.open(io.BytesIO(data), formats=list_formats())
    if not _is_whole(data):
        raise EOFError("the file ends before its end mark")
    return image


def _open_heif(data: bytes) -> Any:
    """Open HEIC with pillow-heif, not registered with Pillow, which would change LoadImage for everybody.

    The result has a `size`; its `to_pillow` decodes it and turns it upright.
    """
    try:
        pillow_heif = importlib.import_module("pillow_heif")
    except ImportError:
        raise BadImageError(
            "HEIC pictures cannot be read here: the package pillow-heif is not installed.",
            extra_info={"package": "pillow-heif"},
        ) from None
    return pillow_heif.open_heif(io.BytesIO(data))


def is_boxed(data: bytes) -> bool:
    """Whether a picture lies in a film's container: HEIC or AVIF."""
    return data[4:8] == b"ftyp"


def is_mirrored(data: bytes) -> bool:
    """Whether such a one asks to be mirrored. Raises BrokenFileError."""
    boxes = iterate_boxes(io.BytesIO(data), len(data))
    return any(name == b"meta" and b"imir" in data[begin:end] for name, begin, end in boxes)


def _is_whole(data: bytes) -> bool:
    """Whether the file goes on to its own end mark.

    Pillow checks that too, unless another pack has set ImageFile.LOAD_TRUNCATED_IMAGES for the whole process; ComfyUI
    sets it for a moment whenever a picture fails to load.
    """
    if data.startswith(_PNG):
        return has_whole_png(data)
    if data.startswith(_JPEG):
        return find_end(data) > 0
    if data.startswith(b"GIF8"):
        return _is_whole_gif(data)
    if data.startswith(b"RIFF"):
        return int.from_bytes(data[4:8], "little") + 8 <= len(data)
    if data.startswith(b"BM"):
        return int.from_bytes(data[2:6], "little") <= len(data)
    if data.startswith((b"II", b"MM")):
        return _is_whole_tiff(data)
    return True  # the decoders of all others tolerate nothing


def _is_whole_gif(data: bytes) -> bool:
    """Goes to the end of the first frame, since many GIFs lack the trailer and nobody looks at the other frames."""
    return next(list_gif_frames(data), None) is not None


def _is_whole_tiff(data: bytes) -> bool:
    with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
        tags: Any = getattr(image, "tag_v2", {})
        for starts, sizes in ((273, 279), (324, 325)):  # StripOffsets and StripByteCounts, TileOffsets and …
            pairs = zip(tags.get(starts, ()), tags.get(sizes, ()), strict=False)
            if any(start + size > len(data) for start, size in pairs):
                return False
    return True
