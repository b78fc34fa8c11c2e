"""Places in row-major values as loop expressions: flat indices, and what reshapes make of indices.

Divisions cost more than loads and hide from the code generators which elements are neighbours; so
axes that a reshape leaves alone keep their index, and a quotient is found in the expression where
it can be. In: indices that are never negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fanlight.kernels.loops import Apply, Axis, Const, Expr, Extent, apply, extent, integer
from fanlight.shapes import Size, binary, product

Index = tuple[Expr, ...]
Shape = tuple[Size, ...]


def linear(at: Index, shape: Shape) -> Expr:
    """Row-major flat index of ``at``."""
    flat: Expr = integer(0)
    for position, size in zip(at, shape, strict=True):
        flat = apply("add", apply("mul", flat, extent(size)), position)
    return flat


@dataclass(frozen=True, slots=True)
class Reshaping:
    """``sizes``: of the kernel's axes, by number."""

    sizes: Mapping[int, Size]

    def index(self, at: Index, shape: Shape, inner: Shape) -> Index:
        """The index into a value of shape ``inner`` of what ``at`` is in ``shape``."""
        found: list[Expr] = []
        start, begin = 0, 0
        for end, stop in _cuts(shape, inner):
            found += self._group(at[start:end], shape[start:end], inner[begin:stop])
            start, begin = end, stop
        return tuple(found)

    def _group(self, at: Index, shape: Shape, inner: Shape) -> list[Expr]:
        if len(shape) == len(inner) == 1:
            return [*at]
        flat = linear(at, shape)
        out: list[Expr] = []
        for number, size in enumerate(reversed(inner)):
            if number == len(inner) - 1:
                out.append(integer(0) if size == 1 else flat)
            else:
                flat, rest = self.split(flat, size)
                out.append(rest)
        return out[::-1]

    def split(self, flat: Expr, size: Size) -> tuple[Expr, Expr]:
        """Quotient and rest of a division by ``size``."""
        if self._below(flat, size):
            return integer(0), flat
        match flat:
            case Apply("add", (Apply("mul", (q, c)), r)) if factor := _quotient(c, size):
                more, rest = self.split(r, size)
                return apply("add", apply("mul", q, extent(factor)), more), rest
            case Apply("mul", (q, c)) if factor := _quotient(c, size):
                return apply("mul", q, extent(factor)), integer(0)
        return apply("div", flat, extent(size)), apply("mod", flat, extent(size))

    def _below(self, expr: Expr, size: Size) -> bool:
        """Whether ``expr`` is surely less than ``size``."""
        if isinstance(expr, Axis) and self.sizes.get(expr.number) == size:
            return True
        match expr:
            case Apply("mod", (_, c)) if _size_of(c) == size:
                return True
        most = self._most(expr)
        return most is not None and (most < size if isinstance(size, int) else most == 0)

    def _most(self, expr: Expr) -> int | None:
        """The largest value; None where it isn't known."""
        if isinstance(expr, Const) and expr.type == "i32":
            return int(expr.value)
        if isinstance(expr, Axis):
            size = self.sizes.get(expr.number)
            return size - 1 if isinstance(size, int) else None
        if not isinstance(expr, Apply) or len(expr.args) != 2 or expr.type != "i32":
            return None
        a, b = map(self._most, expr.args)
        constant = isinstance(expr.args[1], Const)
        if expr.function == "mod" and b and constant:
            return b - 1
        if a is None or b is None:
            return None
        if expr.function == "div":
            return a // b if b > 0 and constant else None
        return {"add": a + b, "mul": a * b}.get(expr.function)


def _cuts(shape: Shape, inner: Shape) -> list[tuple[int, int]]:
    """Where both shapes can be cut so that their parts have as many elements: ends of groups."""
    ends: dict[Size, int] = {}
    for end in range(1, len(inner)):
        ends.setdefault(product(inner[:end]), end)
    found: list[tuple[int, int]] = []
    for end in range(1, len(shape)):
        stop = ends.get(product(shape[:end]), 0)
        if stop > (found[-1][1] if found else 0):
            found.append((end, stop))
    return [*found, (len(shape), len(inner))]


def _size_of(expr: Expr) -> Size | None:
    if isinstance(expr, Extent):
        return expr.size
    return int(expr.value) if isinstance(expr, Const) and expr.type == "i32" else None


def _quotient(expr: Expr, size: Size) -> Size | None:
    """What is left of a factor that ``size`` divides."""
    factor = _size_of(expr)
    if factor is None or binary("%", factor, size) != 0:
        return None
    return binary("//", factor, size) or None
