"""Servers with real packs, which lie outside of the project: `GUARDED_PACKS`, else ~/comfy/packs.

Where there are none, the tests are skipped, and say how many. What the packs import lies in the host's Python, or in
`GUARDED_PACKS_SITE`, else ~/comfy/packs-site.
"""

import math
import os
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from confinement.conftest import start_host
from contract.client import Client, connected
from results import corpus, pictures

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess, real_kinds

PACKS = Path(os.environ.get("GUARDED_PACKS") or Path.home() / "comfy" / "packs")
VIDEO_HELPER_SUITE = PACKS / "ComfyUI-VideoHelperSuite"

_KINDS = real_kinds()
_MARKS = [pytest.mark.comfyui, pytest.mark.timeout(600)]
NEEDED = "needs a real ComfyUI and the packs, in GUARDED_PACKS or ~/comfy/packs"


@pytest.fixture(
    scope="package",
    params=[pytest.param(kind, id=kind.name.replace(" ", "-"), marks=_MARKS) for kind in _KINDS]
    or [pytest.param(None, id="no ComfyUI")],
)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    kind: HostKind | None = request.param
    if kind is None or not VIDEO_HELPER_SUITE.is_dir():
        pytest.skip(NEEDED)
    base = tmp_path_factory.mktemp("packs")
    process = start_host(kind, base, (VIDEO_HELPER_SUITE,), GUARDED_RESULTS__REFUSE_BLANK="true")
    frames = [pictures.landscape(128, seed=number) for number in range(16)]
    (process.base / "input" / "silent.mp4").write_bytes(corpus.film(frames, fps=8))
    (process.base / "input" / "sounding.mp4").write_bytes(corpus.film(frames, fps=8, sound=corpus.tone(2)))
    (process.base / "input" / "3d").mkdir(exist_ok=True)
    (process.base / "input" / "3d" / "ball.splat").write_bytes(make_ball())
    with process:
        yield process


def make_ball(points: int = 800) -> bytes:
    """A ball of Gaussians all around: 32 bytes for place, size, colour and turn of each."""
    ball = b""
    for at in range(points):
        up = 1 - 2 * (at + 0.5) / points
        out, turn = math.sqrt(1 - up * up), at * math.pi * (3 - math.sqrt(5))
        place = out * math.cos(turn), up, out * math.sin(turn)
        ball += struct.pack("<6f8B", *place, 0.08, 0.08, 0.08, 200, 120, 40, 255, 255, 128, 128, 128)
    return ball


@pytest.fixture
async def client(host: HostProcess) -> AsyncIterator[Client]:
    async with connected(host) as client:
        yield client
