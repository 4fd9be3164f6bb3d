"""Servers that a test may kill, and the job database that they leave behind."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from comfyui_guarded.sandbox.launch import HostKind, HostProcess, sandbox_kind


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., HostProcess]]:
    """Makes servers (not started yet) over one base directory, or over one of their own."""
    made: list[HostProcess] = []

    def make(kind: HostKind | None = None, base: str = "base", guarded: bool = True, **environment: str) -> HostProcess:
        process = HostProcess(kind or sandbox_kind(), tmp_path / base, environment=environment, guarded=guarded)
        made.append(process)
        return process

    yield make
    for process in made:
        process.kill()


def database(base: Path) -> Path:
    return base / "user" / "__guarded" / "guarded.db"


def transitions(base: Path) -> dict[str, list[str]]:
    """Every state that each job has been in, in order; read while no server runs or beside one."""
    states: dict[str, list[str]] = {}
    with contextlib.closing(sqlite3.connect(f"file:{database(base)}?mode=ro", uri=True)) as db:
        for job_id, state in db.execute("SELECT job_id, state FROM transitions ORDER BY rowid"):
            states.setdefault(job_id, []).append(state)
    return states
