"""Check picture files through Pillow: PNG, JPEG, WEBP and GIF, still or moving."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import GifImagePlugin, Image, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from ..settings import ResultsSettings
from .budget import Budget, BudgetFile
from .containers import BrokenFileError, Kind
from .content import THUMB_SIDE, Footage, Levels, Range, Thumb, find_blank
from .findings import Facts, Finding
from .rows import load_whole

#: These classes instead of Image.open, which judges sizes by a limit of the whole process that other packs change.
_PLUGINS: dict[str, Any] = {
    "png": PngImagePlugin.PngImageFile,
    "jpeg": JpegImagePlugin.JpegImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
}
#: Compare about this many frames of a moving picture at most.
_SAMPLES = 32
#: GIFs count in hundredths of a second, and a frame that is shown for less has 0.
_SHORTEST_MS = 10.0
#: Look at this many points a side before the whole picture.
_PROBES = 9


def open_image(handle: Any, kind: Kind) -> Image.Image:
    """Open the picture without decoding it. Raises whatever Pillow raises."""
    image: Image.Image = _PLUGINS[kind.format](handle)
    return image


def prepare(image: Image.Image, side: int | None) -> Image.Image:
    """The picture upright, as RGB or RGBA in eight bits, without its metadata; its longer side has at most so many
    pixels."""
    if side is not None:
        image.draft("RGB", (side, side))  # a JPEG is decoded at an eighth of its size where that is enough
    shown = ImageOps.exif_transpose(image)
    has_alpha = "A" in shown.getbands() or "transparency" in shown.info
    if shown.mode.startswith("I"):
        shown = shown.point(lambda level: level / 257).convert("L")
    shown = shown.convert("RGBA" if has_alpha else "RGB")
    shown.info = {}
    if side is not None:
        shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    return shown


def lay_on_white(picture: Image.Image) -> Image.Image:
    """The picture without transparency."""
    if picture.mode != "RGBA":
        return picture
    paper = Image.new("RGB", picture.size, "white")
    paper.paste(picture, mask=picture.getchannel("A"))
    return paper


def check(handle: BudgetFile, kind: Kind, settings: ResultsSettings, budget: Budget) -> Facts:
    """Decode every frame, as far as the budget goes.

    Raises:
        BrokenFileError: it has more pixels than `results.max_image_pixels`, or fewer rows than it says.
        Exception: whatever Pillow raises for a damaged file.
    """
    handle.seek(0)
    with open_image(handle, kind) as image:
        width, height = image.size
        if width * height > settings.max_image_pixels:
            raise BrokenFileError(f"it has {width} × {height} pixels, more than results.max_image_pixels")
        frames = getattr(image, "n_frames", 1)
        if frames == 1:
            if budget.spent:
                return Facts(width=width, height=height, warnings=("partly_checked",))
            load_whole(image, lambda: _read(handle))
            budget.take(width * height)
            blank = _find_blank(image, settings)
            shown_s = float(image.info.get("duration") or 0) / 1000 or None
            return Facts(width=width, height=height, shown_s=shown_s, findings=(blank,) if blank else ())
        # Those who can show the others do not show it.
        hidden = int(getattr(image, "default_image", False))
        return _check_moving(image, handle, frames, hidden, settings, budget)


def _read(handle: BudgetFile) -> bytes:
    at = handle.tell()
    handle.seek(0)
    data = handle.read()
    handle.seek(at)
    return data


def _check_moving(
    image: Image.Image, handle: BudgetFile, count: int, hidden: int, settings: ResultsSettings, budget: Budget
) -> Facts:
    """Decode each frame on top of the one before it, so that memory does not grow with their number.

    Args:
        count: of all pictures in the file.
        hidden: how many of them, at its beginning, belong to no frame.
    """
    frames = count - hidden
    width, height = image.size
    footage = Footage(settings)
    duration_ms = 0.0
    warnings: tuple[str, ...] = ()
    step = max(1, frames // _SAMPLES)
    for index in range(count):
        if index and budget.spent:
            warnings = ("partly_checked",)
            break
        budget.check()
        image.seek(index)
        if index:
            image.load()
        else:
            load_whole(image, lambda: _read(handle))
        budget.take(width * height)
        if index < hidden:
            continue
        shown_ms = float(image.info.get("duration") or 0)
        duration_ms += shown_ms
        # Any frame may be shown for long; its movement alone is a matter of samples.
        is_sample = (index - hidden) % step == 0 or index == count - 1
        thumb = _make_thumbnail(image) if is_sample else None
        footage.see(_find_blank(image, settings), thumb, max(shown_ms, _SHORTEST_MS))
    duration_s = round(duration_ms / 1000, 3) if duration_ms and not warnings else None
    if frames == 1:
        return Facts(
            width=width,
            height=height,
            shown_s=duration_s,
            findings=tuple(footage.findings()),
            warnings=warnings,
        )
    return Facts(
        width=width,
        height=height,
        frames=frames,
        duration_s=duration_s,
        fps=round(frames / duration_s, 3) if duration_s else None,
        findings=tuple(footage.findings()),
        warnings=warnings,
    )


def _find_blank(image: Image.Image, settings: ResultsSettings) -> Finding | None:
    """Look at a few points first: where two of them differ enough, the whole picture need not be read again."""
    few = image.resize((min(_PROBES, image.width), min(_PROBES, image.height)), Image.Resampling.NEAREST)
    if find_blank(_measure_levels(few), settings) is None:
        return None
    return find_blank(_measure_levels(image), settings)


def _measure_levels(image: Image.Image) -> Levels:
    if "transparency" in image.info or image.mode in ("P", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
    elif image.mode not in ("L", "LA", "RGB", "RGBA", "I", "I;16"):
        image = image.convert("RGB")
    extrema: Any = image.getextrema()
    bands: list[Range] = list(extrema) if isinstance(extrema[0], tuple) else [extrema]
    if image.mode.startswith("I"):  # 16 bits
        bands = [(low / 257, high / 257) for low, high in bands]
    alpha = bands.pop() if image.mode in ("LA", "RGBA") else None
    return Levels(bands, (), alpha)


def _make_thumbnail(image: Image.Image) -> Thumb:
    grey = image.convert("L")
    size = (min(THUMB_SIDE, grey.width), min(THUMB_SIDE, grey.height))
    return np.asarray(grey.resize(size, Image.Resampling.BOX), np.float32)
