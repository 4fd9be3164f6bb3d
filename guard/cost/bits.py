"""Bound how long the whole numbers get that a formula makes on its way.

Python's have no end, and while it multiplies or prints one of millions of digits no other thread runs.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import NamedTuple

_LONGEST = 4000
_FLOAT = 1024.0
#: What no caller says anything of.
USUAL = 64.0
_ROUNDING = frozenset({"int", "round", "ceil", "floor", "trunc"})
_REAL = frozenset({"sqrt", "log", "log2", "log10", "sin", "cos", "tan", "float", "exp", "radians", "degrees"})


class Size(NamedTuple):
    """A number's size: what lies below 2 to the power of `bits`. `real`: it is a float, which overflows instead."""

    bits: float = USUAL
    real: bool = False
    is_text: bool = False


class _EndlessError(Exception):
    pass


def bound_bits(formula: str, names: Mapping[str, Size]) -> float:
    """The bits of the longest number on the way; infinite where nothing bounds it; 0 for what is no formula."""
    if len(formula) > _LONGEST:
        return math.inf
    try:
        tree = ast.parse(formula.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return 0
    except (RecursionError, MemoryError):
        return math.inf
    reader = _Reader(names)
    try:
        reader.read(tree.body)
    except (_EndlessError, RecursionError, OverflowError):
        return math.inf
    return reader.most


class _Reader:
    def __init__(self, names: Mapping[str, Size]) -> None:
        self._names = names
        self.most = 0.0

    def read(self, node: ast.expr) -> Size:
        size = self._read(node)
        if size.real:
            size = Size(min(size.bits, _FLOAT), real=True)
        self.most = max(self.most, size.bits)
        return size

    def _read(self, node: ast.expr) -> Size:
        if isinstance(node, ast.Constant):
            return _of_constant(node.value)
        if isinstance(node, ast.Name):
            return self._names.get(node.id, Size())
        if isinstance(node, ast.UnaryOp):
            size = self.read(node.operand)
            return size._replace(bits=size.bits + 1)
        if isinstance(node, ast.BinOp):
            return self._combine(node.op, node.left, node.right)
        if isinstance(node, ast.BoolOp):
            return _unite([self.read(each) for each in node.values])
        if isinstance(node, ast.IfExp):
            self.read(node.test)
            return _unite([self.read(node.body), self.read(node.orelse)])
        if isinstance(node, ast.Compare):
            for each in (node.left, *node.comparators):
                self.read(each)
            return Size(1)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.expr):
            self.read(node.slice)
            return self.read(node.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return self._call(node.func.id.lower(), node.args)
        # Texts repeat and format, lists repeat, and who reaches into a value may come to anything.
        raise _EndlessError

    def _combine(self, op: ast.operator, first: ast.expr, second: ast.expr) -> Size:
        left, right = self.read(first), self.read(second)
        if left.is_text or right.is_text or _is_values(first) or _is_values(second):
            raise _EndlessError
        real = left.real or right.real
        if isinstance(op, ast.Div):
            return Size(_FLOAT, real=True)
        if isinstance(op, ast.Pow):
            return Size(_FLOAT, real=True) if real else Size(left.bits * _most(second, right))
        if isinstance(op, ast.LShift):
            return Size(left.bits + _most(second, right))
        if isinstance(op, ast.Mult):
            return Size(left.bits + right.bits, real)
        if isinstance(op, (ast.Add, ast.Sub)):
            return Size(max(left.bits, right.bits) + 1, real)
        if isinstance(op, ast.MatMult):
            raise _EndlessError
        return Size(max(left.bits, right.bits), real)

    def _call(self, name: str, args: list[ast.expr]) -> Size:
        sizes = [self.read(each) for each in args]
        if any(size.is_text for size in sizes):
            raise _EndlessError
        most = max((size.bits for size in sizes), default=USUAL)
        if name in _REAL:
            return Size(_FLOAT, real=True)
        if name in ("pow", "power") and len(args) == 2:
            if any(size.real for size in sizes):
                return Size(_FLOAT, real=True)
            return Size(sizes[0].bits * _most(args[1], sizes[1]))
        if name in ("factorial", "gamma", "perm", "comb"):
            return Size(math.prod((_most(each, size) for each, size in zip(args, sizes, strict=True))) * max(most, 1))
        if name in _ROUNDING:
            # Rounded to places before the point, a whole number is divided by a power of ten.
            places = _most(args[1], sizes[1]) * 4 if len(args) > 1 else 0
            return Size(most + places)
        if name == "sum":
            return Size(most + len(args) + 5, any(size.real for size in sizes))
        return Size(most + 1, all(size.real for size in sizes) and bool(sizes))


def _is_values(node: ast.expr) -> bool:
    """The list of all values, which would be repeated."""
    return isinstance(node, ast.Name) and node.id == "values"


def _of_constant(value: object) -> Size:
    if isinstance(value, int):
        return Size(float(max(abs(value).bit_length(), 1)))
    if isinstance(value, float):
        return Size(_FLOAT, real=True)
    raise _EndlessError


def _unite(sizes: list[Size]) -> Size:
    return Size(
        max(size.bits for size in sizes),
        all(size.real for size in sizes),
        any(size.is_text for size in sizes),
    )


def _most(node: ast.expr, size: Size) -> float:
    """How large a number is at most, without its sign."""
    if isinstance(node, ast.UnaryOp):
        return _most(node.operand, size)
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return float(abs(node.value))
    return float(2**size.bits) if size.bits < 60 else math.inf
