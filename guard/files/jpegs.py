"""Go through a JPEG's segments, and keep of a phone's photo the picture alone.

Phones put more behind a photo: a second picture that says how bright the first one is (Ultra HDR, ISO 21496-1), one for
depth or for the other eye (CIPA DC-007, "MPF"), or a film (motion photos). No loader makes anything of it, and some
fail: ComfyUI 0.33's LoadImage where libav does not know the file's name for a picture's (its issue 14127), 0.3's where
the list of pictures names one that is not there.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: A JPEG's segments hold 64 KiB at most; depth maps, the largest things that cameras put there, have a few MiB. Pillow
#: keeps each, and joins those with EXIF one by one.
_MOST_SEGMENTS = 2_000
_MOST_SEGMENT_BYTES = 8 * 2**20
#: In a JPEG's compressed data: 0xFF that begins a marker (neither a stuffed 0xFF nor a restart).
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
#: A search in C keeps all other threads waiting.
_AT_ONCE = 2**16
_END, _WITHOUT_LENGTH, _APP1, _APP2, _SCAN = 0xD9, 0x01, 0xE1, 0xE2, 0xDA

_PICTURES = b"MPF\0"
_GAIN_MAP = b"urn:iso:std:iso:ts:21496:"
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
#: What Adobe's, Apple's and Google's XMP calls the things behind a picture.
_SPEAKS_OF_MORE = re.compile(rb"hdrgm:|HDRGainMap|GainMap|GCamera:M|MotionPhoto|MicroVideo|Container:Directory")


class Segment(NamedTuple):
    """One segment: its marker's code, and where it begins and ends, its marker included."""

    code: int
    begin: int
    end: int


def list_segments(data: bytes | mmap.mmap) -> Iterator[Segment]:
    """Those of a JPEG, one by one, since the thumbnail in the EXIF data has an end mark of its own.

    The last one is the picture's end mark, unless the file ends before that.

    Raises ValueError for a file of more segments than anybody writes, or larger ones.
    """
    at = 2
    in_segments = 0
    for _segment in range(_MOST_SEGMENTS):
        begin = _find_marker(data, at)
        if begin < 0:
            return
        code, at = data[begin + 1], begin + 2
        if code not in (_END, _WITHOUT_LENGTH):
            length = int.from_bytes(data[at : at + 2], "big")
            at += length
            in_segments += length
            if in_segments > _MOST_SEGMENT_BYTES:
                raise ValueError(f"its segments have more than {_MOST_SEGMENT_BYTES} bytes")
        yield Segment(code, begin, at)
        if code == _END:
            return
    raise ValueError(f"it has more than {_MOST_SEGMENTS} segments")


def _find_marker(data: bytes | mmap.mmap, at: int) -> int:
    for begin in range(at, len(data), _AT_ONCE):
        found = _MARKER.search(data, begin, begin + _AT_ONCE + 1)
        if found is not None:
            return found.start()
    return -1


def find_end(data: bytes | mmap.mmap) -> int:
    """Where a JPEG's picture ends; 0: the file ends before. Raises ValueError as :func:`list_segments` does."""
    return next((each.end for each in list_segments(data) if each.code == _END), 0)


def find_exif(path: Path) -> bytes:
    """The EXIF data of a JPEG; empty where there is none. Raises OSError, and ValueError as :func:`list_segments`."""
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for each in list_segments(data):
            if each.code == _SCAN:
                break
            if _begins_with(data, each, _APP1, _EXIF):
                return data[each.begin + 4 : each.end]
    return b""


def keep_one_picture(path: Path) -> str:
    """Cut off what follows a JPEG's picture, and leave out the segments that speak of it; all else stays as it is.

    Returns the SHA-256 of what is left, in hexadecimal; empty where the file is as it was: the picture is alone, or
    cannot be read. Nobody else may have the file yet. Raises OSError.
    """
    part = path.with_name(f"{path.name}~")
    try:
        with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                segments = list(list_segments(data))
            except ValueError:
                return ""
            if not segments or segments[-1].code != _END:
                return ""
            end = segments[-1].end
            has_list = any(_begins_with(data, each, _APP2, _PICTURES) for each in segments)
            if end == len(data) and not has_list:
                return ""
            digest = hashlib.sha256()
            with open(part, "xb") as kept:
                for piece in _list_pieces(data, segments):
                    for at in range(piece.begin, piece.end, 2**20):
                        block = data[at : min(at + 2**20, piece.end)]
                        digest.update(block)
                        kept.write(block)
        os.replace(part, path)
        return digest.hexdigest()
    finally:
        part.unlink(missing_ok=True)


def _list_pieces(data: mmap.mmap, segments: list[Segment]) -> Iterator[Segment]:
    """What stays of the file, in order."""
    begin = 0
    for each in segments:
        if _speaks_of_more(data, each):
            yield Segment(0, begin, each.begin)
            begin = each.end
    yield Segment(0, begin, segments[-1].end)


def _speaks_of_more(data: mmap.mmap, segment: Segment) -> bool:
    if _begins_with(data, segment, _APP2, _PICTURES) or _begins_with(data, segment, _APP2, _GAIN_MAP):
        return True
    if not _begins_with(data, segment, _APP1, _XMP):
        return False
    return _SPEAKS_OF_MORE.search(data[segment.begin : segment.end]) is not None


def _begins_with(data: mmap.mmap, segment: Segment, code: int, mark: bytes) -> bool:
    at = segment.begin + 4
    return segment.code == code and data[at : at + len(mark)] == mark
