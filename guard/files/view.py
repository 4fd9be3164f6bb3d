"""Pictures as ComfyUI's `/view` converts them, and masks laid on pictures. Not for the event loop."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, PngImagePlugin

from ..errors import BadImageError

#: Decoded, converted and encoded again, such a picture takes close to a gigabyte.
MAX_PIXELS = 100_000_000
#: Nothing else is tried: Pillow would hand an EPS file to Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@contextmanager
def _open(source: IO[bytes] | Path) -> Iterator[Image.Image]:
    """Raises BadImageError, also for what goes wrong inside the block: Pillow decodes late."""
    try:
        with Image.open(source, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(f"The picture has more than {MAX_PIXELS} pixels.")
            yield image
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError("The file cannot be shown as a picture.") from None


def encode_preview(source: IO[bytes], asked: str, channel: str) -> tuple[bytes, str]:
    """The whole picture in a smaller format: `webp` or `jpeg`, with `;quality` behind. (bytes, media type)

    Raises:
        BadImageError: it is no picture, or too large.
    """
    kind, *rest = asked.split(";")
    if kind not in ("webp", "jpeg") or "a" in channel:
        kind = "webp"
    quality = min(max(int(rest[-1]), 1), 100) if rest and rest[-1].isascii() and rest[-1].isdigit() else 90
    with _open(source) as image:
        transparent = "A" in image.getbands() or "transparency" in image.info
        mode = "RGBA" if transparent and kind == "webp" and channel != "rgb" else "RGB"
        return _encode(image.convert(mode), kind, quality=quality)


def extract_channel(source: IO[bytes], channel: str) -> tuple[bytes, str]:
    """A PNG of the colours (`rgb`), or of the opacity alone (`a`). (bytes, media type)

    Raises:
        BadImageError: it is no picture, or too large.
    """
    with _open(source) as image:
        if channel == "rgb":
            return _encode(image.convert("RGB"), "png")
        alpha = image.getchannel("A") if image.mode == "RGBA" else Image.new("L", image.size, 255)
        shown = Image.new("RGBA", image.size)
        shown.putalpha(alpha)
        return _encode(shown, "png")


def apply_mask(original: Path, opacity: Path) -> bytes:
    """`original` as PNG with the opacity of another picture of its size, and its own texts.

    Raises:
        BadImageError: either is no picture or too large, or their sizes differ.
    """
    with _open(original) as image, _open(opacity) as layer:
        texts = PngImagePlugin.PngInfo()
        for name, text in getattr(image, "text", {}).items():
            texts.add_text(name, text)
        shown = image.convert("RGBA")
        shown.putalpha(layer.convert("RGBA").getchannel("A"))
        buffer = io.BytesIO()
        shown.save(buffer, format="PNG", compress_level=4, pnginfo=texts)
        return buffer.getvalue()


def _encode(image: Image.Image, kind: str, **options: int) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    image.save(buffer, format=kind.upper(), **options)
    return buffer.getvalue(), f"image/{kind}"
