"""Open a job's file only while it still has the bytes that were checked."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import IO

from ..job import Artifact
from .budget import Budget


def holds(artifact: Artifact, handle: IO[bytes]) -> bool:
    """Whether an open file has the artifact's bytes. Reads all of it and rewinds it."""
    same = os.fstat(handle.fileno()).st_size == artifact.bytes and hash_file(handle) == artifact.sha256
    handle.seek(0)
    return same


class ArtifactOpener:
    """Opens artifacts that still have their bytes, and remembers what it has hashed: a player that seeks in a film
    asks for dozens of ranges. Any thread, not the event loop."""

    #: A file that changed this shortly before it was hashed may change again within one tick of the disk's clock.
    _SETTLED_S = 2.0
    _REMEMBERED = 1024

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, ...], str] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, artifact: Artifact, path: Path) -> IO[bytes] | None:
        """Open the file; None where it is gone or has other bytes. The caller reads what was checked, whatever happens
        to the name meanwhile, and closes it."""
        try:
            handle = open(path, "rb")  # noqa: SIM115
        except OSError:
            return None
        try:
            status = os.fstat(handle.fileno())
            # Contents cannot change without st_ctime (on Windows: st_mtime) changing.
            key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            with self._lock:
                known = self._known.get(key)
            if known == artifact.sha256 and status.st_size == artifact.bytes:
                return handle
            is_it = stat.S_ISREG(status.st_mode) and holds(artifact, handle)
            if is_it and os.fstat(handle.fileno()).st_mtime_ns == status.st_mtime_ns:
                if time.time() - max(status.st_ctime, status.st_mtime) > self._SETTLED_S:
                    with self._lock:
                        self._known[key] = artifact.sha256
                        while len(self._known) > self._REMEMBERED:
                            self._known.popitem(last=False)
                return handle
        except OSError:
            pass
        handle.close()
        return None


def copy_and_hash(handle: IO[bytes], target: Path) -> tuple[str, int]:
    """Copy an open file to a path at which there is none. Returns the copy's SHA-256, in hex, and its size."""
    handle.seek(0)
    digest, size = hashlib.sha256(), 0
    with open(target, "xb") as copy:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
            copy.write(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def hash_file(handle: IO[bytes], budget: Budget | None = None) -> str:
    """The SHA-256 of all of an open file, in hex. Raises ResultCorruptError when the budget's time is gone."""
    handle.seek(0)
    digest = hashlib.sha256()
    while chunk := handle.read(1 << 20):
        digest.update(chunk)
        if budget is not None:
            budget.check()
    return digest.hexdigest()
