"""Work beside the worker begins once the worker has gone on, or soon after, and none of it is ever left."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.fakes import LONG_S

from comfyui_guarded.guard.life import beside
from comfyui_guarded.guard.life.beside import Beside


class Work:
    """Notes what is worked on; `hold` keeps a thread at it."""

    def __init__(self, most=2):
        self.done = []
        self.changed = threading.Condition()
        self.beside = Beside("worked", self.work, most)

    def work(self, thing):
        if callable(thing):
            thing()
        with self.changed:
            self.done.append(thing)
            self.changed.notify_all()

    def wait_for(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.done) >= count, LONG_S), self.done


def test_it_begins_by_itself_where_the_worker_never_goes_on_whether_threads_sleep_or_look(monkeypatch):
    work = Work()
    for count in range(1, 6):  # the first starts a thread, the next ones find one that looks
        assert work.beside.put(count)
        work.wait_for(count)
    monkeypatch.setattr(beside, "LOOKS_S", 0.0)
    work.beside.put(6)
    work.wait_for(6)
    time.sleep(5 * beside.AHEAD_S)  # they sleep now
    work.beside.put(7)
    work.wait_for(7)
    assert work.done == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("looks", [True, False], ids=["looking", "asleep"])
def test_it_waits_for_the_worker_and_begins_once_that_goes_on(monkeypatch, looks):
    monkeypatch.setattr(beside, "LOOKS_S", LONG_S if looks else 0.0)
    work = Work(most=1)
    work.beside.put("earlier")
    work.wait_for(1)
    time.sleep(5 * beside.AHEAD_S)
    monkeypatch.setattr(beside, "AHEAD_S", LONG_S)
    time.sleep(0.1)  # a look that has begun before is over
    work.beside.put("next")
    time.sleep(0.1)
    assert work.done == ["earlier"]
    work.beside.go_on()
    work.wait_for(2)


def test_a_thread_that_looks_is_not_woken_before_the_worker_goes_on(monkeypatch):
    """To wake it costs the worker as much as a small check."""
    work = Work(most=1)
    woken = []
    monkeypatch.setattr(beside, "LOOKS_S", LONG_S)
    monkeypatch.setattr(beside, "AHEAD_S", LONG_S)
    work.beside.put("earlier")
    work.beside.go_on()
    work.wait_for(1)
    deadline_s = time.monotonic() + LONG_S
    while work.beside._looking != 1 and time.monotonic() < deadline_s:
        time.sleep(0.001)
    native = work.beside._inbox

    class Watched:
        def put(self, thing):
            woken.append(thing)
            native.put(thing)

        def get(self, *args, **kwargs):
            return native.get(*args, **kwargs)

    work.beside._inbox = Watched()
    work.beside.put("next")
    assert woken == []
    work.beside.go_on()
    assert len(woken) == 1
    work.wait_for(2)


def test_one_that_hangs_or_fails_holds_up_no_other():
    work, go = Work(most=2), threading.Event()
    work.beside.put(go.wait)
    work.beside.put(lambda: 1 / 0)
    for count in range(4):
        work.beside.put(count)
    work.beside.go_on()
    work.wait_for(4)
    go.set()
    work.wait_for(5)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.sampled_from(["put", "go on", "pause", "long pause"]), max_size=25),
    st.sampled_from([0.0, 0.01, 1.0]),
)
def test_none_is_left_and_none_comes_twice(most, steps, looks_s):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beside, "AHEAD_S", 0.005)
        patch.setattr(beside, "LOOKS_S", looks_s)
        work, count = Work(most), 0
        for step in steps:
            if step == "put":
                work.beside.put(count)
                count += 1
            elif step == "go on":
                work.beside.go_on()
            else:
                time.sleep(0.001 if step == "pause" else 0.012)
        work.wait_for(count)
        assert sorted(work.done) == list(range(count))
