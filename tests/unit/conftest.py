from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.fakes import FailingStore, FakeHost

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
