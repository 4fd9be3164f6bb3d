"""A search that nobody steers: files of many pictures, each given to the door and to every loader of a real ComfyUI.

What a loader makes of one is no more than it was let in for; what has more pictures than are decoded at the door is
counted all the same, or refused. It runs where `MANY_FILES=300` says how many.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from policy import many_files
from policy.test_odd_files import Judge, list_kinds

from comfyui_guarded.tests.hosts.launch import HostKind

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(24 * 3600)]

#: Beside those that are named below.
MANY_FILES = int(os.environ.get("MANY_FILES", "0"))
#: Seconds of the processor for a file of some kilobytes.
MOST_SECONDS = 20
_PLAIN = {"kind": "many", "tail": "", "says": None}


def find_faults(recipe: many_files.Recipe, answer: Any) -> Iterator[str]:
    if "died" in answer:
        if answer["died"] not in ("", "making it"):
            yield f"{answer['died']}: it took the process with it, or never ended ({answer['status']})"
        return
    for class_type, told in answer.get("by", {}).items():
        for fault in _find(recipe, answer["held"], told, is_picture=recipe["how"] in ("row", "moving")):
            yield f"{class_type}: {fault}"


def _find(recipe: many_files.Recipe, held: Any, told: Any, *, is_picture: bool) -> Iterator[str]:
    if "raised" in told:
        yield f"the door raised {told['raised']}"
    if told["judged_s"] > MOST_SECONDS:
        yield f"the door took {told['judged_s']} s"
    if "refused" in told:
        if not told["refused"].startswith("bad_") or len(told["why"]) < 20:
            yield f"refused as {told['refused']}: {told['why']}"
        small = recipe["bound"] is None or held["pixels"] * 2 < recipe["bound"]
        whole = told.get("loaded", {}).get("frames", 0) >= held["frames"]
        if "not looked at" in told["why"] and small:
            yield f"refused as too much, and it is little: {told['why']}"
        if whole and small and not is_picture and len(recipe["runs"]) == 1 and not recipe["tail"]:
            yield f"refused, and it is whole and loads: {told['why']}"
    elif told.get("media") is not None:
        if "failed" in told:
            yield f"let in, and it failed: {told['failed']}"
            return
        width, height, frames = told["media"][:3]
        if told["loaded"]["pixels"] > width * height * max(frames, 1):
            yield f"let in for {frames} pictures of {width} × {height}, and it has {told['loaded']}"


@pytest.mark.parametrize("kind", list_kinds("MANY_FILES"), ids=lambda kind: kind.name if kind else "no ComfyUI")
def test_a_file_of_many_pictures_is_no_more_than_it_was_let_in_for(kind: HostKind | None, tmp_path: Path) -> None:
    if kind is None:
        pytest.skip("no ComfyUI is found; COMFYUI_PATH names one")
    if not MANY_FILES:
        pytest.skip("MANY_FILES says how many")
    judge = Judge(kind, tmp_path)

    @settings(
        max_examples=MANY_FILES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(many_files.draw(st))
    @example(_PLAIN | {"how": "moving", "form": "GIF", "runs": [(64, 64, 40)], "bound": 50_000})
    @example(_PLAIN | {"how": "moving", "form": "PNG", "runs": [(64, 64, 40)], "bound": 50_000})
    @example(_PLAIN | {"how": "row", "form": "PNG", "runs": [(64, 64, 40)], "bound": 50_000})
    @example(_PLAIN | {"how": "row", "form": "PNG", "runs": [(64, 64, 1)], "bound": None, "tail": "half"})
    @example(_PLAIN | {"how": "pieces", "form": 0, "runs": [(64, 32, 12), (130, 96, 12)], "bound": None})
    @example(_PLAIN | {"how": "pieces", "form": 1, "runs": [(64, 32, 12), (130, 96, 12)], "bound": 5_000})
    def search(recipe: many_files.Recipe) -> None:
        judge.look(recipe, find_faults)

    try:
        search()
    finally:
        judge.close()
        print(f"{MANY_FILES} files of many pictures: {dict(judge.counts)}")  # noqa: T201 (seen with -s, or where it fails)
    assert judge.counts["files"] > MANY_FILES // 2, judge.counts
    assert judge.counts["let in"], judge.counts
