"""Each row is stopped by at least two layers, each of which stops it without the others."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from confinement.conftest import Bot, start_host
from confinement.host_nodes import LAYERS, ROUTE
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


@pytest.fixture(scope="module", params=[True, False], ids=["in folders", "in the roots"])
def bare(
    request: pytest.FixtureRequest, kind: HostKind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[HostProcess, dict[str, str], list[tuple[str, ...]]]]:
    """A server that lets its layers be taken away, the bots' keys, and the sets of layers to try.

    ComfyUI keeps node objects from prompt to prompt, and those their folders: so one server always has the folders.
    """
    cases = [case for case in CASES if ("folders" in case) is request.param]
    base = tmp_path_factory.mktemp("matrix")
    made = {name: make_key(base, name) for name in ("alice", "bob")}
    with start_host(kind, base, packs=(HOST_NODES,), GUARDED_RESULTS__STRIP_METADATA="true") as process:
        yield process, made, cases


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_a_row_is_stopped_by_each_of_its_layers_alone(bare, row):
    host, made, cases = bare
    async with connected(host) as client:
        alice, bob = (Bot(name, KeyedClient(client, key)) for name, key in made.items())
        for layers in cases:
            answer = await client.request("POST", ROUTE, sorted(LAYERS.keys() - set(layers)))
            assert answer.status == 200, answer
            got = await row.attack(await make_scene(client, alice, bob))
            # A row that nothing stops and that gets nothing all the same shows nothing.
            assert bool(got) is not bool(row.stopped_by & set(layers)), (layers, got)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_is_stopped_by_two_layers(row):
    assert len(row.stopped_by) >= 2
    assert row.stopped_by <= LAYERS.keys(), os.fspath(HOST_NODES)
