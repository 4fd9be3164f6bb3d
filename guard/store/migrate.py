"""Bring a database to the schema of today, and keep a copy of it as it was before."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

from . import schema
from .repair import PARTS, sync

log = logging.getLogger("guarded.store")


def migrate(db: sqlite3.Connection, path: Path, version: int) -> None:
    """Run the migrations that the database, of that version, has not had. Each is one transaction.

    Raises `sqlite3.OperationalError` where there is no room for the copy; nothing is migrated then.
    """
    if 0 < version < len(schema.MIGRATIONS):
        _keep_copy(db, path, version)
    for number, script in enumerate(schema.MIGRATIONS[version:], start=version + 1):
        db.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")


def name_copy(path: Path, version: int) -> Path:
    """Where the copy of a database of that schema version lies."""
    return path.with_name(f"{path.name}.before-update-from-{version}")


def _keep_copy(db: sqlite3.Connection, path: Path, version: int) -> None:
    """Write the database to a file beside it, in place of any earlier such copy."""
    copy = name_copy(path, version)
    if copy.exists() and copy.stat().st_mtime >= _changed_at_s(path):
        return  # an earlier attempt made it, and the migration failed
    fresh = path.with_name(f"{path.name}.copying")
    try:
        fresh.unlink(missing_ok=True)
        db.execute("VACUUM INTO ?", (str(fresh),))
        sync(fresh)
        os.replace(fresh, copy)
        sync(path.parent)
    except (sqlite3.OperationalError, OSError) as error:
        raise sqlite3.OperationalError(
            f"it cannot be copied before its update, so it was not updated; its copy needs as much room as {path.name} "
            f"has: {error}"
        ) from error
    finally:
        fresh.unlink(missing_ok=True)
    for earlier in path.parent.glob(f"{path.name}.before-update-from-*"):
        if earlier != copy:
            earlier.unlink(missing_ok=True)
    log.info("the job database %s as it was before its update is kept as %s", path, copy.name)


def _changed_at_s(path: Path) -> float:
    """When the database, or the log beside it, was last written."""
    files = (Path(f"{path}{suffix}") for suffix in PARTS[:2])
    return max(file.stat().st_mtime for file in files if file.is_file() and file.stat().st_size)
