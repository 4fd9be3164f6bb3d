"""Make small pictures of large ones, for messengers. Not for the event loop."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import IO

from ..errors import InvalidRequestError
from . import image_files
from .containers import sniff

_MIMES = {"webp": "image/webp", "jpeg": "image/jpeg", "png": "image/png"}
_SIDES = (16, 2048)
_SHAPE = re.compile(r"([a-z]*)(?:;([0-9]{0,3}))?(?:;([0-9]{0,4}))?")


@dataclass(frozen=True)
class Preview:
    """What a caller wants: format, quality (1..100, not for PNG), the most pixels of the longer side."""

    format: str = "webp"
    quality: int = 90
    side: int = 512

    @property
    def mime(self) -> str:
        return _MIMES[self.format]

    @property
    def name(self) -> str:
        return f"{self.format}-{self.quality}-{self.side}"


def parse(text: str) -> Preview:
    """Parse `webp;90;512`, as ComfyUI's /view has it, with the side added; what is left out has its default.

    Raises:
        InvalidRequestError: no such format, or quality or side out of range.
    """
    match = _SHAPE.fullmatch(text.strip().lower())
    format, quality, side = (match[1], int(match[2] or 90), int(match[3] or 512)) if match else ("?", 0, 0)
    format = {"": "webp", "jpg": "jpeg"}.get(format, format)
    low, high = _SIDES
    if format not in _MIMES or not 1 <= quality <= 100 or not low <= side <= high:
        raise InvalidRequestError(
            f"preview must be format;quality;side: {', '.join(_MIMES)}; 1 to 100; {low} to {high} pixels.",
            extra_info={"field": "preview"},
        )
    return Preview(format, quality, side)


def render(handle: IO[bytes], wanted: Preview) -> bytes:
    """Shrink the first frame of a picture that has passed the checks to the wanted size; drop its metadata.

    Raises:
        InvalidRequestError: it is not a picture.
    """
    kind = sniff(handle.read(64))
    handle.seek(0)
    if kind is None or kind.name != "image":
        raise InvalidRequestError("Only pictures have previews.", extra_info={"field": "preview"})
    with image_files.open_image(handle, kind) as image:
        shown = image_files.prepare(image, wanted.side)
    if wanted.format == "jpeg":
        shown = image_files.lay_on_white(shown)
    buffer = io.BytesIO()
    shown.save(buffer, format=wanted.format.upper(), **({} if wanted.format == "png" else {"quality": wanted.quality}))
    return buffer.getvalue()
