"""Read a file that lies elsewhere as if it lay here: from any place, a piece at a time."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from typing import IO

from .digests import Digests
from .objects import WrongBytesError

#: So much is asked for at once, at least: whoever reads asks for less, and one request costs as much as a megabyte.
AHEAD_BYTES = 1 << 20
#: So much of a large one is in one request.
PART_BYTES = 8 << 20


class Reader(io.RawIOBase):
    """One thread at a time."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        """`read`: from a byte on, so many."""
        self._ask = read
        self._size = size
        self._at = 0
        self._begin, self._held = 0, b""

    def read(self, size: int | None = -1) -> bytes:
        left = max(self._size - self._at, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""
        offset = self._at - self._begin
        if not 0 <= offset <= len(self._held) - wanted:
            self._begin, offset = self._at, 0
            # Up to where a piece ends: whoever compares it with its digest asks for whole ones.
            self._held = self._ask(self._at, min(max(wanted, AHEAD_BYTES - self._at % AHEAD_BYTES), left))
        piece = self._held[offset : offset + wanted]
        self._at += len(piece)
        return piece

    def readall(self) -> bytes:
        return self.read(-1)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def read_checked(first: bytes, handle: IO[bytes], sha256: str, done: list[int], digests: Digests) -> Iterator[bytes]:
    """The pieces of a file. The last one comes only if all together are what they should be: else nothing was put."""
    digests.add(first)
    piece = first
    while following := handle.read(PART_BYTES):
        digests.add(following)
        done.append(len(piece))
        yield piece
        piece = following
    if digests.sha256 != sha256:
        raise WrongBytesError(sha256)
    done.append(len(piece))
    yield piece
