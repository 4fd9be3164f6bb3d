"""What the door lets in as a picture, the LoadImage of each ComfyUI opens; and of whole ones it keeps none out."""

import json
import subprocess
from pathlib import Path

import pytest

from comfyui_guarded.tests.hosts.launch import HostKind, real_kinds

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

ALIAS = Path(__file__).parents[2] / "alias.py"


@pytest.mark.parametrize("kind", real_kinds() or [None], ids=lambda kind: kind.name if kind else "no ComfyUI")
def test_the_door_judges_each_format_whole_and_cut_as_loadimage_does(kind: HostKind | None, tmp_path: Path) -> None:
    if kind is None:
        pytest.skip("no ComfyUI is found; COMFYUI_PATH names one")
    script = Path(__file__).with_name("judge_pictures.py")
    done = subprocess.run(
        [kind.python, str(script), str(kind.main.parent), str(tmp_path), str(ALIAS)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["judged"] > 300
    assert told["openers"][0] in ("libav", "pillow")
    assert told["openers"][1:] == ["libav", "libav"], "of LoadVideo and LoadAudio"
    assert told["admitted"] == [], "let in, and it fails as a job"
    assert told["kept_out"] == [], "whole, and the loader opens it"
