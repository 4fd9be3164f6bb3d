"""Take the server out of what the owner of a key sees: its paths, tracebacks, and absolute names of results.

One place for texts of errors, outputs of nodes and messages of ComfyUI's websocket. What lies in ComfyUI's input,
output and temp folders keeps its name below them; of anything else only the last part is shown.
"""

from __future__ import annotations

import functools
import json
import os
import re
import site
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..client import LOCAL
from ..errors import GuardError
from ..host import Folders
from ..job import Result, Verdict
from ..owners import FOLDER

#: Keys of outputs that say where a file lies on the server. VideoHelperSuite's is `fullpath`.
_HIDDEN_KEYS = frozenset({"fullpath", "full_path", "absolute_path", "abs_path"})
#: A path ends at any of these; in the names of our own folders there may be blanks.
_REST = r"(?P<rest>[/\\]+[^\s'\"<>|:*?,;()\[\]{}`]*)?"


class Cleaner:
    """Any thread."""

    def __init__(self, folders: Callable[[], Folders], own: Path | None = None) -> None:
        """`folders`: Host.folders; `own`: the guard's own folder."""
        self._folders = folders
        self._own = own

    def clean(self, value: Any, owner: str) -> Any:
        """Copy JSON as its owner may see it; as it is for `local`."""
        return value if owner == LOCAL.owner else _clean(value, self._pattern())

    def clean_message(self, message: str, owner: str) -> str:
        """The same for JSON as text."""
        if owner == LOCAL.owner:
            return message
        pattern = self._pattern()
        if not (pattern.search(message) or _OTHER.search(message)):
            return message
        return json.dumps(_clean(json.loads(message), pattern))

    def clean_error(self, error: GuardError, owner: str) -> None:
        """Change an error so that its owner may see it."""
        if owner != LOCAL.owner:
            pattern = self._pattern()
            for name in ("message", "details", "extra_info", "node_errors"):
                setattr(error, name, _leave_out_folders(_clean(getattr(error, name), pattern)))

    def clean_ending(self, verdict: Verdict, result: Result | None, owner: str) -> tuple[Verdict, Result | None]:
        """How a job ended, as its owner may see it."""
        if owner == LOCAL.owner:
            return verdict, result
        pattern = self._pattern()
        verdict = replace(
            verdict, message=_clean(verdict.message, pattern), details=_clean(dict(verdict.details), pattern)
        )
        return verdict, result and replace(result, outputs=_clean(dict(result.outputs), pattern))

    def _pattern(self) -> re.Pattern[str]:
        return _compile(self._folders(), self._own)


#: JSON that has to be looked at as a whole, paths of Windows among it.
_OTHER = re.compile(rf'"(?:traceback|{"|".join(_HIDDEN_KEYS)})"|[A-Za-z]:\\\\')


@functools.lru_cache(maxsize=8)
def _compile(folders: Folders, own: Path | None) -> re.Pattern[str]:
    """What finds the paths of this server in a text: the group `shown` where it is one of the three folders'."""
    shown = _spell(root for root in folders.roots().values() if root is not None)
    hidden = _spell(
        [
            *folders.keep,
            *(folder for folder in (folders.program, own) if folder is not None),
            *map(Path, (sys.prefix, sys.base_prefix, sys.executable, tempfile.gettempdir(), os.path.expanduser("~"))),
            *map(Path, (*sysconfig.get_paths().values(), *site.getsitepackages())),
        ]
    )
    # The longest first: the output folder lies in that of ComfyUI.
    roots = sorted({*shown, *hidden}, key=len, reverse=True)
    parts = [
        f"(?P<shown{index}>{re.escape(root)})" if root in shown else re.escape(root) for index, root in enumerate(roots)
    ]
    flags = re.IGNORECASE if os.name == "nt" else 0
    return re.compile(rf"(?<![\w.\-/\\])(?:{'|'.join(parts)}){_REST}(?![\w.\-])", flags)


def _spell(folders: Any) -> set[str]:
    """Folders as texts spell them: as given and with links followed. None that is the root of a disk."""
    spelled = {path for folder in folders for path in (os.path.abspath(folder), os.path.realpath(folder))}
    spelled |= {path.replace("\\", "/") for path in spelled}
    return {path for path in spelled if len(Path(path).parts) > 1}


def _clean(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(_show, value) if "/" in value or "\\" in value else value
    if isinstance(value, dict):
        return {
            _clean(key, pattern): [] if key == "traceback" else _clean(item, pattern)
            for key, item in value.items()
            if key not in _HIDDEN_KEYS
        }
    if isinstance(value, (list, tuple)):
        return [_clean(item, pattern) for item in value]
    return value


#: In a list that is written into a text, a name below the owners' folders: `'guarded-uploads/bot-0f…'`. Without the
#: second quote where the text was cut off, which other lines may follow.
_LISTED = re.compile(
    rf"""(?P<before>\[|, )(?P<quote>['"]){re.escape(FOLDER)}(?:[/\\](?:(?!(?P=quote)).)*)?…?(?:(?P=quote)|$)""",
    re.MULTILINE,
)


def _leave_out_folders(value: Any) -> Any:
    """Take owners' folders out of the choices that ComfyUI lists where it refuses another."""
    if isinstance(value, str):
        if FOLDER not in value:
            return value
        return _LISTED.sub(lambda match: "[" if match["before"] == "[" else "", value).replace("[, ", "[")
    if isinstance(value, dict):
        return {key: _leave_out_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [
            _leave_out_folders(item)
            for item in value
            if not (isinstance(item, str) and re.split(r"[/\\]", item, maxsplit=1)[0] == FOLDER)
        ]
    return value


def _show(match: re.Match[str]) -> str:
    rest = (match["rest"] or "").strip("/\\")
    is_shown = any(name.startswith("shown") and part for name, part in match.groupdict().items())
    return rest if is_shown and rest else re.split(r"[/\\]", rest)[-1] or "…"
