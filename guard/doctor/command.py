"""`doctor` on the command line: beside a running server and without one. ComfyUI itself is not imported."""

from __future__ import annotations

import argparse
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from ..access.keys import Key, KeysError, read
from ..cli import guard_folder, user_folder
from ..clock import Clock
from ..faces.chooser import Chooser
from ..host import Folders, Host
from ..janitor import Janitor
from ..settings import Settings, SettingsError, load
from ..templates.catalogue import Templates
from .checks import LEVELS, Line, lines
from .facts import Facts, recall

_SIGNS = {"ok": "  ok     ", "warning": "  WARNING", "error": "  ERROR  "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--user", type=Path, metavar="DIR",
        help="ComfyUI's user folder; by default that of the ComfyUI which this package lies in",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print what GET /guarded/doctor answers")


def run(
    arguments: argparse.Namespace, environment: Mapping[str, str], package: Path, say: Callable[[str], None]
) -> int:
    """Returns the exit status: 0 all is well, 1 a warning, 2 an error."""
    user = arguments.user or user_folder(package)
    if user is None or not user.is_dir():
        say(f"{user or 'the user folder'} is not there: start ComfyUI once, or give its user folder with --user DIR")
        return 2
    own = guard_folder(user)
    known = recall(own)
    asked = _asked(own, known[0]) if known is not None else None
    found = asked or lines(gather(own, environment, package, runs=asked is not None))
    if arguments.json:
        say(json.dumps({"lines": [line.body() for line in found]}, ensure_ascii=False, indent=1))
    else:
        for line in found:
            say(f"{_SIGNS[line.level]} {line.check}: {line.message}")
            if line.mend:
                say(f"            -> {line.mend}")
    return worst(found)


def worst(found: Iterable[Line]) -> int:
    return max((LEVELS.index(line.level) for line in found), default=0)


def gather(own: Path, environment: Mapping[str, str], package: Path, *, runs: bool = False) -> Facts:
    """The facts as they can be known from outside of the server."""
    try:
        settings = load(own / "guarded.toml", environment)
    except SettingsError:
        settings = Settings()  # the checks say so
    base = own.parent.parent
    host, folders, models = recall(own) or (
        {},
        Folders(base / "output", base / "temp", base / "input"),
        [base / "models"],
    )
    templates = (package / "workflows" / "api", own / "workflows")
    return Facts(
        own=own,
        environment=environment,
        in_force=None,
        host=host,
        folders=folders,
        running=runs,
        keys=_keys(own),
        faces=Chooser(lambda: models, settings.faces.detector, settings.faces.device).facts(),
        templates=Templates(cast(Host, _Offline(models)), settings.policy, templates).describe("en"),
        existing=_existing(own, settings, folders),
    )


class _Offline:
    """What of a host can be known without one: files below the model folders."""

    def __init__(self, models: list[Path]) -> None:
        self._models = models

    def model_name(self, folder: str, file: str) -> str | None:
        for models in self._models:
            for path in (models / folder).rglob(file):
                return path.relative_to(models / folder).as_posix()
        return None

    def missing_classes(self, _prompt: Mapping[str, Any]) -> list[str]:
        return []

    def video_memory(self) -> None:
        return None


def _asked(own: Path, host: Mapping[str, Any]) -> list[Line] | None:
    """What a server that runs on `own` says itself; empty where it wants a key, None where none answers."""
    addresses = [address for address in host.get("listen") or () if address not in ("0.0.0.0", "::")]
    address = next((one for one in addresses if ":" not in one), "127.0.0.1")
    # A proxy from the environment knows nothing of this machine.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{address}:{host.get('port')}/guarded/doctor", timeout=60) as answer:
            found = [Line(**line) for line in json.load(answer)["lines"]]
    except urllib.error.HTTPError as error:
        return [] if error.code in (401, 403) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    # Another server may have the port by now.
    return found if any(line.check == "folders" and str(own) in line.message for line in found) else None


def _keys(own: Path) -> list[Key] | None:
    try:
        return list(read(own))
    except KeysError:
        return None


def _existing(own: Path, settings: Settings, folders: Folders) -> tuple[int, int]:
    """By a rehearsal of a sweep; nothing is deleted or written."""
    janitor = Janitor(settings.janitor, None, lambda: folders, own, Clock(), create_marker=False)
    janitor.count(time.time())
    return janitor.existing() or (0, 0)
