"""Each row is stopped by at least two layers, each of which stops it without the others."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from confinement.conftest import Bot, start_host
from confinement.host_nodes import LAYERS
from confinement.rows import ROWS, make_scene
from contract.client import KeyedClient, connected, make_key
from contract.conftest import kinds

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess

HOST_NODES = Path(__file__).parent / "host_nodes"
#: Alone, each of them; none at all; and all together.
CASES = [*((layer,) for layer in LAYERS), (), tuple(LAYERS)]


@pytest.fixture(scope="module", params=kinds())
def kind(request: pytest.FixtureRequest) -> HostKind:
    return request.param


@pytest.fixture(scope="module", params=CASES, ids=lambda layers: "+".join(layers) or "none")
def confined(
    request: pytest.FixtureRequest, kind: HostKind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[HostProcess, tuple[str, ...], dict[str, str]]]:
    """A server with those layers alone, and the bots' keys."""
    layers = request.param
    base = tmp_path_factory.mktemp("matrix")
    made = {name: make_key(base, name) for name in ("alice", "bob")}
    process = start_host(kind, base, packs=(HOST_NODES,), LAYERS_OFF=",".join(sorted(LAYERS.keys() - set(layers))))
    with process:
        yield process, layers, made


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_a_row_is_stopped_by_each_of_its_layers_alone(confined, row):
    host, layers, made = confined
    async with connected(host) as client:
        alice, bob = (Bot(name, KeyedClient(client, key)) for name, key in made.items())
        got = await row.attack(await make_scene(client, alice, bob))
    if row.stopped_by & set(layers):
        assert not got
    else:
        # Otherwise the row shows nothing.
        assert got, f"nothing stopped it, and all the same {row.name} got nothing"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_is_stopped_by_two_layers(row):
    assert len(row.stopped_by) >= 2
    assert row.stopped_by <= LAYERS.keys(), os.fspath(HOST_NODES)
