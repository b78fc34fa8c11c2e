"""Pools: the largest, the mean or a norm of each window."""

from __future__ import annotations

from typing import Literal

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.operators.indexing import scatter
from fanlight.importers.onnx.operators.reduction import wide
from fanlight.importers.onnx.operators.windows import ATTRS, Windows, windows
from fanlight.importers.onnx.registry import op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import binary, product

_LOWEST = {"f32": float("-inf"), "f64": float("-inf"), "f16": float("-inf"), "i8": -128, "u8": 0}
_LOWEST |= {"bf16": float("-inf"), "i32": -(1 << 31), "i64": -(1 << 63)}


def _spread(x: Node, over: Windows, outside: float) -> tuple[Node, list[int]]:
    """x [N, C, *S] → [N, C, *O, *K], and the numbers of the axes K."""
    count = len(over.kernel)
    rank = 2 + 2 * count
    places, inside = over.places(rank, 2, 2 + count)
    values = build.take(
        x, build.along(0, rank, x.shape[0]), build.along(1, rank, x.shape[1]), *places
    )
    if inside is not None:
        values = build.where(inside, values, outside)
    return values, list(range(2 + count, rank))


def _pooled(kind: Literal["max", "sum"], x: Node, over: Windows, outside: float) -> Node:
    """The largest, or the sum, of each window."""
    if not over.few():
        values, axes = _spread(x, over, outside)
        return build.reduce(kind, values, axes, keep=False)
    (_, total), *others = over.taps(x, outside)
    for _, values in others:
        total = do("max" if kind == "max" else "add", total, values)
    return total


@op("MaxPool", attrs=f"{ATTRS} ceil_mode storage_order")
def _max_pool(call: Call) -> Node | tuple[Node, ...]:
    x = call[0]
    over = windows(call, x.shape[2:], call.attr_ints("kernel_shape"))
    lowest = _LOWEST.get(x.dtype.name)
    if lowest is None:
        call.fail("elements of this type", got=x.dtype)
    best = _pooled("max", x, over, lowest)
    return (best, _indices(call, x, over, best)) if call.wants(1) else best


def _indices(call: Call, x: Node, over: Windows, best: Node) -> Node:
    """Where in x the largest is, counted through all of x; of equal ones the first."""
    count = len(over.kernel)
    rank = 2 + 2 * count
    places, inside = over.places(rank, 2, 2 + count)
    values, axes = _spread(x, over, _LOWEST[x.dtype.name])
    sizes = x.shape[2:]
    order = range(count) if not call.attr_int("storage_order", 0) else reversed(range(count))
    flat: Node | None = None
    for i in order:
        flat = (
            places[i]
            if flat is None
            else do("add", do("mul", flat, build.size(sizes[i], dtypes.i32)), places[i])
        )
    assert flat is not None
    top = build.reshape(best, (*best.shape, *(1,) * count))
    hit = do("eq", values, top)
    hit = hit if inside is None else do("and", hit, inside)
    first = build.reduce("min", build.where(hit, flat, (1 << 31) - 1), axes, keep=False)
    n, channels = x.shape[:2]
    row = do("mul", build.along(0, 2 + count, n), build.size(channels, dtypes.i32))
    row = do("add", row, build.along(1, 2 + count, channels))
    whole = do("add", do("mul", row, build.size(product(sizes), dtypes.i32)), first)
    return cast(whole, dtypes.i64)


@op("AveragePool", 7, attrs=f"{ATTRS} ceil_mode count_include_pad")
def _average_pool(call: Call) -> Node:
    x = call[0]
    kind = wide(x.dtype)
    over = windows(call, x.shape[2:], call.attr_ints("kernel_shape"))
    total = _pooled("sum", cast(x, kind), over, 0)
    count = _counted(over, call.attr_bool("count_include_pad", False), kind)
    return cast(do("div", total, count), x.dtype)


def _counted(over: Windows, padding: bool, kind: dtypes.DType) -> Node:
    """How many elements each window has [1, 1, *O], or all of them alike []: with ``padding`` also
    such as lie in the padding, but not those behind it."""
    spatial = len(over.kernel)
    total: Node = build.scalar(1, dtypes.i32)
    for i, size in enumerate(over.sizes):
        if not over.padded(i):
            total = do("mul", total, over.kernel[i])
            continue
        here = build.along(i, 2 * spatial, over.out[i])
        there = build.along(spatial + i, 2 * spatial, over.kernel[i])
        at = do("add", do("mul", here, over.strides[i]), do("mul", there, over.dilations[i]))
        low = 0 if padding else over.before[i]
        high = size + over.before[i] + (over.after[i] if padding else 0)
        within = do("lt", at, build.size(high, dtypes.i32))
        within = do("and", within, do("ge", at, build.size(low, dtypes.i32)))
        count = build.reduce("sum", cast(within, dtypes.i32), [len(within.shape) + i - spatial])
        shape = [1] * spatial
        total = do("mul", total, build.reshape(count, (*shape[:i], over.out[i], *shape[i + 1 :])))
    return cast(total, kind)


@op("LpPool", attrs=f"{ATTRS} ceil_mode p")
def _lp_pool(call: Call) -> Node:
    x, p = call[0], call.attr_int("p", 2)
    over = windows(call, x.shape[2:], call.attr_ints("kernel_shape"))
    values, axes = _spread(cast(x, wide(x.dtype)), over, 0)
    return cast(_norm(values, axes, p, keep=False), x.dtype)


def _norm(values: Node, axes: list[int], p: int, keep: bool) -> Node:
    size = apply("abs", values)
    powers = size if p == 1 else do("mul", size, size) if p == 2 else do("pow", size, float(p))
    total = build.reduce("sum", powers, axes, keep)
    return total if p == 1 else apply("sqrt", total) if p == 2 else do("pow", total, 1 / p)


@op("MaxUnpool", 9, attrs="kernel_shape pads strides")
def _max_unpool(call: Call) -> Node:
    """Elements of x [N, C, *S] at their places in [N, C, *O], counted through all of it; zeros
    elsewhere, and around it where a larger shape is given."""
    x = call[0]
    kernel = call.attr_ints("kernel_shape")
    count = len(kernel)
    strides = call.attr_ints("strides", (1,) * count)
    pads = call.attr_ints("pads", (0,) * (2 * count))
    inferred = [
        (size - 1) * strides[i] - (pads[i] + pads[i + count]) + kernel[i]
        for i, size in enumerate(x.shape[2:])
    ]
    shape = (*x.shape[:2], *inferred)
    made = scatter(call, build.full(0, x.dtype, shape), cast(call[1], dtypes.i32), x, "none")
    if call.get(2) is None:
        return made
    wanted = call.sizes(2, "the output's shape")
    after = [binary("-", a, b) for a, b in zip(wanted, shape, strict=True)]
    return build.pad(made, [0] * len(shape), after)


def _spatial(x: Node) -> list[int]:
    return list(range(2, len(x.shape)))


@op("GlobalAveragePool")
def _global_average_pool(call: Call) -> Node:
    x = call[0]
    return cast(build.mean(cast(x, wide(x.dtype)), _spatial(x)), x.dtype)


@op("GlobalMaxPool")
def _global_max_pool(call: Call) -> Node:
    return build.reduce("max", call[0], _spatial(call[0]))


@op("GlobalLpPool", attrs="p")
def _global_lp_pool(call: Call) -> Node:
    x = call[0]
    values = cast(x, wide(x.dtype))
    return cast(_norm(values, _spatial(x), call.attr_int("p", 2), keep=True), x.dtype)
