"""Bound what an encoder writes."""

from __future__ import annotations

import os
import threading
import time
from typing import IO

from ..outgoing import NotConverted


class NotConvertedError(Exception):
    """There is no copy, and why."""

    def __init__(self, reason: NotConverted) -> None:
        super().__init__(reason)
        self.reason = reason


class Sink:
    """The file that an encoder writes: up to so many bytes, until that time, and not once it was given up. One thread
    writes, another one may give up."""

    def __init__(self, handle: IO[bytes], max_bytes: int, until_s: float) -> None:
        #: For an encoder that opens the file itself; it then calls `check` after each piece.
        self.path = str(handle.name)
        self._handle = handle
        self._max_bytes = max_bytes
        self._until_s = until_s
        self._given_up = threading.Event()

    def give_up(self) -> None:
        self._given_up.set()

    def check(self) -> None:
        """Raises NotConvertedError once the time is gone, or the file is too large."""
        self._check_time()
        if os.fstat(self._handle.fileno()).st_size > self._max_bytes:
            raise NotConvertedError("too_large")

    def write(self, data: bytes) -> int:
        self._check_time()
        at = self._handle.tell() + len(data)
        if at > self._max_bytes:
            raise NotConvertedError("too_large")
        return self._handle.write(data)

    def _check_time(self) -> None:
        if self._given_up.is_set() or time.monotonic() >= self._until_s:
            raise NotConvertedError("too_slow")

    def read(self, size: int = -1) -> bytes:
        return self._handle.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._handle.seek(offset, whence)

    def tell(self) -> int:
        return self._handle.tell()

    def flush(self) -> None:
        self._handle.flush()

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True
