"""InsightFace as its requirements file says to install it, and as this environment was made."""

import importlib.metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from comfyui_guarded.guard.faces import onnx

INSIGHTFACE = Path(__file__).parents[2] / "requirements-insightface.txt"
OPENCV = {"opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"}


def test_what_the_file_names_brings_no_onnxruntime_and_no_opencv_with_it() -> None:
    pytest.importorskip("insightface", reason="requirements-insightface.txt says how to install it")
    lines = (line.partition("#")[0].strip() for line in INSIGHTFACE.read_text(encoding="utf-8").splitlines())
    waiting = [line for line in lines if line]
    brought: set[str] = set()
    while waiting:
        asked = Requirement(waiting.pop())
        name = asked.name.lower().replace("_", "-")
        if name not in brought and (asked.marker is None or asked.marker.evaluate({"extra": ""})):
            brought.add(name)
            waiting += importlib.metadata.requires(name) or []
    assert {"onnx", "protobuf", "numpy"} <= brought
    assert not brought & {*onnx.PACKAGES, *OPENCV}
    # Why the file itself is not the whole of it.
    assert any(line.startswith("onnxruntime") for line in importlib.metadata.requires("insightface") or [])


def test_there_is_one_onnxruntime_and_it_works_and_one_opencv() -> None:
    state = onnx.read_state()
    assert len(state.packages) == 1
    assert (state.problem, state.broken, state.command) == ("", False, "")
    assert onnx.CPU in state.providers
    assert (onnx.CUDA in state.providers) == ("onnxruntime-gpu" in state.packages)
    assert len([name for name in OPENCV if _is_installed(name)]) <= 1


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
