"""Count what the index of a Matroska or WebM file (its cues) names, before libav reads it.

libav puts each cue where it belongs by its time. Where they come in no order, each moves all that are there, so that
megabytes of cues take a thread for minutes, with nothing read meanwhile by which anybody could stop it.
"""

from __future__ import annotations

from typing import IO

#: Of all tracks together. A film has one for each of its key frames: in five hours with one each second, 18,000.
MOST_CUES = 50_000
#: Elements that are looked at; what looks like cues and is a part of a picture ends soon.
_MOST_ELEMENTS = 6 * MOST_CUES
_CUES = b"\x1c\x53\xbb\x6b"
_POINT, _POSITIONS = 0xBB, 0xB7
_WINDOW = 2**20
_LONGEST_HEAD = 12


def has_too_many_cues(handle: IO[bytes], size: int) -> bool:
    """Whether they are more than a film has, wherever they stand: libav is led to them from anywhere."""
    counted = looked = 0
    for position in range(0, size, _WINDOW):
        handle.seek(position)
        window = handle.read(_WINDOW + len(_CUES) - 1)
        at = window.find(_CUES)
        while at >= 0:
            cues, elements = _count(handle, position + at + len(_CUES), size)
            counted, looked = counted + cues, looked + elements
            if counted > MOST_CUES or looked > _MOST_ELEMENTS:
                return True
            at = window.find(_CUES, at + 1)
    return False


def _count(handle: IO[bytes], begin: int, size: int) -> tuple[int, int]:
    """(places that its cues name, elements looked at) of what stands behind the mark, as far as it makes sense."""
    handle.seek(begin)
    head = handle.read(_LONGEST_HEAD)
    length, width = _read_length(head, 0)
    if not width:
        return 0, 1
    position = begin + width
    end = size if length is None else min(position + length, size)
    cues = elements = 0
    block, base = b"", position
    while position < end and cues <= MOST_CUES and elements <= _MOST_ELEMENTS:
        elements += 1
        if not base <= position <= base + len(block) - _LONGEST_HEAD:
            handle.seek(position)
            block, base = handle.read(2**16), position
        at = position - base
        if at >= len(block):
            break
        identity = block[at]
        wide = 9 - identity.bit_length()
        if wide > 4:
            break
        length, width = _read_length(block, at + wide)
        if not width:
            break
        cues += identity == _POSITIONS
        position += wide + width + (0 if identity == _POINT or length is None else length)
    return cues, elements


def _read_length(data: bytes, at: int) -> tuple[int | None, int]:
    """(an element's length, None: unknown; how many bytes say so, 0: these say none)."""
    if at >= len(data) or not data[at]:
        return None, 0
    width = 9 - data[at].bit_length()
    bits = 7 * width
    value = int.from_bytes(data[at : at + width], "big") & ((1 << bits) - 1)
    return (None if value == (1 << bits) - 1 else value), width
