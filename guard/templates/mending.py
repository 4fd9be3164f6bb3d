"""Make a manifest that can be judged of one with faults, so that none of them hides another.

What is wrong is left out, or something harmless put in its place; those places are noted, and nothing that depends on
them is judged.
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Set
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ..bounds import read_complaint
from .lines import Place
from .reading import find_odd_values

T = TypeVar("T")

#: Each round mends all that pydantic tells at once; what is put in place of something can be wrong but once more.
_ROUNDS = 6
#: In place of what is needed and missing.
_STAND_INS: dict[str, Any] = {
    **{name: {"en": "-"} for name in ("title", "description", "help")},
    **{name: ["-"] for name in ("outputs", "classes")},
    **{name: {} for name in ("parameters", "inputs")},
    **dict.fromkeys(("file", "folder", "source", "licence", "name", "step"), "-"),
    "type": "text",
    "size_mb": 1,
    "gib": 0,
}


class Unsure:
    """The places of a mended manifest where it does not say what its author meant."""

    def __init__(self) -> None:
        self._places: set[Place] = set()
        self._fields: defaultdict[Place, set[str | int]] = defaultdict(set)

    def __bool__(self) -> bool:
        return bool(self._places)

    def add(self, place: Place) -> None:
        self._places.add(place)
        for depth, name in enumerate(place):
            self._fields[place[:depth]].add(name)

    def holds(self, *place: str | int) -> bool:
        """Whether the place, or what it lies in, is such a one."""
        return any(place[:depth] in self._places for depth in range(len(place) + 1))

    def list_fields(self, *table: str | int) -> Set[str | int]:
        """The keys of that table under which there is such a place."""
        return self._fields.get(table, frozenset())


def mend(values: dict[str, Any], validate: Callable[[str], T]) -> tuple[T | None, list[tuple[Place, str]], Unsure]:
    """What the values say once they are mended, in place; each fault's place and a sentence about it; what is unsure.

    Args:
        validate: reads JSON, and raises pydantic's ValidationError.
    """
    told: dict[Place, list[str]] = {}
    unsure = Unsure()
    for place, text in find_odd_values(values):
        told[place] = [text]
        unsure.add(place)
        if not place:  # there is too much of it
            return None, [((), text)], unsure
        _enter(values, place[:-1])[place[-1]] = None
    manifest = None
    for _ in range(_ROUNDS):
        try:
            manifest = validate(json.dumps(values))
            break
        except ValidationError as error:
            complaints: dict[Place, list[ErrorDetails]] = {}
            for item in error.errors():
                complaints.setdefault(_find_place(values, item), []).append(item)
            for place, items in complaints.items():
                _mend(values, place, is_missing=items[0]["type"] == "missing")
                if not unsure.holds(*place):
                    told[place] = [read_complaint(item)[1] for item in items]
                    unsure.add(place)
    return manifest, [(place, _say(place, texts)) for place, texts in told.items()], unsure


def _say(place: Place, texts: list[str]) -> str:
    """Of a value that may be of several kinds, pydantic tells each that it is not."""
    first, *others = texts
    text = " or ".join([first, *(other.removeprefix("Input should be ") for other in others)])
    return f"{'.'.join(map(str, place))}: {text}"


def _enter(values: Any, place: Place) -> Any:
    for part in place:
        values = values[part]
    return values


def _find_place(values: dict[str, Any], item: ErrorDetails) -> Place:
    """Where the fault is; pydantic's own place goes on, where a value may be of several kinds."""
    if item["type"] == "missing":
        return item["loc"]
    place: Place = ()
    at: Any = values
    for part in item["loc"]:
        if not (part in at if isinstance(at, dict) else isinstance(at, list) and part in range(len(at))):
            break
        at, place = at[part], (*place, part)
    return place


def _mend(values: dict[str, Any], place: Place, *, is_missing: bool) -> None:
    if not place:
        return
    around, name = _enter(values, place[:-1]), place[-1]
    if is_missing:
        around[name] = copy.deepcopy(_STAND_INS.get(str(name)))
    elif isinstance(around, list):
        around[int(name)] = {} if len(place) == 2 and place[0] != "outputs" else ""
    elif "when" in place[:-1]:
        around[name] = True
    else:
        around.pop(name, None)
