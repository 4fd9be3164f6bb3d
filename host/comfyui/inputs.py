"""Which inputs of a node name files, by what its class itself declares."""

from __future__ import annotations

import contextvars
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

import folder_paths
import nodes

from ...guard.files.names import FOLDER, is_plain
from ...guard.host import Names

try:
    from comfy_execution.graph import get_input_info
except ImportError:  # before ComfyUI 0.3.10
    get_input_info = None

log = logging.getLogger("guarded.host")

#: Choices of an input that are compared with what lies in the input folder.
_LOOKED_AT = 100
#: Where a declaration asks for one of these, its choices may be input files although there are none now.
_INPUT_FOLDER = frozenset({"get_input_directory", "input_directory", "get_input_subfolders", "get_directory_by_type"})

#: While the native handler runs for us: files in owners' folders that the prompt names.
_named: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("guarded_named", default=())


class FileInputs:
    """Event loop, as ComfyUI's own look at declarations. Remembers what cannot change while the server runs."""

    def __init__(self) -> None:
        self._known: dict[type, dict[str, Names]] = {}

    def of(self, class_type: str) -> Mapping[str, Names]:
        """Input name → what its text names; inputs that name no file are left out."""
        node_class = nodes.NODE_CLASS_MAPPINGS.get(class_type)
        if node_class is None:
            return {}
        if (known := self._known.get(node_class)) is not None:
            return known
        try:
            found, perhaps = _declared(node_class)
        except Exception:
            log.debug("%s does not say what it takes", class_type, exc_info=True)
            return {}
        if not found and perhaps and _asks_for_input_folder(node_class):
            return dict.fromkeys(perhaps, Names.FILE)  # until there is a file by which to tell
        self._known[node_class] = found
        return found


def _declared(node_class: Any) -> tuple[dict[str, Names], list[str]]:
    """What names files for certain, and the other inputs that offer a choice of texts."""
    found: dict[str, Names] = {}
    perhaps: list[str] = []
    declared = node_class.INPUT_TYPES()
    for section in ("required", "optional"):
        for name, info in (declared.get(section) or {}).items():
            kind = info[0]
            options = info[1] if len(info) > 1 and isinstance(info[1], Mapping) else {}
            if not isinstance(kind, (list, tuple)) and kind not in ("COMBO", "STRING"):
                continue  # a picture itself, say
            if "image_folder" in options or any(key.endswith("_upload") and options[key] for key in options):
                found[name] = Names.FILE
            elif "vhs_path_extensions" in options:  # of ComfyUI-VideoHelperSuite; packs without number follow it
                found[name] = Names.PATH
            elif (choices := _choices(kind, options)) is not None:
                if any(map(_is_input, choices[:_LOOKED_AT])):
                    found[name] = Names.FILE
                else:
                    perhaps.append(name)
    return found, perhaps


def _choices(kind: Any, options: Mapping[str, Any]) -> list[str] | None:
    """The texts that an input lets one choose from; None where it is no choice."""
    offered = kind if isinstance(kind, (list, tuple)) else options.get("options") if kind == "COMBO" else None
    return [item for item in offered if isinstance(item, str)] if isinstance(offered, (list, tuple)) else None


def _is_input(choice: str) -> bool:
    return is_plain(choice) and os.path.lexists(os.path.join(folder_paths.get_input_directory(), choice))


def _asks_for_input_folder(node_class: Any) -> bool:
    for name in ("define_schema", "INPUT_TYPES"):
        function = getattr(node_class, name, None)
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        if isinstance(code, CodeType) and not _INPUT_FOLDER.isdisjoint(_names_in(code)):
            return True
    return False


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def naming(prompt: Any) -> contextvars.Token[tuple[str, ...]]:
    """From here to `done`, in this task, ComfyUI takes the files in owners' folders that the prompt names."""
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
    return _named.set(tuple(named))


def done(token: contextvars.Token[tuple[str, ...]]) -> None:
    _named.reset(token)


def offer_uploads() -> None:
    """Let the choice of a loader hold the files that a prompt of ours names: most list the root's files only, and
    those without a check of their own would refuse what lies in an owner's folder."""
    if get_input_info is None:
        return
    native = get_input_info

    def with_uploads(*args: Any, **kwargs: Any) -> Any:
        info = native(*args, **kwargs)
        if not (named := _named.get()):
            return info
        kind, category, options = info
        if isinstance(kind, list):
            return [*kind, *named], category, options
        if isinstance(options, Mapping) and isinstance(options.get("options"), list):
            return kind, category, {**options, "options": [*options["options"], *named]}
        return info

    # Its users have imported the name.
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(native.__name__) is native:
            setattr(module, native.__name__, with_uploads)
