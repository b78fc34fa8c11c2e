"""Sizes: integers and expressions over named dimensions.

A dimension (``Dim``) is ``host`` (chosen by the caller for a run, fixed while it lasts) or
``device`` (read from a state buffer while the program runs). Every dim has a maximum; memory is
laid out from the maxima, so a changed dim never changes an offset or a shader.

JSON form (the plan's): an int is itself, a dim its name, an operation ``[op, a, b]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
    """A named dimension, at least 0 and at most ``max``."""

    name: str
    kind: DimKind
    max: int

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
    """The simplest form of ``op(a, b)``: constants folded, neutral elements dropped."""
    if isinstance(a, int) and isinstance(b, int):
        return OPS[op](a, b)
    if op in ("+", "*", "max", "min") and isinstance(a, int):
        a, b = b, a  # constants on the right
    if (op in ("+", "-") and b == 0) or (op in ("*", "//", "ceil/") and b == 1):
        return a
    if op == "*" and b == 0:
        return 0
    if op in ("max", "min") and a == b:
        return a
    if op == "-" and a == b:
        return 0
    if isinstance(b, int) and isinstance(a, Operation) and a.op == "*" and isinstance(a.b, int):
        if op == "*":
            return binary("*", a.a, a.b * b)
        if op == "//" and a.b % b == 0:
            return binary("*", a.a, a.b // b)
    return Operation(op, a, b)


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
