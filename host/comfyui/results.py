"""Tell what a run has made from what its nodes merely name.

A node's `ui` is free: a stock Preview3D reports whatever its input says. So a name counts within the owner's folder
alone, and only if the file is new, or was changed, since the run began.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Mapping
from typing import Any

from ...guard.host import Outcome, ReportedFile
from ...guard.job import RESULT_ROOTS
from ...guard.owners import FOLDER
from .folders import find_below, find_real_root, find_root, resolve
from .run import Run

log = logging.getLogger("guarded.host")

#: What stands for a number in a file's name, or for `%` itself, as FFmpeg has it.
_MARK = re.compile(r"%%|%(\d{0,2})d")
_MOST_DIGITS = 10


def begin(run: Run) -> None:
    """Note the disk's own time at which the run begins, of each root. The worker's thread."""
    for kind in RESULT_ROOTS:
        folder = os.path.join(find_root(kind) or "", *run.folder.split("/"))
        try:
            if run.folder:
                os.makedirs(folder, exist_ok=True)
            # A change of the folder's own times tells the time by the clock that its files get theirs from.
            os.utime(folder)
            run.began_ns[kind] = changed_ns(os.stat(folder))
        except OSError:
            log.debug("the %s folder does not tell the time", kind, exc_info=True)


def changed_ns(status: os.stat_result) -> int:
    """When a file was changed last. No caller can set that, except on Windows, which only has what callers can set."""
    return status.st_mtime_ns if os.name == "nt" else status.st_ctime_ns


def is_made(run: Run, file: ReportedFile) -> bool:
    """Whether the run has made the file, or changed it. True for one that is not there, which the checks will say."""
    if file.path is None or file.type not in RESULT_ROOTS:
        return True
    try:
        status = os.stat(file.path)
    except OSError:
        return True
    # The disk's clock ticks every few milliseconds. Only in the owner's own folder is what falls into the tick in which
    # the run begins certainly this owner's.
    is_own = bool(find_below(find_real_folder(run, file.type), str(file.path)))
    return changed_ns(status) + is_own > run.began_ns.get(file.type, 0)


def find_real_folder(run: Run, kind: str) -> str:
    """The real path of the run's folder below a root: the owner's, or for the operator the root itself."""
    root = find_real_root(kind) or ""
    return os.path.realpath(os.path.join(root, *run.folder.split("/"))) if run.folder else root


def warn(run: Run, outcome: Outcome) -> None:
    """Name what nodes reported and the run did not make."""
    for node_id, filename in outcome.not_made:
        log.warning(
            "job %s: node %s named %s, which the job did not make: it is no result",
            run.job_id,
            node_id[:100],
            filename[:200],
            extra={"job_id": run.job_id},
        )


def locate(run: Run, outputs: Any) -> Any:
    """Copy outputs with every file under its name below ComfyUI's root, within the owner's folder.

    What a node has put into the root all the same is moved there. A name with a number to fill in (`x_%03d.png`), as
    VideoHelperSuite reports a film that it saved as pictures, becomes the names of the files. Any thread of the run.
    """
    if not isinstance(outputs, Mapping):
        return outputs
    return {
        node_id: {key: _locate_all(run, items) for key, items in output.items()}
        if isinstance(output, Mapping)
        else output
        for node_id, output in outputs.items()
    }


def _locate_all(run: Run, items: Any) -> Any:
    if not isinstance(items, (list, tuple)):
        return items
    located: list[Any] = []
    for item in items:
        if isinstance(item, Mapping) and isinstance(item.get("filename"), str):
            located += _number(_locate(run, item))
        else:
            located.append(item)
    return located


def _number(item: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """One item for each file of a sequence."""
    name = item["filename"]
    if "%" not in name:
        return [item]
    path = resolve(str(item.get("type") or "output"), str(item.get("subfolder") or ""), name)
    if path is None or path.exists():
        return [item]
    try:
        names = sorted(each for each in os.listdir(path.parent) if _is_of(name, each))
    except OSError:
        return [item]
    return [{**item, "filename": each} for each in names] or [item]


def _is_of(sequence: str, name: str) -> bool:
    """Whether a file's name is the sequence's with a number filled in, the same wherever it asks for one."""
    first = next((mark for mark in _MARK.finditer(sequence) if mark[0] != "%%"), None)
    if first is None:
        return False
    digits = name[len(_fill(sequence[: first.start()], 0)) :][:_MOST_DIGITS]
    return any(
        digits[:count].isdecimal() and _fill(sequence, int(digits[:count])) == name
        for count in range(1, len(digits) + 1)
    )


def _fill(sequence: str, number: int) -> str:
    """As FFmpeg fills it in."""
    return _MARK.sub(lambda mark: "%" if mark[0] == "%%" else f"{number:0{int(mark[1] or 0)}}", sequence)


def _locate(run: Run, item: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = str(item.get("type") or "output")
    if not run.folder or kind not in RESULT_ROOTS:
        return item
    subfolder = (
        str(item.get("subfolder") or "").replace("\\", "/") if os.name == "nt" else str(item.get("subfolder") or "")
    )
    if subfolder == run.folder or subfolder.startswith(f"{run.folder}/"):
        subfolder = subfolder[len(run.folder) + 1 :]
    adopt(run, kind, subfolder, item["filename"])
    return {**item, "subfolder": f"{run.folder}/{subfolder}" if subfolder else run.folder}


def adopt(run: Run, kind: str, subfolder: str, filename: str) -> None:
    """Move a new file of this run from the root into the owner's folder, unless there is one of that name."""
    root = os.path.realpath(find_root(kind) or "")
    own = os.path.join(root, *run.folder.split("/"))
    try:
        source = os.path.normpath(os.path.join(root, subfolder, filename))
        target = os.path.normpath(os.path.join(own, subfolder, filename))
        if os.path.lexists(target) or not find_below(own, target) or not find_below(root, source):
            return
        if os.path.relpath(source, root).split(os.sep)[0] == FOLDER or os.path.realpath(source) != source:
            return
        status = os.lstat(source)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and _is_new(run, kind, status):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.rename(source, target)
    except (OSError, ValueError):
        return


def _is_new(run: Run, kind: str, status: os.stat_result) -> bool:
    """Whether a file in the root is this run's: others save there too, up to the moment at which the run begins.

    The disk's clock ticks every few milliseconds, so what falls into the first tick is nobody's.
    """
    began_ns = run.began_ns.get(kind)
    return began_ns is not None and changed_ns(status) > began_ns
