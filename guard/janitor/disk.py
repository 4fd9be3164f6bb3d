"""How much room the disks have."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ..host import Folders
from .bodies import RoomBody

#: A file system has places for so many files, and small ones use them up before its bytes: each counts as a picture.
PLACE_BYTES = 2**20


class Disk:
    """One file system, seen through a folder on it."""

    def __init__(self, path: Path, device: int) -> None:
        self.path = path
        self.device = device

    def free(self) -> int:
        """The bytes that an ordinary user may still write, of files of some size. Raises OSError."""
        free = shutil.disk_usage(self.path).free
        if hasattr(os, "statvfs") and (held := os.statvfs(self.path)).f_files:
            free = min(free, held.f_favail * PLACE_BYTES)
        return free

    def total(self) -> int:
        return shutil.disk_usage(self.path).total

    def holds(self, folder: Path) -> bool:
        try:
            return os.stat(folder).st_dev == self.device
        except OSError:
            return False


def list_disks(folders: Iterable[Path]) -> list[Disk]:
    """List the file systems of the folders, in their order. A folder that does not exist yet counts by its parent."""
    by_device: dict[int, Disk] = {}
    for folder in folders:
        for path in (folder, *folder.parents):
            try:
                device = os.stat(path).st_dev
            except OSError:
                continue
            by_device.setdefault(device, Disk(path, device))
            break
    return list(by_device.values())


def measure_room(folders: Folders) -> dict[str, RoomBody]:
    """The disk of each root."""
    room: dict[str, RoomBody] = {}
    for name, path in folders.roots().items():
        for disk in list_disks([path] if path is not None else []):
            with suppress(OSError):
                room[name] = {"total_bytes": disk.total(), "free_bytes": disk.free()}
    return room
