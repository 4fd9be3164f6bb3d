"""Servers with a heartbeat: each kind of host with the guard, and bare to compare with."""

import time
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from bounds.judges import Patient
from contract.client import make_key
from contract.conftest import kinds

from comfyui_guarded.tests.hosts.launch import HostProcess

KEYED: dict[str, str] = {}


@pytest.fixture(scope="session", params=kinds())
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[HostProcess, HostProcess]]:
    """The same host twice: guarded, and bare."""
    base = tmp_path_factory.mktemp("bounds")
    ours = HostProcess(request.param, base / "ours", environment={"GUARDED_ACCESS__TRUST_LOOPBACK": "false"})
    bare = HostProcess(request.param, base / "bare", guarded=False)
    KEYED[ours.url] = make_key(base / "ours", "bot")
    ours.spawn()
    with bare:
        ours.wait_ready()
        time.sleep(1)
        yield ours, bare
    ours.stop()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as session:
        yield session


@pytest.fixture
def ours(pair: tuple[HostProcess, HostProcess], session: aiohttp.ClientSession) -> Patient:
    return Patient(pair[0], session)


@pytest.fixture
def bare(pair: tuple[HostProcess, HostProcess], session: aiohttp.ClientSession) -> Patient:
    return Patient(pair[1], session)


@pytest.fixture
def key(pair: tuple[HostProcess, HostProcess]) -> dict[str, str]:
    """The header of a keyed owner."""
    return {"Authorization": f"Bearer {KEYED[pair[0].url]}"}
