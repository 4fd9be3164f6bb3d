"""Helpers of these tests: a file, or a few, through the checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from comfyui_guarded.guard.errors import GuardError
from comfyui_guarded.guard.host import Outcome, ReportedFile
from comfyui_guarded.guard.job import Artifact
from comfyui_guarded.guard.results import checks
from comfyui_guarded.guard.results.budget import Budget
from comfyui_guarded.guard.settings import ResultsSettings

DEFAULTS = ResultsSettings()


def reported(path: Path, node_id: str = "9") -> ReportedFile:
    return ReportedFile(node_id, path.name, "", "output", path)


def outcome(*paths: Path, prompt: Mapping[str, Any] | None = None, cached: frozenset[str] = frozenset()) -> Outcome:
    """What a host reports of a run whose node 9 named these files."""
    items = [{"filename": path.name, "subfolder": "", "type": "output"} for path in paths]
    return Outcome(
        success=True,
        outputs={"9": {"images": items}},
        files=tuple(map(reported, paths)),
        prompt=prompt or {},
        cached=cached,
    )


def check(path: Path, settings: ResultsSettings = DEFAULTS, budget: Budget | None = None, **more: Any) -> Artifact:
    (artifact,) = checks.check(outcome(path, **more), settings, budget)
    return artifact


def refusal(path: Path, settings: ResultsSettings = DEFAULTS, **more: Any) -> GuardError:
    """The error of a file that must not pass."""
    with pytest.raises(GuardError) as caught:
        check(path, settings, **more)
    return caught.value
