"""When to try again to open a database that cannot be opened now, and what to say of it meanwhile."""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

from .disk import StoreTooNewError
from .file_lock import LockedError
from .threads import complain

log = logging.getLogger("guarded.store")

#: The pause grows from the first to the second. While another process has the database open, it is the first.
PAUSE_S, LONGEST_PAUSE_S = 1.0, 10.0
#: Another process may have it open for so long before that is an error: the command line has it briefly.
PATIENCE_S = 30.0


class Pause:
    """The pause between two attempts.

    Attributes:
        due_s: when to try again, monotonic; 0 where the last attempt succeeded.
        is_locked: the last attempt failed since another process has the database open.
    """

    def __init__(self) -> None:
        self.end()

    def end(self) -> None:
        """It is open."""
        self.due_s = 0.0
        self._pause_s = PAUSE_S
        self._locked_since_s: float | None = None
        self._is_error = False

    @property
    def is_locked(self) -> bool:
        return self._locked_since_s is not None

    def begin(self, error: BaseException, text: str) -> None:
        """It could not be opened; `text` says so in the log."""
        now_s = time.monotonic()
        if isinstance(error, LockedError):
            if self._locked_since_s is None:
                self._locked_since_s = now_s
                log.warning("%s; waiting for it", text)
            elif now_s >= self._locked_since_s + PATIENCE_S and not self._is_error:
                self._is_error = True
                log.error("%s; it has had it for %g s", text, PATIENCE_S)
            self.due_s = now_s + PAUSE_S
            return
        self._locked_since_s = None
        is_known = isinstance(error, (sqlite3.Error, OSError, StoreTooNewError))
        complain(f"{text}; it is tried again until it can be", trace=not is_known)
        self.due_s = now_s + self._pause_s
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)


def describe(error: BaseException, path: Path) -> str:
    """Say to an operator why the database cannot be opened."""
    if isinstance(error, LockedError):
        return f"another server has {path} open; give this one its own user directory"
    return str(error) if isinstance(error, StoreTooNewError) else f"the job database {path} cannot be used: {error}"
