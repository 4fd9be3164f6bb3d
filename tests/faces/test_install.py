"""This environment was made by the documented install: requirements.txt, then InsightFace as its file says."""

import importlib.metadata
import platform
import sys

import pytest

from comfyui_guarded.guard.faces import onnx


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="only there requirements.txt names onnxruntime-gpu",
)
def test_installing_insightface_as_documented_leaves_onnxruntime_its_gpu():
    pytest.importorskip("insightface", reason="requirements-insightface.txt says how to install it")
    state = onnx.read_state()
    assert list(state.packages) == ["onnxruntime-gpu"]
    assert onnx.CUDA in state.providers
    assert (state.problem, state.broken, state.command) == ("", False, "")


def test_there_is_one_opencv():
    names = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
    found = [name for name in names if _is_installed(name)]
    assert len(found) <= 1, found


def _is_installed(name):
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
