"""Tell which inputs of a node name files, by what its class declares, and offer our users' files to its checks."""

from __future__ import annotations

import contextvars
import functools
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import CodeType
from typing import Any

import folder_paths
import nodes

from ...guard.files.names import is_plain
from ...guard.graph import Names
from ...guard.owners import FOLDER
from .patching import Native, replace_function

try:
    from comfy_execution.graph import get_input_info
except ImportError:  # before ComfyUI 0.3.10
    get_input_info = None

log = logging.getLogger("guarded.host")

#: Compare this many choices of an input with what lies in the input folder.
_CHOICES_COMPARED = 100
#: Where a declaration uses one of these, its choices may be input files although there are none now.
_INPUT_FOLDER = frozenset({"get_input_directory", "input_directory", "get_input_subfolders", "get_directory_by_type"})

#: Values that name nothing, and what takes anything. A text that may be a number instead is one of them.
_VALUES = frozenset({"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", "*"})
_DYNAMIC = re.compile(r"COMFY_\w+_V3")

#: While ComfyUI's own handler runs for us: the files in owners' folders that the prompt names.
_named: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("guarded_named", default=())


class FileInputs:
    """Read declarations, and remember those that cannot change while the server runs. Event loop, as in ComfyUI."""

    def __init__(self) -> None:
        self._known: dict[type, dict[str, Names]] = {}

    def find(self, class_type: str) -> Mapping[str, Names]:
        """Map each input that names a file to what its text names."""
        node_class = nodes.NODE_CLASS_MAPPINGS.get(class_type)
        if node_class is None:
            return {}
        if (known := self._known.get(node_class)) is not None:
            return known
        try:
            named, possible = _read_declaration(node_class)
        except Exception:
            log.debug("%s does not say what it takes", class_type, exc_info=True)
            return {}
        if not named and possible and _uses_input_folder(node_class):
            return dict.fromkeys(possible, Names.FILE)  # until there is a file by which to tell
        self._known[node_class] = named
        return named


def _read_declaration(node_class: Any) -> tuple[dict[str, Names], list[str]]:
    """Find the inputs that certainly name files, and the others that offer a choice of texts."""
    named: dict[str, Names] = {}
    possible: list[str] = []
    declared = node_class.INPUT_TYPES()
    for section in ("required", "optional"):
        for name, info in (declared.get(section) or {}).items():
            kind = info[0]
            options = info[1] if len(info) > 1 and isinstance(info[1], Mapping) else {}
            if not isinstance(kind, (list, tuple)) and kind not in ("COMBO", "STRING"):
                # A socket for pictures, say; or what only a page can fill in: a recording, a scene.
                if isinstance(kind, str) and _may_name(kind):
                    named[name] = Names.FILE
                continue
            if "image_folder" in options or any(key.endswith("_upload") and options[key] for key in options):
                named[name] = Names.FILE
            elif "vhs_path_extensions" in options:  # of ComfyUI-VideoHelperSuite, and of many packs that follow it
                named[name] = Names.PATH
            elif (choices := _read_choices(kind, options)) is not None:
                if any(map(_is_input, choices[:_CHOICES_COMPARED])):
                    named[name] = Names.FILE
                else:
                    possible.append(name)
    return named, possible


def _may_name(kind: str) -> bool:
    """Whether a text in an input of this kind may be a file's name: no node gives such a thing, or it is a file's."""
    if _DYNAMIC.fullmatch(kind):
        return False  # what is filled in are the inputs within
    parts = [part.strip().partition(":")[0] for part in kind.split(",")]  # `INT:seed`
    if "STRING" in parts and any(part.startswith("FILE_") for part in parts):
        return True
    return not any(part in _VALUES or part in list_socket_types() for part in parts)


@functools.lru_cache(maxsize=1)
def list_socket_types() -> frozenset[str]:
    """List the types that some node gives. An input of any other gets its value from a client alone: AUDIO_RECORD."""
    types: set[str] = set()
    for node_class in list(nodes.NODE_CLASS_MAPPINGS.values()):
        try:
            types.update(str(kind) for kind in node_class.RETURN_TYPES if isinstance(kind, str))
        except Exception:
            log.debug("%s does not say what it gives", node_class, exc_info=True)
    return frozenset(types)


def _read_choices(kind: Any, options: Mapping[str, Any]) -> list[str] | None:
    """Read the texts that an input offers to choose from; None where it offers no choice."""
    offered = kind if isinstance(kind, (list, tuple)) else options.get("options") if kind == "COMBO" else None
    return [item for item in offered if isinstance(item, str)] if isinstance(offered, (list, tuple)) else None


def _is_input(choice: str) -> bool:
    return is_plain(choice) and os.path.lexists(os.path.join(folder_paths.get_input_directory(), choice))


def _uses_input_folder(node_class: Any) -> bool:
    for name in ("define_schema", "INPUT_TYPES"):
        function = getattr(node_class, name, None)
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        if isinstance(code, CodeType) and not _INPUT_FOLDER.isdisjoint(find_names(code)):
            return True
    return False


def find_names(code: CodeType) -> Iterator[str]:
    """The names that a function's code uses of other places."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from find_names(constant)


@contextmanager
def offer_files(prompt: Any) -> Iterator[None]:
    """In here, in this task, ComfyUI accepts the files in owners' folders that the prompt names."""
    named = []
    waiting: list[Any] = [node.get("inputs") for node in prompt.values()] if isinstance(prompt, dict) else []
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if item.startswith(f"{FOLDER}/"):
                named.append(item)
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    token = _named.set(tuple(named))
    try:
        yield
    finally:
        _named.reset(token)


def offer_uploads() -> None:
    """Patch ComfyUI so that a loader's choices include the files of `offer_files`. The main thread, once.

    Most loaders list only the files in the root of input, and ComfyUI refuses what is not in the list.
    """
    native: Native | None = get_input_info
    if native is None:
        return

    def add_files(*args: Any, **kwargs: Any) -> Any:
        info = native(*args, **kwargs)
        if not (named := _named.get()):
            return info
        kind, category, options = info
        if isinstance(kind, list):
            return [*kind, *named], category, options
        if isinstance(options, Mapping) and isinstance(options.get("options"), list):
            return kind, category, {**options, "options": [*options["options"], *named]}
        return info

    replace_function(native, add_files)
