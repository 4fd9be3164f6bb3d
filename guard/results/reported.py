"""Make what nodes report such that everybody can read it: JSON, and in ComfyUI's lists what its frontends expect.

A node may report any Python object. One that is no JSON makes ComfyUI's `/history` fail for everybody, and one entry
that a frontend does not expect empties its whole list.
"""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, Final

#: A report that is nested deeper is cut off there: whoever copies it makes one call within the other.
DEEPEST: Final = 100
#: A report has so many characters at most; everything in it counts as so many more.
MOST_CHARS: Final = 64 * 2**20
EACH: Final = 32
#: What is told of how a run ended has no longer text: an exception may say megabytes, and whoever writes or searches
#: them holds Python's lock meanwhile.
LONGEST_TEXT: Final = 10_000
#: Longer integers are told as text: Python writes none of over 4,300 digits.
_LONGEST_BITS: Final = 1024
_LONGEST_KEY: Final = 1000
#: So many kinds of oddities are named.
_NAMED: Final = 5

_HALVES: Final = re.compile("[\ud800-\udfff]")
_LISTS: Final = (list, tuple, set, frozenset)
#: What frontends read of a file, or of anything that they could show: texts, or they reject the list of all jobs.
_TEXTS: Final = frozenset({"filename", "subfolder", "display_name", "nodeId", "mediaType", "content", "format"})
_MORE: Final = _TEXTS | {"id", "preview_id"}
_TYPES: Final = frozenset({"input", "output", "temp"})
_FILES: Final = frozenset({"audio", "images", "video"})


class Plain:
    """Copies reports in JSON's own types, and notes what cannot be told as it is. No code of a node's runs meanwhile.

    `odd` names that, each kind once. `longest`: texts of more characters are cut.
    """

    def __init__(self, longest: int = MOST_CHARS) -> None:
        self.odd: list[str] = []
        self._longest = longest
        self._room = MOST_CHARS
        #: What is around the thing that is being copied.
        self._around: set[int] = set()

    def copy(self, value: Any) -> Any:
        kind = type(value)
        self._room -= EACH
        if kind is str:
            self._room -= min(len(value), self._longest)
            is_told = self._room >= 0 and len(value) <= self._longest
            return self._mend(value if is_told else self._cut(value))
        if value is None or kind is bool:
            return value
        if kind is int:
            bits = value.bit_length()
            return value if bits <= _LONGEST_BITS else self._say(f"(an integer of {bits} bits)")
        if kind is float:
            if math.isfinite(value):
                return value
            self._note("a number that is not finite")
            return None
        if issubclass(kind, (dict, *_LISTS)):
            return self._copy_container(value, kind)
        return self._copy_other(value, kind)

    def _copy_container(self, value: Any, kind: type) -> Any:
        if id(value) in self._around:
            return self._say("(contains itself)")
        if len(self._around) >= DEEPEST:
            return self._say("(nested too deep)")
        self._around.add(id(value))
        try:
            if issubclass(kind, dict):
                return {self._copy_key(key): self.copy(item) for key, item in self._take(dict.items(value))}
            base = next(base for base in _LISTS if issubclass(kind, base))
            return [self.copy(item) for item in self._take(base.__iter__(value))]
        finally:
            self._around.discard(id(value))

    def _take(self, items: Any) -> Iterator[Any]:
        """Those for which there is room; another thread may change the container meanwhile."""
        for item in list(items):
            if self._room < 0:
                self._note("more than can be kept")
                return
            yield item

    def _copy_key(self, key: Any) -> str:
        told = key if type(key) is str else self.copy(key)
        if not isinstance(told, str):
            if isinstance(told, (dict, list)):
                self._note(f"a key that is a {type(key).__name__}")
            told = json.dumps(told)
        self._room -= len(told)
        return self._mend(told[:_LONGEST_KEY])

    def _copy_other(self, value: Any, kind: type) -> Any:
        try:
            if issubclass(kind, str):
                return self.copy(str.__str__(value))
            if issubclass(kind, numbers.Integral):
                return self.copy(int(value))
            if issubclass(kind, numbers.Real):
                return self.copy(float(value))
            if issubclass(kind, PurePath):
                return self.copy(str(value))
        except Exception:
            return self._say(f"({kind.__module__}.{kind.__qualname__})")
        if issubclass(kind, (bytes, bytearray)):
            return self._say(f"({len(value)} bytes)")
        return self._say(f"({kind.__module__}.{kind.__qualname__})")

    def _mend(self, text: str) -> str:
        """Strict readers reject a whole list for half a character."""
        if text.isascii() or not _HALVES.search(text):
            return text
        self._note("text that is no Unicode")
        return _HALVES.sub("\N{REPLACEMENT CHARACTER}", text)

    def _cut(self, text: str) -> str:
        self._note("more than can be kept")
        return f"{text[: min(self._longest, _LONGEST_KEY)]}… ({len(text)} characters)"

    def _say(self, text: str) -> str:
        """Tell the text in place of what cannot be told."""
        self._note(text[:200])
        return text[:_LONGEST_KEY]

    def _note(self, what: str) -> None:
        if what not in self.odd and len(self.odd) < _NAMED:
            self.odd.append(what)


def fit_all(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs of nodes, plain, as every frontend takes them."""
    return {node_id: fit(output) for node_id, output in outputs.items() if isinstance(output, Mapping)}


def fit(output: Mapping[str, Any]) -> dict[str, Any]:
    """The output of one node, plain, as every frontend takes it: what it cannot show is text, or left out."""
    fitting: dict[str, Any] = {}
    for key, items in output.items():
        listed = items if isinstance(items, list) else [items]
        if key == "animated":
            items = [bool(item) for item in listed]
        elif key == "text" and not isinstance(items, str):
            items = [_write(item) for item in listed]
        elif key in _FILES:
            items = [_fit_item(item, _MORE) for item in listed if isinstance(item, dict)]
        elif isinstance(items, list):
            items = [_fit_item(item, _TEXTS) if _is_shown(key, item) else item for item in items]
        fitting[key] = items
    return fitting


def _is_shown(key: str, item: Any) -> bool:
    """Whether a frontend may take it for something that it can show; else it is the business of its pack alone."""
    return isinstance(item, dict) and (key == "3d" or "filename" in item or "format" in item)


def _fit_item(item: dict[str, Any], texts: frozenset[str]) -> dict[str, Any]:
    fitting = {
        key: value if key not in texts or isinstance(value, str) else _write(value)
        for key, value in item.items()
        if value is not None or key not in texts
    }
    kind = item.get("type", "output")
    if not (isinstance(kind, str) and kind in _TYPES):
        del fitting["type"]
    return fitting


def _write(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
