"""Files that only this user may read: keys and secrets that the server makes for itself."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

log = logging.getLogger("guarded")


def write(path: Path, data: bytes) -> None:
    """Put `data` in the place of what lies there, whole or not at all, readable by this user alone. Raises OSError.

    A power cut afterwards leaves it there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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
        key = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        key = b""
    if len(key) != 32:
        key = secrets.token_bytes(32)
        write_if_possible(path, key)
    return key
