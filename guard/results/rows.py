"""Find pictures whose data end before their last row, though the file itself goes on to its end mark.

Pillow and libav leave such rows as they were, black or grey, and say nothing. So a PNG is decoded over a colour: what
is still there afterwards was not drawn, if it is so over another colour as well. libjpeg makes the rest of a JPEG
grey; where the last row has one colour, libav decodes the picture once more, and is told to mind that. The decoders
of other formats say it themselves.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from .containers import BrokenFileError

#: Two colours; modes with fewer bands take the first of each, which differ in all.
_COLORS = ((163, 91, 201, 117), (60, 178, 24, 222))
_MODES = frozenset({"1", "L", "P", "LA", "RGB", "RGBA", "I", "I;16"})
#: Those of them whose pixels are as many bytes as they have bands.
_BYTES = frozenset({"L", "P", "LA", "RGB", "RGBA"})
#: In one of so many last rows lies what is drawn last, also of an interlaced picture.
_ROWS = 2


def load_whole(image: Image.Image, read: Callable[[], bytes]) -> None:
    """Decode a picture that was just opened: its first frame.

    Args:
        read: gives the file's bytes; called for few.

    Raises:
        BrokenFileError: it has fewer rows than its header says.
        Exception: whatever Pillow raises for a damaged file.
    """
    if image.format == "PNG" and image.mode in _MODES:
        _draw_twice(image, read)
    else:
        image.load()
        if image.format in ("JPEG", "MPO"):
            last = np.asarray(image.crop((0, image.height - 1, image.width, image.height)))
            if (last == last[:, :1]).all() and _breaks_off(read()):
                raise BrokenFileError("its data end before its last row")


def _draw_twice(image: Image.Image, read: Callable[[], bytes]) -> None:
    """Decode it, and once more where what was beneath may be what is seen. Raises BrokenFileError where it is."""
    last = _draw(image, 0)
    if image.mode in _BYTES and bytes(_COLORS[0][: len(image.getbands())]) not in last.tobytes():
        return  # as of nearly all
    undrawn = _find_undrawn(last, 0)
    if undrawn.any():
        again = _draw(Image.open(io.BytesIO(read()), formats=("PNG",)), 1)
        if (undrawn & _find_undrawn(again, 1)).any():
            raise BrokenFileError("its data end before its last row")


def _draw(image: Any, which: int) -> Image.Image:
    """Decode it over a colour; returns what is drawn last."""
    paper = Image.new(image.mode, image.size, _choose_color(image.mode, which))
    left, _top, right, bottom = image.tile[0][1] if image.tile else (0, 0, *image.size)
    image.im = paper.im  # Pillow draws on what is there
    image.load()
    last: Image.Image = image.crop((left, max(bottom - _ROWS, 0), right, bottom))
    return last


def _choose_color(mode: str, which: int) -> Any:
    bands = Image.getmodebands(mode)
    return which if mode == "1" else _COLORS[which][0] if bands == 1 else _COLORS[which][:bands]


def _find_undrawn(last: Image.Image, which: int) -> Any:
    """Which of its pixels have the colour over which it was drawn."""
    below = np.asarray(Image.new(last.mode, (1, 1), _choose_color(last.mode, which)))
    same = np.asarray(last) == below
    return same.all(axis=-1) if same.ndim == 3 else same


def _breaks_off(data: bytes) -> bool:
    """Whether libav decodes a JPEG, and not to its end."""
    import av  # heavy: only for such a one

    decoded = []
    for options in ({}, {"err_detect": "explode"}):
        context: Any = av.CodecContext.create("mjpeg", "r")
        context.options = options
        try:
            decoded.append(bool(context.decode(av.Packet(data)) or context.decode(None)))
        except av.FFmpegError:
            decoded.append(False)
    return decoded == [True, False]
