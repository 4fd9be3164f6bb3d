"""How much a packed file unpacks to: who reads it has all of that in memory at once."""

from __future__ import annotations

import bz2
import gzip
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

#: Bytes that are unpacked at once.
_STEP = 1 << 20


def unpacks_to_more(handle: IO[bytes], most: int) -> bool:
    """Whether a file, packed by gzip, bzip2 or zip, unpacks to more than so many bytes; no other file does.

    Only what is there counts, not what the file says of itself. Blocks as long as it takes to unpack so much.
    """
    unpacked = 0
    try:
        for part in _open_parts(handle):
            with part:
                while data := part.read(_STEP):
                    unpacked += len(data)
                    if unpacked > most:
                        return True
    # It is damaged, or packed in another way (NotImplementedError) or with a password (RuntimeError).
    except (zlib.error, OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        pass
    return False


def _open_parts(handle: IO[bytes]) -> Iterator[IO[bytes]]:
    handle.seek(0)
    head = handle.read(4)
    handle.seek(0)
    if head.startswith(b"\x1f\x8b"):
        yield gzip.GzipFile(fileobj=handle)  # type: ignore[misc]
    elif head.startswith(b"BZh"):
        yield bz2.BZ2File(handle)
    elif head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(handle) as archive:
            for entry in archive.infolist():
                yield archive.open(entry)
