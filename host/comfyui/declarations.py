"""Tell what a node class takes and gives, as it declares it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from types import FunctionType
from typing import Any

import nodes

from ...guard.graph import Declared, is_link, list_most, list_parts
from .inputs import find_names

log = logging.getLogger("guarded.host")

_NOTHING = Declared()
#: No class declares an input of that name.
_NOWHERE = "guarded: an input that is nowhere"


class Declarations:
    """Read declarations once each, since types do not change while the server runs. Event loop, as in ComfyUI."""

    def __init__(self) -> None:
        self._known: dict[type, Declared] = {}

    def find(self, class_type: str) -> Declared:
        """What a class declares; a list of choices is a `COMBO`."""
        node_class = nodes.NODE_CLASS_MAPPINGS.get(class_type)
        if node_class is None:
            return _NOTHING
        if node_class not in self._known:
            inputs, lazy = _read_inputs(class_type, node_class)
            parts, hidden, takes_more = _read_more(class_type, node_class)
            takes_lists = bool(getattr(node_class, "INPUT_IS_LIST", False))
            self._known[node_class] = Declared(
                inputs,
                _read_outputs(node_class),
                takes_lists,
                _read_lists(node_class),
                frozenset(lazy),
                parts,
                hidden,
                takes_more,
                find_opener(node_class),
                _read_most(class_type, node_class),
            )
        return self._known[node_class]


def _read_inputs(class_type: str, node_class: Any) -> tuple[dict[str, str], set[str]]:
    """(types by name, the lazy ones)."""
    types: dict[str, str] = {}
    lazy: set[str] = set()
    try:
        declared = node_class.INPUT_TYPES()
        for section in ("required", "optional"):
            for name, info in (declared.get(section) or {}).items():
                types[str(name)] = info[0] if isinstance(info[0], str) else "COMBO"
                if len(info) > 1 and isinstance(info[1], dict) and info[1].get("lazy"):
                    lazy.add(str(name))
    except Exception:
        log.debug("%s does not say what it takes", class_type, exc_info=True)
    return types, lazy


def _read_more(class_type: str, node_class: Any) -> tuple[dict[str, dict[str, frozenset[str]]], frozenset[str], bool]:
    """(parts, hidden, whether it gets more than it declares), see `Declared`."""
    try:
        declared = node_class.INPUT_TYPES()
        sections = [declared.get(section) or {} for section in ("required", "optional", "hidden")]
        # Packs declare that they take any name with a dict that says so of all of them.
        takes_more = any(_NOWHERE in section for section in sections)
        takes_more |= bool(getattr(node_class, "ACCEPT_ALL_INPUTS", False))
        return list_parts(declared), frozenset(map(str, sections[2])), takes_more
    except Exception:
        log.debug("%s does not say what it takes", class_type, exc_info=True)
        return {}, frozenset(), True


def _read_most(class_type: str, node_class: Any) -> dict[str, float]:
    try:
        return list_most(node_class.INPUT_TYPES())
    except Exception:
        log.debug("%s does not say what it takes", class_type, exc_info=True)
        return {}


#: Functions that one's own calls, and those call, and so on: so deep.
_DEEP = 6


def find_opener(node_class: Any) -> str:
    """What a loader opens its file with, by the names that its code uses, and the functions beside it that it calls.

    ComfyUI's LoadVideo, and later versions' LoadImage, use `VideoFromFile`, LoadAudio a function that uses `av`;
    VideoHelperSuite's LoadVideo a function that is another's default, and uses `cv2`, its others `ffmpeg_path`.
    """
    bases = getattr(node_class, "__mro__", ())
    own = [getattr(each, "__func__", each) for base in bases for each in vars(base).values()]
    names: set[str] = set()
    seen: set[FunctionType] = set()
    waiting = [each for each in own if isinstance(each, FunctionType)]
    for _ in range(_DEEP):
        calls: list[FunctionType] = []
        for function in waiting:
            used = set(find_names(function.__code__))
            names |= used
            calls += [each for each in _list_called(function, used) if each not in seen]
        seen.update(calls)
        waiting = calls
    if not names.isdisjoint({"VideoFromFile", "av"}):
        return "libav"
    if "cv2" in names and "VideoCapture" in names:
        return "opencv"
    if "ffmpeg_path" in names:
        return "ffmpeg"
    return "pillow" if "pillow" in names and "cv2" not in names else ""


def _list_called(function: FunctionType, used: set[str]) -> list[FunctionType]:
    """Functions of its package that it may call: those that it names, and of those, their defaults that it keeps."""
    called = [function.__globals__.get(name) for name in used]
    own = function.__module__.rpartition(".")[0] or function.__module__
    beside = [each for each in called if isinstance(each, FunctionType) and _is_beside(each.__module__, own)]
    constants = function.__code__.co_consts  # names by which it gives something: one by one, or several together
    given = {name for each in constants for name in (each if isinstance(each, tuple) else (each,))}
    for each in list(beside):
        defaults = each.__defaults__ or ()
        places = each.__code__.co_varnames[: each.__code__.co_argcount][-len(defaults) :] if defaults else ()
        kept = [*zip(places, defaults, strict=False), *(each.__kwdefaults__ or {}).items()]
        beside += [default for name, default in kept if name not in given and isinstance(default, FunctionType)]
    return beside


def _is_beside(module: str | None, own: str) -> bool:
    return module is not None and (module == own or module.rpartition(".")[0] == own)


def _read_outputs(node_class: Any) -> tuple[tuple[str, str], ...]:
    try:
        kinds = [str(kind) if isinstance(kind, str) else "COMBO" for kind in node_class.RETURN_TYPES]
        names = [str(name) for name in getattr(node_class, "RETURN_NAMES", None) or kinds]
    except Exception:
        return ()
    return tuple((kind, names[at] if at < len(names) else kind) for at, kind in enumerate(kinds))


def find_masks(prompt: Mapping[str, Any], node_ids: Iterable[str]) -> frozenset[str]:
    """Those of these nodes that get nothing but masks over links."""

    def is_mask(link: list[Any]) -> bool:
        node = prompt.get(link[0])
        given = _read_outputs(nodes.NODE_CLASS_MAPPINGS.get(node["class_type"])) if node is not None else ()
        return link[1] in range(len(given)) and given[int(link[1])][0] == "MASK"

    asked = {node_id: prompt[node_id]["inputs"] for node_id in node_ids if node_id in prompt}
    links = {node_id: [*filter(is_link, inputs.values())] for node_id, inputs in asked.items()}
    return frozenset(node_id for node_id, given in links.items() if given and all(map(is_mask, given)))


def _read_lists(node_class: Any) -> frozenset[int]:
    try:
        return frozenset(at for at, is_list in enumerate(node_class.OUTPUT_IS_LIST or ()) if is_list)
    except Exception:
        return frozenset()
