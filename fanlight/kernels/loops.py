"""The loop IR: one kernel writes one buffer, element by element, over a row-major index space.

    for each (i0, i1, …) in shape:                    # in any order, in parallel
        out[offset + linear(i0, i1, …)] = value(i0, i1, …)

Elementwise chains, movement, gathers and reductions of any graph become such kernels; each target
generates its code from this form alone (``codegen/wgsl/loops.py``, ``codegen/wasm/loops.py``).
A ``Load`` converts from the buffer's dtype to the scalar type of ``SCALAR`` and the store converts
back: integers wrap around, floats round to nearest even (beyond the largest: infinity, else NaN,
else the largest). Index arithmetic is i32 and never negative, but for what ``take`` was given.
A target without 64-bit numbers has i64 and u64 as pairs of words, and f64 as f32, which it counts
as an approximation. Not here: more than one output, scatter with computed targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, Union

from fanlight.dtypes import DType
from fanlight.ir.ops import BOOLEAN, ELEMENTWISE
from fanlight.shapes import Size, product

Scalar = Literal["f32", "f64", "i32", "u32", "i64", "u64", "bool"]
ReduceKind = Literal["sum", "prod", "max", "min"]

#: dtype name → the scalar type it is computed in. A dtype that is missing here has no loop form.
SCALAR: dict[str, Scalar] = {
    "f32": "f32",
    "f64": "f64",
    "f16": "f32",
    "bf16": "f32",
    "f8e4m3fn": "f32",
    "f8e4m3fnuz": "f32",
    "f8e5m2": "f32",
    "f8e5m2fnuz": "f32",
    "f8e8m0": "f32",
    "f4e2m1": "f32",
    "i64": "i64",
    "i32": "i32",
    "i16": "i32",
    "i8": "i32",
    "i4": "i32",
    "i2": "i32",
    "u64": "u64",
    "u32": "u32",
    "u16": "u32",
    "u8": "u32",
    "u4": "u32",
    "u2": "u32",
    "bool": "bool",
}

#: function name → number of arguments: the IR's elementwise ops. Comparisons give bool; ``where``
#: is (bool, a, b); ``div`` and ``mod`` truncate on integers. Functions on f32 are within 2 ulp or
#: 1e-6 relative.
FUNCTIONS: dict[str, int] = ELEMENTWISE


@dataclass(frozen=True, slots=True)
class Const:
    value: float | int | bool
    type: Scalar


@dataclass(frozen=True, slots=True)
class Axis:
    """The index along axis ``number`` of the kernel's shape, or a reduction's own axis (numbers
    from ``len(shape)`` up)."""

    number: int
    type: Scalar = "i32"


@dataclass(frozen=True, slots=True)
class Extent:
    """The value of a size while the kernel runs."""

    size: Size
    type: Scalar = "i32"


@dataclass(frozen=True, slots=True)
class Load:
    """Element ``index`` (flat) of parameter ``param``."""

    param: int
    index: Expr
    type: Scalar


@dataclass(frozen=True, slots=True)
class Apply:
    """``function`` is a key of ``FUNCTIONS``; arguments have one scalar type (``where``: the last
    two)."""

    function: str
    args: tuple[Expr, ...]
    type: Scalar


@dataclass(frozen=True, slots=True)
class Cast:
    """To bool: not zero. From floats to integers: toward zero. To narrower integers: modulo 2 to
    the number of bits. To f32: to nearest even."""

    value: Expr
    type: Scalar


@dataclass(frozen=True, slots=True)
class Reduce:
    """Combines ``body`` over ``Axis(axis)`` from 0 to ``extent - 1`` (at least one), in order for
    sums."""

    kind: ReduceKind
    axis: int
    extent: Size
    body: Expr
    type: Scalar


Expr: TypeAlias = Union[Const, Axis, Extent, Load, Apply, Cast, Reduce]


@dataclass(frozen=True, slots=True)
class LoopKernel:
    """``inputs`` are the dtypes of the read buffers in the order of ``Load.param``; the output
    comes last.

    ``offset`` is in elements and a multiple of a word's elements for dtypes narrower than 32 bits,
    whose row-major linear index is then written in whole words.
    """

    name: str
    shape: tuple[Size, ...]
    inputs: tuple[DType, ...]
    output: DType
    value: Expr
    offset: Expr = Const(0, "i32")

    @property
    def elements(self) -> Size:
        return product(self.shape)


def integer(value: int) -> Const:
    return Const(value, "i32")


def extent(size: Size) -> Expr:
    return integer(size) if isinstance(size, int) else Extent(size)


def apply(function: str, *args: Expr) -> Expr:
    """``Apply`` with its type worked out and integer identities folded away."""
    assert len(args) == FUNCTIONS[function], function
    kind = args[-1].type
    if all(isinstance(a, Const) and a.type == "i32" for a in args) and len(args) == 2:
        a, b = (a.value for a in args if isinstance(a, Const))
        folded = {"add": a + b, "sub": a - b, "mul": a * b}.get(function)
        if folded is None and b and function in ("div", "mod"):
            quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
            folded = quotient if function == "div" else a - quotient * b
        if folded is not None and -(1 << 31) <= folded < 1 << 31:
            return Const(folded, "i32")
    if kind == "i32" and len(args) == 2:
        a_, b_ = args
        if function == "add" and b_ == integer(0):
            return a_
        if function == "add" and a_ == integer(0):
            return b_
        if function in ("mul", "div") and b_ == integer(1):
            return a_
        if function == "mul" and a_ == integer(1):
            return b_
        if function == "mul" and integer(0) in (a_, b_):
            return integer(0)
        if function == "mod" and b_ == integer(1):
            return integer(0)
        if function in ("div", "mod") and a_ == integer(0):
            return integer(0)
    return Apply(function, args, "bool" if function in BOOLEAN else kind)


def children(expr: Expr) -> tuple[Expr, ...]:
    match expr:
        case Load():
            return (expr.index,)
        case Apply():
            return expr.args
        case Cast():
            return (expr.value,)
        case Reduce():
            return (expr.body,)
    return ()


def walk(expr: Expr) -> Iterator[Expr]:
    """``expr`` and everything below it."""
    yield expr
    for child in children(expr):
        yield from walk(child)


def sizes(kernel: LoopKernel) -> tuple[Size, ...]:
    """The distinct sizes, constants aside, whose values the kernel needs at run time."""
    found: list[Size] = [*kernel.shape]
    for root in (kernel.value, kernel.offset):
        for expr in walk(root):
            if isinstance(expr, (Extent,)):
                found.append(expr.size)
            elif isinstance(expr, Reduce):
                found.append(expr.extent)
    return tuple(dict.fromkeys(s for s in found if not isinstance(s, int)))
