"""A host of these tests' own, with nodes that make films and report files: the sandbox, and every real ComfyUI."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from contract.client import Client, connected
from contract.conftest import kinds
from results import corpus, pictures

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess

HOST_NODES = Path(__file__).parent / "host_nodes"


def _put_inputs(folder: Path) -> None:
    scene = pictures.landscape(256)
    (folder / "good.png").write_bytes(corpus.image(scene, "PNG"))
    (folder / "black.png").write_bytes(corpus.image(pictures.flat((0, 0, 0), 64), "PNG"))
    (folder / "other.png").write_bytes(corpus.image(pictures.landscape(256, 2), "PNG"))
    (folder / "large.jpg").write_bytes(corpus.image(pictures.landscape(2048), "JPEG", quality=95))
    (folder / "good.mp4").write_bytes(corpus.film(pictures.pan(scene, 50)))
    (folder / "frozen.mp4").write_bytes(corpus.film(pictures.frozen(50)))
    (folder / "half.webm").write_bytes(
        corpus.cut(corpus.film(pictures.pan(scene, 50), "webm", "libvpx-vp9", crf="20", b="0"), 0.5)
    )
    (folder / "silent.wav").write_bytes(corpus.wav(corpus.silence()))
    (folder / "model.glb").write_bytes(b"glTF" + bytes(2000))


@pytest.fixture(scope="package", params=kinds())
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """One server per kind for the whole run; whoever uses it leaves its queue empty."""
    kind: HostKind = request.param
    # Results may be put to a store on this machine, and one that fails is tried again soon.
    settings = {
        "GUARDED_WEBHOOKS__ALLOW_HTTP": "true",
        "GUARDED_WEBHOOKS__ALLOWED_NETWORKS": "127.0.0.0/8",
        "GUARDED_WEBHOOKS__FIRST_RETRY_S": "0.2",
        "GUARDED_RESULTS__INLINE_MAX_BYTES": "300000",
    }
    process = HostProcess(kind, tmp_path_factory.mktemp("results"), environment=settings)
    _put_inputs(process.base / "input")
    (process.base / "custom_nodes" / "results_nodes").symlink_to(HOST_NODES, target_is_directory=True)
    with process:
        yield process


@pytest.fixture
async def client(host: HostProcess) -> AsyncIterator[Client]:
    async with connected(host) as client:
        yield client
