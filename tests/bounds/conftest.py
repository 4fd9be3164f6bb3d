"""Servers with a heartbeat: each kind of host with the guard, and bare to compare with."""

import time
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from bounds.judges import Patient
from contract.client import make_key
from contract.conftest import kinds

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess

KEYED: dict[str, str] = {}


# Each server takes a gigabyte or more: it ends with the last test here that uses it, and is begun by the first.
@pytest.fixture(scope="package", params=kinds())
def host_kind(request: pytest.FixtureRequest) -> HostKind:
    kind: HostKind = request.param
    return kind


@pytest.fixture(scope="package")
def guarded_host(host_kind: HostKind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    base = tmp_path_factory.mktemp("ours")
    environment = {"GUARDED_ACCESS__TRUST_LOOPBACK": "false"}
    for kind in ("WEBHOOKS", "FETCH"):
        environment[f"GUARDED_{kind}__ALLOW_HTTP"] = "true"
        environment[f"GUARDED_{kind}__ALLOWED_NETWORKS"] = "127.0.0.0/8"
    host = HostProcess(host_kind, base, environment=environment)
    KEYED[host.url] = make_key(base, "bot")
    with host:
        time.sleep(1)
        yield host


@pytest.fixture(scope="package")
def bare_host(host_kind: HostKind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with HostProcess(host_kind, tmp_path_factory.mktemp("bare"), guarded=False) as host:
        time.sleep(1)
        yield host


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as session:
        yield session


@pytest.fixture
def ours(guarded_host: HostProcess, session: aiohttp.ClientSession) -> Patient:
    return Patient(guarded_host, session)


@pytest.fixture
def bare(bare_host: HostProcess, session: aiohttp.ClientSession) -> Patient:
    return Patient(bare_host, session)


@pytest.fixture
def key(guarded_host: HostProcess) -> dict[str, str]:
    """The header of a keyed owner."""
    return {"Authorization": f"Bearer {KEYED[guarded_host.url]}"}
