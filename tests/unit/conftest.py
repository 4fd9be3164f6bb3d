from collections.abc import Iterator
from pathlib import Path

import pytest
from unit import stores
from unit.fakes import Failing, FailingStore, FakeHost
from unit.machine import Machine

from comfyui_guarded.guard.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    engines = metafunc.definition.get_closest_marker("engines")
    if engines is not None:
        metafunc.parametrize("engine", engines.args)


@pytest.fixture
def engine() -> str:
    return "sqlite"


@pytest.fixture(autouse=True)
def _use_engine(engine: str) -> Iterator[None]:
    stores.use(engine)
    yield
    stores.use("sqlite")


@pytest.fixture
def store(tmp_path: Path, clock: Clock, engine: str) -> Iterator[Failing]:
    kind = FailingStore if engine == "sqlite" else stores.FailingOnPostgres
    opened = kind(tmp_path / "guarded.db", clock)
    yield opened
    opened.close()


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def machine(store: FailingStore, host: FakeHost, clock: Clock, tmp_path: Path) -> Machine:
    return Machine(store, host, clock, tmp_path)
