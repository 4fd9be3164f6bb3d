"""Mend a damaged database: build its indexes anew, or copy the rows that can still be read to a new file.

A new file takes the old one's place only when it is complete and on the disk, and the damaged one is always kept.
Whatever fails for want of room raises `sqlite3.OperationalError` or OSError and leaves everything as it was.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from .pages import find_bad_header
from .salvage import copy_rows
from .tables import any_text

log = logging.getLogger("guarded.store")

#: The files that make up one database.
PARTS = ("", "-wal", "-shm")


def reindex(path: Path) -> None:
    """Build all indexes anew where the damage is in them alone.

    The change is committed only once a check of the whole file has found nothing.
    """
    if find_bad_header(path):
        return
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as db:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE")
            if (found := find_damage(db)) is None:
                return  # the damage is none that indexes can have
            db.execute("REINDEX")
            if find_damage(db) is not None:
                return
            db.execute("COMMIT")
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        return
    log.error(
        "indexes of the job database %s were damaged (%s); they were built anew from its rows, of which none is lost.",
        path,
        found,
    )


def find_damage(db: sqlite3.Connection) -> str | None:
    """Check the whole file; say in one line what is wrong. 64 MiB take up to half a second.

    Raises `sqlite3.DatabaseError` where it cannot be read at all.
    """
    with any_text(db):
        (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    return None if verdict == "ok" else one_line(verdict)


def one_line(message: object) -> str:
    text = str(message).encode("utf-8", "replace").decode()
    return " ".join(text.split()).removeprefix("*** in database main *** ")


def salvage(path: Path, damage: str) -> bool:
    """Copy every row that can be read to a new file and put that in place. False: nothing could be read."""
    fresh = path.with_name(f"{path.name}.repairing")
    fresh.unlink(missing_ok=True)
    try:
        saved = copy_rows(path, fresh)
        if saved is not None:
            sync(fresh)
            os.replace(fresh, _repaired(path))
            sync(path.parent)
    finally:
        fresh.unlink(missing_ok=True)
    if saved is None:
        return False
    aside = finish(path)
    log.error(
        "the job database %s was damaged (%s); what could be read is in a new file: %d jobs were saved, %d of them "
        "waiting. %s The damaged file was set aside as %s.",
        path,
        damage,
        saved.jobs,
        saved.waiting,
        "Every row was found." if saved.is_all else "Rows may be missing.",
        aside,
    )
    return True


def finish(path: Path) -> str | None:
    """Put the file that `salvage` has completed in place, if there is one; return the damaged one's new name.

    Each step may be repeated: a kill in between loses neither file.
    """
    repaired = _repaired(path)
    if not repaired.exists():
        return None
    aside = set_aside(path)
    os.replace(repaired, path)
    sync(path.parent)
    return aside


def set_aside(path: Path) -> str:
    """Rename a damaged database, with what belongs to it; return its new name."""
    aside = find_free_name(path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}"))
    for suffix in PARTS:
        if (part := Path(f"{path}{suffix}")).exists():
            os.replace(part, f"{aside}{suffix}")
    sync(path.parent)
    return aside.name


def find_free_name(path: Path) -> Path:
    """`path`, with a number appended if that name is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no such thing for folders
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _repaired(path: Path) -> Path:
    return path.with_name(f"{path.name}.repaired")
