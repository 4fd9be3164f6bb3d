"""A folder held open: its entries are listed and deleted through it, never through a path that may have changed.

Where the platform can (`dir_fd`: Linux, macOS, BSD), a folder is a handle. Whoever swaps a folder for a link during a
sweep gains nothing: the handle still is the folder that was looked at, and opening one follows no link. Elsewhere
(Windows) a folder is a path that is resolved again before each deletion. A swap between those two calls would get
through, so handles come first.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

#: (device, inode)
Identity = tuple[int, int]

HANDLES = (
    {os.open, os.stat, os.unlink, os.rmdir} <= os.supports_dir_fd
    and os.scandir in os.supports_fd
    and hasattr(os, "O_NOFOLLOW")
    and hasattr(os, "O_DIRECTORY")
)
_REPARSE_POINT = 0x400  # FILE_ATTRIBUTE_REPARSE_POINT: a junction, or another kind of link

Entries = AbstractContextManager[Iterator["os.DirEntry[str]"]]


class Folder(Protocol):
    """An open folder; close it when done. Every method raises OSError as the call beneath it does."""

    status: os.stat_result

    @property
    def identity(self) -> Identity: ...

    def open_child(self, name: str) -> Folder | None:
        """Open the folder below; None where that is a link, a mount, or no folder (any more)."""

    def scan(self) -> Entries: ...

    def stat(self, name: str) -> os.stat_result:
        """Look at the entry itself, not at what it links to."""

    def born_s(self, name: str, status: os.stat_result) -> float | None:
        """When an entry (or the folder, with an empty name) was created, seconds since the epoch; None: unknown."""

    def unlink(self, name: str) -> None: ...

    def rmdir(self, name: str) -> None: ...

    def close(self) -> None: ...


def open_root(path: Path, handles: bool = HANDLES) -> Folder:
    """The folder at a path without links in it."""
    return _Handle(os.open(path, _FLAGS)) if handles else _Path(str(path))


class _Handle:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        try:
            self.status = os.fstat(fd)
            self._mount = _read_mount(fd)
        except BaseException:
            os.close(fd)
            raise

    @property
    def identity(self) -> Identity:
        return self.status.st_dev, self.status.st_ino

    def open_child(self, name: str) -> _Handle | None:
        try:
            child = _Handle(os.open(name, _FLAGS, dir_fd=self._fd))
        except OSError:
            # A link gives ELOOP or ENOTDIR, by platform. Otherwise it may be a folder that may not be read.
            if stat.S_ISDIR(self.stat(name).st_mode):
                raise
            return None
        if child.status.st_dev != self.status.st_dev or child._mount != self._mount:
            child.close()
            return None
        return child

    def scan(self) -> Entries:
        return os.scandir(self._fd)

    def stat(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self._fd, follow_symlinks=False)

    def born_s(self, name: str, status: os.stat_result) -> float | None:
        known = getattr(status, "st_birthtime", None)
        return known if known is not None else _statx_born_s(self._fd, os.fsencode(name))

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self._fd)

    def rmdir(self, name: str) -> None:
        os.rmdir(name, dir_fd=self._fd)

    def close(self) -> None:
        os.close(self._fd)


class _Path:
    def __init__(self, path: str) -> None:
        self._path = path
        self.status = os.lstat(path)

    @property
    def identity(self) -> Identity:
        return self.status.st_dev, self.status.st_ino

    def open_child(self, name: str) -> _Path | None:
        child = _Path(os.path.join(self._path, name))
        if not stat.S_ISDIR(child.status.st_mode) or getattr(child.status, "st_file_attributes", 0) & _REPARSE_POINT:
            return None
        if child.status.st_dev != self.status.st_dev or os.path.ismount(child._path):
            return None
        return child

    def scan(self) -> Entries:
        self._check_still_here()
        return os.scandir(self._path)

    def stat(self, name: str) -> os.stat_result:
        return os.lstat(os.path.join(self._path, name))

    def born_s(self, name: str, status: os.stat_result) -> float | None:
        known = getattr(status, "st_birthtime", None)
        if known is None and os.name == "nt":
            known = status.st_ctime  # before Python 3.12 this is the creation there
        if known is None:
            known = _statx_born_s(_AT_FDCWD, os.fsencode(os.path.join(self._path, name) if name else self._path))
        return known

    def unlink(self, name: str) -> None:
        self._check_still_here()
        os.unlink(os.path.join(self._path, name))

    def rmdir(self, name: str) -> None:
        self._check_still_here()
        os.rmdir(os.path.join(self._path, name))

    def close(self) -> None:
        pass

    def _check_still_here(self) -> None:
        """Raise FileNotFoundError where the path leads to another folder by now."""
        now = os.lstat(self._path)
        if (now.st_dev, now.st_ino) != self.identity:
            raise FileNotFoundError(f"{self._path} is another folder by now")
        if os.path.normcase(os.path.realpath(self._path)) != os.path.normcase(self._path):
            raise FileNotFoundError(f"{self._path} leads elsewhere by now")


_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def _read_mount(fd: int) -> bytes:
    """Read which mount a handle lies on: a bind mount has the device number of the folder that it shows."""
    if not sys.platform.startswith("linux"):
        return b""
    try:
        info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""  # without /proc the device number alone decides
    try:
        for line in os.read(info, 512).splitlines():
            if line.startswith(b"mnt_id:"):
                return line
        return b""
    finally:
        os.close(info)


# Linux keeps a file's time of birth, but Python does not read it before 3.15. statx(2): struct statx, 256 bytes,
# `stx_mask` at 0, `stx_btime` (seconds as int64, nanoseconds as uint32) at 80.
_STATX_BTIME = 0x800
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_EMPTY_PATH = 0x1000


def _find_statx() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).statx
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]
    function.restype = ctypes.c_int
    return function


_statx = _find_statx()


def _statx_born_s(dir_fd: int, name: bytes) -> float | None:
    if _statx is None:
        return None
    buffer = ctypes.create_string_buffer(256)
    flags = _AT_SYMLINK_NOFOLLOW | (0 if name else _AT_EMPTY_PATH)
    if _statx(dir_fd, name, flags, _STATX_BTIME, buffer) != 0:
        return None
    raw = buffer.raw
    if not int.from_bytes(raw[0:4], sys.byteorder) & _STATX_BTIME:
        return None
    seconds = int.from_bytes(raw[80:88], sys.byteorder, signed=True)
    return seconds + int.from_bytes(raw[88:92], sys.byteorder) / 1e9
