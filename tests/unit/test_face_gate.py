"""Who waits for whose pictures, and what the operator reads at start of the state that faces are looked for in."""

import asyncio
import logging
import threading

import pytest
from unit.fakes import LONG_S

from comfyui_guarded.guard.cost.values import Media
from comfyui_guarded.guard.faces.check import FaceRules
from comfyui_guarded.guard.faces.gate import FaceGate
from comfyui_guarded.guard.faces.loaded import FilmError, Opened
from comfyui_guarded.guard.settings import FacesSettings


class _Machine:
    """A FaceMachine whose chooser found what the test says."""

    def __init__(self, **state):
        self.checker = self.chooser = self
        self.may_end = threading.Event()
        self._state = {"problem": "", "broken": False, "command": "", **state}

    def check(self, data, _rules, *_more):
        if data == b"slow":
            assert self.may_end.wait(LONG_S)
        return data

    def facts(self):
        return {"detector": "centerface", "reason": "No InsightFace pack is there.", "onnxruntime": self._state}


async def test_the_log_names_the_detector_and_why(caplog):
    caplog.set_level(logging.INFO, "guarded.faces")
    await FaceGate(_Machine(), FacesSettings()).look_around()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "faces: centerface: No InsightFace pack is there.")
    ]


@pytest.mark.parametrize(("broken", "level"), [(True, "ERROR"), (False, "WARNING")])
async def test_an_onnxruntime_that_lost_its_gpu_is_in_the_log_with_the_command_that_mends_it(caplog, broken, level):
    caplog.set_level(logging.INFO, "guarded.faces")
    machine = _Machine(problem="They overwrote each other.", broken=broken, command="pip this && pip that")
    await FaceGate(machine, FacesSettings()).look_around()
    last = caplog.records[-1]
    assert (last.levelname, last.getMessage()) == (
        level,
        "faces: They overwrote each other. To fix it: pip this && pip that",
    )


@pytest.mark.parametrize("at_once", [2, 3])
async def test_one_owners_slow_pictures_hold_up_neither_others_nor_the_operator(at_once):
    machine = _Machine()
    gate = FaceGate(machine, FacesSettings(at_once=at_once))
    slow = [asyncio.ensure_future(gate.check_bytes(b"slow", FaceRules(), "flood")) for _ in range(20)]
    await asyncio.sleep(0)
    try:
        for _ in range(3):
            assert await asyncio.wait_for(gate.check_bytes(b"photo", FaceRules(), "shop"), LONG_S) == b"photo"
        assert (await asyncio.wait_for(gate.facts(), LONG_S))["detector"] == "centerface"
        assert not any(one.done() for one in slow)
    finally:
        machine.may_end.set()
    assert await asyncio.gather(*slow) == [b"slow"] * 20


class _Files:
    """Loaded files, of which an owner's slow ones are opened when the test lets them."""

    def __init__(self):
        self.may_end = threading.Event()
        self.opened = []

    def list_files(self, graph, _outputs):
        return graph["files"]

    def open_all(self, files, *, films=True):
        for one in files:
            if one.startswith("film") and not films:
                raise FilmError
            if one in ("slow", "film"):
                assert self.may_end.wait(LONG_S)
            self.opened.append(one)
        return Opened({one: Media(width=1) for one in files}, ())


async def test_one_prompts_many_slow_files_are_opened_in_turns_with_others():
    files = _Files()
    gate = FaceGate(_Machine(), FacesSettings(at_once=1), files)
    slow = asyncio.ensure_future(gate.open_loaded({"files": ["slow", "b", "c"]}, None, "flood"))
    await asyncio.sleep(0)
    quick = asyncio.ensure_future(gate.open_loaded({"files": ["x"]}, None, "shop"))
    await asyncio.sleep(0)
    files.may_end.set()
    assert set((await slow).media) == {"slow", "b", "c"}
    await quick
    assert files.opened.index("x") < files.opened.index("c")


async def test_nobodys_picture_waits_for_a_film_and_two_films_of_one_owner_leave_room_for_others():
    files = _Files()
    gate = FaceGate(_Machine(), FacesSettings(at_once=1), files)
    slow = [asyncio.ensure_future(gate.open_loaded({"files": ["film"]}, None, "flood")) for _ in range(5)]
    await asyncio.sleep(0.1)
    for owner in ("flood", "shop"):
        assert set((await gate.open_loaded({"files": ["photo"]}, None, owner)).media) == {"photo"}
    assert set((await gate.open_loaded({"files": ["film of a second"]}, None, "shop")).media) == {"film of a second"}
    assert not any(each.done() for each in slow)
    files.may_end.set()
    for each in slow:
        assert set((await each).media) == {"film"}
