"""What the operator reads at start of the state that faces are looked for in."""

import logging

import pytest

from comfyui_guarded.guard.faces.gate import FaceGate
from comfyui_guarded.guard.settings import FacesSettings


class _Machine:
    """A FaceMachine whose chooser found what the test says."""

    def __init__(self, **state):
        self.checker = self.chooser = self
        self._state = {"problem": "", "broken": False, "command": "", **state}

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
