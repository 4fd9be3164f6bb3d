"""What may be deleted: in which roots, at which age, and what is kept."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..files.uploads import INCOMING
from ..host import Folders
from ..owners import FOLDER
from ..settings import JanitorSettings
from .folder import Identity

#: ComfyUI's sample input, the file that keeps `output/` in its repository, and everything hidden.
ALWAYS_KEPT = ("example.png", "_output_images_will_be_put_here", ".*")
#: An upload that has not grown for this long was broken off.
BROKEN_UPLOAD_AGE_S = 3600.0
#: This package's folder; a root that holds it would be somebody's whole installation.
_PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Root:
    """A folder to sweep.

    Attributes:
        names: the types that ComfyUI calls it; one, unless two of them are the same folder.
        path: the root with its links resolved.
        given: the path that the host names, perhaps with links.
        max_age_s: None: nothing here is deleted.
        has_past: files from before the first start are left alone.
    """

    names: tuple[str, ...]
    path: Path
    given: Path
    max_age_s: float | None
    has_past: bool = True

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def absolute(self) -> tuple[str, ...]:
        """The paths that prompts may call it by, with slashes."""
        return tuple({self.path.as_posix(), self.given.as_posix()})


class Rules:
    """The settings, applied to the folders as they are now."""

    def __init__(self, settings: JanitorSettings, folders: Folders, own: Path | None) -> None:
        """`own`: the guard's own folder, with the quarantine in it."""
        self.settings = settings
        self.roots: list[Root] = []
        #: Why roots are not swept.
        self.problems: list[str] = []
        self._ages: dict[str, float | None] = {
            f"input/{INCOMING}": min(BROKEN_UPLOAD_AGE_S, settings.input_max_age_s),
            **{folder: None if age == "off" else float(age) for folder, age in settings.folders.items()},
        }
        ages = {
            "output": settings.output_max_age_s,
            "temp": settings.temp_max_age_s,
            "input": settings.input_max_age_s,
        }
        for name, given in folders.roots().items():
            if given is not None:
                self._add(name, given, self._ages.get(name, ages[name]), folders.program)
        self.quarantine = own / "quarantine" if own is not None else None
        if self.quarantine is not None and self.quarantine.is_dir():
            path = Path(os.path.realpath(self.quarantine))
            self.roots.append(Root(("quarantine",), path, self.quarantine, settings.quarantine_max_age_s, False))
        self._kept = {
            identity
            for path in (*folders.keep, *([own] if own is not None else []), *(root.path for root in self.roots))
            if (identity := _identify(path)) is not None
        }
        patterns = [*ALWAYS_KEPT, *settings.keep]
        #: Whether a pattern may keep a file or folder of that name; the hot part of :meth:`keeps`.
        self.keeps_name = _compile(pattern for pattern in patterns if "/" not in pattern)
        self._keeps_by_setting = _compile(pattern for pattern in settings.keep if "/" not in pattern)
        self._keeps_path = _compile(pattern.lstrip("/") for pattern in patterns if "/" in pattern)
        self.any_path = any("/" in pattern for pattern in patterns)

    def age_s(self, root: Root, folder: str, inherited_s: float | None) -> float | None:
        """The age at which files directly in `folder` (below the root, with slashes) are deleted; None: never."""
        for name in root.names:
            key = f"{name}/{folder}"
            if key in self._ages:
                return self._ages[key]
        return inherited_s

    def keeps(self, root: Root, name: str, path: str) -> bool:
        """Whether a pattern keeps the file or folder `path` (below the root), whose name is `name`."""
        # A stranger's upload under a name of ComfyUI's own is not ComfyUI's file.
        if self.keeps_name(name) and (not path.startswith(f"{FOLDER}/") or self._keeps_by_setting(name)):
            return True
        return self.any_path and any(self._keeps_path(f"{kind}/{path}") for kind in root.names)

    def keeps_made(self, root: Root, path: str) -> bool:
        """Whether a setting keeps a file that a job has made, by its own name or that of a folder around it."""
        parts = path.split("/")
        around = ["/".join(parts[: number + 1]) for number in range(len(parts))]
        return any(map(self._keeps_by_setting, parts)) or (
            self.any_path and any(self._keeps_path(f"{kind}/{one}") for kind in root.names for one in around)
        )

    def is_foreign(self, identity: Identity) -> bool:
        """Whether that folder is a model folder, another root, or the guard's own."""
        return identity in self._kept

    def _add(self, name: str, given: Path, max_age_s: float | None, program: Path | None) -> None:
        path = Path(os.path.realpath(given))
        if not path.is_dir():
            return
        holds = next((kept for kept in _list_protected(program) if kept == path or path in kept.parents), None)
        if holds is not None:
            self.problems.append(f"{name} is {path}, which holds {holds}: nothing in it is deleted")
            return
        for number, root in enumerate(self.roots):
            if _identify(root.path) == _identify(path):
                # One folder serves two purposes: keep what either would keep.
                ages = (root.max_age_s, max_age_s)
                longest = None if None in ages else max(age for age in ages if age is not None)
                self.roots[number] = Root((*root.names, name), root.path, root.given, longest)
                return
        self.roots.append(Root((name,), path, Path(os.path.abspath(given)), max_age_s))


def absolute_roots(folders: Folders) -> list[str]:
    """List the three roots' absolute paths, with slashes, as given and with links resolved."""
    given = [path for path in (folders.output, folders.temp, folders.input) if path is not None]
    return [path.as_posix() for item in given for path in (Path(os.path.abspath(item)), Path(os.path.realpath(item)))]


def _list_protected(program: Path | None) -> list[Path]:
    protected = [_PACKAGE]
    if program is not None:
        protected.append(Path(os.path.realpath(program)))
    with suppress(RuntimeError):  # the user has no home
        protected.append(Path(os.path.realpath(Path.home())))
    return protected


def _identify(path: Path) -> Identity | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _compile(patterns: Iterable[str]) -> Callable[[str], object]:
    flags = re.IGNORECASE if os.name == "nt" else 0
    return re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)", flags).match
