"""The clock, and the estimate of when a waiting job begins."""

import pytest

from comfyui_guarded.guard import clock as clock_module
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.graph import shape


class Wall:
    """The machine's two clocks, moved by the test."""

    def __init__(self, monkeypatch):
        self.wall_s, self.monotonic_s = 1_700_000_000.0, 50.0
        monkeypatch.setattr(clock_module.time, "time", lambda: self.wall_s)
        monkeypatch.setattr(clock_module.time, "monotonic", lambda: self.monotonic_s)


@pytest.mark.parametrize("jump_s", [3600, -3600, -1_700_000_000, 10**9])
def test_a_wall_clock_that_jumps_moves_no_deadline(monkeypatch, jump_s):
    wall = Wall(monkeypatch)
    clock = Clock()
    assert clock.now_ms() == 1_700_000_000_000
    wall.wall_s += jump_s
    assert clock.now_ms() == 1_700_000_000_000
    wall.monotonic_s += 1.5
    assert clock.now_ms() == 1_700_000_001_500
    assert clock.monotonic_s() == 51.5


def test_a_new_process_reads_the_wall_again(monkeypatch):
    wall = Wall(monkeypatch)
    Clock()
    wall.wall_s += 3600
    assert Clock().now_ms() == 1_700_003_600_000


def test_time_never_runs_backwards():
    clock = Clock()
    told = [clock.now_ms() for _ in range(1000)]
    assert told == sorted(told)
    assert all(type(each) is int for each in told)


def test_the_shape_of_a_prompt_is_its_classes_whatever_their_ids_values_and_order():
    one = {"1": {"class_type": "A", "inputs": {"x": 1}}, "2": {"class_type": "B", "inputs": {}}}
    two = {"9": {"class_type": "B", "inputs": {"x": 2}}, "7": {"class_type": "A", "inputs": {}}}
    assert shape(one) == shape(two)
    assert len({shape(one), shape({"1": one["1"]}), shape({**one, "3": one["1"]})}) == 3
