"""Note on the disk which warm-up runs, so that one which kills the process is not tried for ever."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from ...own_files import FileError, read_json
from .. import private_files

log = logging.getLogger("guarded.warmup")

_NAME = "warming"


class Mark:
    """A file in our own folder: how many processes have ended while each of the runs was under way. Blocks."""

    def __init__(self, own: Path) -> None:
        self._path = own / _NAME

    def read(self) -> dict[str, int]:
        """The counts by fingerprint; that of a run that is under way has this process in it."""
        try:
            told = read_json(self._path)
            return {str(fingerprint): int(begun) for fingerprint, begun in told["runs"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s", error if isinstance(error, FileError) else f"{_NAME} does not say what it should")
            return {}

    def begin(self, fingerprint: str) -> None:
        counts = self.read()
        self._write({**counts, fingerprint: counts.get(fingerprint, 0) + 1})

    def end(self, fingerprint: str) -> None:
        """The process has outlived it: what others have died of stays."""
        counts = self.read()
        self._write({**counts, fingerprint: counts.get(fingerprint, 1) - 1})

    def clear(self) -> None:
        self._write({})

    def _write(self, counts: dict[str, int]) -> None:
        counts = {fingerprint: begun for fingerprint, begun in counts.items() if begun > 0}
        try:
            if counts:
                private_files.write(self._path, json.dumps({"runs": counts}).encode())
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("what warm-ups do to the process cannot be noted: %s", error)
