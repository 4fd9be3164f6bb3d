"""The tour that the README begins with: every outcome is the expected one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOUR = Path(__file__).parents[2] / "demo" / "tour.py"

pytestmark = [pytest.mark.serial, pytest.mark.timeout(600)]


def test_every_outcome_of_the_tour_is_the_expected_one():
    # Its photos are where `make` has put them for this interpreter.
    environment = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    done = subprocess.run(
        [sys.executable, TOUR], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    told = done.stdout.decode(errors="replace")
    assert done.returncode == 0, told
    assert "WRONG" not in told
    assert "outcomes as expected" in told
