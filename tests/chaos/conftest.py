"""Servers that a test may kill, and the job database that they leave behind."""

import asyncio
import contextlib
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contract.client import PATIENCE_S, TERMINAL, connected

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess, real_kinds, sandbox_kind


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., HostProcess]]:
    """Makes servers (not started yet) over one base directory, or over one of their own."""
    made: list[HostProcess] = []

    def make(
        kind: HostKind | None = None,
        base: str = "base",
        guarded: bool = True,
        arguments: tuple[str, ...] = (),
        **environment: str,
    ) -> HostProcess:
        process = HostProcess(
            kind or sandbox_kind(), tmp_path / base, environment=environment, guarded=guarded, arguments=arguments
        )
        made.append(process)
        return process

    yield make
    for process in made:
        process.kill()


def database(base: Path) -> Path:
    return base / "user" / "__guarded" / "guarded.db"


def transitions(base: Path) -> dict[str, list[str]]:
    """Every state that each job has been in, in order; read while no server runs or beside one."""
    return transitions_at(database(base))


def transitions_at(path: Path) -> dict[str, list[str]]:
    states: dict[str, list[str]] = {}
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        for job_id, state in db.execute("SELECT job_id, state FROM transitions ORDER BY rowid"):
            states.setdefault(job_id, []).append(state)
    return states


async def serving(host: HostProcess) -> None:
    """Wait until the server answers, whatever it says."""
    ends_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            async with connected(host) as client:
                await client.get("/prompt")
                return
        except OSError:
            assert time.monotonic() < ends_s, host.log_tail()
            await asyncio.sleep(0.05)


def assert_settled_once(states: list[str]) -> None:
    assert [state for state in states if state in TERMINAL] == states[-1:], states


def newest_real() -> list[object]:
    def version(kind: HostKind) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", kind.name)]

    kinds = sorted(real_kinds(), key=version)[-1:]
    return [pytest.param(kind, id=kind.name.replace(" ", "-"), marks=pytest.mark.comfyui) for kind in kinds]


def boots(host: HostProcess) -> int:
    """How often the guard has come up in this server's log."""
    return host.log.read_text(errors="replace").count("ComfyUI-Guarded is on")


async def booted_again(host: HostProcess, before: int) -> None:
    """Wait until the process has begun anew by itself, and takes jobs."""
    ends_s = time.monotonic() + 4 * PATIENCE_S
    while boots(host) <= before:
        assert time.monotonic() < ends_s, host.log_tail()
        await asyncio.sleep(0.05)
    await asyncio.to_thread(host.wait_ready)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here, which takes root and Linux: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte free on the folder's disk; delete the file that this returns to have them back."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return ballast
