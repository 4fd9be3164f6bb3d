"""The database file as this process holds it: no other process may write to it, and it must not vanish.

A lock keeps other processes out. Should it fail (somebody deletes the lock's file), the epoch still tells: who opens
the database writes a name of its own into it, and every commit looks whether that name is still there.
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import time
from pathlib import Path
from typing import Literal

from .disk import connect, identify, make_folder, open_database, rewrite, suspect
from .file_lock import FileLock, LockedError
from .repair import PARTS

log = logging.getLogger("guarded.store")

Survives = Literal["power_cut", "kill"]

#: How often to look whether the file is still there.
LOOK_S = 1.0


class TakenOverError(Exception):
    """Another process has opened the database, past the lock."""


class HeldFile:
    """One thread at a time calls it: the one that writes."""

    def __init__(self, path: Path, survives: Survives) -> None:
        self.path = path
        self._survives = survives
        self._lock = self._make_lock()
        #: This process's name in the table `epoch`.
        self._name = secrets.token_hex(16)
        self._identity = (0, 0)
        self._looked_s = 0.0
        #: The connection for which `synchronous` was set last, and to what.
        self._synced: tuple[sqlite3.Connection | None, bool] = None, False

    @property
    def waits_for_disk(self) -> bool:
        """Whether durable commits do."""
        return self._survives == "power_cut"

    def open(self, is_damaged: bool) -> sqlite3.Connection:
        """Lock the file and open it, or make it; `is_damaged`: mend it, since somebody has met damage in it. Blocks.

        Raises:
            LockedError: another process has it open.
            StoreTooNewError: a later version wrote it.
            OSError, sqlite3.Error: the disk refuses.
        """
        if not self._lock.is_held:
            make_folder(self.path.parent)
            self._lock.acquire()
        if is_damaged:
            suspect(self.path)
        db = open_database(self.path)
        self._identity = identify(self.path)
        self._looked_s = time.monotonic()
        return self._prepare(db)

    def connect(self) -> sqlite3.Connection:
        """Connect once more, to the file that is open."""
        return self._prepare(connect(self.path))

    def is_writable(self) -> bool:
        """Whether this process may write to what the database consists of."""
        parts = [Path(f"{self.path}{suffix}") for suffix in PARTS]
        return all(os.access(part, os.W_OK) for part in parts if part.exists())

    def release(self) -> None:
        self._lock.release()

    def sync(self, db: sqlite3.Connection, durable: bool) -> None:
        """Let the next commit wait for the disk, or not. Within a transaction SQLite would ignore it."""
        is_full = durable and self.waits_for_disk
        if self._synced != (db, is_full):
            db.execute(f"PRAGMA synchronous = {'FULL' if is_full else 'NORMAL'}")
            self._synced = db, is_full

    def sign(self, db: sqlite3.Connection) -> None:
        """Write down, in a transaction, that this process writes from now on."""
        db.execute("INSERT OR REPLACE INTO epoch VALUES (1, ?)", (self._name,))

    def check(self, db: sqlite3.Connection) -> None:
        """Raises TakenOverError unless this process was the last one to sign."""
        if db.execute("SELECT writer FROM epoch").fetchone() != (self._name,):
            raise TakenOverError(f"another process has opened the job database {self.path}")

    def keep(self, db: sqlite3.Connection) -> sqlite3.Connection | None:
        """Look, once in `LOOK_S`, whether the file is still there.

        Where somebody has deleted or replaced it, write everything to a new file of the old name, and return a
        connection to that: SQLite would keep writing to the nameless file, and all would be lost with the process.

        Raises TakenOverError where it was replaced by another process that holds the lock.
        """
        now_s = time.monotonic()
        if now_s < self._looked_s + LOOK_S:
            return None
        self._looked_s = now_s
        is_locked = self._lock.is_current() or self._lock_again()
        if not self._is_gone():
            return None
        if not is_locked:
            raise TakenOverError(f"another process has made the job database {self.path} anew")
        log.error("the job database %s was deleted or replaced under the running server; writing it anew", self.path)
        self._looked_s = 0.0  # every commit tries again until this succeeds
        rewrite(db, self.path)
        fresh = self.connect()
        self._identity = identify(self.path)
        return fresh

    def _is_gone(self) -> bool:
        try:
            return identify(self.path) != self._identity
        except FileNotFoundError:
            return True

    def _lock_again(self) -> bool:
        """The lock's file was deleted: lock a new one. False: another process was faster."""
        lock = self._make_lock()
        try:
            make_folder(self.path.parent)
            lock.acquire()
        except LockedError:
            return False
        self._lock.release()
        self._lock = lock
        log.warning("the lock of the job database %s was deleted under the running server; made anew", self.path)
        return True

    def _make_lock(self) -> FileLock:
        return FileLock(self.path.with_name(f"{self.path.name}.lock"))

    def _prepare(self, db: sqlite3.Connection) -> sqlite3.Connection:
        if self._survives == "power_cut":
            # macOS: without these the drive may keep in its cache what it says that it has written.
            db.execute("PRAGMA fullfsync = ON")
            db.execute("PRAGMA checkpoint_fullfsync = ON")
        return db
