"""Note on the disk which warm-up runs, so that one which kills the process is not tried for ever."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from .. import private_files

log = logging.getLogger("guarded.warmup")

_NAME = "warming"


class Mark:
    """A file in our own folder: the run that was under way, and how many processes have died of it. Blocks."""

    def __init__(self, own: Path) -> None:
        self._path = own / _NAME

    def read(self) -> tuple[str, int]:
        """The fingerprint and the count that a dead process has left; empty and 0 where none has."""
        try:
            told = json.loads(self._path.read_bytes())
            return str(told["run"]), int(told["begun"])
        except FileNotFoundError:
            return "", 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read: %s", self._path, error)
            return "", 0

    def write(self, fingerprint: str, begun: int) -> None:
        try:
            private_files.write(self._path, json.dumps({"run": fingerprint, "begun": begun}).encode())
        except OSError as error:
            log.warning("that a warm-up runs cannot be noted: %s", error)

    def clear(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be deleted: %s", self._path, error)
