"""Folders full of files for the janitor, and a janitor over them."""

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.depot import Depot
from comfyui_guarded.guard.host import Folders
from comfyui_guarded.guard.janitor import Janitor
from comfyui_guarded.guard.quotas import FilesHeld
from comfyui_guarded.guard.settings import Settings

DAY_S = 86400.0


def put(path: Path, age_s: float = 30 * DAY_S, size: int = 10) -> Path:
    """A file last modified that long ago, and its folders with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    age(path, age_s)
    return path


def age(path: Path, age_s: float) -> None:
    at_s = time.time() - age_s
    os.utime(path, (at_s, at_s), follow_symlinks=False)


def age_folders(root: Path, age_s: float = 30 * DAY_S) -> None:
    """As if nothing had come or gone in them since."""
    for folder, _folders, _files in os.walk(root, topdown=False):
        age(Path(folder), age_s)


class Box:
    """The three roots below one folder, and the guard's own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.output, self.temp, self.input, self.own = (base / name for name in ("output", "temp", "input", "own"))
        for folder in (self.output, self.temp, self.input, self.own):
            folder.mkdir(parents=True)
        self.keep: list[Path] = []

    @property
    def folders(self) -> Folders:
        return Folders(self.output, self.temp, self.input, tuple(self.keep))

    def janitor(
        self,
        records: Any = None,
        past: bool = False,
        handles: bool | None = None,
        blind_after_s: float = math.inf,
        held: FilesHeld | None = None,
        held_in_depot: FilesHeld | None = None,
        quotas: Mapping[str, int] | None = None,
        depot: Depot | None = None,
        is_keeper: bool = True,
        **settings: Any,
    ) -> Janitor:
        """`past` False: as if the first start had come before everything that is there. `quotas`: by owner.

        It sweeps whoever made it.
        """
        settings.setdefault("sweep_native", True)
        options: dict[str, Any] = {} if handles is None else {"handles": handles}
        made = Janitor(
            Settings.model_validate({"janitor": settings}).janitor,
            records,
            lambda: self.folders,
            self.own,
            Clock(),
            blind_after_s=blind_after_s,
            held=held,
            held_in_depot=held_in_depot,
            find_quotas=lambda: quotas or {},
            depot=depot,
            is_keeper=lambda: is_keeper,
            **options,
        )
        if not past:
            made.marker.first_start_s = 0.0
        return made

    def left(self) -> set[str]:
        """Every file and link below the roots, as `output/a/b.png`."""
        found = set()
        for root in (self.output, self.temp, self.input):
            for folder, folders, files in os.walk(root):
                for name in [*files, *(name for name in folders if os.path.islink(os.path.join(folder, name)))]:
                    found.add(os.path.relpath(os.path.join(folder, name), self.base).replace(os.sep, "/"))
        return found


@contextmanager
def small_disk(base: Path, total: int) -> Iterator[dict[str, int]]:
    """A disk of `total` bytes that holds what lies in the roots below `base`, and `"more"` bytes of somebody else's."""
    disk = {"total": total, "more": 0}

    def usage(_path: object) -> Any:
        paths = [path for root in ("output", "temp", "input") for path in (base / root).rglob("*")]
        files = sum(path.lstat().st_size for path in paths if path.is_file() and not path.is_symlink())
        used = files + disk["more"]
        return shutil._ntuple_diskusage(total, used, max(total - used, 0))

    with patch("shutil.disk_usage", usage):
        yield disk
