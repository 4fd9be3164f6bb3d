"""Convert pictures as ComfyUI's `/view` does, and lay masks on them. Not for the event loop."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, PngImagePlugin

from ..errors import BadImageError
from .pieces import check_pieces

#: To decode, convert and encode such a picture takes almost a gigabyte.
MAX_PIXELS = 100_000_000
#: Larger than any upload.
_COUNTED_BYTES = 2**27
#: No other format is tried, because Pillow would give an EPS file to Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@contextmanager
def _open(source: IO[bytes] | Path) -> Iterator[Image.Image]:
    """Open a picture. Raises BadImageError, also for faults inside the block, because Pillow decodes late."""
    try:
        with ExitStack() as stack:
            handle = stack.enter_context(open(source, "rb")) if isinstance(source, Path) else source
            handle.seek(0)
            check_pieces(handle.read(_COUNTED_BYTES))
            handle.seek(0)
            image = stack.enter_context(Image.open(handle, formats=_FORMATS))
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(f"The picture has more than {MAX_PIXELS} pixels.")
            yield image
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError("The file cannot be shown as a picture.") from None


def encode_preview(source: IO[bytes], asked: str, channel: str) -> tuple[bytes, str]:
    """Encode the picture as `webp` or `jpeg`, with `;quality` behind that in `asked`. Returns (bytes, media type).

    Raises:
        BadImageError: the file is no picture, or too large.
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
    """Encode the colours alone (`rgb`), or the opacity alone (`a`), as PNG. Returns (bytes, media type).

    Raises:
        BadImageError: the file is no picture, or too large.
    """
    with _open(source) as image:
        if channel == "rgb":
            return _encode(image.convert("RGB"), "png")
        alpha = image.getchannel("A") if image.mode == "RGBA" else Image.new("L", image.size, 255)
        layer = Image.new("RGBA", image.size)
        layer.putalpha(alpha)
        return _encode(layer, "png")


def apply_mask(original: Path, opacity: Path) -> bytes:
    """Encode `original` as PNG, with its own texts and the opacity of another picture of its size.

    Raises:
        BadImageError: one of them is no picture or too large, or their sizes differ.
    """
    with _open(opacity) as layer:
        alpha = _find_opacity(layer)
    with _open(original) as image:
        texts = PngImagePlugin.PngInfo()
        for name, text in getattr(image, "text", {}).items():
            texts.add_text(name, text)
        picture: Image.Image = image if image.mode == "RGBA" else image.convert("RGBA")
        picture.putalpha(alpha)
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", compress_level=4, pnginfo=texts)
        return buffer.getvalue()


def _find_opacity(layer: Image.Image) -> Image.Image:
    layer.load()
    if layer.has_transparency_data:
        return layer.convert("RGBA").getchannel("A")
    return Image.new("L", layer.size, 255)


def _encode(image: Image.Image, kind: str, **options: int) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    image.save(buffer, format=kind.upper(), **options)
    return buffer.getvalue(), f"image/{kind}"
