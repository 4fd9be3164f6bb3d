"""What a server computes on: the GPU of this machine, or its CPU in place of one; and how much memory that has left."""

import csv
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from chaos.conftest import newest_real

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess

#: `make gpu` sets it. Elsewhere the same tests run on the CPU, on faults that stand in for those of a GPU.
ON_GPU = os.environ.get("GUARDED_GPU") == "1"
MIB = 2**20

FIELDS = ("index", "name", "memory.total", "memory.used", "memory.reserved", "utilization.gpu")


@dataclass(frozen=True)
class Figures:
    """What `nvidia-smi` says of one GPU; None where it says that the GPU has no such figure."""

    index: int
    name: str
    total_bytes: int | None
    used_bytes: int | None
    #: By the driver for itself; NVML's older question counts it as used.
    reserved_bytes: int | None
    busy_percent: int | None


def read_figures(table: str) -> list[Figures]:
    """From `nvidia-smi --query-gpu=… --format=csv,noheader,nounits`."""

    def number(cell: str) -> int | None:
        return int(cell) if cell.isdecimal() else None

    def size(cell: str) -> int | None:
        mib = number(cell)
        return None if mib is None else mib * MIB

    rows = [[cell.strip() for cell in row] for row in csv.reader(table.splitlines()) if row]
    return [
        Figures(int(index), name, size(total), size(used), size(reserved), number(busy))
        for index, name, total, used, reserved, busy in rows
    ]


def ask_nvidia_smi() -> Figures:
    """The GPU that ComfyUI takes: the first one that it may see."""
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    table = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    return read_figures(table)[int(wanted) if wanted.isdecimal() else 0]


@dataclass(frozen=True)
class Machine:
    """A ComfyUI, and what it computes on."""

    kind: HostKind
    on_gpu: bool

    def server(self, base: Path, *, guarded: bool = True, **environment: str) -> HostProcess:
        # As on a CPU, whose weights of chance are known to make a picture.
        arguments = ("--force-fp32",)
        return HostProcess(
            self.kind, base, environment=environment, guarded=guarded, arguments=arguments, cpu=not self.on_gpu
        )

    def used_bytes(self, host: HostProcess) -> int:
        """By everybody on a GPU; by this server alone on the CPU."""
        if self.on_gpu:
            used = ask_nvidia_smi().used_bytes
            assert used is not None, "nvidia-smi does not say how much memory is in use"
            return used
        lines = Path(f"/proc/{host.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


def machines() -> list[object]:
    """The newest ComfyUI, on one of the two."""
    return [
        pytest.param(Machine(*parameter.values, on_gpu=ON_GPU), id=str(parameter.id), marks=parameter.marks)
        for parameter in newest_real()
    ]


def why_not(machine: Machine) -> str | None:
    """Why nothing can be tried on this GPU."""
    show = "import torch; print(torch.cuda.is_available(), torch.__version__)"
    shown = subprocess.run([machine.kind.python, "-c", show], check=False, capture_output=True, text=True)
    if shown.stdout.startswith("True"):
        return None
    return f"{machine.kind.python} has no torch that finds a GPU: {shown.stdout}{shown.stderr[-500:]}"
