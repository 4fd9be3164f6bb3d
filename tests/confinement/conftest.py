"""Two bots, alice and bob, on one server: the sandbox, and every real ComfyUI, with real packs where there are some."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from confinement import tree
from contract.client import Client, KeyedClient, connected, folder_of, make_key
from contract.conftest import kinds, put_photo
from results import corpus

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess

#: Clones of packs (VideoHelperSuite, KJNodes), and a folder with what they import.
PACKS = Path.home() / "comfy" / "packs"
PACKS_SITE = Path.home() / "comfy" / "packs-site"
#: Those whose nodes these tests use; there may be others.
LOADED = ("ComfyUI-VideoHelperSuite", "ComfyUI-KJNodes")
OWNERS = ("alice", "bob")


def has_video_helper_suite(kind: HostKind) -> bool:
    return kind.real and (PACKS / "ComfyUI-VideoHelperSuite").is_dir()


@dataclass
class Bot:
    """One owner with a key."""

    name: str
    client: KeyedClient

    @property
    def folder(self) -> str:
        return folder_of(self.client.base, self.name)

    def place(self, kind: str = "output") -> Path:
        """Where its files of that type lie."""
        return self.client.base / kind / self.folder


def tone() -> bytes:
    """A second of sound."""
    return corpus.wav((np.sin(np.arange(24_000) / 20) * 12_000).astype(np.int16))


def start_host(kind: HostKind, base: Path, packs: tuple[Path, ...] = (), **environment: str) -> HostProcess:
    """A server with real packs, where there are some, and with those; to be started."""
    # Small files and blank ones are good enough: what counts is where they lie.
    environment = {
        "GUARDED_NATIVE__MODE": "guarded",
        "GUARDED_RESULTS__REFUSE_BLANK": "false",
        "GUARDED_RESULTS__REFUSE_FROZEN": "false",
        "GUARDED_RESULTS__MIN_IMAGE_BYTES": "1",
        "GUARDED_RESULTS__MIN_VIDEO_BYTES": "1",
        **environment,
    }
    if PACKS_SITE.is_dir():
        environment["PYTHONPATH"] = str(PACKS_SITE)
    process = HostProcess(kind, base, environment=environment)
    put_photo(base)
    (base / "input" / "tone.wav").write_bytes(tone())
    for pack in packs:
        (base / "custom_nodes" / f"zz_{pack.name}").symlink_to(pack, target_is_directory=True)
    return process


@pytest.fixture(scope="package", params=kinds())
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """One server per kind for the whole run; whoever uses it leaves its queue empty."""
    kind: HostKind = request.param
    packs = tuple(PACKS / name for name in LOADED if (PACKS / name).is_dir()) if kind.real else ()
    with start_host(kind, tmp_path_factory.mktemp("confined"), packs) as process:
        yield process


@pytest.fixture(scope="package")
def made_keys(host: HostProcess) -> dict[str, str]:
    made = {name: make_key(host.base, name) for name in OWNERS}
    made["tight"] = make_key(host.base, "tight", max_pixels=4096)
    time.sleep(2.5)  # the server looks every second
    return made


@pytest.fixture
async def client(host: HostProcess) -> AsyncIterator[Client]:
    async with connected(host) as client:
        yield client


@pytest.fixture
def alice(client: Client, made_keys: dict[str, str]) -> Bot:
    return Bot("alice", KeyedClient(client, made_keys["alice"]))


@pytest.fixture
def bob(client: Client, made_keys: dict[str, str]) -> Bot:
    return Bot("bob", KeyedClient(client, made_keys["bob"]))


@pytest.fixture
def tight(client: Client, made_keys: dict[str, str]) -> Bot:
    """A bot that may have pictures of 64 × 64."""
    return Bot("tight", KeyedClient(client, made_keys["tight"]))


@contextlib.asynccontextmanager
async def only_in(*places: Path, base: Path) -> AsyncIterator[tree.Changes]:
    """In here, nothing below `base` changes but what lies in those places, and what the server itself writes."""
    before = await asyncio.to_thread(tree.look, base)
    changes = tree.Changes()
    yield changes
    changes.update(before, await asyncio.to_thread(tree.look, base))
    outside = [path for path in changes.paths if not any(place in (base / path).parents for place in places)]
    assert not outside, outside
