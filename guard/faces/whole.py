"""Tell whether films and sounds end before their containers do. What follows on that is nobody's matter."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO

from ..results.containers import BrokenFileError, Kind, check_index, sniff

#: The boxes at the top of a film that hold it. Behind them people's files have all sorts of things.
_BOXES = frozenset(
    {b"moov", b"mdat", b"moof", b"ftyp", b"styp", b"sidx", b"mfra", b"meta", b"uuid", b"free", b"skip", b"wide"}
)
_MOST_BOXES = 100_000
#: Writers that count the first eight bytes of a RIFF file among those behind them.
_RIFF_HEAD = 8


def check_whole(handle: IO[bytes], kind: Kind) -> None:
    """Raises BrokenFileError where a file ends before its container does."""
    size = os.fstat(handle.fileno()).st_size
    check = _WHOLE.get(kind.demuxer)
    if check is not None:
        check(handle, size)


def _check_boxes(handle: IO[bytes], size: int) -> None:
    position, names = 0, set()
    for _ in range(_MOST_BOXES):
        handle.seek(position)
        head = handle.read(16)
        if len(head) < 8 or head[4:8] not in _BOXES:
            break
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            length = size - position
        if length < 8:
            break
        position += length
        if position > size:
            raise BrokenFileError(f"its box {head[4:8].decode()} is cut off")
        names.add(head[4:8])
    else:
        raise BrokenFileError(f"it has more than {_MOST_BOXES} boxes")
    if b"moov" not in names:
        raise BrokenFileError("its index is missing")
    check_index(handle, size)


def _check_ebml(handle: IO[bytes], size: int) -> None:
    handle.seek(0)
    kind = sniff(handle.read(32))
    if kind is not None:
        kind.check_whole(handle, size)


def _check_riff(handle: IO[bytes], size: int) -> None:
    """Writers that could not go back to fill in the length leave 0 or all ones."""
    handle.seek(0)
    head = handle.read(12)
    length = int.from_bytes(head[4:8], "little")
    if head[:4] == b"RIFF" and length not in (0, 0xFFFFFFFF) and length > size:
        raise BrokenFileError(f"it has {size} of {length + _RIFF_HEAD} bytes")


def _check_aiff(handle: IO[bytes], size: int) -> None:
    handle.seek(0)
    length = int.from_bytes(handle.read(8)[4:8], "big")
    if length > size:
        raise BrokenFileError(f"it has {size} of {length + 8} bytes")


def _check_asf(handle: IO[bytes], size: int) -> None:
    """The header's properties say the file's size, unless it was made to be sent as it came (the first flag)."""
    handle.seek(0)
    head = handle.read(2**16)
    at = head.find(b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65")
    if at < 0 or len(head) < at + 92:
        return
    length, flags = int.from_bytes(head[at + 40 : at + 48], "little"), head[at + 88]
    if not flags & 1 and length > size:
        raise BrokenFileError(f"it has {size} of {length} bytes")


def _check_au(handle: IO[bytes], size: int) -> None:
    handle.seek(0)
    head = handle.read(12)
    length = int.from_bytes(head[8:12], "big")
    if length != 0xFFFFFFFF and int.from_bytes(head[4:8], "big") + length > size:
        raise BrokenFileError(f"it has not all of its {length} bytes")


def _check_caf(handle: IO[bytes], size: int) -> None:
    """Its chunks say how long they are; the last one may say -1: up to the end."""
    position = 8
    for _ in range(_MOST_BOXES):
        handle.seek(position)
        head = handle.read(12)
        if len(head) < 12 or not head[:4].isalnum():
            return
        length = int.from_bytes(head[4:], "big", signed=True)
        if length < 0:
            return
        position += 12 + length
        if position > size:
            raise BrokenFileError("its last chunk is cut off")
    raise BrokenFileError(f"it has more than {_MOST_BOXES} chunks")


def _check_ogg(handle: IO[bytes], size: int) -> None:
    """The last page must be all there. That it is marked as the last one, many recorders leave out."""
    position = 0
    while position + 27 <= size:
        handle.seek(position)
        head = handle.read(27 + 255)
        if head[:4] != b"OggS":
            return
        position += 27 + head[26] + sum(head[27 : 27 + head[26]])
    if position != size:
        raise BrokenFileError("its last page is cut off")


def _check_mp3(handle: IO[bytes], size: int) -> None:
    """The header that encoders put into the first frame says how many bytes follow (Xing's, or LAME's `Info`)."""
    handle.seek(0)
    head = handle.read(10)
    begin = 0
    if head[:3] == b"ID3" and len(head) == 10:
        begin = (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + 10
    handle.seek(begin)
    frame = handle.read(256)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if frame[:1] != b"\xff" or at < 0 or not frame[at + 7] & 2:
        return
    at += 12 if frame[at + 7] & 1 else 8
    length = int.from_bytes(frame[at : at + 4], "big")
    if begin + length > size:
        raise BrokenFileError(f"it has {size - begin} of {length} bytes")


_WHOLE: dict[str, Callable[[IO[bytes], int], None]] = {
    "mov": _check_boxes,
    "matroska": _check_ebml,
    "wav": _check_riff,
    "avi": _check_riff,
    "aiff": _check_aiff,
    "asf": _check_asf,
    "au": _check_au,
    "caf": _check_caf,
    "ogg": _check_ogg,
    "mp3": _check_mp3,
}
