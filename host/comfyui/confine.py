"""Give each run of a keyed owner the owner's own folders in place of ComfyUI's output and temp.

ComfyUI's getters answer by job: whatever prefix a graph gives, and however it arrives, files land in the owner's
folder. Names *inside* ComfyUI stay relative to its roots, so what reads an annotated name (`x.png [output]`) asks for
the roots themselves. For the operator, and for native prompts, nothing changes.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from types import ModuleType
from typing import Any

import folder_paths
import nodes

from ...guard.files.names import strip_folder
from ...guard.job import RESULT_ROOTS, ROOTS
from ...guard.owners import FOLDER
from . import reading
from .folders import find_below, find_real_root, find_root, natives
from .patching import Native, replace_function
from .run import Run
from .worker import Workers

try:
    from comfy_execution.graph import DynamicPrompt
except ImportError:  # before ComfyUI 0.3
    DynamicPrompt = None
try:
    from comfy_execution.caching import CacheKeySetID
except ImportError:  # the sandbox
    CacheKeySetID = None

#: On threads that a node has started, and on those that such a thread has started: the worker's thread.
_WORKER = "guarded_worker"
#: On the worker's thread: the folder of the owner whose job it took last.
_FOLDER = "guarded_folder"

_reading = threading.local()

_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Confinement:
    """Knows on whose behalf a thread runs, and answers for ComfyUI's `folder_paths` accordingly."""

    def __init__(self, workers: Workers, find_run: Callable[[str], Run | None]) -> None:
        self._workers = workers
        self._find_run = find_run
        #: The name of this one of several servers, each of which numbers its files from 1: their names get it.
        self.name_box: Callable[[], str] | None = None

    def install(self) -> None:
        """Patch. The main thread, once, before the worker starts."""
        for kind in RESULT_ROOTS:
            name = f"get_{kind}_directory"
            self._replace(name, self._make_getter(kind))
        for name, function in (
            ("get_directory_by_type", self._get_directory_by_type),
            ("get_save_image_path", self._get_save_image_path),
            ("annotated_filepath", self._annotated_filepath),
            ("get_annotated_filepath", self._get_annotated_filepath),
            ("exists_annotated_filepath", self._exists_annotated_filepath),
        ):
            self._replace(name, function)
        self._replace_variables()
        self._mark_threads()
        if DynamicPrompt is not None:
            self._hide_folder_from_nodes(DynamicPrompt)
        if CacheKeySetID is not None:
            self._keep_objects_apart(CacheKeySetID)

    # Whose thread this is. -----------------------------------------------------------------------------------

    def find_run(self) -> Run | None:
        """The guard's job that this thread works for; None on threads of ComfyUI's and ours, and in native prompts.

        A worker that was disowned with a keyed owner's job ends here, and what it has started: it must write neither
        into the folder of a later job nor into the roots.
        """
        thread = threading.current_thread()
        if getattr(thread, _FOLDER, ""):
            self._workers.end_if_disowned()
        if not self._workers.has_taken(thread):
            worker = getattr(thread, _WORKER, None)
            if worker is None:
                return None
            if self._workers.has_lost(worker):
                if getattr(worker, _FOLDER, ""):
                    raise SystemExit
                return None
        prompt_id = self._workers.find_executing()
        return self._find_run(prompt_id) if prompt_id is not None else None

    def begin(self, run: Run) -> None:
        """The run begins on this thread."""
        setattr(threading.current_thread(), _FOLDER, run.folder)

    def _own(self) -> str:
        """The owner's folder below the roots; empty where the roots themselves are meant."""
        run = self.find_run()
        return run.folder if run is not None else ""

    def _mark_threads(self) -> None:
        """Know the threads that nodes start, by whom they were started: pools outlive the job that made them."""
        native = threading.Thread.start
        workers = self._workers

        def start(thread: threading.Thread) -> None:
            parent = threading.current_thread()
            worker = parent if workers.has_taken(parent) else getattr(parent, _WORKER, None)
            if worker is not None:
                setattr(thread, _WORKER, worker)
            native(thread)

        threading.Thread.start = start  # type: ignore[assignment, method-assign]

    # What ComfyUI's functions answer. ------------------------------------------------------------------------

    def _replace(self, name: str, function: Callable[..., Any]) -> None:
        native: Native | None = getattr(folder_paths, name, None)
        if native is None:
            return
        natives[name] = native

        @wraps(native)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return function(native, *args, **kwargs)

        replace_function(native, replacement)

    def _make_getter(self, kind: str) -> Callable[..., str]:
        def get(native: Native, *args: Any, **kwargs: Any) -> str:
            return self._place(native(*args, **kwargs))

        get.__name__ = kind
        return get

    def _place(self, root: str) -> str:
        """The owner's folder below a root, made where it is missing."""
        if getattr(_reading, "depth", 0) or not (own := self._own()):
            return root
        folder = os.path.join(root, *own.split("/"))
        os.makedirs(folder, exist_ok=True)
        return folder

    def _get_directory_by_type(self, native: Native, *args: Any, **kwargs: Any) -> Any:
        with _roots():
            folder = native(*args, **kwargs)
        return self._place(folder) if folder in (find_root("output"), find_root("temp")) else folder

    def _get_save_image_path(self, native: Native, *args: Any, **kwargs: Any) -> Any:
        args = _change(native, "output_dir", self._rebase, args, kwargs)
        if self.name_box is not None and self.find_run() is not None:
            args = _change(native, "filename_prefix", self._add_box, args, kwargs)
        return native(*args, **kwargs)

    def _add_box(self, prefix: Any) -> Any:
        assert self.name_box is not None
        return f"{prefix.rstrip('/' + os.sep)}_{self.name_box()}" if isinstance(prefix, str) else prefix

    def _rebase(self, folder: Any) -> Any:
        """The folder of this run's owner in the place of a root, or of another owner's, to which a cached node object
        holds on.

        Raises PermissionError where a keyed owner's job would save elsewhere.
        """
        own = self._own()
        real = next((find_real_root(kind) for kind in ROOTS if find_root(kind) == folder), None)
        real = os.path.realpath(folder) if real is None else real
        for kind in ROOTS:
            root = find_root(kind) or ""
            below = find_below(find_real_root(kind) or "", real)
            if below is None:
                continue
            parts = below.split("/") if below else []
            if parts[:1] == [FOLDER]:
                parts = parts[2:]
            elif not own:
                return folder
            return os.path.join(root, *own.split("/"), *parts) if own else os.path.join(root, *parts)
        if own:
            raise PermissionError("A job may save below its owner's folder only.")
        return folder

    def _annotated_filepath(self, native: Native, *args: Any, **kwargs: Any) -> Any:
        is_asked_by_node = not getattr(_reading, "depth", 0)
        with _roots():
            found = native(*args, **kwargs)
        if is_asked_by_node:
            name, folder = found
            self._look_at(args, kwargs, os.path.join(folder or find_root("input") or "", name))
        return found

    def _get_annotated_filepath(self, native: Native, *args: Any, **kwargs: Any) -> Any:
        with _roots():
            path = native(*args, **kwargs)
        self._look_at(args, kwargs, path)
        return path

    def _exists_annotated_filepath(self, native: Native, *args: Any, **kwargs: Any) -> Any:
        with _roots():
            exists = native(*args, **kwargs)
            name, folder = natives["annotated_filepath"](*args, **kwargs)
        # Also where it does not exist: nobody learns which files others have.
        self._look_at(args, kwargs, os.path.join(folder or find_root("input") or "", name))
        return exists

    def _look_at(self, args: tuple[Any, ...], kwargs: dict[str, Any], path: str) -> None:
        """Look at a file that a node asks for by name. Raises PermissionError, GuardError."""
        run = self.find_run()
        if run is not None and run.folder:
            reading.check_opened(run, args[0] if args else kwargs.get("name"), path)

    def _replace_variables(self) -> None:
        """Let `folder_paths.output_directory` answer as its getter does; ComfyUI itself reads and sets the global."""

        def make(name: str) -> property:
            def get(module: ModuleType) -> Any:
                return self._place(module.__dict__[name])

            def put(module: ModuleType, value: Any) -> None:
                module.__dict__[name] = value

            return property(get, put)

        variables = {name: make(name) for kind in RESULT_ROOTS if (name := f"{kind}_directory") in vars(folder_paths)}
        module = sys.modules["folder_paths"]
        module.__class__ = type("ConfinedFolderPaths", (type(module),), variables)

    # What nodes see and keep. --------------------------------------------------------------------------------

    def _hide_folder_from_nodes(self, prompts: Any) -> None:
        """Show nodes the prompt as its owner knows it: savers write it into files that are sold."""
        native = prompts.get_original_prompt

        def get_original_prompt(dynprompt: Any, *args: Any, **kwargs: Any) -> Any:
            prompt = native(dynprompt, *args, **kwargs)
            own = self._own()
            return strip_folder(prompt, own) if own else prompt

        prompts.get_original_prompt = get_original_prompt

    def _keep_objects_apart(self, keys: Any) -> None:
        """Let no object of an output node serve two owners: ComfyUI keeps them by node id, and they keep folders.

        Other nodes' objects stay shared, since they may hold models.
        """
        native = keys.add_keys

        async def add_keys(key_set: Any, node_ids: Any) -> None:
            await native(key_set, node_ids)
            if own := self._own():
                for node_id in node_ids:
                    key = key_set.keys.get(node_id)
                    if isinstance(key, tuple) and len(key) == 2:
                        node_class = nodes.NODE_CLASS_MAPPINGS.get(key[1])
                        if getattr(node_class, "OUTPUT_NODE", False) is True:
                            key_set.keys[node_id] = (*key, own)

        keys.add_keys = add_keys


@functools.cache
def _find_place(function: Native, name: str) -> int | None:
    """Which of a function's arguments has that name; None where it takes none of it by its place."""
    parameters = list(inspect.signature(function).parameters.values())
    places = [number for number, one in enumerate(parameters) if one.name == name and one.kind in _BY_PLACE]
    return places[0] if places else None


def _change(
    function: Native, name: str, change: Callable[[Any], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """The arguments by place, with the one of that name changed; where it is among `kwargs`, it is changed there."""
    if name in kwargs:
        kwargs[name] = change(kwargs[name])
    elif (at := _find_place(function, name)) is not None and at < len(args):
        return (*args[:at], change(args[at]), *args[at + 1 :])
    return args


@contextlib.contextmanager
def _roots() -> Iterator[None]:
    """In here, on this thread, the getters answer ComfyUI's roots."""
    _reading.depth = getattr(_reading, "depth", 0) + 1
    try:
        yield
    finally:
        _reading.depth -= 1
