"""Leave a mark on the disk that says until when this process lived: what a killed run had taken is counted by it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

FILE = "alive"
#: So old may the mark be when the process dies; half of that is added to the time that it tells.
EVERY_S = 0.05


def read_mark(own: Path) -> int | None:
    """When the process before this one lived last, in milliseconds since the epoch; None where nobody knows."""
    try:
        return int(os.stat(own / FILE).st_mtime_ns / 1e6 + EVERY_S * 500)
    except OSError:
        return None


class Alive:
    """Renews the mark while something runs. It survives a SIGKILL; a power cut may lose some seconds of it."""

    def __init__(self, own: Path, is_running: Callable[[], bool]) -> None:
        self._path = own / FILE
        self._is_running = is_running
        self._thread = threading.Thread(target=self._loop, name="guarded-alive", daemon=True)
        self._runs = threading.Event()

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something begins to run. Any thread."""
        self._runs.set()

    def _loop(self) -> None:
        pause = threading.Event()
        while True:
            self._runs.wait()
            self._runs.clear()
            while self._is_running():
                self.mark()
                pause.wait(EVERY_S)

    def mark(self) -> None:
        """Renew it now."""
        with contextlib.suppress(OSError):  # a full disk: then a killed run costs too little
            try:
                os.utime(self._path)
            except FileNotFoundError:
                self._path.touch()
