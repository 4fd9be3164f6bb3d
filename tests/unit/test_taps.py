"""What a job's box keeps and tells of it to other boxes, and who may ask."""

import pytest
from unit.fakes import new_job

from comfyui_guarded.guard.callers import taps
from comfyui_guarded.guard.callers.taps import Tap, Taps
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.fleet import Signatures
from comfyui_guarded.guard.job import JobState
from comfyui_guarded.guard.store import Member


@pytest.fixture
def running(store):
    """A job of the client id `tab`."""
    return store.submit(new_job(client_id="tab"), 10**9).result().job


@pytest.fixture
def hub(running):
    made = Taps(lambda job: job.client_id)
    made.begin(running)
    return made


def opened(hub, job, after=0):
    closed = []
    tap = hub.open(lambda: closed.append(True))
    hub.listen(tap, {job.job_id: after})
    return tap, closed


def heard(tap):
    said = list(tap._waiting)
    tap._waiting.clear()
    return [one.content for one in said]


def say(hub, event, content, **data):
    hub.say(event, data, "tab", content)


async def test_who_asks_late_hears_the_start_once_and_of_progress_the_last(hub, running):
    say(hub, "execution_start", "start", prompt_id=running.job_id)
    for step in range(5):
        say(hub, "progress", f"step {step}", prompt_id=running.job_id)
    tap, _closed = opened(hub, running)
    assert heard(tap) == ["start", "step 4"]
    say(hub, "executing", "next", node="2", prompt_id=running.job_id)
    hub.listen(tap, {running.job_id: 0})
    assert heard(tap) == ["next"]
    again, _closed = opened(hub, running, after=6)
    assert heard(again) == ["next"]


async def test_neither_the_end_nor_what_is_anothers_is_passed_on(hub, running):
    tap, _closed = opened(hub, running)
    for event in ("executed", "execution_success", "execution_error", "execution_interrupted"):
        say(hub, event, event, prompt_id=running.job_id)
    say(hub, "executing", "last", node=None, prompt_id=running.job_id)
    say(hub, "executing", "another's", node="1", prompt_id="another")
    hub.say("executing", {"node": "1"}, "another tab", "another's")
    assert heard(tap) == []


async def test_nothing_is_kept_of_a_job_that_has_ended_or_waits_again(hub, running):
    for state in (JobState.QUEUED, JobState.CANCELLED):
        hub.begin(running)
        assert hub.wants("tab", is_picture=False)
        hub.follow(running.evolve(state=state))
        assert not hub.wants("tab", is_picture=False)


async def test_pictures_are_made_for_listeners_alone_and_one_waits_at_a_time(hub, running):
    assert not hub.wants("tab", is_picture=True)
    tap, _closed = opened(hub, running)
    assert hub.wants("tab", is_picture=True)
    for number in range(3):
        hub.say(1, ("JPEG", None, None), "tab", bytes([number]))
    assert heard(tap) == [b"\0"]


async def test_a_box_that_takes_nothing_is_cut_off(hub, running, monkeypatch):
    monkeypatch.setattr(taps, "WAITING_MESSAGES", 3)
    tap, closed = opened(hub, running)
    for _each in range(4):
        say(hub, "executing", "x", node="1")
    assert closed
    assert isinstance(tap, Tap)


async def test_what_is_kept_is_bounded(hub, running, monkeypatch):
    monkeypatch.setattr(taps, "KEPT_CHARS", 100)
    say(hub, "a pack's", "x" * 90)
    say(hub, "a pack's", "y" * 90)
    for _each in range(200):
        say(hub, "a pack's", "")
    tap, _closed = opened(hub, running)
    assert len(heard(tap)) <= taps.KEPT_MESSAGES


class Hands(Clock):
    shown_ms = 1_000_000_000_000

    def now_ms(self):
        return self.shown_ms


def test_a_signature_is_good_for_one_box_one_thing_and_a_minute():
    clock = Hands()
    ours, theirs = (Signatures(b"k" * 32, Member(box, 1000), clock) for box in ("box-a", "box-b"))
    headers = ours.sign("/stream", "box-b")
    assert theirs.read_asker(headers, "/stream") == "box-a"
    assert theirs.read_asker(headers, "/other") is None
    assert ours.read_asker(headers, "/stream") is None
    assert Signatures(b"x" * 32, Member("box-b", 1000), clock).read_asker(headers, "/stream") is None
    name = next(iter(headers))
    assert theirs.read_asker({name: headers[name].replace("box-a", "box-c")}, "/stream") is None
    clock.shown_ms += 61_000
    assert theirs.read_asker(headers, "/stream") is None
    for odd in ("", " ", "a b c", "a 9 \N{SNOWMAN}", "a 99999999999999999999 x"):
        assert theirs.read_asker({name: odd}, "/stream") is None
