"""The SHA-256 of a file and of each of its pieces: by those a part of it is known to have its bytes when it is read."""

from __future__ import annotations

import hashlib

#: So long are the pieces, but for the last one.
PIECE_BYTES = 1 << 20


class Digests:
    """Of what is added; in whatever parts it comes."""

    def __init__(self, in_pieces: bool) -> None:
        """`in_pieces` False: of the file alone."""
        self._in_pieces = in_pieces
        self._whole = hashlib.sha256()
        self._pieces: list[bytes] = []
        self._piece = hashlib.sha256()
        self._left = PIECE_BYTES

    def add(self, data: bytes) -> None:
        self._whole.update(data)
        if not self._in_pieces:
            return
        rest = memoryview(data)
        while len(rest) >= self._left:
            self._piece.update(rest[: self._left])
            self._pieces.append(self._piece.digest())
            rest, self._piece, self._left = rest[self._left :], hashlib.sha256(), PIECE_BYTES
        self._piece.update(rest)
        self._left -= len(rest)

    @property
    def sha256(self) -> str:
        """Of all of it, in hex."""
        return self._whole.hexdigest()

    def list_pieces(self) -> tuple[bytes, ...]:
        return (*self._pieces, *([self._piece.digest()] if self._left < PIECE_BYTES else []))


def holds(pieces: tuple[bytes, ...], begin: int, data: bytes) -> bool:
    """Whether those bytes, whole pieces from `begin` on, are the file's."""
    first = begin // PIECE_BYTES
    view = memoryview(data)
    return all(
        hashlib.sha256(view[at : at + PIECE_BYTES]).digest() == pieces[first + at // PIECE_BYTES]
        for at in range(0, len(data), PIECE_BYTES)
    )
