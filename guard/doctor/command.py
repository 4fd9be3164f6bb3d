"""`doctor` on the command line, beside a running server or without one. It does not import ComfyUI."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast

from ..cli import add_user_argument, find_guard_folder
from ..clock import Clock
from ..faces.chooser import Chooser
from ..host import Folders, Host
from ..janitor import Janitor
from ..settings import Settings, SettingsError, load
from ..templates.catalogue import Templates
from .checks import LEVELS, examine
from .facts import Facts, Line, make_url, read_keys, recall, recall_off

_SIGNS = {"ok": "  ok     ", "warning": "  WARNING", "error": "  ERROR  "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_user_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the JSON that GET /guarded/doctor answers")


def run(
    arguments: argparse.Namespace, environment: Mapping[str, str], package: Path, say: Callable[[str], None]
) -> int:
    """Examine and report. Returns the exit status: 0 all is well, 1 a warning, 2 an error."""
    own = find_guard_folder(arguments, package, say)
    if own is None:
        return 2
    last_start = recall(own)
    answer = _ask_server(own, last_start[0]) if last_start is not None else None
    lines = answer or examine(gather(own, environment, package, runs=answer is not None))
    if arguments.json:
        say(json.dumps({"lines": [line.body() for line in lines]}, ensure_ascii=False, indent=1))
    else:
        for line in lines:
            say(f"{_SIGNS[line.level]} {line.check}: {line.message}")
            if line.mend:
                say(f"            -> {line.mend}")
    return worst(lines)


def worst(lines: Iterable[Line]) -> int:
    """The exit status for these lines."""
    return max((LEVELS.index(line.level) for line in lines), default=0)


def gather(own: Path, environment: Mapping[str, str], package: Path, *, runs: bool = False) -> Facts:
    """Gather the facts that can be known from outside the server."""
    try:
        settings = load(own / "guarded.toml", environment)
    except SettingsError:
        settings = Settings()  # the checks report it
    base = own.parent.parent
    host, folders, models = recall(own) or (
        {},
        Folders(base / "output", base / "temp", base / "input"),
        [base / "models"],
    )
    folders_of_templates = (package / "workflows" / "api", own / "workflows")
    templates = Templates(cast(Host, _Offline(models, host)), settings.policy, folders_of_templates)
    return Facts(
        own=own,
        environment=environment,
        in_force=None,
        host=host,
        folders=folders,
        running=runs,
        keys=read_keys(own),
        faces=Chooser(lambda: models, settings.faces.detector, settings.faces.device).facts(),
        templates=templates.describe("en"),
        template_faults=templates.list_faults(),
        existing=_count_existing(own, settings, folders),
        off=recall_off(own),
    )


class _Offline:
    """Answers for a host what can be known without one: the files below the model folders, and its last version."""

    def __init__(self, models: list[Path], host: Mapping[str, Any]) -> None:
        self._models = models
        self._host = host

    def find_model(self, folder: str, file: str) -> tuple[str, Path] | None:
        for models in self._models:
            with contextlib.suppress(OSError):  # a folder that this user may not read
                for path in (models / folder).rglob(file):
                    return path.relative_to(models / folder).as_posix(), path
        return None

    def missing_classes(self, _prompt: Mapping[str, Any]) -> list[str]:
        return []

    def video_memory(self) -> None:
        return None

    def describe(self) -> dict[str, Any]:
        return {"version": "unknown", **self._host}


def find_address(own: Path) -> str:
    """Where this machine reaches the server, as at its last start."""
    last_start = recall(own)
    return make_url(last_start[0] if last_start is not None else {})


def _ask_server(own: Path, host: Mapping[str, Any]) -> list[Line] | None:
    """Ask the server that runs on `own`; empty where it does not tell us, None where none answers."""
    # A proxy from the environment cannot reach this machine.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{make_url(host)}/guarded/doctor", timeout=60) as answer:
            lines = [Line(**line) for line in json.load(answer)["lines"]]
    except urllib.error.HTTPError as error:
        if error.code == 503 and recall_off(own) is not None:  # the door's answer; the note says more
            return []
        return [] if error.code in (401, 403) else None
    except (OSError, HTTPException, ValueError, TypeError, KeyError, RecursionError):
        return None
    # By now another server may have the port.
    return lines if any(line.check == "folders" and str(own) in line.message for line in lines) else None


def _count_existing(own: Path, settings: Settings, folders: Folders) -> tuple[int, int]:
    """Count by rehearsing a sweep; delete and write nothing."""
    janitor = Janitor(settings.janitor, None, lambda: folders, own, Clock(), create_marker=False)
    janitor.count(time.time())
    return janitor.existing() or (0, 0)
