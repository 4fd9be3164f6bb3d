"""One client-side suite over HTTP: against the sandbox always, and against every real ComfyUI that is found."""

import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from contract.client import Client, KeyedClient, connected, make_key
from PIL import Image

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess, real_kinds, sandbox_kind
from comfyui_guarded.tests.hosts.lend import lend

#: Of scikit-image, where `make` has put the demo's pictures.
ASTRONAUT = Path(sys.prefix) / "photos" / "skimage" / "data" / "astronaut.png"
PHOTO = "photo.png"
#: From where the servers of the tests fetch files; every other address of this machine is none of theirs.
FILES_FROM = "127.0.0.5"


def kinds(wanted: Callable[[HostKind], bool] = lambda kind: True) -> list[object]:
    """Parameters for a fixture that starts a host: the sandbox, and every real ComfyUI."""
    return [
        pytest.param(kind, id=kind.name.replace(" ", "-"), marks=pytest.mark.comfyui if kind.real else ())
        for kind in (sandbox_kind(), *real_kinds())
        if wanted(kind)
    ]


def hosts(wanted: Callable[[HostKind], bool], fixture: str = "host") -> pytest.MarkDecorator:
    """Run the test on these kinds of host alone; on the others there is nothing to test, and so nothing to skip."""
    return pytest.mark.parametrize(fixture, kinds(wanted), indirect=True)


def is_real(kind: HostKind) -> bool:
    return kind.real


def serves(route: str) -> Callable[[HostKind], bool]:
    """Whether a host's sources name the route: `/api/jobs` is younger than the oldest ComfyUI that is supported."""

    def found(kind: HostKind) -> bool:
        tree = kind.main.parent
        return any(f'"{route}"' in path.read_text() for path in (tree / "server.py", *tree.glob("api_server/*.py")))

    return found


def put_photo(base: Path) -> None:
    """A photograph for LoadImage, 128 pixels wide."""
    target = base / "input" / PHOTO
    if ASTRONAUT.is_file():
        with Image.open(ASTRONAUT) as image:
            image.convert("RGB").resize((128, 128)).save(target)
    else:
        noise = np.random.default_rng(1).integers(0, 255, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(noise).save(target)


@pytest.fixture(scope="package", params=kinds())
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """One server per kind for the whole run; whoever uses it leaves its queue empty."""
    kind: HostKind = request.param
    base = tmp_path_factory.mktemp("host")
    # Files may be fetched from a server of the test's own, which has an address of its own.
    fetch = {"GUARDED_FETCH__ALLOW_HTTP": "true", "GUARDED_FETCH__ALLOWED_NETWORKS": f"{FILES_FROM}/32"}
    process = HostProcess(kind, base, environment={**fetch, **lend(kind, "mcp", base / "lent")})
    put_photo(base)
    with process:
        yield process


@pytest.fixture
async def client(host: HostProcess) -> AsyncIterator[Client]:
    async with connected(host) as client:
        yield client


@dataclass
class Keys:
    """Clients of the host that come with a key of their own."""

    base: Path
    made: dict[str, str]

    def of(self, client: Client, name: str, scope: str = "submit") -> KeyedClient:
        """The client as the owner `name`; the key is made the first time."""
        if name not in self.made:
            self.made[name] = make_key(self.base, name, scope)
        return KeyedClient(client, self.made[name])


@pytest.fixture(scope="package")
def keys(host: HostProcess) -> Keys:
    """Two owners' keys, and two that are tighter than the server; more of them take it a second to notice."""
    made = Keys(host.base, {name: make_key(host.base, name) for name in ("mine", "yours")})
    made.made["templates"] = make_key(host.base, "templates", templates_only=True)
    made.made["tight"] = make_key(host.base, "tight", max_pixels=4096, deny_nodes=("Load*",))
    time.sleep(2.5)  # the server looks every second
    return made


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Callable[..., HostProcess]]:
    """Starts sandboxes of a test's own, with settings of its own: `sandbox(GUARDED_QUEUE__MAX_QUEUED="2")`."""
    started: list[HostProcess] = []

    def start(**environment: str) -> HostProcess:
        process = HostProcess(sandbox_kind(), tmp_path / f"base{len(started)}", environment=environment)
        started.append(process)
        put_photo(process.base)
        return process.start()

    yield start
    for process in started:
        process.stop()


@pytest.fixture
async def sandbox_client(sandbox: Callable[..., HostProcess]) -> AsyncIterator[Callable[..., Awaitable[Client]]]:
    async with contextlib.AsyncExitStack() as stack:

        async def start(**environment: str) -> Client:
            return await stack.enter_async_context(connected(sandbox(**environment)))

        yield start
