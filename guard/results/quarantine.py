"""Move refused files aside for the operator, within limits of bytes and of files."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from ..host import ReportedFile
from ..job import RESULT_ROOTS
from ..settings import ResultsSettings

#: So many files of a job are kept for an operator to look at, and so many in all: a job may make a hundred thousand
#: tiny ones. Each takes a block of the disk, and a moment of every look.
_MOST_OF_JOB, _MOST = 200, 10_000

log = logging.getLogger("guarded.artifacts")


def set_aside(files: Iterable[ReportedFile], folder: Path, settings: ResultsSettings | None = None) -> None:
    """Move a refused job's files into `folder`, which no route serves, for the operator to look at.

    With `settings`, also bound what all quarantines (the folder's parent) hold; see :func:`trim`.
    """
    limit = settings.quarantine_max_bytes if settings is not None else None
    numbers = itertools.count(there := len(_list(folder)))
    left = _MOST_OF_JOB - there
    for file in files:
        if file.type not in RESULT_ROOTS or file.path is None:
            continue
        try:
            status = os.lstat(file.path)
            if not stat.S_ISREG(status.st_mode):
                continue
            if limit is not None and (status.st_size > limit or left <= 0):
                os.unlink(file.path)
                continue
            left -= 1
            folder.mkdir(parents=True, exist_ok=True)
            aside = folder / f"{next(numbers)}-{file.path.name}"
            shutil.move(file.path, aside)
            os.utime(aside)  # count its age from now
        except FileNotFoundError:
            continue  # reported twice, or it never existed
        except OSError as error:
            log.warning("could not set %s aside: %s", file.filename, error)
    if settings is not None:
        trim(folder.parent, settings)


def trim(root: Path, settings: ResultsSettings) -> int:
    """Delete the oldest until the quarantine holds no more than `results.quarantine_max_bytes`, and not too many files.

    Returns how many files it deleted. The janitor deletes what is too old.
    """
    files: list[tuple[float, int, Path]] = []
    removed = 0
    for folder in _list(root):
        for file in _list(folder):
            try:
                status = file.lstat()
            except OSError:
                continue
            files.append((status.st_mtime, status.st_size, file))
    files.sort()
    total = sum(size for _, size, _ in files)
    for _, size, file in files:
        if total <= settings.quarantine_max_bytes and len(files) - removed <= _MOST:
            break
        try:
            file.unlink()
            total -= size
            removed += 1
        except OSError as error:
            log.warning("could not delete %s from quarantine: %s", file.name, error)
    for folder in _list(root):
        try:
            folder.rmdir()
        except OSError:
            continue  # not empty, or not a folder
    return removed


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
