"""Read a template's files within bounds, and say on which line a fault is.

A graph is read as strictly as a request is, since it becomes one.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...own_files import FileError, MalformedFileError, parse_toml, read_text
from ..bounds import Bounds, read_json
from ..errors import GuardError
from .lines import Place, find_deep_line

#: The largest manifest of ours has 9 KB. Python's parser takes the square of the time for some of what it refuses.
MANIFEST_BYTES = 2**17
GRAPH_BYTES = 2**23
_MOST_VALUES, _DEEPEST = 20_000, 20
_GRAPH = Bounds()
#: TOML's and ComfyUI's integers have 64 bits.
_MOST_INT = 2**64

_LINE = re.compile(r"\bline (\d+)")


def read_manifest(path: Path) -> tuple[str, dict[str, Any]]:
    """The text, and what it says. Raises FileError."""
    text = _read(path, MANIFEST_BYTES)
    return text, parse_toml(path, text, any_integers=True)


def read_graph_file(path: Path) -> tuple[str, Any]:
    """The text, and what it says: JSON as a request may hold it. Raises FileError."""
    text = _read(path, GRAPH_BYTES)
    try:
        return text, _parse_graph(text)
    except GuardError as error:
        told = " ".join(filter(None, (error.message, error.details)))
        if "nested" in told:
            line = find_deep_line(text, _GRAPH.depth)
        elif found := _LINE.search(told):
            line = int(found[1])
        else:
            line = _find_line(_parse_graph, text, error.message)
        raise MalformedFileError(path, told, line) from None


def _read(path: Path, most: int) -> str:
    try:
        return read_text(path, most)
    except FileError:
        raise
    except OSError as error:
        raise MalformedFileError(path, f"cannot be read: {error.strerror}") from None


def _parse_graph(text: str) -> Any:
    return read_json(text.encode(), _GRAPH, "It")


def _find_line(parse: Callable[[str], Any], text: str, message: str) -> int:
    """The line up to which a text must be there for a parser to raise what it raised: it goes from top to bottom."""
    lines = text.splitlines(keepends=True)
    low, high = 1, len(lines)
    while low < high:
        middle = (low + high) // 2
        try:
            parse("".join(lines[:middle]))
            same = False
        except GuardError as error:
            same = error.message == message
        low, high = (low, middle) if same else (middle + 1, high)
    return max(low, 1)


def find_odd_values(values: Any) -> list[tuple[Place, str]]:
    """(place, what is wrong) of each value of a manifest that a prompt or an answer cannot hold."""
    found: list[tuple[Place, str]] = []
    waiting: list[tuple[Place, Any]] = [((), values)]
    seen = 0
    while waiting:
        place, value = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES:
            return [((), f"it holds more than {_MOST_VALUES} values")]
        if isinstance(value, (dict, list)):
            if len(place) > _DEEPEST:
                return [(place, f"it is nested more than {_DEEPEST} levels deep")]
            members = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [((*place, name), member) for name, member in members]
        elif isinstance(value, float) and not math.isfinite(value):
            found.append((place, "must be a finite number"))
        elif isinstance(value, int) and abs(value) > _MOST_INT:
            found.append((place, "is too large a number"))
        elif isinstance(value, (datetime.date, datetime.time)):
            found.append((place, "must be a text, a number, true, false, a list or a table, not a date"))
    return found
