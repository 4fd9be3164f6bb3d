"""What operators see of a fleet: who is late, gone, draining or different; and figures that count nothing twice."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from unit.fakes import FakeHost, SetClock
from unit.test_gpu import A5000, GIB, fake_nvml
from unit.test_metrics import Watched

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import DiskFullError
from comfyui_guarded.guard.fleet import read_version
from comfyui_guarded.guard.job import Job, JobState
from comfyui_guarded.guard.life.health import Health
from comfyui_guarded.guard.operators.families import OF_FLEET
from comfyui_guarded.guard.operators.fleet import FleetView
from comfyui_guarded.guard.operators.gpu import Gpus
from comfyui_guarded.guard.signal import Signal
from comfyui_guarded.guard.store import Box, Member, Recovery

NOW_MS = 1_800_000_000_000
LEASE_MS = 30_000


class Wall(SetClock):
    """The machine's own clock, beside the fleet's."""

    off_ms = 0

    def wall_ms(self):
        return self.ms + self.off_ms


class Seen:
    """A view of boxes of the test's choosing."""

    def __init__(self):
        self.clock = Wall(NOW_MS)
        self.membership = SimpleNamespace(boxes=(), looked=Signal(), reaped=Signal())
        self.member = Member("box-1", LEASE_MS)
        self.runs, self.is_keeper = [], True
        self.health = Health(FakeHost(), SimpleNamespace(queued=0))
        self.health.mark_serving()
        self.gpus = Gpus({})
        self.view = FleetView(self.membership, self.member, self, self.health, self.gpus, self.clock)
        self.told = []
        self.view.alarmed.subscribe(lambda *alarm: self.told.append(alarm))
        self.view.watch()

    def list_runs(self, limit):
        found = Future()
        found.set_result(self.runs[:limit])
        return found

    def look(self, *boxes):
        self.membership.boxes = boxes
        self.membership.looked(boxes)

    async def states(self):
        return {box["box"]: box["state"] for box in await self.view.list_bodies()}

    def alarms(self):
        return {alarm["code"]: alarm["message"] for alarm in self.health.alarms()}


@pytest.fixture
def seen():
    return Seen()


def box(name, silent_ms=0, max_jobs=1, url=None, running=0, **status):
    return Box(name, max_jobs, NOW_MS - silent_ms, silent_ms < LEASE_MS, url, status, running)


async def test_a_box_is_shown_with_its_card_its_version_and_what_it_runs_since_when(seen):
    seen.runs = [
        ("box-2", job("job-1", owner="shop", template="sdxl", started_at_ms=NOW_MS - 5000)),
        ("box-2", job("job-2", owner="bot", state=JobState.DISPATCHED)),
    ]
    seen.look(box("box-1"), box("box-2", 700, 2, "http://two", version="1 (a)", gpu="RTX A5000", gpu_bytes=24 * GIB))
    own, other = await seen.view.list_bodies()
    assert (own["is_this"], own["gpu"], own["version"], own["runs"]) == (True, None, None, [])
    assert other == {
        "box": "box-2",
        "is_this": False,
        "state": "alive",
        "beat_at_ms": NOW_MS - 700,
        "url": "http://two",
        "version": "1 (a)",
        "gpu": "RTX A5000",
        "gpu_bytes": 24 * GIB,
        "max_jobs": 2,
        "runs": [
            {"job_id": "job-1", "owner": "shop", "template": "sdxl", "state": "running", "since_ms": NOW_MS - 5000},
            {"job_id": "job-2", "owner": "bot", "template": "", "state": "dispatched", "since_ms": None},
        ],
        "problems": [],
        "clock_off_s": 0.0,
        "differs": [],
    }


async def test_a_box_that_falls_silent_is_late_and_then_gone_and_comes_back(seen):
    seen.look(box("box-1"), box("box-2", 9_000))
    assert await seen.states() == {"box-1": "alive", "box-2": "alive"}
    seen.look(box("box-1"), box("box-2", 11_000))
    assert await seen.states() == {"box-1": "alive", "box-2": "late"}
    assert "box-2 (11 s)" in seen.alarms()["box_late"]
    seen.look(box("box-1"))  # others have taken it out
    assert await seen.states() == {"box-1": "alive", "box-2": "gone"}
    assert "box_late" not in seen.alarms()
    seen.look(box("box-1"), box("box-2"))
    assert await seen.states() == {"box-1": "alive", "box-2": "alive"}


async def test_a_box_that_has_left_is_not_gone(seen):
    seen.look(box("box-1"), box("box-2", 900))
    seen.look(box("box-1"))
    assert await seen.states() == {"box-1": "alive"}


async def test_a_box_that_is_gone_is_forgotten_after_a_day(seen):
    seen.look(box("box-1"), box("box-2", 11_000))
    seen.look(box("box-1"))
    seen.clock.ms += 25 * 3_600_000
    seen.look(Box("box-1", 1, seen.clock.ms, True))
    assert await seen.states() == {"box-1": "alive"}


async def test_boxes_tell_of_their_drain_and_of_what_is_wrong_with_them(seen):
    seen.health.draining = True
    seen.look(box("box-1"))
    assert seen.member.status["problems"] == ["draining"]
    seen.look(box("box-1", problems=["draining"]), box("box-2", problems=["worker dead", 7, "x" * 10_000]))
    one, two = await seen.view.list_bodies()
    assert (one["state"], two["state"], two["problems"]) == ("draining", "alive", ["worker dead", "x" * 100])
    seen.health.draining = False
    seen.look(box("box-1"))
    assert "problems" not in seen.member.status


async def test_a_box_tells_all_that_its_own_ready_says(seen):
    seen.health.watch_disk(lambda: DiskFullError("full"))
    seen.health.hold_ready("warming up", lambda: True)
    seen.look(box("box-1"))
    assert seen.member.status["problems"] == seen.health.unready() == ["disk full", "warming up"]


async def test_the_version_that_differs_is_the_one_that_fewer_boxes_have(seen):
    assert "boxes_differ" not in seen.alarms()
    seen.look(box("box-1", version="1 (a)"), box("box-2", version="2 (b)"), box("box-3", version="2 (b)"), box("box-4"))
    differs = {one["box"]: one["differs"] for one in await seen.view.list_bodies()}
    assert differs == {"box-1": ["version"], "box-2": [], "box-3": [], "box-4": []}
    assert "1 (a): box-1; 2 (b): box-2, box-3" in seen.alarms()["boxes_differ"]


async def test_settings_that_must_agree_are_compared_with_those_of_this_box(seen):
    own = {"fleet.secret": "s", "queue.timeout_s": "a"}
    seen.member.tell("settings", own)
    seen.look(
        box("box-1", settings=own),
        box("box-2", settings={**own, "queue.timeout_s": "b"}),
        box("box-3", settings=own),
        box("box-4"),  # of a version that tells none
    )
    differs = {one["box"]: one["differs"] for one in await seen.view.list_bodies()}
    assert differs == {"box-1": [], "box-2": ["settings"], "box-3": [], "box-4": []}


async def test_a_clock_that_is_off_is_told_and_named(seen):
    seen.clock.off_ms = 3_600_000 + 700
    seen.look(box("box-1"))
    told = seen.member.status["clock_off_ms"]
    assert abs(told - 3_600_000) < 5000
    seen.clock.off_ms += 1000  # it is not told anew for each second
    seen.look(box("box-1"))
    assert seen.member.status["clock_off_ms"] == told
    seen.look(box("box-1", clock_off_ms=told), box("box-2", clock_off_ms="never"))
    assert [one["differs"] for one in await seen.view.list_bodies()] == [["clock"], []]
    assert "box-1: +3600 s" in seen.alarms()["clocks_differ"]
    seen.clock.off_ms = 2000
    seen.look(box("box-1"))
    assert "clock_off_ms" not in seen.member.status
    assert "clocks_differ" not in seen.alarms()


def test_a_box_tells_of_its_card(seen):
    seen.gpus.look(fake_nvml(A5000))
    seen.look(box("box-1"))
    assert (seen.member.status["gpu"], seen.member.status["gpu_bytes"]) == ("NVIDIA RTX A5000", 24 * GIB)


def test_who_takes_back_the_jobs_of_a_lost_box_raises_an_alarm_that_names_it(seen):
    seen.membership.reaped({"box-7": Recovery(2, ())})
    [(code, message, job_id, name)] = seen.told
    assert (code, job_id, name) == ("box_lost", None, "box-7")
    assert "box-7" in message
    assert "2 of its jobs" in message


def test_a_version_differs_where_the_code_does(tmp_path):
    (tmp_path / "guard").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "app.py").write_text("")
    (tmp_path / "guard" / "x.py").write_bytes(b"1\n")
    first = read_version(tmp_path)
    assert first.startswith("1.2.3 (")
    (tmp_path / "guard" / "x.py").write_bytes(b"1\r\n")  # as git gives it on Windows
    assert read_version(tmp_path) == first
    (tmp_path / "guard" / "x.py").write_bytes(b"2\n")
    assert read_version(tmp_path) != first
    assert read_version() == read_version()


# Metrics. -----------------------------------------------------------------------------------------------------------


def exposed(watched, seen):
    watched.fleet = seen.view
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(watched.text())
        for sample in family.samples
    }


def test_what_is_the_fleets_is_told_by_one_box_alone(store, tmp_path, seen):
    watched = Watched(store, Clock(), tmp_path)
    seen.member.tell("version", "1 (a)")
    seen.look(
        box("box-1", running=1, version="1 (a)"),
        box("box-2", max_jobs=3, running=2, version="2 (b)"),
        box("box-3", 20_000, version="2 (b)"),
    )
    keeper = exposed(watched, seen)
    assert keeper["guarded_fleet_boxes", ("state", "alive")] == 2
    assert keeper["guarded_fleet_boxes", ("state", "late")] == 1
    assert keeper["guarded_fleet_slots",] == 5
    assert keeper["guarded_fleet_slots_used",] == 3
    assert keeper["guarded_fleet_versions",] == 2
    assert keeper["guarded_queue_jobs",] == 0
    assert keeper["guarded_fleet_info", ("box", "box-1"), ("version", "1 (a)")] == 1
    seen.is_keeper = False
    other = exposed(watched, seen)
    of_fleet = {family.name for family in OF_FLEET}
    assert {name for name, *_labels in keeper} - {name for name, *_labels in other} == of_fleet
    assert other["guarded_slots",] == 1


def test_a_job_that_another_box_ends_is_forgotten_and_one_that_it_took_is_admitted_once(store, tmp_path):
    watched = Watched(store, Clock(), tmp_path)
    one = job("job-1", state=JobState.QUEUED)
    watched.metrics.follow(one)
    watched.metrics.follow_other(job("job-1", state=JobState.SUCCEEDED))
    watched.metrics.follow_other(job("job-2", state=JobState.QUEUED))
    watched.metrics.follow(job("job-2", state=JobState.QUEUED))  # its box has died, and this one has put it back
    assert watched.metrics._known == {"job-2"}
    assert watched.samples()["guarded_jobs_admitted_total"] == 1


def job(job_id, **facts):
    values = dict.fromkeys(Job.__dataclass_fields__, None)
    values |= {
        "number": 1,
        "owner": "bot",
        "state": JobState.RUNNING,
        "template": "",
        "attempts": 1,
        "created_at_ms": 0,
    }
    return Job(**{**values, "job_id": job_id, **facts})
