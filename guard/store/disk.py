"""The database file: find it, open it, check and migrate it, and set aside what cannot be read."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from pathlib import Path
from urllib.parse import urlsplit

from ..settings import SettingsError
from .schema import MIGRATIONS

log = logging.getLogger("guarded.store")

#: Pages (of 4 KiB) in the log at which a commit works it into the database itself.
LOG_PAGES = 25_000
#: Check files up to this size page by page when opening them (64 MiB take about 0.2 s).
CHECKED_BYTES = 64 * 2**20


class StoreLockedError(Exception):
    """Another process has this database open."""


class StoreUnusableError(Exception):
    """The database can be neither opened nor created: the disk is read-only or full, or rights are missing."""


class StoreTooNewError(Exception):
    """A later version of this package wrote this database."""


def database_path(url: str, own: Path) -> Path:
    """The SQLite file that `store.url` names; `guarded.db` in the guard's folder, `own`, if it is empty.

    Raises SettingsError for a URL that this version cannot use.
    """
    if not url:
        return own / "guarded.db"
    parts = urlsplit(url)
    path = Path(parts.path.removeprefix("/") if os.name == "nt" else parts.path)
    if parts.scheme != "sqlite" or parts.netloc or not path.is_absolute():
        raise SettingsError(f"store.url: sqlite:///<absolute path> is what this version can use, got {url!r}")
    return path


def connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5, cached_statements=256)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
    except BaseException:
        db.close()
        raise
    return db


def open_database(path: Path) -> sqlite3.Connection:
    """Open and migrate the database. A file that SQLite cannot read is set aside, never overwritten."""
    try:
        return _migrate(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise  # locked, read-only, no room: the file itself may be fine
        aside = _find_free_name(path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}"))
        for suffix in ("", "-wal", "-shm"):
            if (part := Path(f"{path}{suffix}")).exists():
                os.replace(part, f"{aside}{suffix}")
        log.error(
            "the job database %s cannot be read (%s); it was set aside as %s, and a new one is in use. "
            "Jobs that waited in it are no longer queued.",
            path,
            " ".join(str(error).split()),
            aside.name,
        )
        return _migrate(path)


def rewrite(db: sqlite3.Connection, path: Path) -> None:
    """Write all that `db` holds to `path`, from which its own file has gone. Set aside any file that lies there now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first: a full disk or a kill may cut it short.
    fresh = path.with_name(f"{path.name}.restored")
    fresh.unlink(missing_ok=True)
    db.execute("VACUUM INTO ?", (str(fresh),))
    if path.exists():
        os.replace(path, _find_free_name(path.with_name(f"{path.name}.foreign")))
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    os.replace(fresh, path)


def identify(path: Path) -> tuple[int, int]:
    """The device and inode of a file, which another file of the same name does not have."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _migrate(path: Path) -> sqlite3.Connection:
    db = connect(path)
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StoreTooNewError(f"{path} was written by a later version of this package (schema {version})")
        if path.stat().st_size <= CHECKED_BYTES:
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            db.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")
    except BaseException:
        db.close()
        raise
    return db


def _find_free_name(path: Path) -> Path:
    """`path`, with a number appended if that name is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
