"""What `deploy/` says is what the manual says, and what the tools for it accept."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy" / "comfyui.service"
MANUAL = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")

#: Where `make` has put it, which is no place of systemd's own; else the machine's.
LENT = Path(sys.prefix) / "tools"
ANALYZE = shutil.which("systemd-analyze", path=LENT / "usr" / "bin") or shutil.which("systemd-analyze")
LIBRARIES = os.pathsep.join(str(each.parent) for each in LENT.glob("usr/lib/*/systemd/libsystemd-shared*"))
needs_systemd = pytest.mark.skipif(
    ANALYZE is None, reason="there is no systemd-analyze; `make` fetches it with apt-get"
)

#: Of ten; the half of it is the network, the GPU and the user's own files, which the server needs.
EXPOSURE = 30


def analyze(*arguments):
    lent = {"LD_LIBRARY_PATH": LIBRARIES} if LIBRARIES else {}
    return subprocess.run([ANALYZE, *arguments], capture_output=True, text=True, env={**os.environ, **lent})


def test_what_the_manual_says_of_the_unit_is_in_it():
    section = MANUAL.split("## 4. A service")[1].split("\n## ")[0]
    said = re.findall(r"^\| `(\w+=[^`]*)` \|", section, re.M)
    assert len(said) > 5
    assert set(said) <= set(UNIT.read_text(encoding="utf-8").splitlines())


def test_the_unit_starts_what_the_manual_has_installed():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string(UNIT.read_text(encoding="utf-8"))
    service = unit["Service"]
    assert service["User"] in MANUAL.split("## 1.")[0]
    assert service["WorkingDirectory"] in MANUAL.split("## 1.")[0]
    assert service["ExecStart"].startswith(f"{service['WorkingDirectory']}/venv/bin/python main.py --listen 127.0.0.1 ")
    assert int(service["TimeoutStopSec"]) > 30, "the grace of watchdog.shutdown_grace_s"


@needs_systemd
def test_systemd_takes_the_unit_as_it_is(tmp_path):
    text = UNIT.read_text(encoding="utf-8")
    here = text.replace("/home/comfy/ComfyUI/venv/bin/python", sys.executable)
    here = here.replace("/home/comfy/ComfyUI", str(tmp_path)).replace("User=comfy", "User=root")
    copy = tmp_path / UNIT.name
    copy.write_text(here, encoding="utf-8")

    def verify():
        return analyze("verify", str(copy))

    done = verify()
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    copy.write_text(here.replace("LimitNOFILE", "LimitNofile"), encoding="utf-8")
    assert "LimitNofile" in verify().stderr, "a wrong unit is taken as well"


@needs_systemd
def test_the_unit_leaves_little_to_a_process_that_has_been_taken_over():
    help_text = analyze("--help").stdout
    if "--offline" not in help_text:
        pytest.skip("this systemd-analyze judges only units that are loaded")
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", str(UNIT))
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
