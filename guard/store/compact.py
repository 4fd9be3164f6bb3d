"""Write a database anew without its free pages. From then on the new file can give back pages while it is in use.

Files of versions before cannot. This takes as long as copying, so a start does it for what is small without its free
pages, which most is once prompts have gone; for the rest there is a command (:mod:`.command`).
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from .pages import has_log
from .repair import PARTS, sync
from .rows import pragma

log = logging.getLogger("guarded.store")

#: A start copies so much at most, which takes about a second, and only if so much stays free on the disk.
COPIED_BYTES = 64 * 2**20
SPARE_BYTES = 64 * 2**20
#: With so much free in it, a file that could give it back page by page is copied, too.
FREE_BYTES = 256 * 2**20


def is_due(db: sqlite3.Connection, path: Path) -> bool:
    """Whether a start should copy the database. Says in the log where only somebody who has time can."""
    pages, free, page_bytes, mode = (
        pragma(db, name) for name in ("page_count", "freelist_count", "page_size", "auto_vacuum")
    )
    if mode != 0 and free * page_bytes <= FREE_BYTES:
        return False
    used = (pages - free) * page_bytes
    if used > COPIED_BYTES:
        if mode == 0:
            log.info(
                "the job database %s is of an earlier version and never becomes smaller by itself; while no server "
                "runs, `python <this package's folder> vacuum` copies its %d MB and ends that",
                path,
                used // 10**6,
            )
        return False
    return shutil.disk_usage(path.parent).free > used + SPARE_BYTES


def compact(path: Path) -> None:
    """Replace the file by a copy without free pages. This process holds its lock, and has no connection to it.

    A kill leaves the one or the other, each with everything in it.

    Raises:
        sqlite3.Error, OSError: there is no room, or another program reads the file. It is as it was.
    """
    fresh = path.with_name(f"{path.name}.compacting")
    fresh.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as db:
            if db.execute("PRAGMA auto_vacuum").fetchone() == (0,):
                db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # for the copy
            db.execute("PRAGMA synchronous = FULL")
            (busy, _pages, _done) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise sqlite3.OperationalError("another program reads it")
            db.execute("VACUUM INTO ?", (str(fresh),))
        shutil.copymode(path, fresh)
        sync(fresh)
        if has_log(path):
            raise sqlite3.OperationalError("another program writes to it")
        for suffix in PARTS[1:]:  # empty; but one that is not the new file's must never lie beside it
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        os.replace(fresh, path)
        sync(path.parent)
    finally:
        fresh.unlink(missing_ok=True)
