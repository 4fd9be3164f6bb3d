"""A search that nobody steers: odd files, each given to the door and to every loader of a real ComfyUI.

What the door lets in loads without an error, and is no more than it was judged to be; what it refuses is damaged, or no
loader of that kind makes anything of it. It runs where `ODD_FILES=300` says how many.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from packs.conftest import PACKS
from policy import odd_files
from policy.faults import find_faults
from policy.script import Script

from comfyui_guarded.tests.hosts.launch import HostKind, real_kinds

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(24 * 3600)]

ODD_FILES = int(os.environ.get("ODD_FILES", "0"))
ALIAS = Path(__file__).parents[2] / "alias.py"
VIDEO_PACK = PACKS / "ComfyUI-VideoHelperSuite"


class Judge(Script):
    """The door and the loaders, in a ComfyUI's own Python."""

    def __init__(self, kind: HostKind, base: Path) -> None:
        packs = [str(VIDEO_PACK)] if VIDEO_PACK.is_dir() else []
        super().__init__("judge_files.py", kind, base, str(ALIAS), *packs)
        self.openers = self.greeting
        self.counts: Counter[str] = Counter()

    def look(self, recipe: Any, find_faults: Callable[[Any, Any], Iterator[str]]) -> None:
        """Have one file judged: nothing may be wrong with that."""
        answer = self.ask(recipe)
        self.counts["files" if "by" in answer else "not made"] += 1
        for told in answer.get("by", {}).values():
            self.counts[told.get("refused", "let in")] += 1
        note(json.dumps(answer, indent=1)[:10_000])
        assert list(find_faults(recipe, answer)) == []


def list_kinds(variable: str) -> list[HostKind | None]:
    """All with the variable, else one: each takes a start."""
    kinds = real_kinds() or [None]
    return [*kinds] if variable in os.environ else kinds[:1]


@pytest.fixture(params=list_kinds("ODD_FILES"), ids=lambda kind: kind.name if kind else "no ComfyUI")
def judge(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Judge]:
    if request.param is None:
        pytest.skip("no ComfyUI is found; COMFYUI_PATH names one")
    if not ODD_FILES:
        pytest.skip("ODD_FILES says how many")
    made = Judge(request.param, tmp_path)
    yield made
    made.close()


def test_what_is_let_in_loads_and_what_is_refused_is_bad(judge: Judge) -> None:
    assert judge.openers["LoadVideo"] == judge.openers["LoadAudio"] == "libav"
    assert judge.openers.get("VHS_LoadVideo", "opencv") == "opencv"
    assert judge.openers.get("VHS_LoadVideoFFmpeg", "ffmpeg") == "ffmpeg"
    assert judge.openers.get("VHS_LoadAudioUpload", "ffmpeg") == "ffmpeg"

    @settings(
        max_examples=ODD_FILES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(odd_files.draw(st))
    def search(recipe: odd_files.Recipe) -> None:
        judge.look(recipe, find_faults)

    try:
        search()
    finally:
        print(f"{ODD_FILES} odd files: {dict(judge.counts)}")  # noqa: T201 (seen with -s, or where it fails)
    if ODD_FILES > 4:  # else chance alone may make none
        assert judge.counts["files"] > ODD_FILES // 2, judge.counts
        assert judge.counts["let in"], judge.counts
