"""Read rows from the pages of a SQLite file without SQLite, for when the way to them is lost.

SQLite finds a table's pages through its description, its root and the pages below that; a bad one hides all rows behind
it. Here each page that looks like a leaf of a table is read, whichever table it belongs to. The file's format:
https://sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER = b"SQLite format 3\x00"
LEAF = 13
#: Bytes of the whole numbers in a record, by serial type.
_SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def find_bad_header(path: Path) -> str | None:
    """Say what in the file's header SQLite would take for another format; it reports that as if the disk refused.

    The header may be in the log beside the file instead; then that is not looked at.
    """
    if has_log(path) or not path.exists():
        return None
    with open(path, "rb") as file:
        header = file.read(100)
    if header[:16] != HEADER:
        return None  # SQLite says so itself
    formats = (*header[18:20], int.from_bytes(header[44:48], "big"), int.from_bytes(header[56:60], "big"))
    is_good = all(number <= most for number, most in zip(formats, (2, 2, 4, 1), strict=True))
    return None if is_good else "its header names a format of which it is not"


def has_log(path: Path) -> bool:
    """Whether there are pages in the log beside the file that are not in it yet."""
    log = Path(f"{path}-wal")
    return log.exists() and log.stat().st_size > 0


def read_leaves(path: Path) -> Iterator[tuple[int, list[Any]]]:
    """Rowid and values of each row on a page that is in use, or may be; a row's last columns may be missing.

    The column that is an alias of the rowid is None. Text that is not UTF-8 has surrogates.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        pages = _Pages(data)
        free = pages.list_free()
        for number in range(1, pages.count + 1):
            if number not in free:
                yield from pages.read_leaf(number)


class _Pages:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._size, reserved = 4096, 0
        if data[:16] == HEADER:
            stated = int.from_bytes(data[16:18], "big")
            self._size, reserved = (65536 if stated == 1 else stated), data[20]
        if self._size < 512 or self._size & (self._size - 1):
            self._size, reserved = 4096, 0
        self._usable = self._size - reserved
        self.count = len(data) // self._size

    def list_free(self) -> frozenset[int]:
        """The pages that are not in use, and still have what was deleted or moved, as far as their list can be read."""
        free: set[int] = set()
        trunk = self._number(32)
        while 0 < trunk <= self.count and trunk not in free:
            free.add(trunk)
            start = (trunk - 1) * self._size
            for place in range(min(self._number(start + 4), self._size // 4 - 2)):
                free.add(self._number(start + 8 + 4 * place))
            trunk = self._number(start)
        return frozenset(free)

    def read_leaf(self, number: int) -> Iterator[tuple[int, list[Any]]]:
        page = self._data[(number - 1) * self._size : number * self._size]
        start = 100 if number == 1 else 0
        if page[start] != LEAF:
            return
        last = 0
        for place in range(min(int.from_bytes(page[start + 3 : start + 5], "big"), self._size // 4)):
            slot = start + 8 + 2 * place
            try:
                rowid, values = self._read_cell(page, int.from_bytes(page[slot : slot + 2], "big"))
            except (ValueError, IndexError, struct.error):
                continue  # no cell, or a damaged one
            if rowid > last:  # they are in order
                last = rowid
                yield rowid, values

    def _read_cell(self, page: bytes, at: int) -> tuple[int, list[Any]]:
        size, at = _read_varint(page, at)
        rowid, at = _read_varint(page, at)
        if not 0 < size <= len(self._data) or not 0 < rowid < 2**63:
            raise ValueError
        return rowid, _read_record(self._read_payload(page, at, size))

    def _read_payload(self, page: bytes, at: int, size: int) -> bytes:
        if size <= self._usable - 35:
            return _cut(page, at, size)
        least = (self._usable - 12) * 32 // 255 - 23
        local = least + (size - least) % (self._usable - 4)
        if local > self._usable - 35:
            local = least
        parts, left, seen = [_cut(page, at, local)], size - local, set()
        following = int.from_bytes(_cut(page, at + local, 4), "big")
        while left > 0:
            if not 1 < following <= self.count or following in seen:
                raise ValueError
            seen.add(following)
            start = (following - 1) * self._size
            part = self._data[start + 4 : start + 4 + min(left, self._usable - 4)]
            parts.append(part)
            left -= len(part)
            following = self._number(start)
        return b"".join(parts)

    def _number(self, at: int) -> int:
        return int.from_bytes(self._data[at : at + 4], "big")


def _read_record(payload: bytes) -> list[Any]:
    end, at = _read_varint(payload, 0)
    kinds = []
    while at < end:
        kind, at = _read_varint(payload, at)
        kinds.append(kind)
    if at != end:
        raise ValueError
    values: list[Any] = []
    for kind in kinds:
        if kind == 0:
            values.append(None)
        elif kind in _SIZES:
            values.append(int.from_bytes(_cut(payload, at, _SIZES[kind]), "big", signed=True))
            at += _SIZES[kind]
        elif kind == 7:
            values.append(struct.unpack(">d", _cut(payload, at, 8))[0])
            at += 8
        elif kind in (8, 9):
            values.append(kind - 8)
        elif kind >= 12:
            value = _cut(payload, at, (kind - 12) // 2)
            values.append(value.decode("utf-8", "surrogateescape") if kind % 2 else value)
            at += len(value)
        else:
            raise ValueError
    if at != len(payload):
        raise ValueError
    return values


def _cut(data: bytes, at: int, size: int) -> bytes:
    part = data[at : at + size]
    if len(part) != size:
        raise ValueError
    return part


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(8):
        byte = data[at + place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + place + 1
    return value << 8 | data[at + 8], at + 9
