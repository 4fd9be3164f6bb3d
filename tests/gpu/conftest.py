import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from contract.client import Client, connected
from gpu.graphs import CHECKPOINT
from gpu.machine import ON_GPU, Machine, machines, why_not

from comfyui_guarded.tests.hosts.launch import HostProcess

TESTS = Path(__file__).parents[1]

# What has no meaning without a GPU is not even collected elsewhere.
collect_ignore = [] if ON_GPU else ["test_figures.py"]


@pytest.fixture(scope="package", params=machines())
def machine(request: pytest.FixtureRequest) -> Machine:
    machine: Machine = request.param
    if machine.on_gpu and (reason := why_not(machine)):
        pytest.skip(reason)
    return machine


@pytest.fixture(scope="package")
def checkpoint(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small Stable Diffusion with random weights."""
    path = tmp_path_factory.mktemp("models") / CHECKPOINT
    subprocess.run(
        [machine.kind.python, str(TESTS / "workflows" / "tiny_checkpoint.py"), str(path)],
        cwd=machine.kind.main.parent,
        check=True,
    )
    yield path
    path.unlink()  # 300 MB, which pytest would keep for three runs


def with_checkpoint(host: HostProcess, checkpoint: Path) -> HostProcess:
    folder = host.base / "models" / "checkpoints"
    folder.mkdir(exist_ok=True)
    os.link(checkpoint, folder / CHECKPOINT)
    return host


@pytest.fixture(scope="package")
def host(machine: Machine, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """One server for all tests: each leaves it as well as it was, or the next one fails."""
    base = tmp_path_factory.mktemp("gpu")
    host = machine.server(base, GUARDED_WATCHDOG__INTERRUPT_GRACE_S="1", GUARDED_WATCHDOG__MAX_DISOWNED="1")
    with with_checkpoint(host, checkpoint):
        yield host
    shutil.rmtree(base / "models")


@pytest.fixture(scope="module")
def bare(machine: Machine, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """The same ComfyUI without the guard."""
    base = tmp_path_factory.mktemp("bare")
    with with_checkpoint(machine.server(base, guarded=False), checkpoint) as host:
        yield host
    shutil.rmtree(base / "models")


@pytest.fixture
async def client(host: HostProcess) -> AsyncIterator[Client]:
    async with connected(host) as client:
        yield client
