"""Files that only this user may read: the job database, and keys and secrets that the server makes for itself."""

from __future__ import annotations

import logging
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from ..own_files import UnreadableFileError, read_bytes

log = logging.getLogger("guarded")


def make_folder(folder: Path) -> None:
    """Make the folder unless it is there, and let this user alone enter it. Raises OSError where it cannot be made."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _shut(folder, 0o700)


def make_file(path: Path) -> None:
    """Make an empty file unless it is there, and let this user alone read it. Raises OSError where that fails."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    _shut(path, 0o600)


def _shut(path: Path, mode: int) -> None:
    """Take everybody else's rights away; not where the disk has none, or the file is another user's."""
    with suppress(OSError):
        if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
            os.chmod(path, mode)


def write(path: Path, data: bytes) -> None:
    """Put `data` in the place of what lies there, whole or not at all, readable by this user alone. Raises OSError.

    A power cut afterwards leaves it there.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    if os.name != "nt":  # which syncs no folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_if_possible(path: Path, data: bytes) -> None:
    """As :func:`write`, but log it where the disk refuses: the server runs on with what it has in memory."""
    try:
        write(path, data)
    except OSError as error:
        log.error("%s cannot be written, and the next start will make another one: %s", path, error)


def read_or_make_key(path: Path) -> bytes:
    """The 32 bytes that lie there; made at the first call. Raises OSError where they cannot be read."""
    try:
        key = read_bytes(path)
    except FileNotFoundError:
        key = b""
    except UnreadableFileError:
        if path.parent.is_dir():
            raise
        key = b""  # there is no folder that it could lie in
    if len(key) != 32:
        key = secrets.token_bytes(32)
        write_if_possible(path, key)
    return key
