"""Find out whether onnxruntime works, on which devices, and whether two of its packages overwrote each other."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from ..errors import ServerUnavailableError

Device = Literal["cpu", "cuda"]
#: The packages that can run CenterFace; the first is quicker. InsightFace's packs need it.
Runtime = Literal["onnxruntime", "torch"]

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

#: Packages that all write the folder `onnxruntime`, so that the last one installed wins.
PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-rocm",
    "onnxruntime-migraphx", "onnxruntime-qnn",
)  # fmt: skip

#: Module → package, where their names differ.
_DISTRIBUTIONS = {"cv2": "opencv-python-headless", "skimage": "scikit-image", "google": "protobuf"}


class OnnxruntimeBody(TypedDict):
    """What is installed under the name onnxruntime, and the one command that mends it where `problem` is not empty."""

    packages: dict[str, str]
    providers: list[str]
    problem: str
    broken: bool
    command: str


@dataclass(frozen=True)
class OnnxruntimeState:
    """The packages installed under the name onnxruntime, and what is wrong with them.

    Attributes:
        packages: name → version of each package that writes it.
        providers: those that it can run on; empty where it cannot be imported.
        problem: one line for the operator; empty where there is none.
        broken: the problem takes the GPU away from every node of this machine now; otherwise it may later.
        command: the one command that fixes it; empty where there is no problem.
    """

    packages: dict[str, str]
    providers: tuple[str, ...]
    problem: str = ""
    broken: bool = False
    command: str = ""

    def body(self) -> OnnxruntimeBody:
        """As JSON."""
        return {
            "packages": self.packages,
            "providers": list(self.providers),
            "problem": self.problem,
            "broken": self.broken,
            "command": self.command,
        }


def read_state() -> OnnxruntimeState:
    """Look at what is installed. Imports onnxruntime (a third of a second, once), so not for the event loop."""
    packages = list_installed()
    try:
        providers = tuple(importlib.import_module("onnxruntime").get_available_providers())
    except Exception:
        # A half-overwritten package fails in many ways. Whatever it raises, nothing can run on it.
        providers = ()
    return judge(packages, providers)


def list_installed() -> dict[str, str]:
    """Name → version of each installed package that writes the folder `onnxruntime`."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def judge(packages: dict[str, str], providers: tuple[str, ...]) -> OnnxruntimeState:
    """Judge what is installed. Pure; `read_state` gathers the facts.

    Uninstalling one of two packages deletes files of the other, so the command removes both before it installs one.
    (Measured: with onnxruntime on top of onnxruntime-gpu, CUDAExecutionProvider is gone; docs/faces.md.)
    """
    if len(packages) > 1:
        keep = "onnxruntime-gpu" if "onnxruntime-gpu" in packages else next(n for n in packages if n != "onnxruntime")
        lost = keep == "onnxruntime-gpu" and CUDA not in providers
        names = " and ".join(packages)
        problem = (
            f"{names} overwrote each other and CUDAExecutionProvider is gone: no node of this machine can use the GPU "
            "through onnxruntime."
            if lost
            else f"{names} are both installed; the next upgrade of either may take the GPU away."
        )
        pip = f'"{sys.executable}" -m pip'
        command = f"{pip} uninstall -y {' '.join(packages)} && {pip} install {keep}"
        return OnnxruntimeState(packages, providers, problem, lost, command)
    if packages and not providers:
        name = next(iter(packages))
        return OnnxruntimeState(
            packages,
            providers,
            f"{name} is installed but cannot be imported.",
            True,
            f'"{sys.executable}" -m pip install --force-reinstall --no-deps {name}',
        )
    return OnnxruntimeState(packages, providers)


def import_runtime() -> Any:
    """Import onnxruntime.

    Raises:
        ServerUnavailableError: it is missing or does not load; the message names the package.
    """
    try:
        return importlib.import_module("onnxruntime")
    except Exception as error:
        raise explain_missing("onnxruntime", error) from None


def explain_missing(package: str, error: Exception) -> ServerUnavailableError:
    """The error for a package that cannot be imported; it names the package that is missing, where one is."""
    absent = (error.name or package).split(".")[0] if isinstance(error, ModuleNotFoundError) else None
    name = _DISTRIBUTIONS.get(absent or package, absent or package)
    return ServerUnavailableError(
        f"The face check needs the package {name}, which {'is not installed' if absent else 'does not load'}.",
        details="" if absent == package else f"{package} does not load: {type(error).__name__}: {error}",
        extra_info={"package": name},
        retry_after_s=60,
    )


def open_session(model: Path, device: Device, threads: int) -> Any:
    """Open an InferenceSession of `model`, on `cuda` where CUDAExecutionProvider works, else on the CPU.

    A session may run in several threads at once. The arena is off, because it would keep the memory of the largest
    picture for ever. Threads do not spin while they wait, because ComfyUI needs the cores.

    Raises:
        ServerUnavailableError: onnxruntime is missing, or the file is no model.
    """
    onnxruntime = import_runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = [CUDA, CPU] if device == "cuda" and CUDA in onnxruntime.get_available_providers() else [CPU]
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=wanted)
    except Exception as error:
        raise ServerUnavailableError(
            f"The face detection model {model.name} does not load.",
            details=f"{type(error).__name__}: {error}",
            extra_info={"model": model.name},
            retry_after_s=60,
        ) from None


def device_of(opened: Any) -> Device:
    """The device that a session runs on: onnxruntime falls back to the CPU where CUDA's libraries do not load."""
    return "cuda" if CUDA in opened.get_providers() else "cpu"


def default_threads() -> int:
    """The threads for one look: two search a photo in 150 ms, and ComfyUI keeps the other cores."""
    return max(1, min(2, os.cpu_count() or 1))
