"""Tell what numbers and texts a node gives: followed, or bounded, or `ANYTHING`, or None where only the run can tell.

A node that works with nothing but numbers and texts of the prompt, and whose way of doing so nobody has followed, may
come to anything: whoever sent the prompt knows, and the run does, and a small number would be a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..graph import is_link
from . import texts
from .classes import NodeClass
from .names import Trait
from .ranges import ANYTHING, ENDLESS, Range, apply_word, evaluate, is_certain, knows_word, read_number, read_text
from .values import Value

_FORMULA = re.compile(r"expression|formula|equation|value|code", re.I)
_WORD = re.compile(r"operation|operator|op|mode|method|function", re.I)
_SELECTOR = re.compile(r"switch|evaluate|boolean|cond|condition|select(?:ed)?|index|input|number_type|sel_mode", re.I)
_YES = frozenset({"on_true", "tt_value", "if_true", "true_value", "true"})
_NO = frozenset({"on_false", "ff_value", "if_false", "false_value", "false"})
_MATH = ((Trait.PLUS, "+"), (Trait.MINUS, "-"), (Trait.TIMES, "*"), (Trait.OVER, "/"))
_NOT_PICKED = re.compile(r".*seed|control_.*", re.I)

Kind = Callable[[Any], str]


class PlainNode:
    """One node, as far as it gives numbers and texts.

    Args:
        linked: what its links bring.
        kind_of: the kind of output that a link comes from.
    """

    def __init__(
        self,
        class_type: str,
        node_class: NodeClass,
        inputs: Mapping[str, Any],
        linked: Mapping[str, Value],
        kind_of: Kind,
        budget: texts.Budget,
    ) -> None:
        self._type = class_type
        self._class = node_class
        self._inputs = inputs
        self._linked = linked
        self._kind_of = kind_of
        self._budget = budget
        self.told = node_class.computes and all(value.told for value in linked.values())

    def read(self, name: str) -> Range | None:
        return read_value(self._linked[name]) if name in self._linked else read_text(self._inputs[name])

    def give(self) -> Value:
        """What it gives, where its outputs do not differ."""
        number, text = self._find()
        if number is None and text is None and (self.told or Trait.COUNTS in self._class.traits):
            number = ANYTHING  # nobody needs to know how long a text is that nobody knows
        return Value(number=number, text=text, told=self.told)

    def list_branches(self) -> dict[str, Any]:
        """What a switch may hand on: of a selector that is known, its branch; else any of them."""
        inputs = self._inputs
        branches = {name: value for name, value in inputs.items() if not _SELECTOR.fullmatch(name)}
        name = next((name for name in inputs if name in ("switch", "boolean", "cond")), None)
        selector = inputs[name] if name is not None else None
        chosen = self.read(name) if name is not None and (is_link(selector) or isinstance(selector, int)) else None
        if chosen is not None and chosen[0] == chosen[1]:
            wanted = _YES if chosen[0] else _NO
            branches = {name: value for name, value in branches.items() if name in wanted} or branches
        return branches

    def _find(self) -> tuple[Range | None, str | None]:
        if (formula := texts.FORMULAS.get(self._type)) is not None:
            return evaluate(formula, {name: self.read(name) for name in self._inputs}), None
        if texts.knows(self._type):
            return self._apply_rule()
        node_class, inputs = self._class, self._inputs
        if len(inputs) == 1 and (node_class.hands_on or not node_class.known):
            name = next(iter(inputs))
            if Trait.COUNTS not in node_class.traits:
                return self.read(name), self._text_of(name)
        return self._calculate(), None

    def _apply_rule(self) -> tuple[Range | None, str | None]:
        made = texts.make(self._type, {name: self._plain(name) for name in self._inputs}, self._budget)
        if isinstance(made, str):
            return None, made
        if made is not None:
            return (float(made), float(made)), None
        return self._bound(), None

    def _bound(self) -> Range | None:
        if (bounds := texts.BOUNDS.get(self._type)) is not None:
            return bounds
        if (same := texts.SAME.get(self._type)) is not None and same in self._inputs:
            return self.read(same)
        whole = texts.PARTS.get(self._type)
        text = self._text_of(whole) if whole is not None and whole in self._inputs else None
        return texts.find_largest(text, self._budget) if text is not None else None

    def _calculate(self) -> Range | None:
        """What a node makes of several numbers, by a formula or a word in its inputs, or by its name."""
        traits, operands = self._class.traits, self._list_operands()
        found: list[Range | None] = []
        for name in self._inputs:
            formula = _FORMULA.fullmatch(name) is not None
            if not formula and not (Trait.CALCULATES in traits and self._class.inputs.get(name) == "STRING"):
                if _WORD.fullmatch(name) and (text := self._text_of(name)) is not None and knows_word(text):
                    return apply_word(text, list(operands.values()))
                continue
            if not self._is_text(name):
                continue
            text = self._text_of(name)
            if text is None:
                found.append(ANYTHING if self._linked[name].told else None)
            elif self._budget.formula_chars < len(text):
                found.append(ANYTHING)
            else:
                self._budget.formula_chars -= len(text)
                found.append(evaluate(text, operands))
        if found:
            return self._unite(found)
        for trait, sign in _MATH:
            if trait in traits and len(operands) == 2:
                return apply_word(sign, list(operands.values()))
        if Trait.PICKS in traits and operands:
            picked = [known for name, known in operands.items() if not _NOT_PICKED.fullmatch(name)]
            return self._unite(picked) if picked else None
        return None

    def _unite(self, found: list[Range | None]) -> Range | None:
        known = [each for each in found if each is not None]
        if ANYTHING in known and not (self.told or self._class.only_numbers):
            return None
        if not known:
            return None
        sure = len(known) == len(found) and all(map(is_certain, known))
        return min(low for low, _ in known) if sure else ANYTHING[0], max(high for _, high in known)

    def _list_operands(self) -> dict[str, Range | None]:
        operands: dict[str, Range | None] = {}
        for name, value in self._inputs.items():
            short = name.rpartition(".")[2]
            if name in self._linked or isinstance(value, (int, float)):
                operands[short] = self.read(name)
                extent = self._linked[name].extent if name in self._linked else None
                if extent is not None:
                    # A picture's shape: how many, its sides, its colours; as a whole, or one of them.
                    sides = extent.width + extent.height + extent.pictures + 4
                    operands[short] = operands[f"{short}[]"] = (0, sides) if extent.area and extent.known else None
            elif isinstance(value, str) and self._class.inputs.get(name) == "*":
                operands[short] = read_text(value)
        return operands

    def _is_text(self, name: str) -> bool:
        if name in self._linked:
            value = self._linked[name]
            return value.text is not None or (value.number is None and value.extent is None)
        return isinstance(self._inputs[name], str)

    def _text_of(self, name: str) -> str | None:
        if name in self._linked:
            return self._linked[name].text
        value = self._inputs[name]
        return value if isinstance(value, str) else None

    def _plain(self, name: str) -> texts.Plain | None:
        """What an input holds, to the letter; None: it is not known."""
        if name not in self._linked:
            value = self._inputs[name]
            while isinstance(value, dict) and "__value__" in value:
                value = value["__value__"]
            return value if isinstance(value, (str, int, float)) else None
        value = self._linked[name]
        if value.text is not None or value.number is None:
            return value.text
        low, high = value.number
        if low == high and abs(low) < 2**53 and low == int(low):
            kind = self._kind_of(self._inputs[name])
            return bool(low) if kind == "BOOLEAN" else int(low) if kind == "INT" else None
        return None


def find_named(name: str, inputs: Mapping[str, Any]) -> str | None:
    """The input that an output is named after."""
    return next((each for each in inputs if each.rpartition(".")[2].lower() == name.lower()), None)


def read_value(value: Value) -> Range | None:
    return value.number if value.number is not None or value.text is None else read_text(value.text)


def of_constant(value: Any) -> Value | None:
    number = read_number(value)
    if isinstance(value, str):
        return Value(number=(number, number) if number is not None else None, text=value, told=True)
    return Value(number=(number, number), told=True) if number is not None else None


def fit(kind: str, number: Range | None, traits: frozenset[Trait]) -> Range | None:
    """What is left of a number in an output of that kind."""
    if number is None or kind not in ("INT", "BOOLEAN"):
        return number
    if kind == "BOOLEAN":
        return (0, 1) if number[0] != number[1] else (float(number[0] != 0), float(number[0] != 0))
    if Trait.ROUNDS_OFF in traits:
        return _truncate(number[0]), _truncate(number[1] + 0.5)
    return _truncate(number[0]), _truncate(number[1])


def _truncate(number: float) -> float:
    return float(int(number)) if abs(number) <= ENDLESS else number
