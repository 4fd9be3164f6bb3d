"""Files that only this user may read: keys and secrets that the server makes for itself."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def random_key(path: Path) -> bytes:
    """The 32 bytes that lie there, made at the first call and readable by this user alone. Raises OSError."""
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = b""
    if len(key) != 32:
        key = secrets.token_bytes(32)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
    return key
