"""Overwrite the metadata of films and sounds in its place, since their indexes point past it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import IO

from .containers import BrokenFileError


def _blank(file: IO[bytes], position: int, length: int) -> None:
    file.seek(position)
    while length > 0:
        piece = min(length, 1 << 20)
        file.write(bytes(piece))
        length -= piece


def _strip_mp4(file: IO[bytes], size: int) -> None:
    waiting = [(0, size)]
    while waiting:
        position, end = waiting.pop()
        while position + 8 <= end:
            file.seek(position)
            head = file.read(16)
            length, name, begin = int.from_bytes(head[:4], "big"), head[4:8], position + 8
            if length == 1:
                length, begin = int.from_bytes(head[8:16], "big"), position + 16
            elif length == 0:
                length = end - position
            if length < 8 or position + length > end:
                raise BrokenFileError("a box is cut off")
            if name in (b"udta", b"meta", b"uuid", b"free", b"skip", b"cprt"):
                file.seek(position + 4)
                file.write(b"free")
                _blank(file, begin, position + length - begin)
            elif name in (b"moov", b"trak", b"mdia", b"minf", b"moof", b"traf", b"edts"):
                waiting.append((begin, position + length))
            elif name == b"hdlr":  # its name is that of the writer
                _blank(file, begin + 24, position + length - begin - 24)
            position += length


#: Elements of Matroska: with others in them; to be voided; texts that must be there, and are emptied.
_EBML_MASTERS = frozenset({0x18538067, 0x1549A966, 0x1654AE6B, 0xAE})
_EBML_VOIDED = frozenset({0x1254C367, 0x1941A469, 0x7BA9, 0x7384, 0x4461, 0x73A4, 0x536E, 0xEC})
_EBML_EMPTIED = frozenset({0x4D80, 0x5741})


def _strip_matroska(file: IO[bytes], size: int) -> None:
    waiting = [(0, size)]
    while waiting:
        position, end = waiting.pop()
        while position < end:
            file.seek(position)
            head = file.read(12)
            id_length = 9 - head[0].bit_length() if head and head[0] else 9
            if id_length > 4:
                raise BrokenFileError("an element has no name")
            length_length = 9 - head[id_length].bit_length()
            if length_length > 8:
                raise BrokenFileError("an element has no length")
            name = int.from_bytes(head[:id_length], "big")
            mark = 1 << (7 * length_length)
            length = int.from_bytes(head[id_length : id_length + length_length], "big") & (mark - 1)
            begin = position + id_length + length_length
            if length == mark - 1:  # unknown: what follows lies in it
                position = begin
                continue
            if begin + length > end:
                raise BrokenFileError("an element is cut off")
            if name in _EBML_VOIDED:
                _void(file, position, begin + length - position)
            elif name in _EBML_EMPTIED:
                _blank(file, begin, length)
            elif name in _EBML_MASTERS:
                waiting.append((begin, begin + length))
            position = begin + length


def _void(file: IO[bytes], position: int, total: int) -> None:
    """Make an element of that many bytes a void one."""
    for length_length in (1, 2, 3, 4, 8):
        length = total - 1 - length_length
        if length < (1 << (7 * length_length)) - 1:
            file.seek(position)
            file.write(b"\xec" + ((1 << (7 * length_length)) | length).to_bytes(length_length, "big"))
            _blank(file, position + 1 + length_length, length)
            return


def _strip_wav(file: IO[bytes], size: int) -> None:
    position = 12
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name not in (b"fmt ", b"data", b"fact", b"ds64", b"cue ", b"smpl", b"JUNK"):
            file.seek(position)
            file.write(b"JUNK")
            _blank(file, position + 8, min(length, size - position - 8))
        position += 8 + length + length % 2


def _strip_flac(file: IO[bytes], _size: int) -> None:
    position, last = 4, False
    while not last:
        file.seek(position)
        head = file.read(4)
        last, kind, length = bool(head[0] & 0x80), head[0] & 0x7F, int.from_bytes(head[1:4], "big")
        if kind in (2, 4, 6):  # of an application, comments, pictures
            file.seek(position)
            file.write(bytes([head[0] & 0x80 | 1]))
            _blank(file, position + 4, length)
        position += 4 + length


def _strip_mp3(file: IO[bytes], size: int) -> None:
    position = 0
    file.seek(0)
    while (head := file.read(10))[:3] == b"ID3":
        length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        if position + 10 + length > size:
            raise BrokenFileError("a tag is cut off")
        file.seek(position + 5)
        file.write(b"\0")  # no extended header, no footer: zeros are filling
        _blank(file, position + 10, length + (10 if head[5] & 0x10 else 0))
        position += 10 + length
        file.seek(position)
    if size > 128:
        file.seek(size - 128)
        if file.read(3) == b"TAG":
            file.truncate(size - 128)


def _strip_ogg(file: IO[bytes], size: int) -> None:
    """Empty the comments: the second packet of a stream. Only its own pages change, and their checksums."""
    position, seen = 0, dict[bytes, int]()
    while position + 27 <= size and len(seen) < 64:
        file.seek(position)
        head = file.read(27)
        if head[:4] != b"OggS":
            raise BrokenFileError("a page is damaged")
        table = file.read(head[26])
        body = bytearray(file.read(sum(table)))
        serial, changed, begin = head[14:18], False, 0
        packet = seen.get(serial, 0)
        for segment in table:
            if packet == 1:
                changed |= _empty_comment(body, begin, segment, bool(begin == 0 and head[5] & 1))
            begin += segment
            packet += segment < 255
        seen[serial] = packet
        if changed:
            page = head[:22] + bytes(4) + head[26:] + table + bytes(body)
            file.seek(position)
            file.write(page[:22] + struct.pack("<I", _ogg_checksum(page)) + page[26:])
        position += 27 + len(table) + len(body)
        if seen and all(packets > 1 for packets in seen.values()):
            return


def _empty_comment(body: bytearray, begin: int, length: int, goes_on: bool) -> bool:
    """Blank a piece of a comment packet. Its first one keeps the codec's mark, and says that there are no comments."""
    piece = bytes(body[begin : begin + length])
    for mark in (b"OpusTags", b"\x03vorbis", b"\x81theora"):
        if piece.startswith(mark) and not goes_on:
            # No vendor, no comments; what is left is filling, after the bit that ends Vorbis' header.
            kept = mark + bytes(8) + (b"" if mark == b"OpusTags" else b"\x01")
            body[begin : begin + length] = kept.ljust(length, b"\0")[:length]
            return True
    if piece[:1] == b"\x84" and not goes_on:  # FLAC in Ogg: its comments, as the last block
        kept = b"\x84" + piece[1:4] + bytes(8)
        body[begin : begin + length] = kept.ljust(length, b"\0")[:length]
        return True
    body[begin : begin + length] = bytes(length)
    return True


def _ogg_checksum(page: bytes) -> int:
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ _OGG_TABLE[value >> 24 ^ byte]
    return value


def _make_ogg_table() -> Iterator[int]:
    for value in range(256):
        value <<= 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7) & 0xFFFFFFFF if value & 0x80000000 else value << 1
        yield value


_OGG_TABLE = tuple(_make_ogg_table())

#: By the format's short name: what strips a file of that size.
IN_PLACE: dict[str, Callable[[IO[bytes], int], None]] = {
    "mp4": _strip_mp4,
    "webm": _strip_matroska,
    "wav": _strip_wav,
    "flac": _strip_flac,
    "mp3": _strip_mp3,
    "ogg": _strip_ogg,
}
