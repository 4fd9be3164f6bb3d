"""When this package first started here: files from before are left alone."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

log = logging.getLogger("guarded.janitor")

FILE = "janitor.json"


class Marker:
    """The moment of the first start, and whether the operator has given up the files from before.

    It has a file of its own, so that losing the database, or setting it aside, cannot expose files from before. Where
    the file cannot be read or written, now is the first start: that keeps too much, never too little.
    """

    def __init__(self, own: Path | None, now_s: float, *, create: bool = True) -> None:
        """`own`: the folder of the file; None: there is no file."""
        self._path = own / FILE if own is not None else None
        self.first_start_s = now_s
        self.adopted = False
        if self._path is None:
            return
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            self.first_start_s, self.adopted = float(stored["first_start_ms"]) / 1000, bool(stored["adopted"])
        except FileNotFoundError:
            if create:
                self._write()
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s): all files that exist now are left alone", FILE, error)
            if create and not isinstance(error, OSError):
                self._write()

    def adopt(self) -> None:
        """Treat files from before like all others from now on."""
        self.adopted = True
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        part = self._path.with_suffix(".part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "w", encoding="utf-8") as file:
                json.dump({"first_start_ms": round(self.first_start_s * 1000), "adopted": self.adopted}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self._path)
        except OSError as error:
            log.warning("%s cannot be written: %s", FILE, error)
