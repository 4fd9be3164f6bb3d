"""When warm-ups run: a search over what happens to them and meanwhile."""

import asyncio
import json
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from unit.fakes import LONG_S, FakeHost, SetClock
from unit.fakes import settings as make_settings

from comfyui_guarded.guard.host import Outcome
from comfyui_guarded.guard.life.health import Health
from comfyui_guarded.guard.settings import load
from comfyui_guarded.guard.warmup import warmups as module
from comfyui_guarded.guard.warmup.entries import Prompts, list_entries
from comfyui_guarded.guard.warmup.mark import Mark
from comfyui_guarded.guard.warmup.runs import WarmupRuns
from comfyui_guarded.guard.warmup.warmups import TRIES, State, Warmups

GOOD = Outcome(True, outputs={"1": {"text": ["x"]}})
BAD = Outcome(False, exception_type="ValueError", exception_message="on purpose")


class Store:
    """How much waits and runs."""

    queued = leased = 0


class Others:
    """The jobs' own listener, which must hear of no warm-up."""

    def __getattr__(self, name):
        raise AssertionError(name)

    def explain(self, _outcome):
        from comfyui_guarded.guard.errors import GenerationFailedError

        return GenerationFailedError("on purpose")


class Watching:
    def watch(self, job, end):
        self.job, self.end = job, end

    def forget(self, _job_id):
        pass


class World:
    """Warm-ups on a host that the test plays."""

    def __init__(self, own, names, **wanted):
        for name in names:
            (own / name).write_text(json.dumps({"1": {"class_type": "FaultText", "inputs": {"text": "x", "seed": 7}}}))
        inforce = make_settings(warmup={"runs": list(names), **wanted})
        self.host, self.store = FakeHost(), Store()
        self.health = Health(self.host, self.store)
        self.health.mark_serving()
        self.watching = Watching()
        self.runs = WarmupRuns(inforce.results, Others(), self.watching, self.host, own / "quarantine")
        prompts = Prompts(self.host, None, own)
        self.warmups = Warmups(inforce.warmup, self.store, self.host, self.health, self.runs, prompts, SetClock(0), own)
        self.began = 0

    async def next_run(self):
        """The id of the run that the host gets next; None where there is none."""
        ends_s, calm = time.monotonic() + LONG_S, 0
        while calm < 60 and time.monotonic() < ends_s:
            calm = calm + 1 if set(self.states) <= {State.WARM.value, State.FAILED.value} else 0
            if len(self.host.dispatched) > self.began:
                self.began += 1
                job_id = self.host.dispatched[-1][0]
                assert not self.store.queued, "a job waits"
                assert self.runs.started(job_id) is True
                return job_id
            await asyncio.sleep(0.002)
        return None

    def end(self, job_id, outcome):
        self.host.holds.discard(job_id)
        self.runs.finished(job_id, outcome, lambda _verdict: None)

    @property
    def states(self):
        return [each["state"] for each in self.warmups.describe()["runs"]]


EVENTS = st.lists(st.sampled_from(["good", "bad", "frees", "drops", "job", "overdue"]), min_size=4, max_size=14)


@example(["frees"] * 12, 2)
@example(["good", "frees", "frees", "good", "frees", "good"], 2)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(EVENTS, st.integers(1, 3))
def test_whatever_happens_they_come_to_an_end_and_the_server_is_ready(tmp_path, monkeypatch, events, count):
    monkeypatch.setattr(module, "PAUSE_S", 0.001)

    async def play():
        world = World(tmp_path, [f"{number}.json" for number in range(count)])
        task = asyncio.create_task(world.warmups.run())
        runs = 0
        waiting = list(events)
        while (job_id := await world.next_run()) is not None:
            runs += 1
            assert runs <= TRIES * count + events.count("job") * count, "it goes on for ever"
            event = waiting.pop(0) if waiting else "good"
            if event in ("good", "frees", "job"):
                world.end(job_id, GOOD)
            elif event == "bad":
                world.end(job_id, BAD)
            elif event == "overdue":
                from comfyui_guarded.guard.errors import GenerationTimeoutError

                world.watching.end(world.watching.job, GenerationTimeoutError("It ran longer than 1 s."))
                world.end(job_id, BAD)
            else:
                world.host.holds.discard(job_id)
                world.runs.released(job_id)
            if event == "frees":  # the run itself, as some nodes do
                world.runs.memory_freed(job_id)
            if event == "job":  # one that frees the models, too
                world.store.queued = 1
                await asyncio.sleep(0.02)
                world.store.queued = 0
                world.runs.memory_freed("a-job")
        assert set(world.states) <= {State.WARM.value, State.FAILED.value}, world.states
        assert world.warmups.is_ready()
        assert world.health.unready() == []
        assert Mark(tmp_path).read() == {}
        task.cancel()

    asyncio.run(play())


async def test_a_run_that_was_freed_under_its_feet_is_repeated(tmp_path):
    world = World(tmp_path, ["a.json"])
    task = asyncio.create_task(world.warmups.run())
    first = await world.next_run()
    world.runs.memory_freed(first)
    world.end(first, GOOD)
    second = await world.next_run()
    assert second not in (None, first)
    world.end(second, GOOD)
    assert await world.next_run() is None
    assert world.states == ["warm"]
    task.cancel()


async def test_those_that_end_the_process_are_all_left_out_in_the_end_whatever_runs_before_them(tmp_path, monkeypatch):
    """Each hangs twice where nothing ends it: once a worker is left behind, then the process is restarted."""
    monkeypatch.setattr(module, "PAUSE_S", 0.001)
    deadly = ["b.json", "c.json"]
    for processes in range(1, 12):  # noqa: B007, since it counts them
        world = World(tmp_path, ["a.json", *deadly])
        task = asyncio.create_task(world.warmups.run())
        hung = 0
        while hung < 2 and (job_id := await world.next_run()) is not None:
            if world.states[0] == "running":
                world.end(job_id, GOOD)
                continue
            hung += 1
            if hung == 1:
                world.end(job_id, BAD)
        task.cancel()
        if hung == 0:
            break
    assert world.states == ["warm", "failed", "failed"]
    assert processes == 1 + TRIES * len(deadly)
    assert Mark(tmp_path).read() == {}, "the next start tries them again"


async def test_seeds_are_drawn_anew_so_that_nothing_comes_from_the_cache(tmp_path):
    world = World(tmp_path, ["a.json"])
    (entry,) = list_entries(({"prompt": "a.json"},))
    seeds = {world.warmups._prompts.make(entry).graph["1"]["inputs"]["seed"] for _ in range(5)}
    assert len(seeds) > 1
    assert 7 not in seeds


async def test_ready_is_held_until_the_time_is_over_and_no_job_is_refused(tmp_path, monkeypatch):
    world = World(tmp_path, ["a.json"], ready_after_s=100)
    assert world.health.unready() == ["warming up"]
    world.health.check_ready()
    now_s = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s + 101)
    assert world.health.unready() == []


def test_settings_take_names_files_and_parameters():
    given = '["sdxl", {"template": "x", "parameters": {"steps": 1}}, "warm.json"]'
    runs = load(None, {"GUARDED_WARMUP__RUNS": given}).warmup.runs
    assert [entry.name for entry in list_entries(runs)] == ["sdxl", "x", "warm.json"]
    assert load(None, {"GUARDED_WARMUP__RUNS": "sdxl, warm.json"}).warmup.runs == (
        {"template": "sdxl"},
        {"prompt": "warm.json"},
    )
    for wrong in ({}, {"template": "a", "prompt": "b"}, {"prompt": "b", "parameters": {"x": 1}}, {"tempalte": "a"}, 7):
        with pytest.raises(ValidationError):
            make_settings(warmup={"runs": [wrong]})
