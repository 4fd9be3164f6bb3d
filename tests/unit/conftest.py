from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.fakes import FailingStore, FakeHost
from unit.machine import Machine

from comfyui_guarded.guard.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[FailingStore]:
    opened = FailingStore(tmp_path / "guarded.db", clock)
    yield opened
    opened.close()


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def machine(store: FailingStore, host: FakeHost, clock: Clock, tmp_path: Path) -> Machine:
    return Machine(store, host, clock, tmp_path)
