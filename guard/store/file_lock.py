"""Keep other processes out by a lock on a file. The system frees it when the process ends, however that happens.

A child that forks off this process has no part in the lock: its copy of the handle is closed at once, so it neither
frees the lock for other processes nor keeps it when this process is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

#: How the system says that somebody else holds the lock.
_TAKEN = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK}
_LOOK_S = 0.05

#: The locks that this process holds.
_held: set[FileLock] = set()


class LockedError(TimeoutError):
    """Another process, or another lock of this one, holds the file."""


class FileLock:
    """A lock on a file, which is made if there is none and stays when the lock is released."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self, timeout_s: float = 0.0) -> None:
        """Raises LockedError where it is not free within that time, OSError where the file system refuses."""
        ends_s = time.monotonic() + timeout_s
        while not self._try():
            if time.monotonic() >= ends_s:
                raise LockedError(f"another process holds {self.path}")
            time.sleep(_LOOK_S)
        _held.add(self)

    def release(self) -> None:
        """Let others have it; nothing where it is not held."""
        handle = self._forget()
        if handle is not None:
            try:
                _unlock(handle)
            finally:
                os.close(handle)

    def leave_to_parent(self) -> None:
        """Give up a forked child's copy of the handle, without freeing the lock that it shares."""
        handle = self._forget()
        if handle is not None:
            os.close(handle)

    @property
    def is_held(self) -> bool:
        return self._handle is not None

    @contextlib.contextmanager
    def hold(self, timeout_s: float) -> Iterator[None]:
        self.acquire(timeout_s)
        try:
            yield
        finally:
            self.release()

    def is_current(self) -> bool:
        """Whether the file of that name still is the one that is locked: another process would meet this lock."""
        return self._handle is not None and _is_at(self._handle, self.path)

    def _forget(self) -> int | None:
        handle, self._handle = self._handle, None
        _held.discard(self)
        return handle

    def _try(self) -> bool:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # Whoever had it may have deleted the file meanwhile, and the lock on a nameless file keeps nobody out.
            if _lock(handle) and _is_at(handle, self.path):
                self._handle, handle = handle, -1
        finally:
            if handle >= 0:
                os.close(handle)
        return self._handle is not None


def _is_at(handle: int, path: Path) -> bool:
    if sys.platform == "win32":
        return True  # there nobody can delete an open file
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _lock(handle: int) -> bool:
    """False where somebody else has it."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def _unlock(handle: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_UN)


def _leave_all() -> None:
    for lock in list(_held):
        lock.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
