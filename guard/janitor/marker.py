"""When this package first started here, and what the operator has said of files that no job has made."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from ...own_files import FileError, read_json
from .. import private_files
from ..errors import ServerUnavailableError

log = logging.getLogger("guarded.janitor")

FILE = "janitor.json"


class Marker:
    """The moment of the first start; whether the operator has given up the files from before; and whether sweeps may
    take files that no job has made (None: nobody has said so yet).

    It has a file of its own, so that losing the database, or setting it aside, cannot expose files from before. Where
    the file cannot be read or written, now is the first start, and nobody has been asked: that keeps too much, never
    too little. A file without a word on `native` is of a version that did not ask: it swept, and goes on.
    """

    def __init__(self, own: Path | None, now_s: float, *, create: bool = True) -> None:
        """`own`: the folder of the file; None: there is no file."""
        self._path = own / FILE if own is not None else None
        self.first_start_s = now_s
        self.adopted = False
        self.native: bool | None = None
        if self._path is None:
            return
        try:
            stored = read_json(self._path)
            self.first_start_s, self.adopted = float(stored["first_start_ms"]) / 1000, bool(stored["adopted"])
            said = stored.get("native", True)
            self.native = said if isinstance(said, bool) else None
        except FileNotFoundError:
            if create:
                self._write()
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = error if isinstance(error, FileError) else f"{FILE} does not say what it should"
            log.warning("%s: all files that exist now are left alone", why)
            if create and not isinstance(error, OSError):
                self._write()

    def adopt(self) -> None:
        """Treat files from before like all others from now on."""
        self.adopted = True
        self._write()

    def decide(self, native: bool) -> None:
        """Sweep files that no job has made from now on, or keep them. On disk when it returns.

        Raises:
            ServerUnavailableError: it could not be written; nothing has changed.
        """
        before, self.native = self.native, native
        if not self._write():
            self.native = before
            raise ServerUnavailableError(f"{FILE} cannot be written: nothing has changed.", retry_after_s=10)

    def _write(self) -> bool:
        """Whether it is on disk, or there is no file."""
        if self._path is None:
            return True
        first_start_ms = round(self.first_start_s * 1000)
        told = {"first_start_ms": first_start_ms, "adopted": self.adopted, "native": self.native}
        try:
            private_files.write(self._path, json.dumps(told).encode())
        except OSError as error:
            log.warning("%s cannot be written: %s", FILE, error)
            return False
        return True
