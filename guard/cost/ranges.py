"""Numbers of which only the bounds are known, and formulas over them."""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: (lowest, highest). Both the same: the number is known. A lowest of -inf: it may also be what nobody knows.
Range = tuple[float, float]

#: Anything beyond this is too much. Without a bound, a number doubled a thousand times would outgrow the graph.
ENDLESS = 1e18

#: What nobody has followed, though it is made of nothing but what the prompt says: it may be anything.
ANYTHING: Range = (-math.inf, ENDLESS)

_LONGEST = 1000
#: No list of numbers is read that is longer: one text may feed every node of a prompt.
LONGEST_LIST = 20_000
_NUMBER = re.compile(r"[\s+\-_.]*(?:\d|$)")
_LIST = re.compile(r"\s*[\d.][\d.\s,;+]*", re.ASCII)


def read_number(value: Any) -> float | None:
    """The number that ComfyUI makes of an input; it unwraps `__value__` and converts text."""
    while isinstance(value, dict) and "__value__" in value:
        value = value["__value__"]
    if not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    except OverflowError:
        number = math.inf if int(value) > 0 else -math.inf  # more than 308 digits
    return None if math.isnan(number) else clip(number)


def read_list(text: Any) -> list[float]:
    """The numbers of a text such as `"20,500"`, or `"0.9, 0.5, 0"`; none where it is another text."""
    if not isinstance(text, str) or not _LIST.match(text):
        return []
    if len(text) > LONGEST_LIST:
        return [ENDLESS]
    if not _LIST.fullmatch(text):
        return []
    numbers = (read_number(part) for part in re.split(r"\.{2,}|[\s,;+]+", text) if part)
    return [number for number in numbers if number is not None]


def read_text(text: Any) -> Range | None:
    """The number that a text or a constant is, or the bounds of those that it has; None where it is another text."""
    if isinstance(text, str) and len(text) > LONGEST_LIST:
        return ANYTHING if _NUMBER.match(text[:50]) else None
    if (number := read_number(text)) is not None:
        return number, number
    numbers = read_list(text)
    return (min(numbers), max(numbers)) if numbers else None


def clip(number: float) -> float:
    return max(min(number, ENDLESS), -ENDLESS)


def unite(ranges: Sequence[Range | None]) -> Range | None:
    """What any of them may be; None where all are unknown."""
    known = [each for each in ranges if each is not None]
    if not known:
        return None
    low = min(low for low, _high in known) if len(known) == len(ranges) else -math.inf
    return low, max(high for _low, high in known)


def take_size(known: Range | None) -> Range | None:
    """Without the sign, by which some nodes tell a direction. -1 mostly stands for all."""
    if known is None or not -math.inf < known[0] < -1:
        return known
    low, high = known
    return (0 if high > 0 else -high), max(-low, high)


def is_certain(known: Range | None) -> bool:
    return known is not None and known[0] != -math.inf


def evaluate(formula: str, names: Mapping[str, Range | None]) -> Range | None:
    """What a formula may come to. Takes what simpleeval and its like take.

    Of a name that only the run can tell (None), one is taken; the lowest is then -inf, and where nothing can be told,
    the answer is None. `ANYTHING` where that is the formula's own fault.
    """
    if len(formula) > _LONGEST:
        return ANYTHING
    tree = _parse(formula)
    if tree is None:
        return ANYTHING
    reader = _Formula(names)
    try:
        return reader.operands.give(reader.find(tree))
    except (ArithmeticError, ValueError, RecursionError):
        return reader.operands.give(None)


def apply_word(word: str, operands: Sequence[Range | None]) -> Range | None:
    """The same for two numbers and a word such as `multiply`, or a sign."""
    word = word.strip().lower()
    for known, function in _WORDS:
        if known.fullmatch(word) and len(operands) == 2:
            used = _Operands()
            try:
                return used.give(function(*map(used.take, operands)))
            except (ArithmeticError, ValueError):
                return used.give(None)
    return ANYTHING


def knows_word(word: str) -> bool:
    return any(known.fullmatch(word.strip().lower()) for known, _function in _WORDS)


class _Operands:
    """Remembers whether one of them is not known, and why."""

    def __init__(self) -> None:
        self.open = self.endless = False

    def take(self, known: Range | None) -> Range:
        if known is None:
            self.open = True
            return 0, 1
        if is_certain(known):
            return known
        if known[1] >= ENDLESS:
            self.endless = True
            return -ENDLESS, ENDLESS
        self.open = True
        return min(0, known[1]), known[1]

    def give(self, result: Range | None) -> Range | None:
        if result is None:
            return None if self.open and not self.endless else ANYTHING
        return (-math.inf, result[1]) if self.open or self.endless else result


@functools.lru_cache(maxsize=512)
def _parse(formula: str) -> ast.expr | None:
    try:
        return ast.parse(formula.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _corners(function: Callable[[float, float], float]) -> Callable[[Range, Range], Range]:
    """For what is monotonic in each operand: the extremes lie at the bounds."""

    def combine(left: Range, right: Range) -> Range:
        results = [clip(function(a, b)) for a in left for b in right]
        return min(results), max(results)

    return combine


def _divide(function: Callable[[float, float], float]) -> Callable[[Range, Range], Range]:
    def combine(left: Range, right: Range) -> Range:
        if right[0] <= 0 <= right[1]:
            raise ZeroDivisionError
        return _corners(function)(left, right)

    return combine


def _modulo(left: Range, right: Range) -> Range:
    if left[0] == left[1] and right[0] == right[1]:
        result = left[0] % right[0]
        return result, result
    most = max(map(abs, right))
    return (0 if left[0] >= 0 and right[0] > 0 else -most), most


def _raise_power(base: Range, power: Range) -> Range:
    if max(map(abs, power)) > 4000:
        raise ValueError(power)
    if base[0] < 0 and base[0] != base[1]:
        raise ValueError(base)
    return _corners(_power)(base, power)


def _power(base: float, power: float) -> float:
    try:
        result = base**power
    except OverflowError:
        return ENDLESS
    if isinstance(result, complex):
        raise ValueError(base)
    return float(result)


def _take_bits(left: Range, right: Range) -> Range:
    if left[0] == left[1] and right[0] == right[1]:
        result = float(int(left[0]) & int(right[0]))
        return result, result
    if left[0] < 0 and right[0] < 0:
        raise ValueError(left)
    return 0, min(high for low, high in (left, right) if low >= 0)


def _set_bits(left: Range, right: Range) -> Range:
    if left[0] < 0 or right[0] < 0:
        raise ValueError(left)
    return 0, clip(left[1] + right[1])


_ADD, _SUBTRACT, _MULTIPLY = _corners(operator.add), _corners(operator.sub), _corners(operator.mul)
_OPERATORS: dict[type[ast.operator], Callable[[Range, Range], Range]] = {
    ast.Add: _ADD,
    ast.Sub: _SUBTRACT,
    ast.Mult: _MULTIPLY,
    ast.Div: _divide(operator.truediv),
    ast.FloorDiv: _divide(operator.floordiv),
    ast.Mod: _modulo,
    ast.Pow: _raise_power,
    ast.LShift: lambda left, right: _MULTIPLY(left, _raise_power((2, 2), right)),
    ast.RShift: lambda left, right: _OPERATORS[ast.FloorDiv](left, _raise_power((2, 2), right)),
    ast.BitAnd: _take_bits,
    ast.BitOr: _set_bits,
    ast.BitXor: _set_bits,
}
_WORDS: tuple[tuple[re.Pattern[str], Callable[[Range, Range], Range]], ...] = (
    (re.compile(r"\+|add|sum|plus|addition"), _ADD),
    (re.compile(r"-|sub|subtract|minus|subtraction|difference"), _SUBTRACT),
    (re.compile(r"\*|×|x|mul|multiply|times|multiplication|product"), _MULTIPLY),
    (re.compile(r"/|div|divide|division|truediv"), _OPERATORS[ast.Div]),
    (re.compile(r"//|floor ?div|floor division|int ?div"), _OPERATORS[ast.FloorDiv]),
    (re.compile(r"\*\*|\^|pow|power|exponent"), _raise_power),
    (re.compile(r"%|mod|modulo|modulus"), _modulo),
    (re.compile(r"min|minimum"), _corners(min)),
    (re.compile(r"max|maximum"), _corners(max)),
)


def _monotonic(function: Callable[[float], float]) -> Callable[..., Range]:
    def apply(of: Range, *_more: Range) -> Range:
        return clip(function(of[0])), clip(function(of[1]))

    return apply


def _absolute(of: Range) -> Range:
    low, high = sorted(map(abs, of))
    return (0 if of[0] < 0 < of[1] else low), high


def _round(of: Range, digits: Range = (0, 0)) -> Range:
    """With fewer than no digits, to tens, hundreds, …"""
    if digits[0] != digits[1] or abs(digits[0]) > 30:
        raise ValueError(digits)
    return clip(round(of[0], int(digits[0]))), clip(round(of[1], int(digits[0])))


def _logarithm(of: Range, base: Range = (math.e, math.e)) -> Range:
    if base[0] <= 1 <= base[1]:
        raise ValueError(base)
    return _corners(math.log)(of, base)


def _within_one(*_of: Range) -> Range:
    return -1, 1


_FUNCTIONS: dict[str, Callable[..., Range]] = {
    "min": lambda *of: (min(low for low, _ in of), min(high for _, high in of)),
    "max": lambda *of: (max(low for low, _ in of), max(high for _, high in of)),
    "sum": lambda *of: (clip(sum(low for low, _ in of)), clip(sum(high for _, high in of))),
    "abs": _absolute,
    "pow": _raise_power,
    "round": _round,
    "ceil": _monotonic(math.ceil),
    "floor": _monotonic(math.floor),
    "int": _monotonic(math.trunc),
    "float": _monotonic(float),
    "sqrt": _monotonic(math.sqrt),
    "log": _logarithm,
    "log2": _monotonic(math.log2),
    "log10": _monotonic(math.log10),
    "exp": _monotonic(lambda number: math.exp(min(number, 50))),
    "sin": _within_one,
    "cos": _within_one,
}


class _Formula:
    """Raises ValueError or ArithmeticError where it cannot tell."""

    def __init__(self, names: Mapping[str, Range | None]) -> None:
        self._names = names
        self.operands = _Operands()

    def find(self, tree: ast.expr) -> Range:
        match tree:
            case ast.Constant(value=(int() | float()) as value):
                number = read_number(value)
                if number is None:
                    raise ValueError
                return number, number
            case ast.Name(id=name) if name in self._names:
                return self.operands.take(self._names[name])
            case ast.Name(id=name) if name in _CONSTANTS:
                return _CONSTANTS[name], _CONSTANTS[name]
            case ast.Subscript(value=ast.Name(id="values")) if self._names:
                return self._find_any(self._names)
            case ast.Subscript(value=ast.Name(id=name)) if f"{name}[]" in self._names:
                return self.operands.take(self._names[f"{name}[]"])
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
                return _OPERATORS[type(sign)](self.find(left), self.find(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                low, high = self.find(operand)
                return -high, -low
            case ast.UnaryOp(op=ast.Invert(), operand=operand):
                low, high = self.find(operand)
                return -high - 1, -low - 1
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.find(operand)
            case ast.UnaryOp(op=ast.Not()) | ast.Compare():
                return 0, 1
            case ast.IfExp(test=test, body=body, orelse=other):
                return self._choose(test, body, other)
            case ast.BoolOp(values=values):
                each = [self.find(value) for value in values]
                return min(low for low, _ in each), max(high for _, high in each)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name.lower() in _FUNCTIONS:
                return self._call(name.lower(), arguments)
        raise ValueError(ast.dump(tree)[:50])

    def _try(self, tree: ast.expr) -> Range | None:
        try:
            return self.find(tree)
        except (ArithmeticError, ValueError):
            return None

    def _find_any(self, names: Mapping[str, Range | None]) -> Range:
        each = [self.operands.take(known) for known in names.values()]
        return min(low for low, _ in each), max(high for _, high in each)

    def _choose(self, test: ast.expr, body: ast.expr, other: ast.expr) -> Range:
        """Of a comparison that can be told, one branch; else both."""
        match test:
            case ast.Compare(left=left, ops=[sign], comparators=[right]) if type(sign) in _COMPARISONS:
                one, two = self._try(left), self._try(right)
                sure = not (self.operands.open or self.operands.endless)
                if sure and one is not None and two is not None and one[0] == one[1] and two[0] == two[1]:
                    return self.find(body if _COMPARISONS[type(sign)](one[0], two[0]) else other)
        branches = self.find(body), self.find(other)
        return min(low for low, _ in branches), max(high for _, high in branches)

    def _read_text(self, tree: ast.expr) -> Range:
        if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
            if (number := read_number(tree.value)) is None:
                raise ValueError(tree.value)
            return number, number
        return self.find(tree)

    def _call(self, name: str, arguments: list[ast.expr]) -> Range:
        if len(arguments) == 1 and isinstance(arguments[0], ast.Name) and arguments[0].id == "values":
            operands = [self.operands.take(each) for each in self._names.values()]
        elif len(arguments) == 1 and isinstance(arguments[0], (ast.List, ast.Tuple)):
            operands = [self.find(each) for each in arguments[0].elts]
        else:
            operands = [self._read_text(each) if name in ("int", "float") else self.find(each) for each in arguments]
        try:
            return _FUNCTIONS[name](*operands)
        except TypeError as error:  # too many or too few of them
            raise ValueError(name) from error


_CONSTANTS = {"pi": math.pi, "e": math.e, "euler": math.e, "tau": math.tau}
_COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
