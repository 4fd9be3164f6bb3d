"""Find the files that a run has made and its nodes name in a shape of their own, not as ComfyUI's lists of files.

A 3D saver reports `{"result": ["3d/x_00001.ply", null, []]}`, other packs a path, or a sentence with one in it. A text
alone proves nothing, so it counts where it names a file below the owner's folder that the run itself has made.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...guard.files.names import split_annotation
from ...guard.host import ReportedFile
from ...guard.job import RESULT_ROOTS
from ...guard.owners import FOLDER
from .folders import find_below, find_real_root
from .results import adopt, find_real_folder, is_made
from .run import Run

#: So many names are looked up in a run, so much is read of its sentences, and a name is no longer.
_MOST_NAMES, _MOST_CHARS, _LONGEST = 5000, 2**20, 1024
_ANNOTATED = tuple(f"[{kind}]" for kind in RESULT_ROOTS)
_SUFFIX = re.compile(r"\.\w{1,16}$")
_AROUND = "\"'`<>()[]{},;:!"


def find_named(run: Run, outputs: Any, known: Collection[Path | None] = ()) -> Iterator[ReportedFile]:
    """Find the files beside those that are `known`, each once. Any thread of the run; looks into its folders.

    Args:
        outputs: what nodes report, plain, by node.
    """
    seen = {str(path) for path in known if path is not None}
    tried: set[tuple[str, str]] = set()
    roots: dict[str, str] = {kind: find_real_root(kind) or "" for kind in RESULT_ROOTS}
    folders = {kind: (root, find_real_folder(run, kind)) for kind, root in roots.items()}
    for node_id, output in outputs.items() if isinstance(outputs, Mapping) else ():
        for place in _walk(output):
            kind, name = place
            if place in tried or (kind and os.path.join(roots.get(kind, ""), name) in seen):
                continue
            tried.add(place)
            if len(tried) > _MOST_NAMES:
                return
            file = _find(run, folders, str(node_id), *place)
            if file is not None and str(file.path) not in seen:
                seen.add(str(file.path))
                yield file


def names_any(run: Run, output: Any) -> bool:
    """Whether the report of a node names a file that the run has made."""
    return any(find_named(run, {"": output}))


def _walk(output: Any) -> Iterator[tuple[str, str]]:
    """(type, name) of whatever may be a file in a report; the type is empty where it does not say.

    A text that a node reports in place of a list of texts comes as its letters: ComfyUI takes it for the list.
    Of an item that names a file in ComfyUI's own way, nothing else counts: what it tells beside are its by-products.
    """
    waiting, room = [output], _MOST_CHARS
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if len(item) <= _LONGEST and len(item.split(maxsplit=1)) == 1:
                yield from _read(item)
            elif room > 0:
                yield from _read(item[:room])
                room -= len(item)
        elif isinstance(item, Mapping):
            if isinstance(item.get("filename"), str):
                yield (
                    str(item.get("type") or "output"),
                    os.path.join(str(item.get("subfolder") or ""), item["filename"]),
                )
            else:
                waiting += reversed(list(item.values()))
        elif isinstance(item, (list, tuple)):
            letters = all(isinstance(each, str) and len(each) == 1 for each in item)
            waiting += ["".join(item)] if letters else reversed(item)


def _read(text: str) -> Iterator[tuple[str, str]]:
    """The text itself, and what in it ends as a file's name does."""
    for line in text.splitlines():
        whole = line.strip()
        words = whole.split()
        tokens = [whole]
        if len(words) > 1:
            tokens += [whole.rpartition(": ")[2], *words]
        for number, token in enumerate(tokens):
            name = token.strip(_AROUND).rstrip(".") if number else token
            kind = ""
            if name.endswith(_ANNOTATED):
                kind, name = split_annotation(name)
            if 0 < len(name) <= _LONGEST and (_SUFFIX.search(name) if number or len(words) > 1 else True):
                yield kind, name


def _find(run: Run, folders: Mapping[str, tuple[str, str]], node_id: str, kind: str, name: str) -> ReportedFile | None:
    for each in (kind,) if kind else RESULT_ROOTS:
        if each in folders and (file := _find_below(run, *folders[each], node_id, each, name)) is not None:
            return file
    return None


def _find_below(run: Run, root: str, own: str, node_id: str, kind: str, name: str) -> ReportedFile | None:
    try:
        path = _place(root, own, run.folder, name)
        if path is None:
            return None
        if run.folder and not os.path.lexists(path):
            below = path[len(own) :].lstrip(os.sep)
            if os.path.lexists(os.path.join(root, below)):
                adopt(run, kind, "", below)
        status = os.lstat(path)
        # A link may lead to what is somebody else's.
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or os.path.realpath(path) != path:
            return None
    except (OSError, ValueError):
        return None
    below = find_below(root, path) or ""
    if not run.folder and below.startswith(f"{FOLDER}/"):
        return None
    subfolder, _, filename = below.rpartition("/")
    file = ReportedFile(node_id, filename, subfolder, kind, Path(path))
    return file if is_made(run, file) else None


def _place(root: str, own: str, folder: str, name: str) -> str | None:
    """Where below the owner's folder the name leads; None where it does not."""
    if os.path.isabs(name):
        path = os.path.normpath(name)
    else:
        told = name.replace("\\", "/") if os.name == "nt" else name
        path = os.path.normpath(os.path.join(root if folder and told.startswith(f"{folder}/") else own, told))
    return path if find_below(own, path) else None
