"""Bound how many steps a regular expression takes, before it runs.

Python's `re` tries every way of matching, and lets no other thread run meanwhile, so nothing can stop it. A pattern is
read by Python's own parser. Each repeat that may give back what it took, because what follows could match that too,
multiplies the ways by as often as it repeats. Within another repeat that has no bound worth a name, so it is endless.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

# Python 3.11 gave its parser a new name.
_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

#: Longer ones are not read.
_LONGEST = 2000
#: Letters that others fold to, and a few far away.
_SAMPLES = frozenset(map(chr, range(256))) | frozenset("\u0130\u0131\u017f\u212a\u2028\u3000\u4e2d\uffff\U0001f600")
_CATEGORIES = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}

Chars = frozenset[str]
_NONE: Chars = frozenset()


class _EndlessError(Exception):
    pass


def bound_steps(pattern: str, chars: float) -> float:
    """How many steps it takes to look for a pattern everywhere in a text of so many characters, at most about.

    Infinite where that has no useful bound; 0 for what is no pattern, which fails at once.
    """
    if len(pattern) > _LONGEST:
        return math.inf
    try:
        parsed = _parser.parse(pattern)
    except (re.error, OverflowError, ValueError):
        return 0
    except (RecursionError, MemoryError):
        return math.inf
    try:
        reader = _Reader(parsed, chars)
        ways = reader.read(parsed, _NONE, within=False)
    except (_EndlessError, RecursionError, OverflowError):
        return math.inf
    each = max(ways, chars if reader.repeats else 1)
    # One sign that repeats is counted in a tight loop; what is put together goes the long way.
    return (chars + 1) * (each * (10 if reader.slow else 1) + len(pattern))


def bound_matches(pattern: str, chars: float) -> tuple[float, bool]:
    """(how many matches there are in such a text at most, whether groups of theirs may overlap)."""
    try:
        parsed = _parser.parse(pattern)
        least = parsed.getwidth()[0]
    except (re.error, OverflowError, ValueError, RecursionError, MemoryError):
        return 0, False
    return (chars // least if least else chars + 1), "(?=" in pattern or "(?<" in pattern


class _Reader:
    def __init__(self, parsed: Any, chars: float) -> None:
        self._chars = max(chars, 1)
        self._alphabet = _SAMPLES | _list_neighbours(_list_letters(parsed))
        self.repeats = self.slow = False

    def read(self, items: Sequence[Any], after: Chars, *, within: bool) -> float:
        """In how many ways they can match from one place on. `after`: what may follow; `within`: inside a repeat."""
        ways = 1.0
        follow = after
        for op, value in reversed(list(items)):
            ways *= self._read_one(str(op), value, follow, within)
            if within and ways > 1:
                raise _EndlessError
            follow = self._find_first(op, value) | (follow if self._may_be_empty(op, value) else _NONE)
        return ways

    def _read_one(self, name: str, value: Any, follow: Chars, within: bool) -> float:
        if name == "SUBPATTERN":
            return self.read(value[-1], follow, within=within)
        if name == "ATOMIC_GROUP":
            return self.read(value, follow, within=within)
        if name == "BRANCH":
            branches = value[1]
            ways = sum(self.read(branch, follow, within=within) for branch in branches)
            firsts = [self._find_first_of(branch, follow) for branch in branches]
            apart = sum(map(len, firsts)) == len(frozenset().union(*firsts))
            return 1 if apart and ways == len(branches) else ways
        if name.endswith("REPEAT"):
            return self._read_repeat(value, follow, within)
        if name in ("ASSERT", "ASSERT_NOT"):
            before = self.repeats
            self.repeats = False
            ways = self.read(value[1], _NONE, within=within)
            if self.repeats:
                if within:
                    raise _EndlessError
                ways *= self._chars
            self.repeats = self.repeats or before
            return ways
        if name.startswith("GROUPREF"):
            if within or name != "GROUPREF":
                raise _EndlessError
            return self._chars
        return 1

    def _read_repeat(self, value: Any, follow: Chars, within: bool) -> float:
        low, high, body = int(value[0]), int(value[1]), value[2]
        if high > 1 and self._is_empty(body):
            raise _EndlessError
        first = self._find_first_of(body, _NONE)
        inner = self.read(body, first | follow if high > 1 else follow, within=within or high > 1)
        if high > 1:
            self.repeats = True
            self.slow = self.slow or len(body) > 1 or str(body[0][0]) not in ("LITERAL", "NOT_LITERAL", "ANY", "IN")
        if low == high:
            return inner
        if first.isdisjoint(follow):
            return inner
        return inner * min(high - low + 1, self._chars + 1)

    # What a part may begin with. -------------------------------------------------------------------------------

    def _find_first_of(self, items: Iterable[Any], after: Chars) -> Chars:
        found = _NONE
        for op, value in items:
            found |= self._find_first(op, value)
            if not self._may_be_empty(op, value):
                return found
        return found | after

    def _find_first(self, op: Any, value: Any) -> Chars:
        name = str(op)
        if name in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return self._find_chars(name, value)
        if name == "SUBPATTERN":
            return self._find_first_of(value[-1], _NONE)
        if name == "ATOMIC_GROUP":
            return self._find_first_of(value, _NONE)
        if name == "BRANCH":
            return frozenset().union(*(self._find_first_of(branch, _NONE) for branch in value[1]))
        if name.endswith("REPEAT"):
            return self._find_first_of(value[2], _NONE)
        # What is looked for ahead is looked for once more with each letter that is given back.
        return _NONE if name == "AT" else self._alphabet

    def _may_be_empty(self, op: Any, value: Any) -> bool:
        name = str(op)
        if name in ("LITERAL", "NOT_LITERAL", "ANY", "IN", "FAILURE"):
            return False
        if name == "SUBPATTERN":
            return self._is_empty(value[-1])
        if name == "ATOMIC_GROUP":
            return self._is_empty(value)
        if name == "BRANCH":
            return any(map(self._is_empty, value[1]))
        if name.endswith("REPEAT"):
            return value[0] == 0 or self._is_empty(value[2])
        return True

    def _is_empty(self, items: Iterable[Any]) -> bool:
        return all(self._may_be_empty(op, value) for op, value in items)

    def _find_chars(self, name: str, value: Any) -> Chars:
        """What one sign of a pattern matches of the samples, in capitals or not."""
        if name == "ANY":
            return self._alphabet
        if name == "LITERAL":
            return _fold({chr(value)})
        if name == "NOT_LITERAL":
            return _fold(self._alphabet - {chr(value)})
        found: set[str] = set()
        negated = False
        for op, part in value:
            kind = str(op)
            if kind == "NEGATE":
                negated = True
            elif kind == "LITERAL":
                found.add(chr(part))
            elif kind == "RANGE":
                found |= {letter for letter in self._alphabet if part[0] <= ord(letter) <= part[1]}
            else:
                word = str(part).removeprefix("CATEGORY_")
                sign = re.compile(_CATEGORIES[word.removeprefix("NOT_")])
                no = word.startswith("NOT_")
                found |= {letter for letter in self._alphabet if (sign.match(letter) is None) == no}
        return _fold(self._alphabet - found if negated else found)


def _fold(letters: Iterable[str]) -> Chars:
    kept = frozenset(letters)
    return kept | {other for letter in kept for other in (letter.lower(), letter.upper()) if len(other) == 1}


def _list_letters(parsed: Any) -> set[int]:
    """Every letter that a pattern names."""
    found: set[int] = set()
    waiting = [parsed]
    while waiting:
        item = waiting.pop()
        if isinstance(item, int):
            if 0 <= int(item) <= sys.maxunicode:
                found.add(int(item))
        elif isinstance(item, (list, tuple, _parser.SubPattern)):
            waiting += list(item)
    return found


def _list_neighbours(letters: Iterable[int]) -> Chars:
    return _fold(chr(at + by) for at in letters for by in (-1, 0, 1) if 0 <= at + by <= sys.maxunicode)
