"""Sizes: integers and expressions over named dimensions.

A dimension (``Dim``) is ``host`` (chosen by the caller for a run, fixed while it lasts) or
``device`` (read from a state buffer while the program runs). Every dim has a maximum; memory is
laid out from the maxima, so a changed dim never changes an offset or a shader.

JSON form (the plan's): an int is itself, a dim its name, an operation ``[op, a, b]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias, Union

from fanlight.errors import PlanError

DimKind = Literal["host", "device"]
Size: TypeAlias = Union[int, "Expr"]

OPS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "ceil/": lambda a, b: -(-a // b),
    "%": lambda a, b: a % b,
    "max": max,
    "min": min,
}


class Expr:
    """A size that is not known while compiling."""

    __slots__ = ()

    def __add__(self, other: Size) -> Size:
        return binary("+", self, other)

    def __radd__(self, other: Size) -> Size:
        return binary("+", other, self)

    def __sub__(self, other: Size) -> Size:
        return binary("-", self, other)

    def __rsub__(self, other: Size) -> Size:
        return binary("-", other, self)

    def __mul__(self, other: Size) -> Size:
        return binary("*", self, other)

    def __rmul__(self, other: Size) -> Size:
        return binary("*", other, self)

    def __floordiv__(self, other: Size) -> Size:
        return binary("//", self, other)

    def __mod__(self, other: Size) -> Size:
        return binary("%", self, other)


@dataclass(frozen=True, slots=True)
class Dim(Expr):
    """A named dimension, at most ``max``. ``least``: what it is taken to be at least where sizes
    are compared while compiling; it may be 0 for all that."""

    name: str
    kind: DimKind
    max: int
    least: int = 1

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Operation(Expr):
    """``op`` is a key of ``OPS``."""

    op: str
    a: Size
    b: Size

    def __str__(self) -> str:
        if self.op in ("max", "min", "ceil/"):
            name = "ceildiv" if self.op == "ceil/" else self.op
            return f"{name}({self.a}, {self.b})"
        return f"({self.a} {self.op} {self.b})"


def binary(op: str, a: Size, b: Size) -> Size:
    """The simplest form of ``op(a, b)``. Sums and products are put in one form, so that equal ones
    compare equal; divisions are carried out where they leave no rest, if the divisor is not 0."""
    if isinstance(a, int) and isinstance(b, int):
        return OPS[op](a, b)
    if isinstance(a, Dim) and isinstance(b, int) and b > 1:  # as most are: in that form already
        return Operation(op, a, b)
    return _simplest(op, a, b)


@lru_cache(1 << 13)  # a model's sizes are few, and asked for thousands of times while compiling
def _simplest(op: str, a: Size, b: Size) -> Size:
    if op in ("max", "min"):
        if isinstance(a, int):
            a, b = b, a  # constants on the right
        return a if a == b else Operation(op, a, b)
    if op in ("+", "-", "*"):
        return _size(_combine(op, _terms(a), _terms(b)))
    if b == 1:
        return 0 if op == "%" else a
    whole, rest = _divide(_terms(a), _terms(b))
    if not rest:
        return 0 if op == "%" else _size(whole)
    if op == "%":
        return Operation(op, _size(rest), b) if isinstance(b, int) else Operation(op, a, b)
    if not whole:
        return Operation(op, a, b)
    return _size(_combine("+", whole, _terms(binary(op, _size(rest), b))))


_Product: TypeAlias = tuple["Expr", ...]  # sorted by their text
_Terms: TypeAlias = dict[_Product, int]  # a sum: product of symbols → its factor


def _terms(size: Size) -> _Terms:
    """``size`` as a sum of products."""
    if isinstance(size, int):
        return {(): size} if size else {}
    if isinstance(size, Operation) and size.op in ("+", "-", "*"):
        return _combine(size.op, _terms(size.a), _terms(size.b))
    return {(size,): 1}


def _combine(op: str, a: _Terms, b: _Terms) -> _Terms:
    out = dict(a) if op != "*" else {}
    if op == "*":
        for x, m in a.items():
            for y, n in b.items():
                key = tuple(sorted(x + y, key=str))
                out[key] = out.get(key, 0) + m * n
    else:
        for y, n in b.items():
            out[y] = out.get(y, 0) + (n if op == "+" else -n)
    return {key: factor for key, factor in out.items() if factor}


def _divide(a: _Terms, b: _Terms) -> tuple[_Terms, _Terms]:
    """Quotient and rest: the terms of ``a`` that ``b`` divides, divided, and the others."""
    if len(b) > 1:
        for factor in {m // n for m in a.values() for n in b.values() if m % n == 0}:
            if _combine("*", b, {(): factor}) == a:
                return {(): factor}, {}
        return {}, a
    ((divisor, n),) = b.items()
    whole: _Terms = {}
    rest: _Terms = {}
    for symbols, m in a.items():
        left = list(symbols)
        for symbol in divisor:
            if symbol not in left:
                break
            left.remove(symbol)
        else:
            if m % n == 0:
                whole[tuple(left)] = m // n
                continue
        rest[symbols] = m
    return whole, rest


def _size(terms: _Terms) -> Size:
    """The one form of a sum: products of many symbols first, then by their text; the number last,
    and no negative factor first where there is another."""
    order = sorted(terms, key=lambda p: (terms[p] < 0, not p, -len(p), [str(s) for s in p]))
    total: Size | None = None
    for symbols in order:
        factor = terms[symbols]
        negative = total is not None and factor < 0
        term: Size = abs(factor) if negative else factor
        for number, symbol in enumerate(symbols):
            term = symbol if number == 0 else Operation("*", term, symbol)
        if symbols and (scale := abs(factor) if negative else factor) != 1:
            term = Operation("*", term, scale)
        total = term if total is None else Operation("-" if negative else "+", total, term)
    return 0 if total is None else total


def ceildiv(a: Size, b: Size) -> Size:
    """``a / b`` rounded up."""
    return binary("ceil/", a, b)


def product(sizes: tuple[Size, ...] | list[Size]) -> Size:
    """The number of elements of a shape; 1 for an empty one."""
    total: Size = 1
    for size in sizes:
        total = binary("*", total, size)
    return total


def dims_of(size: Size) -> Iterator[Dim]:
    """Every dim in ``size``, with repeats."""
    if isinstance(size, Dim):
        yield size
    elif isinstance(size, Operation):
        yield from dims_of(size.a)
        yield from dims_of(size.b)


def evaluate(size: Size, values: Mapping[str, int]) -> int:
    """The value of ``size``; a dim that ``values`` lacks takes its maximum."""
    if isinstance(size, int):
        return size
    if isinstance(size, Dim):
        return values.get(size.name, size.max)
    assert isinstance(size, Operation)
    return OPS[size.op](evaluate(size.a, values), evaluate(size.b, values))


def maximum(size: Size) -> int:
    """The largest value of ``size``. Operations other than ``-`` and ``%`` are monotonic."""
    if isinstance(size, int):
        return size
    if isinstance(size, Dim):
        return size.max
    assert isinstance(size, Operation)
    a, b = maximum(size.a), maximum(size.b)
    if size.op == "-":
        return a - (size.b if isinstance(size.b, int) else 0)
    if size.op == "%":
        return min(a, b - 1)
    return OPS[size.op](a, b)


def to_json(size: Size) -> Any:
    """The plan's form of ``size``."""
    if isinstance(size, int):
        return size
    if isinstance(size, Dim):
        return size.name
    assert isinstance(size, Operation)
    return [size.op, to_json(size.a), to_json(size.b)]


def from_json(value: Any, dims: Mapping[str, Dim]) -> Size:
    """Inverse of :func:`to_json`. Raises PlanError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value in dims:
        return dims[value]
    if isinstance(value, list) and len(value) == 3 and value[0] in tuple(OPS):
        a, b = from_json(value[1], dims), from_json(value[2], dims)
        if value[0] in ("//", "ceil/", "%") and b == 0:
            raise PlanError("a size is divided by 0", got=repr(value))
        return binary(value[0], a, b)
    raise PlanError("not a size expression", got=repr(value), wanted="int, dim or [op, a, b]")
