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

_LONGEST = 1000
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
    if not isinstance(text, str) or len(text) > 100_000 or not _LIST.fullmatch(text):
        return []
    numbers = (read_number(part) for part in re.split(r"\.{2,}|[\s,;+]+", text) if part)
    return [number for number in numbers if number is not None]


def count_chars(text: str | None) -> Range | None:
    return None if text is None else (len(text), len(text))


def clip(number: float) -> float:
    return max(min(number, ENDLESS), -ENDLESS)


def unite(ranges: Sequence[Range | None]) -> Range | None:
    """What any of them may be; None where all are unknown."""
    known = [each for each in ranges if each is not None]
    if not known:
        return None
    low = min(low for low, _high in known) if len(known) == len(ranges) else -math.inf
    return low, max(high for _low, high in known)


def is_certain(known: Range | None) -> bool:
    return known is not None and known[0] != -math.inf


def evaluate(formula: str, names: Mapping[str, Range | None]) -> Range | None:
    """What a formula may come to; None where that cannot be told. Takes what simpleeval and its like take."""
    if len(formula) > _LONGEST:
        return None
    tree = _parse(formula)
    try:
        return _Formula(names).find(tree) if tree is not None else None
    except (ArithmeticError, ValueError, RecursionError):
        return None


def apply_word(word: str, operands: Sequence[Range | None]) -> Range | None:
    """The same for two numbers and a word such as `multiply`, or a sign."""
    word = word.strip().lower()
    for known, function in _WORDS:
        if known.fullmatch(word) and len(operands) == 2 and all(map(is_certain, operands)):
            try:
                return function(*(each for each in operands if each is not None))
            except (ArithmeticError, ValueError):
                return None
    return None


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


def _within_one(*_of: Range) -> Range:
    return -1, 1


_FUNCTIONS: dict[str, Callable[..., Range]] = {
    "min": lambda *of: (min(low for low, _ in of), min(high for _, high in of)),
    "max": lambda *of: (max(low for low, _ in of), max(high for _, high in of)),
    "sum": lambda *of: (clip(sum(low for low, _ in of)), clip(sum(high for _, high in of))),
    "abs": _absolute,
    "pow": _raise_power,
    "round": _monotonic(lambda number: float(round(number + (0.5 if number > 0 else -0.5)))),
    "ceil": _monotonic(math.ceil),
    "floor": _monotonic(math.floor),
    "int": _monotonic(math.trunc),
    "float": _monotonic(float),
    "sqrt": _monotonic(math.sqrt),
    "log": _monotonic(math.log),
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

    def find(self, tree: ast.expr) -> Range:
        match tree:
            case ast.Constant(value=(int() | float()) as value):
                number = read_number(value)
                if number is None:
                    raise ValueError
                return number, number
            case ast.Name(id=name):
                found = self._names.get(name)
                if found is None or not is_certain(found):
                    raise ValueError(name)
                return found
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

    def _choose(self, test: ast.expr, body: ast.expr, other: ast.expr) -> Range:
        """Of a comparison that can be told, one branch; else both."""
        match test:
            case ast.Compare(left=left, ops=[sign], comparators=[right]) if type(sign) in _COMPARISONS:
                one, two = self.find(left), self.find(right)
                if one[0] == one[1] and two[0] == two[1]:
                    return self.find(body if _COMPARISONS[type(sign)](one[0], two[0]) else other)
        branches = self.find(body), self.find(other)
        return min(low for low, _ in branches), max(high for _, high in branches)

    def _call(self, name: str, arguments: list[ast.expr]) -> Range:
        if len(arguments) == 1 and isinstance(arguments[0], ast.Name) and arguments[0].id == "values":
            operands = [self.find(ast.Name(each)) for each in self._names]
        elif len(arguments) == 1 and isinstance(arguments[0], (ast.List, ast.Tuple)):
            operands = [self.find(each) for each in arguments[0].elts]
        else:
            operands = [self.find(each) for each in arguments]
        try:
            return _FUNCTIONS[name](*operands)
        except TypeError as error:  # too many or too few of them
            raise ValueError(name) from error


_COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
