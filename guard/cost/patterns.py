"""Bound how many steps a regular expression takes, before it runs.

Python's `re` tries every way of matching, and lets no other thread run meanwhile, so nothing can stop it. A pattern is
read by Python's own parser. Each repeat that may give back what it took, because what follows could match that too,
multiplies the ways by as often as it repeats, and what follows is gone through anew for each. Within another repeat
that has no bound worth a name, so it is endless.
"""

from __future__ import annotations

import functools
import importlib
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

# Python 3.11 gave its parser a new name.
_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
_to_lower: Any = importlib.import_module("_sre").unicode_tolower
#: Letters that `re` takes for each other though no other than these says so, by their code.
_ALIKE: Any = (
    importlib.import_module("re._casefix")._EXTRA_CASES
    if sys.version_info >= (3, 11)
    else importlib.import_module("sre_compile")._ignorecase_fixes
)

#: Longer ones are not read.
_LONGEST = 2000
#: Letters that others fold to, and a few far away.
_SAMPLES = frozenset(map(chr, range(256))) | frozenset("\u0130\u0131\u017f\u212a\u2028\u3000\u4e2d\uffff\U0001f600")
#: Letters of ASCII that others, too, are taken for in capitals or not: `K` of Kelvin, `ſ`, `ı`.
_FOLDED = frozenset("iIkKsS")
#: `(?a)`, by which `\\W` is a letter, too, that is none of ASCII's.
_ASCII = re.compile(r"\(\?[aiLmsux]*a[aiLmsux]*(?:-[imsx]+)?[:)]")
_SIGNS = ("LITERAL", "NOT_LITERAL", "ANY", "IN")
_CATEGORIES = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}

Chars = frozenset[str]
_NONE: Chars = frozenset()


class _EndlessError(Exception):
    pass


def bound_steps(pattern: str, chars: float, *, lines: bool = True, text: str | None = None) -> float:
    """How many steps it takes to look for a pattern everywhere in a text of so many characters, at most about.

    Infinite where that has no useful bound; 0 for what is no pattern, which fails at once.

    Args:
        lines: `^` may match at the beginning of each line.
        text: the text itself, where it is known: of a pattern that begins with certain letters nothing is tried where
            those are not, and what repeats a sign repeats it no more often than the text does.
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
        reader = _Reader(parsed, chars, is_ascii=_ASCII.search(pattern) is not None, text=text)
        # From one place on, as where the whole text must match.
        whole = reader.read(parsed, _NONE, within=False).cost
        cost = 0.0 if _is_anchored(parsed, lines) else reader.read(_drop_sure(parsed), _NONE, within=False).light
    except (_EndlessError, RecursionError, OverflowError):
        return math.inf
    # One sign that repeats is counted in a tight loop; what is put together goes the long way.
    slower = 10 if reader.slow else 1
    everywhere = (chars + 1) * (cost * slower + len(pattern))
    if text is not None and (begins := _find_beginning(parsed)):
        places = text.lower().count(begins) * len(begins)  # which may overlap
        everywhere = min(everywhere, (chars + 1) * len(pattern) + places * whole * slower)
    return max(everywhere, whole * slower)


def _find_beginning(parsed: Any) -> str:
    """The letters of ASCII with which each match begins, small ones; empty: there are none."""
    found = ""
    for op, value in _flatten(parsed):
        # Others may be alike to letters of which `lower` knows nothing.
        if str(op) != "LITERAL" or value >= 128 or chr(value) in _FOLDED:
            break
        found += chr(value).lower()
    return found


def _is_anchored(parsed: Any, lines: bool) -> bool:
    """Whether it matches at the beginning of the text, if at all."""
    if not parsed or str(parsed[0][0]) != "AT":
        return False
    where = str(parsed[0][1])
    lines = lines or bool(parsed.state.flags & re.MULTILINE)
    return where == "AT_BEGINNING_STRING" or (where == "AT_BEGINNING" and not lines)


def _drop_sure(items: Iterable[Any]) -> list[Any]:
    """Without what may be empty at its end: that never fails, so nothing is tried anew for it."""
    kept = list(items)
    while kept:
        op, value = kept[-1]
        name = str(op)
        if name == "SUBPATTERN":
            is_sure = not _drop_sure(value[-1])
        else:
            is_sure = name in ("MAX_REPEAT", "MIN_REPEAT") and value[0] == 0 and _is_sign(value[2])
        if not is_sure:
            break
        kept.pop()
    return kept


def _is_sign(body: Any) -> bool:
    return len(body) == 1 and str(body[0][0]) in _SIGNS


def bound_matches(pattern: str, chars: float) -> tuple[float, bool]:
    """(how many matches there are in such a text at most, whether groups of theirs may overlap)."""
    try:
        parsed = _parser.parse(pattern)
        least = parsed.getwidth()[0]
    except (re.error, OverflowError, ValueError, RecursionError, MemoryError):
        return 0, False
    # Where nothing may match, so it does before each match of something, and at the end.
    return (chars // least if least else 2 * chars + 1), "(?=" in pattern or "(?<" in pattern


class _Effort(NamedTuple):
    """In how many ways something may match from one place on, and how many steps it takes to have tried them all.

    Attributes:
        light: the same as `cost`, from everywhere in the text, divided by its length.
    """

    ways: float
    cost: float
    light: float = 1


class _Reader:
    def __init__(self, parsed: Any, chars: float, *, is_ascii: bool, text: str | None = None) -> None:
        self._is_ascii = is_ascii
        self._chars = max(chars, 1)
        self._text = text
        self._letters = frozenset(text) if text is not None else _NONE
        self._alphabet = _SAMPLES | _list_neighbours(_list_letters(parsed)) | self._letters
        self.repeats = self.slow = False

    def read(self, items: Sequence[Any], after: Chars, *, within: bool) -> _Effort:
        """What they take from one place on. `after`: what may follow; `within`: inside a repeat."""
        ways, cost, light = 1.0, 1.0, 1.0
        follow = after
        parts = list(_flatten(items))
        for (op, value), before in reversed(list(zip(parts, self._list_before(parts), strict=True))):
            one = self._read_one(str(op), value, follow, within)
            # What ends in one way leaves less to what follows than it has gone through itself.
            ways, cost = ways * one.ways, max(one.cost, one.ways * light if one.ways > 1 else cost)
            if str(op) not in _SIGNS and str(op) != "AT":
                # Where it begins behind what it does not match, no two of its runs have a letter in common.
                chars = self._find_one(op, value)
                light = light + 1 if chars is not None and chars.isdisjoint(before) else max(cost, light)
            if within and ways > 1:
                raise _EndlessError
            follow = self._find_first(op, value) | (follow if self._may_be_empty(op, value) else _NONE)
        return _Effort(ways, cost, light)

    def _list_before(self, parts: Sequence[Any]) -> list[Chars]:
        """What may stand before each of them."""
        found, before = [], self._alphabet
        for op, value in parts:
            found.append(before)
            last = self._find_one(op, value)
            if last is None:
                last = self._alphabet
            before = last | (before if self._may_be_empty(op, value) else _NONE)
        return found

    def _find_one(self, op: Any, value: Any) -> Chars | None:
        """What a sign matches, or one that repeats; None where it is more than one."""
        name = str(op)
        if name in _SIGNS:
            return self._find_chars(name, value)
        if name.endswith("REPEAT") and len(value[2]) == 1:
            return self._find_one(*value[2][0])
        return None

    def _read_one(self, name: str, value: Any, follow: Chars, within: bool) -> _Effort:
        if name == "SUBPATTERN":
            return self.read(value[-1], follow, within=within)
        if name == "ATOMIC_GROUP":
            return self.read(value, follow, within=within)
        if name == "BRANCH":
            branches = value[1]
            efforts = [self.read(branch, follow, within=within) for branch in branches]
            ways, cost = sum(each.ways for each in efforts), sum(each.cost for each in efforts)
            firsts = [self._find_first_of(branch, follow) for branch in branches]
            apart = sum(map(len, firsts)) == len(frozenset().union(*firsts))
            return _Effort(1 if apart and ways == len(branches) else ways, cost)
        if name.endswith("REPEAT"):
            return self._read_repeat(value, follow, within)
        if name in ("ASSERT", "ASSERT_NOT"):
            before = self.repeats
            self.repeats = False
            cost = self.read(value[1], _NONE, within=within).cost
            if self.repeats and within:
                raise _EndlessError
            self.repeats = self.repeats or before
            return _Effort(1, cost)
        if name.startswith("GROUPREF"):
            if within or name != "GROUPREF":
                raise _EndlessError
            return _Effort(1, self._chars)
        return _Effort(1, 1)

    def _read_repeat(self, value: Any, follow: Chars, within: bool) -> _Effort:
        low, high, body = int(value[0]), int(value[1]), value[2]
        if self._text is not None and high > 1 and _is_sign(body):
            high = max(min(high, self._measure_longest(*body[0])), low, 1)
        if high > 1 and self._is_empty(body):
            raise _EndlessError
        first = self._find_first_of(body, _NONE)
        inner = self.read(body, first | follow if high > 1 else follow, within=within or high > 1)
        cost = inner.cost
        if high > 1:
            self.repeats = True
            self.slow = self.slow or len(body) > 1 or str(body[0][0]) not in _SIGNS
            # What it goes through in one round, no other round goes through.
            cost = min(high * inner.cost, max(self._chars, inner.cost))
        if low == high or first.isdisjoint(follow):
            return _Effort(inner.ways, cost)
        return _Effort(inner.ways * min(high - low + 1, self._chars + 1), cost)

    def _measure_longest(self, op: Any, value: Any) -> int:
        """How often one sign is followed by itself in the text at most."""
        letters = self._find_chars(str(op), value) & self._letters
        if len(letters) == len(self._letters):
            return len(self._text or "")
        if not letters:
            return 0
        run = re.compile("[" + "".join(map(re.escape, letters)) + "]+")
        return max((len(found[0]) for found in run.finditer(self._text or "")), default=0)

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
        if name in _SIGNS:
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
                if self._is_ascii and (no or negated):
                    return self._alphabet
        return _fold(self._alphabet - found if negated else found)


def _flatten(items: Iterable[Any]) -> Iterator[Any]:
    """What stands one after the other, also in groups."""
    for op, value in items:
        if str(op) == "SUBPATTERN":
            yield from _flatten(value[-1])
        else:
            yield op, value


def _fold(letters: Iterable[str]) -> Chars:
    """With all that they are alike to, in capitals or not."""
    kept = frozenset(letters)
    return kept | {other for letter in kept for other in _list_alike(letter)}


@functools.lru_cache(maxsize=4096)
def _list_alike(letter: str) -> tuple[str, ...]:
    lower = _to_lower(ord(letter))
    others = (letter.lower(), letter.upper(), chr(lower), *map(chr, _ALIKE.get(lower, ())))
    return tuple(other for other in others if len(other) == 1)


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
