"""Convert pictures through Pillow, upright, in eight bits a band, and without their metadata."""

from __future__ import annotations

from typing import IO, Any

from PIL import Image, features

from ..outgoing import ResultOptions
from . import image_files
from .containers import Kind
from .sink import NotConvertedError, Sink

_QUALITY = 90
#: libavif's own speed, from the best (0) to the fastest (10).
_AVIF_SPEED = 8
#: Threads of an encoder that could have all: ComfyUI needs the processor as well.
_THREADS = 2
#: libwebp's limit.
_WEBP_SIDE = 16383


def list_formats() -> set[str]:
    """The formats that this Pillow can write."""
    avif = "avif" in features.modules and features.check("avif")
    return {"png", "jpeg"} | ({"webp"} if features.check("webp") else set()) | ({"avif"} if avif else set())


def convert(handle: IO[bytes], kind: Kind, sink: Sink, options: ResultOptions, max_pixels: int) -> tuple[int, int]:
    """Write the copy; return its width and height. Raises NotConvertedError, and what Pillow raises."""
    side = options.max_side or (_WEBP_SIDE if options.format == "webp" else None)
    with image_files.open_image(handle, kind) as image:
        frames = getattr(image, "n_frames", 1)
        if image.width * image.height * frames > max_pixels:
            raise NotConvertedError("too_large")
        if frames > 1:
            if options.format != "webp":
                raise NotConvertedError("moving")
            return _save_moving(image, frames, sink, options, side)
        shown = image_files.prepare(image, side)
        colours = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA", "P") else None
    if options.format == "jpeg":
        shown = image_files.lay_on_white(shown)
    sink.check()
    shown.save(sink, format=(options.format or "").upper(), **_choose(options), icc_profile=colours)  # type: ignore[arg-type]
    return shown.size


def _choose(options: ResultOptions) -> dict[str, Any]:
    """What Pillow's encoder is told."""
    if options.format == "png":
        return {}
    chosen: dict[str, Any] = {"quality": options.quality or _QUALITY}
    if options.format == "avif":
        chosen |= {"speed": _AVIF_SPEED, "max_threads": _THREADS}
    return chosen


def _save_moving(
    image: Image.Image, frames: int, sink: Sink, options: ResultOptions, side: int | None
) -> tuple[int, int]:
    """Every frame with its time. All of them are in memory, which the pixels bound."""
    shown: list[Image.Image] = []
    times_ms: list[int] = []
    for index in range(frames):
        sink.check()
        image.seek(index)
        image.load()
        frame = image.convert("RGBA")
        frame.info = {}
        if side is not None:
            frame.thumbnail((side, side), Image.Resampling.LANCZOS)
        shown.append(frame)
        times_ms.append(int(image.info.get("duration") or 100))
    first, *rest = shown
    first.save(
        sink,  # type: ignore[arg-type]
        format="WEBP",
        save_all=True,
        append_images=rest,
        duration=times_ms,
        loop=int(image.info.get("loop") or 0),
        **_choose(options),
    )
    return first.size
