"""A box whose depot is away while other boxes have theirs: it says so, and keeps no job that they can run."""

import asyncio
from types import SimpleNamespace

import pytest
from unit.fakes import FakeHost, settings

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import ServerUnavailableError
from comfyui_guarded.guard.files import inputs
from comfyui_guarded.guard.files.storage import AWAY, Storage
from comfyui_guarded.guard.life.health import Health
from comfyui_guarded.guard.signal import Signal
from comfyui_guarded.guard.store import Box, Member


class Here:
    """A box with a depot, and others of the test's choosing."""

    def __init__(self, folder):
        (folder / "depot").mkdir()
        host = FakeHost()
        self.health = Health(host, SimpleNamespace(queued=0))
        self.health.mark_serving()
        self.member = Member("one", 30_000)
        self.membership = SimpleNamespace(boxes=(), looked=Signal())
        self.storage = Storage(
            settings(files={"url": (folder / "depot").as_uri()}),
            host,
            None,
            SimpleNamespace(changed=Signal(), opened=Signal()),
            Clock(),
            self.health,
            folder,
            lambda *_counted: None,
            member=self.member,
        )
        self.storage.join(self.membership, None)
        self.depot = self.storage.depot
        self.depot.look()

    def look(self, *boxes):
        self.membership.boxes = boxes
        self.membership.looked(boxes)

    def is_kept(self):
        """Whether a job that needs a file still waits for it after some tries."""

        async def bring():
            async with asyncio.timeout(0.5):
                await self.storage.bring({}, "ann", 0)

        try:
            asyncio.run(bring())
        except TimeoutError:
            return True
        except ServerUnavailableError:
            return False
        raise AssertionError("it has the file")


def other(name="two", max_jobs=1, **status):
    return Box(name, max_jobs, 0, True, status=status)


@pytest.fixture
def here(tmp_path, monkeypatch):
    made = Here(tmp_path)

    async def fail(*_prompt):
        raise ServerUnavailableError("x")

    monkeypatch.setattr(made.storage.inputs, "bring", fail)
    monkeypatch.setattr(inputs, "_AGAIN_S", 0.01)
    return made


def test_a_box_whose_depot_alone_is_away_is_not_ready_and_keeps_no_job_that_needs_a_file(here):
    here.look(other())
    assert here.health.unready() == []
    assert here.is_kept(), "its own depot is there: what is away is a box that has the file"
    here.depot.note_slow(30)
    here.look(other())
    assert here.member.status[AWAY] is True
    assert here.health.unready() == ["depot unavailable"]
    assert not here.is_kept()
    here.depot.look()
    here.look(other())
    assert here.health.unready() == []
    assert AWAY not in here.member.status


@pytest.mark.parametrize("boxes", [[], [other(**{AWAY: True})]], ids=["no other box", "away for all"])
def test_a_box_whose_depot_is_away_for_all_waits_for_it(here, boxes):
    here.depot.note_slow(30)
    here.look(*boxes)
    assert here.health.unready() == []
    assert here.is_kept()


def test_a_box_that_runs_nothing_is_no_other_box_for_a_job(here):
    here.depot.note_slow(30)
    here.look(other(max_jobs=0))
    assert here.health.unready() == ["depot unavailable"]
    assert here.is_kept()
