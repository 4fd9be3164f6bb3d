"""Faults in the job database of a running server, switched on and off from outside.

They act on the server's own connection to its real database (`tests/hosts/faulty_store`), each at a commit that wrote
something:

- `full`: SQLite finds no room for a page more, and says so.
- `silent`: the commit does not come back, and neither does the writer's thread.
- `gate`: the writer's thread stops before or after a commit that carries a step of a job, so that a kill hits exactly
  there. After it, the step is on disk, and nobody can have been told.

On a disk of its own, `full` also takes the last byte of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from chaos.conftest import fill

from comfyui_guarded.tests.hosts.launch import ROOT

#: The steps of a job, as commits carry them.
STEPS = ("queued", "dispatched", "running", "validating", "settled", "released")
#: How long a gate waits for the commit that it is for; not each schedule has one.
REACHED_WITHIN_S = 0.7


class Faults:
    def __init__(self, folder: Path, disk: Path | None = None) -> None:
        self.folder = folder
        self.disk = disk
        self._ballast: Path | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def environment(self) -> Mapping[str, str]:
        """For the server that shall have them."""
        return {"PYTHONPATH": str(ROOT / "tests" / "hosts" / "faulty_store"), "FAULTY_STORE": str(self.folder)}

    @property
    def full(self) -> bool:
        return self._has("full") or self._ballast is not None

    @property
    def silent(self) -> bool:
        return self._has("silent") or self._has("reached")

    def fill(self, *, really: bool) -> None:
        """`really` fills the disk itself, which SQLite notices once it needs room; otherwise the next commit does."""
        if really and self.disk is not None:
            self._ballast = self._ballast or fill(self.disk)
        else:
            self._put("full")

    def empty(self) -> None:
        self._remove("full")
        if self._ballast is not None:
            self._ballast.unlink(missing_ok=True)
            self._ballast = None

    def silence(self) -> None:
        self._put("silent")

    def gate(self, when: str, step: str) -> None:
        if not self._has("gate"):
            self._put("gate", f"{when} {step}")

    async def reached(self) -> bool:
        """Whether the writer's thread stands at the gate, if there is one; it may still be on its way."""
        for _ in range(round(REACHED_WITHIN_S / 0.01)):
            if self._has("reached") or not self._has("gate"):
                break
            await asyncio.sleep(0.01)
        return self._has("reached")

    def speak(self) -> None:
        self._remove("silent")
        self._remove("gate")
        self._remove("reached")

    def end(self) -> None:
        self.empty()
        self.speak()

    def _has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def _put(self, name: str, words: str = "") -> None:
        written = self.folder / f"{name}.new"
        written.write_text(words)
        written.replace(self.folder / name)

    def _remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)


class Books:
    """What is in a server's database, read by another process than the server's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def state(self, job_id: str) -> str | None:
        """None if the job is not there."""
        found = self._read("SELECT state FROM jobs WHERE job_id = ?", job_id)
        return found[0][0] if found else None

    def endings(self, job_id: str) -> list[str]:
        """Every end that was written for the job."""
        return [
            state
            for (state,) in self._read("SELECT state FROM transitions WHERE job_id = ? ORDER BY event_id", job_id)
            if state in ("succeeded", "failed", "cancelled")
        ]

    def _read(self, sql: str, *values: str) -> list[tuple[str, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=30)) as db:
            return db.execute(sql, values).fetchall()
