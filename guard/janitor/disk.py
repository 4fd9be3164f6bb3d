"""How much room there is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path


class Disk:
    """One file system, seen through a folder on it."""

    def __init__(self, path: Path, device: int) -> None:
        self.path = path
        self.device = device

    def free(self) -> int:
        """Bytes that an ordinary user may still write. Raises OSError."""
        return shutil.disk_usage(self.path).free

    def total(self) -> int:
        return shutil.disk_usage(self.path).total

    def holds(self, folder: Path) -> bool:
        try:
            return os.stat(folder).st_dev == self.device
        except OSError:
            return False


def disks(folders: Iterable[Path]) -> list[Disk]:
    """The file systems that the folders lie on, in that order. A folder that is not there yet counts by its parent."""
    found: dict[int, Disk] = {}
    for folder in folders:
        for path in (folder, *folder.parents):
            try:
                device = os.stat(path).st_dev
            except OSError:
                continue
            found.setdefault(device, Disk(path, device))
            break
    return list(found.values())
