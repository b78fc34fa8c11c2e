"""Shorthands for those who build graphs: numbers as operands, constants, index arithmetic.

``op("mul", x, 2)`` takes Python numbers as constants of the other operands' dtype. Axes may be
negative. Everything here becomes the plain ops of ``ops.py``; movement that has no op of its own is
a ``take`` at computed places.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeAlias, Union

from fanlight import dtypes
from fanlight.dtypes import DType
from fanlight.errors import GraphError
from fanlight.ir.graph import Node, Shape
from fanlight.ir.ops import apply, broadcast
from fanlight.shapes import Size, product

Number: TypeAlias = Union[int, float, bool]
Operand: TypeAlias = Union[Node, int, float, bool]

#: dtypes that constants are made of → struct's codes
CODES = {"f64": "d", "f32": "f", "f16": "e", "i64": "q", "i32": "i", "i16": "h", "i8": "b"}
CODES |= {"u64": "Q", "u32": "I", "u16": "H", "u8": "B", "bool": "?"}


def constant(values: Sequence[Number], dtype: DType, shape: Sequence[int] | None = None) -> Node:
    """A constant; ``shape``: rank 1 if None. Numbers must be of the dtype's range."""
    code = CODES.get(dtype.name)
    if code is None:  # a dtype that is storage only
        wide = dtypes.i32 if dtype.kind in ("int", "uint") else dtypes.f32
        return apply("cast", constant(values, wide, shape), to=dtype)
    kind = float if dtype.kind == "float" else bool if dtype.kind == "bool" else int
    data = struct.pack(f"<{len(values)}{code}", *map(kind, values))
    return apply(
        "constant",
        dtype=dtype,
        shape=tuple(shape or ()) if shape is not None else (len(values),),
        data=data,
    )


def scalar(value: Number, dtype: DType) -> Node:
    """A constant without axes."""
    return constant([value], dtype, ())


def op(name: str, *args: Operand, **attrs: Any) -> Node:
    """``apply`` with Python numbers as operands, of the dtype of the last Node among them."""
    dtype = next(a.dtype for a in reversed(args) if isinstance(a, Node))
    return apply(name, *(a if isinstance(a, Node) else scalar(a, dtype) for a in args), **attrs)


def cast(x: Node, to: DType) -> Node:
    """``x`` itself where it is of that dtype."""
    return x if x.dtype is to else apply("cast", x, to=to)


def sizes(values: Sequence[Size], dtype: DType = dtypes.i64) -> Node:
    """A vector of sizes, known or not."""
    if all(isinstance(v, int) for v in values):
        return constant([int(str(v)) for v in values], dtype)
    parts = [apply("reshape", size(v, dtype), shape=(1,)) for v in values]
    return parts[0] if len(parts) == 1 else apply("concat", *parts, axis=0)


def size(value: Size, dtype: DType = dtypes.i64) -> Node:
    """One size, without axes."""
    if isinstance(value, int):
        return scalar(value, dtype)
    return cast(apply("size", size=value), dtype)


# --- axes


def axis_of(axis: int, rank: int) -> int:
    """``axis`` counted from the front. Raises GraphError outside ``-rank … rank - 1``."""
    if not -rank <= axis < rank:
        raise GraphError("no such axis", got=axis, wanted=f"{-rank} to {rank - 1}")
    return axis % rank


def reshape(x: Node, shape: Sequence[Size]) -> Node:
    """``x`` itself where it has that shape."""
    return x if x.shape == tuple(shape) else apply("reshape", x, shape=tuple(shape))


def unsqueeze(x: Node, axes: Sequence[int]) -> Node:
    """Axes of one element at places ``axes`` of the result."""
    rank = len(x.shape) + len(axes)
    places = {axis_of(a, rank) for a in axes}
    if len(places) != len(axes):
        raise GraphError("an axis is named twice", where="unsqueeze", got=list(axes))
    rest = iter(x.shape)
    return reshape(x, [1 if i in places else next(rest) for i in range(rank)])


def squeeze(x: Node, axes: Sequence[int]) -> Node:
    """Without ``axes``, each of one element."""
    places = {axis_of(a, len(x.shape)) for a in axes}
    if any(isinstance(x.shape[a], int) and x.shape[a] != 1 for a in places):
        raise GraphError("an axis that is not 1", where="squeeze", got=list(x.shape))
    return reshape(x, [s for i, s in enumerate(x.shape) if i not in places])


def permute(x: Node, axes: Sequence[int]) -> Node:
    """``x`` itself where no axis moves."""
    return x if list(axes) == list(range(len(x.shape))) else apply("permute", x, axes=tuple(axes))


def transpose(x: Node, a: int = -1, b: int = -2) -> Node:
    """With two axes exchanged."""
    order = list(range(len(x.shape)))
    order[a], order[b] = order[b], order[a]
    return permute(x, order)


def expand(x: Node, shape: Sequence[Size]) -> Node:
    """Broadcast to ``shape``."""
    return x if x.shape == tuple(shape) else apply("expand", x, shape=tuple(shape))


def full(value: Number, dtype: DType, shape: Sequence[Size]) -> Node:
    """``value`` everywhere."""
    return expand(scalar(value, dtype), shape)


def concat(parts: Sequence[Node], axis: int) -> Node:
    """Parts side by side along ``axis``."""
    if len(parts) == 1:
        return parts[0]
    return apply("concat", *parts, axis=axis_of(axis, len(parts[0].shape)))


def part(x: Node, axis: int, start: Size, count: Size) -> Node:
    """``count`` elements of ``axis`` from ``start``."""
    axis = axis_of(axis, len(x.shape))
    if start == 0 and count == x.shape[axis]:
        return x
    starts = tuple(start if i == axis else 0 for i in range(len(x.shape)))
    return apply(
        "slice",
        x,
        starts=starts,
        sizes=tuple(count if i == axis else s for i, s in enumerate(x.shape)),
    )


# --- computed places


def along(axis: int, rank: int, count: Size) -> Node:
    """0, 1, … ``count - 1`` along ``axis`` of ``rank`` axes, i32, ready to broadcast."""
    axis = axis_of(axis, rank)
    return reshape(apply("iota", size=count), (count, *(1,) * (rank - axis - 1)))


def take(x: Node, *indices: Operand) -> Node:
    """``x`` at i32 places, one for each axis; they broadcast to the result's shape."""
    if not x.shape:
        return expand(x, broadcast("take", [i.shape for i in indices if isinstance(i, Node)]))
    whole = [i if isinstance(i, Node) else scalar(i, dtypes.i32) for i in indices]
    return apply("take", x, *whole)


def take_along(x: Node, axis: int, index: Node) -> Node:
    """``x`` with ``axis`` replaced by places ``index`` (i32) that broadcast to the result's rank,
    which is that of ``x``."""
    rank = len(x.shape)
    places: list[Operand] = [along(i, rank, s) for i, s in enumerate(x.shape)]
    places[axis_of(axis, rank)] = index
    return take(x, *places)


def clamp(index: Node, count: Size) -> Node:
    """i32 places, moved into ``0 … count - 1``."""
    last = op("sub", size(count, dtypes.i32), 1)
    return op("max", op("min", index, last), 0)


def shifted(index: Node, count: Size) -> Node:
    """Places counted from the end where negative; moved inside where they lie outside."""
    whole = cast(index, dtypes.i32)
    back = op("add", whole, size(count, dtypes.i32))
    return clamp(op("where", op("lt", whole, 0), back, whole), count)


def pad(x: Node, before: Sequence[Size], after: Sequence[Size], value: Operand = 0) -> Node:
    """``x`` with ``value`` around it; negative widths cut off."""
    rank = len(x.shape)
    if all(w == 0 for w in (*before, *after)):
        return x
    places: list[Operand] = []
    inside: Node | None = None
    for axis, (low, high, count) in enumerate(zip(before, after, x.shape, strict=True)):
        here = along(axis, rank, low + count + high)
        at = op("sub", here, size(low, dtypes.i32)) if low != 0 else here
        if low != 0 or high != 0:
            within = op("and", op("ge", at, 0), op("lt", at, size(count, dtypes.i32)))
            inside = within if inside is None else apply("and", inside, within)
        places.append(clamp(at, count) if low != 0 or high != 0 else at)
    assert inside is not None
    if any(s == 0 for s in x.shape):  # nothing to read
        shape = tuple(a + s + b for a, s, b in zip(before, x.shape, after, strict=True))
        return expand(value if isinstance(value, Node) else scalar(value, x.dtype), shape)
    return op("where", inside, take(x, *places), value)


# --- numbers


def reduce(kind: str, x: Node, axes: Sequence[int], keep: bool = True) -> Node:
    """``reduce_KIND`` over ``axes``; ``x`` itself where there are none."""
    places = tuple(sorted({axis_of(a, len(x.shape)) for a in axes}))
    return apply(f"reduce_{kind}", x, axes=places, keep=keep) if places else x


def count_of(x: Node, axes: Sequence[int], dtype: DType) -> Node:
    """How many elements lie along ``axes``."""
    return size(product([x.shape[a] for a in axes]), dtype)


def mean(x: Node, axes: Sequence[int], keep: bool = True) -> Node:
    """The arithmetic mean."""
    return op("div", reduce("sum", x, axes, keep), count_of(x, axes, x.dtype))


def softmax(x: Node, axis: int) -> Node:
    """exp(x) over its sum along ``axis``, stable."""
    powers = op("exp", op("sub", x, reduce("max", x, [axis])))
    return op("div", powers, reduce("sum", powers, [axis]))


def where(test: Node, a: Operand, b: Operand) -> Node:
    """``a`` where ``test``, else ``b``."""
    dtype = next(v.dtype for v in (a, b) if isinstance(v, Node))
    a, b = (v if isinstance(v, Node) else scalar(v, dtype) for v in (a, b))
    return apply("where", test, a, b)


def shape_of(*nodes: Node) -> Shape:
    """What they broadcast to."""
    return broadcast("shape", [n.shape for n in nodes])
