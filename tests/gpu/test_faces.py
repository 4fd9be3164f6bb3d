"""The face check where it was asked to use the GPU: there where onnxruntime, or without one torch, has CUDA."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.client import assert_refusal, assert_succeeded, connected, node, save
from gpu.machine import Machine

from comfyui_guarded.tests.hosts.launch import HostProcess

PHOTOS = Path(sys.prefix) / "photos" / "skimage" / "data"

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.timeout(360),
    pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photos are not there; `make venv` brings them"),
]


def has_cuda(machine: Machine) -> bool:
    """torch first: it brings the CUDA libraries that onnxruntime looks for."""
    show = (
        "import torch, importlib.util as u\n"
        "if u.find_spec('onnxruntime') is None: print(torch.cuda.is_available())\n"
        "else: import onnxruntime; print('CUDAExecutionProvider' in onnxruntime.get_available_providers())"
    )
    shown = subprocess.run([machine.kind.python, "-c", show], check=False, capture_output=True, text=True)
    return shown.stdout.strip() == "True"


@pytest.fixture
def host(machine: Machine, tmp_path: Path) -> Iterator[HostProcess]:
    if machine.on_gpu and not has_cuda(machine):
        pytest.skip(f"{machine.kind.python} has an onnxruntime without CUDA; install onnxruntime-gpu there, or none")
    host = machine.server(tmp_path, GUARDED_FACES__DEVICE="cuda", GUARDED_FACES__DETECTOR="centerface")
    shutil.copy(PHOTOS / "astronaut.png", host.base / "input" / "somebody.png")
    shutil.copy(PHOTOS / "coffee.png", host.base / "input" / "nobody.png")
    with host:
        yield host


async def test_the_face_check_uses_the_gpu_that_it_was_given_and_finds_the_same(machine: Machine, host: HostProcess):
    def checked(name: str):
        loaded = {"1": node("LoadImage", image=name), "2": node("GuardedFaceCheck", image=["1", 0])}
        return {**loaded, "3": save("2")}

    async with connected(host) as client:
        assert_succeeded(await client.run(checked("somebody.png")))
        assert_refusal(await client.submit(checked("nobody.png")), "no_face", 422)
        faces = (await client.get("/guarded/health"))["faces"]
        assert faces["loaded"], faces
        assert faces["device"] == ("cuda" if machine.on_gpu else "cpu"), faces
