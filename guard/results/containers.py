"""Tell what a file is by its first bytes, and whether all of it is there by its own structure.

Truncation is found here and not by the decoders: any other pack can tell Pillow to put up with cut files (for the
whole process), and libav plays what it has. Nothing is decoded; the size of the file bounds the work, and so does the
budget that every read asks (see :mod:`.budget`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from .film_index import claims_too_much
from .matroska import has_too_many_cues

_PNG = b"\x89PNG\r\n\x1a\n"
#: The second byte of an MPEG audio frame: version 1, 2 or 2.5, layer III, with or without a checksum.
_MPEG_AUDIO = frozenset({0xFB, 0xFA, 0xF3, 0xF2, 0xE3, 0xE2})
_CHUNK = 1 << 20
#: No picture, film or sound has more elements than this at its top level.
_MAX_ELEMENTS = 1_000_000


class BrokenFileError(Exception):
    """The file is not whole, or does not go on as it begins."""


@dataclass(frozen=True)
class Kind:
    """A file format.

    Attributes:
        name: `image`, `video` or `audio`: what the format can hold, before the file has been opened.
        format: our short name of the format.
        mime: for the route that serves it.
        demuxer: libav's name of the only reader that may open it; empty for images.
        check_whole: (handle, size in bytes) raises BrokenFileError where the file is cut off or damaged in structure.
    """

    name: str
    format: str
    mime: str
    demuxer: str
    check_whole: Callable[[IO[bytes], int], None]


def sniff(head: bytes) -> Kind | None:
    """Tell the kind of a file from its first 32 bytes; None for what this package does not judge."""
    if head.startswith(_PNG):
        return Kind("image", "png", "image/png", "", _check_png)
    if head.startswith(b"\xff\xd8\xff"):
        return Kind("image", "jpeg", "image/jpeg", "", _check_jpeg)
    if head.startswith((b"GIF87a", b"GIF89a")):
        return Kind("image", "gif", "image/gif", "", _check_gif)
    if head[:4] in (b"RIFF", b"RF64"):
        if head[8:12] == b"WEBP":
            return Kind("image", "webp", "image/webp", "", _check_webp)
        if head[8:12] == b"WAVE":
            return Kind("audio", "wav", "audio/wav", "wav", _check_riff)
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"):
            return None  # still pictures in a film's container
        mime = {b"qt  ": "video/quicktime", b"M4A ": "audio/mp4"}.get(brand, "video/mp4")
        return Kind("audio" if brand == b"M4A " else "video", "mp4", mime, "mov", _check_mp4)
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        mime = "video/webm" if b"webm" in head else "video/x-matroska"
        return Kind("video", "webm", mime, "matroska", _check_ebml)
    if head.startswith(b"fLaC"):
        return Kind("audio", "flac", "audio/flac", "flac", _leave_to_decoder)
    if head.startswith(b"OggS"):
        return Kind("audio", "ogg", "audio/ogg", "ogg", _check_ogg)
    if head.startswith(b"ID3") or (len(head) > 2 and head[0] == 0xFF and head[1] in _MPEG_AUDIO):
        return Kind("audio", "mp3", "audio/mpeg", "mp3", _leave_to_decoder)
    return None


def _leave_to_decoder(handle: IO[bytes], size: int) -> None:
    """Accept any: the format has no length of its own, so the decoder decides."""


def _read_exactly(handle: IO[bytes], count: int) -> bytes:
    data = handle.read(count)
    if len(data) < count:
        raise BrokenFileError("the file is cut off")
    return data


def _check_png(handle: IO[bytes], size: int) -> None:
    """Every chunk must be there, with the right checksum, up to IEND."""
    handle.seek(len(_PNG))
    for _ in range(_MAX_ELEMENTS):
        head = _read_exactly(handle, 8)
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if length > size:
            raise BrokenFileError("the file is cut off")
        checksum = zlib.crc32(name)
        while length:
            data = _read_exactly(handle, min(length, _CHUNK))
            checksum = zlib.crc32(data, checksum)
            length -= len(data)
        if int.from_bytes(_read_exactly(handle, 4), "big") != checksum:
            raise BrokenFileError(f"the checksum of chunk {name!r} is wrong")
        if name == b"IEND":
            return
    raise BrokenFileError("it has too many chunks")


def _check_jpeg(handle: IO[bytes], size: int) -> None:
    """An end mark must follow the beginning of the picture's own data. In that data no byte FF is followed by D9; an
    end mark before it belongs to a thumbnail."""
    handle.seek(2)
    for _ in range(_MAX_ELEMENTS):
        marker = _read_exactly(handle, 2)
        while marker[1] == 0xFF:  # filling
            marker = marker[1:] + _read_exactly(handle, 1)
        if marker[0] != 0xFF:
            raise BrokenFileError("a marker is missing")
        if marker[1] in (0x01, *range(0xD0, 0xD9)):
            continue
        length = int.from_bytes(_read_exactly(handle, 2), "big")
        if length < 2:
            raise BrokenFileError("a segment has no length")
        if marker[1] == 0xDA:
            break
        handle.seek(length - 2, 1)
    else:
        raise BrokenFileError("it has too many segments")
    last = b""
    while data := handle.read(_CHUNK):
        if b"\xff\xd9" in last + data:
            return
        last = data[-1:]
    raise BrokenFileError("the file is cut off")


def _check_gif(handle: IO[bytes], size: int) -> None:
    """Every block must be there, up to the trailer, and at least one picture."""
    handle.seek(6)
    flags = _read_exactly(handle, 7)[4]
    if flags & 0x80:
        _read_exactly(handle, 3 << ((flags & 7) + 1))
    pictures = 0
    while (mark := _read_exactly(handle, 1)) != b";":
        if mark == b"!":
            _read_exactly(handle, 1)
        elif mark == b",":
            flags = _read_exactly(handle, 9)[8]
            if flags & 0x80:
                _read_exactly(handle, 3 << ((flags & 7) + 1))
            _read_exactly(handle, 1)
            pictures += 1
        else:
            raise BrokenFileError("it has a block of an unknown kind")
        while length := _read_exactly(handle, 1)[0]:
            _read_exactly(handle, length)
    if not pictures:
        raise BrokenFileError("it has no picture")


def _check_riff(handle: IO[bytes], size: int) -> None:
    """Its chunks must end where its header says, within the file. Writers that could not go back to fill in the length
    (ffmpeg into a pipe) leave 0 or all ones; then only the chunks count."""
    handle.seek(0)
    head = _read_exactly(handle, 12)
    length = int.from_bytes(head[4:8], "little")
    if length not in (0, 0xFFFFFFFF) and length + 8 > size:
        raise BrokenFileError(f"its header says {length + 8} bytes, but {size} are there")
    position = 12
    for _ in range(_MAX_ELEMENTS):
        if position + 8 > size:
            return
        handle.seek(position)
        chunk = _read_exactly(handle, 8)
        length = int.from_bytes(chunk[4:], "little")
        if length == 0xFFFFFFFF:
            return
        if position + 8 + length > size:
            raise BrokenFileError(f"chunk {chunk[:4]!r} is cut off")
        position += 8 + length + length % 2
    raise BrokenFileError("it has too many chunks")


#: An arithmetic coder never writes this many zeros.
_ZEROS = 512


def _check_webp(handle: IO[bytes], size: int) -> None:
    """It must be whole as any RIFF file, and written to its end: libwebp silently decodes zeros to grey."""
    _check_riff(handle, size)
    handle.seek(max(size - _ZEROS, 0))
    if not any(handle.read(_ZEROS)):
        raise BrokenFileError("its end was never written")


def iterate_boxes(handle: IO[bytes], size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, begin, end) of each box at the top level of an MP4 or MOV file."""
    position = 0
    for _ in range(_MAX_ELEMENTS):
        if position == size:
            return
        handle.seek(position)
        head = _read_exactly(handle, 8)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(_read_exactly(handle, 8), "big")
        elif length == 0:
            length = size - position  # up to the end of the file
        if length < 8:
            raise BrokenFileError("a box has no length")
        yield head[4:], position, position + length
        position += length
        if position > size:
            raise BrokenFileError(f"box {head[4:]!r} is cut off")
    raise BrokenFileError("it has too many boxes")


def _check_mp4(handle: IO[bytes], size: int) -> None:
    """Every box must be there, the index (`moov`) and the data among them."""
    names = {name for name, _, _ in iterate_boxes(handle, size)}
    if not names & {b"mdat", b"moof"} or b"moov" not in names:
        raise BrokenFileError("its index or its data is missing")
    check_index(handle, size)


def check_index(handle: IO[bytes], size: int) -> None:
    """Raises BrokenFileError for an MP4 or QuickTime file whose index would take much memory to read."""
    if claims_too_much(handle, size):
        raise BrokenFileError("its index names more samples than a film has")


def _check_ebml(handle: IO[bytes], size: int) -> None:
    """The segment must end where it says, within the file. A writer that was never told to finish leaves the length
    unknown; such a file is whole as far as anyone can tell."""
    handle.seek(0)
    for _ in range(64):
        identity = _read_vint(handle, keep_mark=True)
        length = _read_vint(handle, keep_mark=False)
        if identity == 0x18538067:
            if length is not None and handle.tell() + length > size:
                raise BrokenFileError(f"the segment is cut off at {size} bytes")
            if size <= handle.tell():
                raise BrokenFileError("it has no data")
            if has_too_many_cues(handle, size):
                raise BrokenFileError("its index names more places than a film has")
            return
        if length is None:
            raise BrokenFileError("an element has no length")
        handle.seek(length, 1)
    raise BrokenFileError("it has no segment")


def _read_vint(handle: IO[bytes], *, keep_mark: bool) -> int | None:
    """Read a variable-length integer of Matroska; None for the length that means unknown."""
    first = _read_exactly(handle, 1)[0]
    extra = 8 - first.bit_length()
    if extra > 7:
        raise BrokenFileError("a number has no known length")
    value = first if keep_mark else first & ((1 << (7 - extra)) - 1)
    rest = _read_exactly(handle, extra)
    whole = int.from_bytes(bytes([value]) + rest, "big")
    if not keep_mark and whole == (1 << (7 * (extra + 1))) - 1:
        return None
    return whole


def _check_ogg(handle: IO[bytes], size: int) -> None:
    """Every page must be there, and the last of each stream marked as its last."""
    position = 0
    open_streams: set[bytes] = set()
    for _ in range(_MAX_ELEMENTS):
        if position == size:
            break
        handle.seek(position)
        head = _read_exactly(handle, 27)
        if head[:4] != b"OggS":
            raise BrokenFileError("a page is damaged")
        lengths = _read_exactly(handle, head[26])
        position += 27 + len(lengths) + sum(lengths)
        if position > size:
            raise BrokenFileError("its last page is cut off")
        serial = head[14:18]
        if head[5] & 0x04:
            open_streams.discard(serial)
        else:
            open_streams.add(serial)
    if open_streams:
        raise BrokenFileError("its last page is missing")
