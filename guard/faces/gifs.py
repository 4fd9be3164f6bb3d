"""Walk through a GIF's blocks: where its pictures begin and end, how large they are, whether the last one is whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ..files.pieces import count_color_bytes


def list_gif_frames(data: bytes) -> Iterator[int]:
    """Where each frame of a GIF ends, of those that are there whole."""
    at = 13 + count_color_bytes(data[10])
    while at < len(data):
        kind = data[at]
        if kind == 0x2C:
            at += 11 + count_color_bytes(data[at + 9]) if at + 9 < len(data) else len(data)
        elif kind == 0x21:
            at += 2
        else:
            return
        while at < len(data) and data[at]:
            at += data[at] + 1
        if at >= len(data):
            return
        at += 1
        if kind == 0x2C:
            yield at


def list_gif_pictures(data: bytes) -> Iterator[int]:
    """Where each picture of a GIF begins, as Pillow finds them: it passes over what is no block."""
    at = 13 + count_color_bytes(data[10])
    while at < len(data) and data[at] != 0x3B:
        kind = data[at]
        if kind == 0x2C:
            yield at
            at += 11 + count_color_bytes(data[at + 9]) if at + 9 < len(data) else len(data)
        elif kind == 0x21:
            at += 2
        else:
            at += 1
            continue
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1


def measure_gif(data: bytes, most: int) -> tuple[int, int]:
    """Its canvas, which Pillow makes larger where one of its pictures, or of the first `most`, goes beyond it."""
    width, height = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    for at in itertools.islice(list_gif_pictures(data), most):
        left, top, across, down = (int.from_bytes(data[at + by : at + by + 2], "little") for by in (1, 3, 5, 7))
        width, height = max(width, left + across), max(height, top + down)
    return width, height


def breaks_off(data: bytes) -> bool:
    """Whether a GIF ends within a frame or a block behind the first. Many lack no more than the trailer."""
    at = 0
    for end in list_gif_frames(data):
        at = end
    while at < len(data):
        if data[at] != 0x21:
            return data[at] == 0x2C  # a frame that is not whole; else the trailer, or what somebody has hung on
        at += 2
        while at < len(data) and data[at]:
            at += data[at] + 1
        if at >= len(data):
            return True
        at += 1
    return False
