"""Bound the pieces that a picture's file is made of, before Pillow opens it.

Pillow keeps an object for each piece that it does not know, or of a comment, and lets go of them all in one call into
C: nobody else has Python's lock meanwhile.
"""

from __future__ import annotations

from .jpegs import find_end

#: PNG chunks, into each of which libpng writes 8 KiB; or blocks of a GIF's comments.
MOST = 100_000
_PNG = b"\x89PNG\r\n\x1a\n"


def check_pieces(data: bytes) -> None:
    """Raises ValueError for a picture of more pieces than anybody writes."""
    if data.startswith(b"\xff\xd8"):
        find_end(data)
    elif data.startswith(_PNG):
        has_whole_png(data)
    elif data.startswith(b"GIF8"):
        _check_gif(data)


def has_whole_png(data: bytes) -> bool:
    """Whether a PNG goes on to its end mark. Raises ValueError as :func:`check_pieces` does."""
    at = 8
    for _chunk in range(MOST):
        if at + 12 > len(data):
            return False
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise ValueError(f"it has more than {MOST} chunks")


def _check_gif(data: bytes) -> None:
    """Count the blocks of its extensions as Pillow finds them: it passes over what is no block."""
    at, blocks = 13 + count_color_bytes(data[10] if len(data) > 10 else 0), 0
    while at < len(data) and (kind := data[at]) != 0x3B:
        if kind not in (0x21, 0x2C):
            at += 1
            continue
        at += 2 if kind == 0x21 else 11 + count_color_bytes(data[at + 9] if at + 9 < len(data) else 0)
        while at < len(data) and data[at]:
            at += data[at] + 1
            if kind == 0x21 and (blocks := blocks + 1) > MOST:
                raise ValueError(f"it has more than {MOST} blocks beside its pictures")
        at += 1


def count_color_bytes(packed: int) -> int:
    """The bytes of the colour table that a GIF's flags announce."""
    return 3 << ((packed & 7) + 1) if packed & 0x80 else 0
