"""Tell one content of a file from a later one, without reading it."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

#: A file that was changed so lately may change again without another time of change: disks' clocks tick.
_FRESH_NS = 2_000_000_000


class Mark(NamedTuple):
    """Contents cannot change without one of these changing."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    def is_settled(self) -> bool:
        """Whether any later change will show. Where it may not, nothing is remembered by the mark."""
        return max(self.modified_ns, self.changed_ns) < time.time_ns() - _FRESH_NS


def find_mark(status: os.stat_result) -> Mark:
    return Mark(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
