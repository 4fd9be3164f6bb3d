"""What ComfyUI's handler made of prompts at their admission, until their jobs begin.

A prompt is not shown to the handler again while nothing can have changed that the first answer depends on: for
`KEPT_S`, after which an operator may have removed a model; while its node classes are the same objects; while the files
that its loaders name are untouched. A node that checks its inputs by code of its own, and is no such loader, may look
at anything: its prompt is not kept.
"""

from __future__ import annotations

import marshal
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import nodes

from ...guard.files.marks import Mark, find_mark
from ...guard.files.names import split_annotation
from ...guard.graph import Names
from . import folders
from .report import QueueItem

#: For so long a prompt is taken for valid.
KEPT_S = 300.0
#: So much is kept, counted in bytes of JSON; as objects it is several times that.
KEPT_BYTES = 16 << 20
#: A prompt that names more files is not kept: each is looked at whenever the prompt may be used.
MOST_FILES = 16

#: Which inputs of a node class name files.
FindFileInputs = Callable[[str], Mapping[str, Names]]

#: What the handler has made of a prompt: the queue item as bytes, the size of its JSON, when it is due to be forgotten,
#: its node classes by name, which it shares with others, and its files. Python's garbage collector holds up every
#: thread while it goes through all objects, and as many of these as jobs may wait: it shall see one object of each.
Made = tuple[bytes, int, float, Mapping[str, Any], tuple[tuple[str, Mark | None], ...]]

#: So many sets of node classes are shared.
_SETS = 1000


class _Unsure(Exception):
    """What the answer to the prompt depends on is not known, or it cannot be kept as bytes."""


class Kept:
    """By job id. Any thread."""

    def __init__(self, find_file_inputs: FindFileInputs) -> None:
        self._find_file_inputs = find_file_inputs
        #: Whether a node class validates its inputs by code of its own, by class.
        self._checks_itself: dict[Any, bool] = {}
        self._lock = threading.Lock()
        #: The oldest first; it runs first as well, so where there is no room the newest is not kept.
        self._made: dict[str, Made] = {}
        self._size = 0
        #: The node classes of prompts, by their names. Event loop.
        self._sets: dict[tuple[str, ...], Mapping[str, Any]] = {}

    def prepare(self, item: QueueItem, size: int) -> Made | None:
        """Note what the queue item depends on; None where it cannot be told whether it is still right. Event loop."""
        try:
            classes, marks = self._find_grounds(item[2])
            packed = marshal.dumps(item, 2)
        except (_Unsure, ValueError):  # a pack has put objects of its own into it
            return None
        return packed, size, time.monotonic() + KEPT_S, self._share(classes), marks

    def keep(self, job_id: str, made: Made) -> bool:
        """Keep it for that job, if there is room."""
        size = made[1]
        with self._lock:
            now_s = time.monotonic()
            while self._made and (oldest := next(iter(self._made.items())))[1][2] <= now_s:
                self._drop(oldest[0])
            has_room = self._size + size <= KEPT_BYTES and job_id not in self._made
            if has_room:
                self._made[job_id] = made
                self._size += size
        return has_room

    def is_ready(self, job_id: str) -> bool:
        """Whether the job's queue item is kept, and still right."""
        made = self._made.get(job_id)
        return made is not None and self._is_fresh(made)

    def find(self, job_id: str) -> QueueItem | None:
        """The job's queue item, if it is still right."""
        made = self._made.get(job_id)
        if made is None or not self._is_fresh(made):
            return None
        item: QueueItem = marshal.loads(made[0])
        return item

    def discard(self, job_id: str) -> None:
        if job_id in self._made:
            with self._lock:
                self._drop(job_id)

    def _drop(self, job_id: str) -> None:
        made = self._made.pop(job_id, None)
        self._size -= made[1] if made is not None else 0

    def _is_fresh(self, made: Made) -> bool:
        _packed, _size, due_s, classes, marks = made
        return (
            time.monotonic() < due_s
            and all(nodes.NODE_CLASS_MAPPINGS.get(name) is known for name, known in classes.items())
            and all(_mark(path) == mark for path, mark in marks)
        )

    def _share(self, classes: Mapping[str, Any]) -> Mapping[str, Any]:
        """The one mapping of these node classes."""
        names = tuple(classes)
        known = self._sets.get(names)
        if known is not None and all(known[name] is classes[name] for name in names):
            return known
        if len(self._sets) >= _SETS:
            self._sets.clear()
        self._sets[names] = classes
        return classes

    def _find_grounds(self, prompt: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[tuple[str, Mark | None], ...]]:
        """What the handler's answer depends on: node classes, and files as they are now."""
        classes: dict[str, Any] = {}
        paths: set[str] = set()
        for node in prompt.values():
            name = node["class_type"]
            classes[name] = node_class = nodes.NODE_CLASS_MAPPINGS.get(name)
            named = self._find_file_inputs(name)
            if not named:
                if (checks := self._checks_itself.get(node_class)) is None:
                    checks = self._checks_itself[node_class] = checks_itself(node_class)
                if checks:
                    raise _Unsure
                continue
            paths.update(_find_path(node["inputs"][key], kind) for key, kind in named.items() if key in node["inputs"])
            if len(paths) > MOST_FILES:
                raise _Unsure
        return classes, tuple((path, _mark(path)) for path in paths)


def checks_itself(node_class: Any) -> bool:
    """Whether a node class validates its inputs by code of its own."""
    if getattr(node_class, "VALIDATE_INPUTS", None) is not None:
        return True
    return any(
        "validate_inputs" in vars(base) and not base.__module__.startswith("comfy_api.")
        for base in getattr(node_class, "__mro__", ())
    )


def _find_path(value: Any, names: Names) -> str:
    if not isinstance(value, str):
        raise _Unsure
    if names is Names.PATH:
        return value
    kind, below = split_annotation(value)
    path = folders.resolve(kind, "", below)
    if path is None:
        raise _Unsure
    return str(path)


def _mark(path: str) -> Mark | None:
    """None where there is no file."""
    try:
        return find_mark(os.stat(path))
    except (OSError, ValueError):
        return None
