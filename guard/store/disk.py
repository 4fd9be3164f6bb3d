"""The database file: find it, open it, check, mend and migrate it, and set aside what cannot be read."""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from ...own_files import find_kind
from .. import private_files
from ..clock import Clock
from ..errors import ServerRestartedError
from ..job import Verdict
from ..settings import SettingsError, hide_password
from . import compact, schema
from .check import find_nonsense
from .migrate import migrate
from .pages import find_bad_header
from .repair import find_damage, find_free_name, finish, one_line, reindex, salvage, set_aside, sync
from .rows import IS_OPEN
from .salvage import find_missing, find_version
from .transitions import Transitions
from .upkeep import LOG_BYTES

log = logging.getLogger("guarded.store")

#: Pages (of 4 KiB) in the log at which a commit works it into the database itself.
LOG_PAGES = 25_000
#: Check files up to this size as a whole when opening them (64 MiB take up to 0.5 s).
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
        told = "store.url: sqlite:///<absolute path> or postgresql://<address> is what this version can use"
        raise SettingsError(f"{told}, got {hide_password(url)!r}", told)
    return path


def connect(path: Path) -> sqlite3.Connection:
    with suppress(OSError):  # SQLite says best why it cannot be opened
        for file in (path, *(Path(f"{path}{suffix}") for suffix in ("-wal", "-shm"))):
            if file == path or file.exists():
                private_files.make_file(file)  # SQLite gives those beside it the same rights
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5, cached_statements=256)
    try:
        if db.execute("PRAGMA page_count").fetchone() == (0,):
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # a new file can give back its free pages
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        db.execute("PRAGMA synchronous = NORMAL")
        # Some systems' SQLite writes zeros over what is deleted: 15 MiB of them take 50 ms.
        db.execute("PRAGMA secure_delete = OFF")
        db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
    except BaseException:
        db.close()
        raise
    return db


def make_folder(folder: Path) -> None:
    """Make the folder and those above it; each survives a power cut."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync(each.parent)


def open_database(path: Path) -> sqlite3.Connection:
    """Open the database, mend it if it is damaged, and migrate it.

    Damaged indexes are built anew. Otherwise what can be read goes to a new file, or, where nothing can, an empty one
    takes its place; the damaged file is kept beside it. Open jobs that have lost what they were to do are settled.

    Raises:
        StoreTooNewError: a later version wrote it.
        sqlite3.OperationalError: it is locked, the disk refuses or has no room. The file is as it was; try again.
        sqlite3.IntegrityError: a migration does not suit what is in it. The file is as it was.
    """
    try:
        finish(path)  # a kill may have cut an earlier repair short
        for mend in (_reindex, _salvage, _begin_anew):
            try:
                return _compact(_open(path), path)
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if not _is_damage(error):
                    raise  # locked, read-only, no room, a migration that fails: the file itself may be fine
                mend(path, one_line(error))
        return _open(path)
    except OSError as error:
        raise sqlite3.OperationalError(str(error)) from error


def suspect(path: Path) -> None:
    """Have the database checked as a whole when it is opened next, by whatever process, however large it is."""
    _suspicion(path).touch()


def rewrite(db: sqlite3.Connection, path: Path) -> None:
    """Write all that `db` holds to `path`, from which its own file has gone. Set aside any file that lies there now."""
    make_folder(path.parent)
    # Under another name first: a full disk or a kill may cut it short.
    fresh = path.with_name(f"{path.name}.restored")
    fresh.unlink(missing_ok=True)
    db.execute("VACUUM INTO ?", (str(fresh),))
    sync(fresh)
    if path.exists():
        os.replace(path, find_free_name(path.with_name(f"{path.name}.foreign")))
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    os.replace(fresh, path)
    sync(path.parent)


def identify(path: Path) -> tuple[int, int]:
    """The device and inode of a file, which another file of the same name does not have."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _open(path: Path) -> sqlite3.Connection:
    if (kind := find_kind(path)) is not None:
        raise sqlite3.OperationalError(f"{path} is {kind}, not a job database")
    if damage := find_bad_header(path):
        raise sqlite3.DatabaseError(damage)
    db = connect(path)
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > len(schema.MIGRATIONS):
            raise StoreTooNewError(f"{path} was written by a later version of this package (schema {version})")
        is_due = _suspicion(path).exists() or path.stat().st_size <= CHECKED_BYTES
        if is_due and (damage := find_damage(db)):
            raise sqlite3.DatabaseError(damage)
        if version < len(schema.MIGRATIONS):
            if (actual := find_version(db)) != version:
                raise sqlite3.DatabaseError(f"its tables are those of schema {actual}, not {version}")
            migrate(db, path, version)
        if damage := find_missing(db, len(schema.MIGRATIONS)):
            raise sqlite3.DatabaseError(damage)
        if damage := find_nonsense(db, everywhere=_suspicion(path).exists()):
            raise sqlite3.DatabaseError(damage)
        _settle_lost(db, path)
        _suspicion(path).unlink(missing_ok=True)
    except BaseException:
        db.close()
        raise
    return db


def _compact(db: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """Replace the file by one without free pages where that is worth it and soon done."""
    if not compact.is_due(db, path):
        return db
    db.close()
    try:
        before = path.stat().st_size
        compact.compact(path)
        log.info("the job database %s has %d bytes now instead of %d", path, path.stat().st_size, before)
    except (sqlite3.Error, OSError) as error:
        log.warning("the job database %s could not be made smaller: %s", path, one_line(error))
    return connect(path)


def _settle_lost(db: sqlite3.Connection, path: Path) -> None:
    """End open jobs whose body is lost: nothing can run them, and their owners must hear of it."""
    lost = db.execute(
        f"SELECT job_id FROM jobs WHERE {IS_OPEN} AND NOT EXISTS (SELECT 1 FROM bodies WHERE number = jobs.number)"
    ).fetchall()
    if not lost:
        return
    transitions = Transitions(Clock())
    db.execute("BEGIN IMMEDIATE")
    try:
        transitions.load(db)
        error = ServerRestartedError("The job database was damaged, and what the job was to do is lost.")
        for (job_id,) in lost:
            transitions.settle(db, job_id, Verdict.of(error), None, False)
            transitions.release(db, job_id)
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    log.error("%d open jobs in %s have lost what they were to do; they failed as server_restarted", len(lost), path)


def _is_damage(error: Exception) -> bool:
    """Subclasses of DatabaseError say something else; only DataError is about a size that cannot be.

    Python raises UnicodeDecodeError where what SQLite says of the damage is no text.
    """
    return type(error) in (sqlite3.DatabaseError, sqlite3.DataError, UnicodeDecodeError)


def _reindex(path: Path, _damage: str) -> None:
    reindex(path)


def _salvage(path: Path, damage: str) -> None:
    if salvage(path, damage):
        _suspicion(path).unlink(missing_ok=True)  # each row of the new file has been looked at


def _begin_anew(path: Path, damage: str) -> None:
    aside = set_aside(path)
    log.error(
        "the job database %s cannot be read (%s); it was set aside as %s, and a new one is in use. "
        "Jobs that waited in it are no longer queued.",
        path,
        damage,
        aside,
    )


def _suspicion(path: Path) -> Path:
    return path.with_name(f"{path.name}.suspect")
