"""`python <folder>`, as an operator types it."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]


def test_a_python_that_lacks_our_packages_is_told_to_be_the_wrong_one():
    # -S: without site-packages.
    ran = subprocess.run(
        [sys.executable, "-S", str(REPO), "keys", "list"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 2
    assert "Run the command with ComfyUI's own Python" in ran.stderr
    assert "Traceback" not in ran.stderr
