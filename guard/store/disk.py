"""The database file: where it lies, how it is opened, checked and migrated, and what is set aside instead of lost."""

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

#: The log may grow to this many pages (of 4 KiB) before a commit has to work it into the database itself.
LOG_PAGES = 25_000
#: Check files up to this size page by page when opening them (64 MiB take about 0.2 s).
CHECKED_BYTES = 64 * 2**20


class StoreLockedError(Exception):
    """Another process has this database open."""


class StoreUnusableError(Exception):
    """The database can be neither opened nor made: a read-only or full disk, or no rights."""


class StoreTooNewError(Exception):
    """A later version of this package has written this database."""


def database_path(url: str, own: Path) -> Path:
    """The SQLite file of `store.url`; `own`, the guard's folder, holds it by default.

    Raises SettingsError for what this version cannot use.
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
    """Open and migrate the database. Set a file aside that SQLite cannot read; never write over it."""
    try:
        return _migrate(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise  # locked, read-only, no room: the file itself may be well
        aside = _unused(path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}"))
        for suffix in ("", "-wal", "-shm"):
            if (part := Path(f"{path}{suffix}")).exists():
                os.replace(part, f"{aside}{suffix}")
        log.error(
            "the job database %s cannot be read (%s); it was set aside as %s and a new one begun. "
            "Jobs that waited in it are not in the queue any more.",
            path,
            " ".join(str(error).split()),
            aside.name,
        )
        return _migrate(path)


def rewrite(db: sqlite3.Connection, path: Path) -> None:
    """Write all that `db` holds to `path`, where its own file is gone; set aside what lies there instead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first: a full disk or a kill may cut it off.
    fresh = path.with_name(f"{path.name}.restored")
    fresh.unlink(missing_ok=True)
    db.execute("VACUUM INTO ?", (str(fresh),))
    if path.exists():
        os.replace(path, _unused(path.with_name(f"{path.name}.foreign")))
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    os.replace(fresh, path)


def identify(path: Path) -> tuple[int, int]:
    """The file's device and inode: another file of that name has others."""
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


def _unused(path: Path) -> Path:
    """`path`, or with a number behind it where that name is taken."""
    number = 1
    unused = path
    while unused.exists():
        number += 1
        unused = path.with_name(f"{path.name}-{number}")
    return unused
