"""A search that nobody steers: odd files, each given to the door and to every loader of a real ComfyUI.

What the door lets in loads without an error, and is no more than it was judged to be; what it refuses is damaged, or no
loader of that kind makes anything of it. It runs where `ODD_FILES=300` says how many.
"""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from packs.conftest import PACKS
from policy import odd_files
from policy.faults import find_faults

from comfyui_guarded.tests.hosts.launch import HostKind, real_kinds

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(24 * 3600)]

ODD_FILES = int(os.environ.get("ODD_FILES", "0"))
ALIAS = Path(__file__).parents[2] / "alias.py"
VIDEO_PACK = PACKS / "ComfyUI-VideoHelperSuite"


class Judge:
    """The door and the loaders, in a ComfyUI's own Python."""

    def __init__(self, kind: HostKind, base: Path) -> None:
        site = os.environ.get("GUARDED_PACKS_SITE") or PACKS.with_name("packs-site")
        packs = [str(VIDEO_PACK)] if VIDEO_PACK.is_dir() else []
        script = Path(__file__).with_name("judge_files.py")
        self._log = open(base / "log", "w")  # noqa: SIM115
        self._process = subprocess.Popen(
            [kind.python, str(script), str(kind.main.parent), str(base), str(ALIAS), *packs],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, "PYTHONPATH": str(site)},
        )  # fmt: skip
        self.openers = self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, Path(self._log.name).read_text()[-3000:]
        return json.loads(line)

    def ask(self, recipe: odd_files.Recipe) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(recipe) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.communicate(timeout=120)  # it ends with its input
        self._log.close()


@pytest.fixture(params=real_kinds() or [None], ids=lambda kind: kind.name if kind else "no ComfyUI")
def judge(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Judge]:
    if not ODD_FILES:
        pytest.skip("ODD_FILES says how many")
    if request.param is None:
        pytest.skip("no ComfyUI is found; COMFYUI_PATH names one")
    made = Judge(request.param, tmp_path)
    yield made
    made.close()


def test_what_is_let_in_loads_and_what_is_refused_is_bad(judge: Judge) -> None:
    assert judge.openers["LoadVideo"] == judge.openers["LoadAudio"] == "libav"
    assert judge.openers.get("VHS_LoadVideo", "opencv") == "opencv"
    assert judge.openers.get("VHS_LoadVideoFFmpeg", "ffmpeg") == "ffmpeg"
    assert judge.openers.get("VHS_LoadAudioUpload", "ffmpeg") == "ffmpeg"
    counts: Counter[str] = Counter()

    @settings(
        max_examples=ODD_FILES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(odd_files.draw(st))
    def search(recipe: odd_files.Recipe) -> None:
        answer = judge.ask(recipe)
        counts["files" if "by" in answer else "not made"] += 1
        for told in answer.get("by", {}).values():
            counts[told.get("refused", "let in")] += 1
        note(json.dumps(answer, indent=1)[:10_000])
        assert list(find_faults(recipe, answer)) == []

    try:
        search()
    finally:
        print(f"{ODD_FILES} odd files: {dict(counts)}")  # noqa: T201 (seen with -s, or where it fails)
    assert counts["files"] > ODD_FILES // 2, counts
    assert counts["let in"], counts
