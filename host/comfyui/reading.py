"""Look at what a keyed owner's job opens: when its run begins, and when a node asks ComfyUI for a file's path.

The prompt was looked at when it was let in. But the run puts names together that no prompt says, and another job of the
same owner, or a program, may have changed a file since. PyAV and safetensors open in C, where nobody hears of it: so
ComfyUI's functions that turn a name into a path are the last place at which to look.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...guard.errors import GuardError, PolicyViolationError
from ...guard.files.content import check_content, check_folder
from ...guard.files.marks import find_mark
from ...guard.files.names import is_annotated, mentions_uploads, split_annotation, strip_folder
from ...guard.job import ROOTS
from ...guard.owners import FOLDER
from .folders import find_below, find_root
from .run import Run


def check_named(run: Run, is_stopped: Callable[[], bool] = lambda: False) -> None:
    """Look at every file of its owner that the prompt names once more; keeps the refusal in the run.

    Packs change prompts after they were looked at, and one that keeps them may put another owner's in the place of this
    one: ComfyUI would even have its files in the cache, and open none. The worker's thread, before the run; ends early
    once `is_stopped`.
    """
    if not run.folder:
        return
    try:
        for text in _list_texts(run):
            if is_stopped():
                return
            if mentions_uploads(text):
                kind, name = split_annotation(text)
                if not name.startswith(f"{run.folder}/"):
                    raise PolicyViolationError("The prompt names a file that is not its owner's.")
                _check(run, os.path.join(find_root(kind) or "", name), is_asked=False)
    except GuardError as error:
        run.refusal = error


def check_opened(run: Run, name: Any, path: str) -> None:
    """Look at a file whose path a node gets for a name. Any thread of the run.

    Raises:
        PermissionError: the owner may not read it.
        GuardError: it makes its reader open others, or would not be let in now.
    """
    if not may_read(run, path) and not _was_let_in(run, name):
        run.trespass = run.trespass or f"read {os.path.basename(path)[:100]}"
        raise PermissionError(f"The input file {str(name)[:200]} cannot be used.")
    try:
        _check(run, path)
    except GuardError as error:
        run.refusal = run.refusal or error
        raise


def may_read(run: Run, path: str) -> bool:
    """Whether a file is one that the run's owner may read: its own, or a shared input. Asks the disk."""
    real = os.path.realpath(path)
    for kind in ROOTS:
        below = find_below(os.path.realpath(find_root(kind) or ""), real)
        if below is not None:
            return _is_own(run, below) or (kind == "input" and below.split("/")[0] != FOLDER)
    return False


def _was_let_in(run: Run, name: Any) -> bool:
    """Whether the prompt itself names a result of its owner that lies in the root, as those of earlier versions do."""
    return is_annotated(name) and run.says(name)


def _is_own(run: Run, below: str) -> bool:
    return below == run.folder or below.startswith(f"{run.folder}/")


def _check(run: Run, path: str, *, is_asked: bool = True) -> None:
    """Check the content of one of the owner's own files, or of all in a folder, unless that was done in this run.

    `is_asked`: a node is about to read it.
    """
    real = os.path.realpath(path)
    found = (find_below(os.path.realpath(find_root(kind) or ""), real) for kind in ROOTS)
    below = next((below for below in found if below is not None and _is_own(run, below)), None)
    if below is None:
        return
    if below != run.folder:
        run.gives(real)  # first: what is looked at from here on stays
    name = strip_folder(path, run.folder)
    if os.path.isdir(real):
        check_folder(Path(real), os.path.basename(name))
        run.reads(real, is_asked)
        return
    try:
        mark = find_mark(os.stat(real))
    except OSError:
        return  # the node says best that it is not there
    if run.checked.get(real) == mark:
        return
    check_content(Path(real), os.path.basename(name))
    if run.reads(real, is_asked) and mark.is_settled():
        run.checked[real] = mark


def _list_texts(run: Run) -> Iterator[str]:
    waiting: list[Any] = [node["inputs"] for node in run.prompt.values()]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
