"""The version of this package as the boxes of a fleet compare it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
#: What decides how the package works; not its tests, pages and documents.
_ROOMS = ("guard", "host", "server_routes", "agents", "nodes")
_VERSION = re.compile(r'^version = "([^"]{1,50})"', re.MULTILINE)


def read_version(root: Path = _ROOT) -> str:
    """The release, and a digest of the code, which differs between two commits of one release. Reads 2 MB of files.

    Raises OSError where they cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted([*root.glob("*.py"), *(path for room in _ROOMS for path in (root / room).rglob("*.py"))]):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes().replace(b"\r\n", b"\n"))
    found = _VERSION.search((root / "pyproject.toml").read_text("utf-8"))
    return f"{found[1] if found else '?'} ({digest.hexdigest()[:8]})"
