"""Look at a whole tree of files, to compare it with itself later."""

import os
from dataclasses import dataclass, field
from pathlib import Path

#: What the server writes for itself, whatever anybody asks: its log, its database, caches of Python's.
_OWN = ("server.log", "user/__guarded/", "user/comfyui", "__pycache__/", "custom_nodes/ComfyUI-Guarded/")

Seen = dict[str, tuple[int, int, int]]


@dataclass
class Changes:
    """Files that are new, or have other content, below a folder."""

    paths: list[str] = field(default_factory=list)

    def update(self, before: Seen, after: Seen) -> None:
        self.paths += sorted(path for path, mark in after.items() if before.get(path) != mark)
        self.paths += sorted(path for path in before if path not in after)


def look(base: Path) -> Seen:
    """Every file below `base` with its inode, size and time of change; links to folders are not followed."""
    seen: Seen = {}
    for folder, folders, files in os.walk(base):
        below = os.path.relpath(folder, base)
        folders[:] = [name for name in folders if not _is_own(os.path.normpath(f"{below}/{name}") + "/")]
        for name in files:
            path = os.path.normpath(f"{below}/{name}")
            if _is_own(path):
                continue
            status = os.lstat(os.path.join(folder, name))
            seen[path] = status.st_ino, status.st_size, status.st_mtime_ns
    return seen


def _is_own(path: str) -> bool:
    return any(path.startswith(own) or f"/{own}" in path for own in _OWN)
