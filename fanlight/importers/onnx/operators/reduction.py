"""Operators that combine elements along axes: sums, extremes, softmax, running sums, sorting."""

from __future__ import annotations

from collections.abc import Callable

from fanlight import dtypes
from fanlight.dtypes import DType
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.registry import op
from fanlight.ir import build
from fanlight.ir.build import axis_of, cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import Size, product


def wide(dtype: DType) -> DType:
    """What sums of ``dtype`` are added up in."""
    return dtypes.f32 if dtype.kind == "float" and dtype.bytes < 4 else dtype


def _reduction(name: str, combine: Callable[[Node, list[int], bool], Node]) -> None:
    @op(name, attrs="axes keepdims noop_with_empty_axes")
    def function(call: Call) -> Node:
        x, keep = call[0], call.attr_bool("keepdims", True)
        axes = call.axes()
        if not axes:
            if call.attr_bool("noop_with_empty_axes", False):
                return cast(combine(cast(x, wide(x.dtype)), [], keep), x.dtype)
            axes = list(range(len(x.shape)))
        places = [axis_of(a, len(x.shape)) for a in axes]
        return cast(combine(cast(x, wide(x.dtype)), places, keep), x.dtype)


def _sum(x: Node, axes: list[int], keep: bool) -> Node:
    return build.reduce("sum", x, axes, keep)


def _extreme(kind: str) -> Callable[[Node, list[int], bool], Node]:
    return lambda x, axes, keep: build.reduce(kind, x, axes, keep)


def _log_sum_exp(x: Node, axes: list[int], keep: bool) -> Node:
    if not axes:
        return x
    high = build.reduce("max", x, axes)
    high = build.where(apply("isinf", high), 0.0, high)
    total = apply("log", build.reduce("sum", apply("exp", do("sub", x, high)), axes))
    whole = do("add", total, high)
    return whole if keep else build.squeeze(whole, axes)


_reduction("ReduceSum", _sum)
_reduction("ReduceMean", build.mean)
_reduction("ReduceProd", _extreme("prod"))
_reduction("ReduceMax", _extreme("max"))
_reduction("ReduceMin", _extreme("min"))
_reduction("ReduceL1", lambda x, axes, keep: _sum(apply("abs", x), axes, keep))
_reduction("ReduceSumSquare", lambda x, axes, keep: _sum(do("mul", x, x), axes, keep))
_reduction("ReduceLogSumExp", _log_sum_exp)


def _log_sum(x: Node, axes: list[int], keep: bool) -> Node:
    return apply("log", _sum(x, axes, keep))


def _norm(x: Node, axes: list[int], keep: bool) -> Node:
    wanted = x if x.dtype.kind == "float" else cast(x, dtypes.f32)
    return cast(apply("sqrt", _sum(do("mul", wanted, wanted), axes, keep)), x.dtype)


_reduction("ReduceLogSum", _log_sum)
_reduction("ReduceL2", _norm)


def _arg(name: str, kind: str) -> None:
    @op(name, attrs="axis keepdims select_last_index")
    def function(call: Call) -> Node:
        x = call[0]
        axis = axis_of(call.attr_int("axis", 0), len(x.shape))
        best = do("eq", x, build.reduce(kind, x, [axis]))
        at = build.along(axis, len(x.shape), x.shape[axis])
        last = call.attr_bool("select_last_index", False)
        places = build.where(best, at, -1 if last else (1 << 31) - 1)
        keep = call.attr_bool("keepdims", True)
        found = build.reduce("max" if last else "min", places, [axis], keep)
        return cast(found, dtypes.i64)


_arg("ArgMax", "max")
_arg("ArgMin", "min")


# --- softmax


def _flattened(call: Call, function: Callable[[Node, int], Node]) -> Node:
    """Before opset 13 all axes from ``axis`` on are one."""
    x = call[0]
    axis = axis_of(call.attr_int("axis", 1), len(x.shape))
    flat = build.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))
    return build.reshape(cast(function(cast(flat, wide(x.dtype)), 1), x.dtype), x.shape)


def _softmax_like(name: str, function: Callable[[Node, int], Node]) -> None:
    op(name, 1, 12, attrs="axis")(lambda call: _flattened(call, function))

    @op(name, 13, attrs="axis")
    def along(call: Call) -> Node:
        x = call[0]
        axis = axis_of(call.attr_int("axis", -1), len(x.shape))
        return cast(function(cast(x, wide(x.dtype)), axis), x.dtype)


def _log_softmax(x: Node, axis: int) -> Node:
    less = do("sub", x, build.reduce("max", x, [axis]))
    return do("sub", less, apply("log", build.reduce("sum", apply("exp", less), [axis])))


def _hardmax(x: Node, axis: int) -> Node:
    at = build.along(axis, len(x.shape), x.shape[axis])
    best = do("eq", x, build.reduce("max", x, [axis]))
    first = build.reduce("min", build.where(best, at, (1 << 31) - 1), [axis])
    return cast(do("eq", at, first), x.dtype)


_softmax_like("Softmax", build.softmax)
_softmax_like("LogSoftmax", _log_softmax)
_softmax_like("Hardmax", _hardmax)


# --- running sums, norms, sorting


def _running(call: Call, kind: str, start: int) -> Node:
    x = call[0]
    rank = len(x.shape)
    axis = axis_of(call.ints(1, "the axis")[0], rank)
    count = x.shape[axis]
    exclusive, reverse = call.attr_bool("exclusive", False), call.attr_bool("reverse", False)
    # an axis behind all others: the places that are added up
    rows = build.unsqueeze(cast(x, wide(x.dtype)), [rank])
    moved = build.transpose(rows, axis, rank)
    here, there = build.along(axis, rank + 1, count), build.along(rank, rank + 1, count)
    test = ("gt" if exclusive else "ge") if reverse else ("lt" if exclusive else "le")
    chosen = build.where(do(test, there, here), moved, start)
    return cast(build.reduce(kind, chosen, [rank], keep=False), x.dtype)


@op("CumSum", 11, attrs="exclusive reverse")
def _cumsum(call: Call) -> Node:
    return _running(call, "sum", 0)


@op("CumProd", 26, attrs="exclusive reverse")
def _cumprod(call: Call) -> Node:
    return _running(call, "prod", 1)


@op("LpNormalization", attrs="axis p")
def _lp_normalization(call: Call) -> Node:
    x = call[0]
    axis = axis_of(call.attr_int("axis", -1), len(x.shape))
    if call.attr_int("p", 2) == 1:
        norm = build.reduce("sum", apply("abs", x), [axis])
    else:
        norm = apply("sqrt", build.reduce("sum", do("mul", x, x), [axis]))
    return build.where(do("eq", norm, 0.0), 0.0, do("div", x, norm))


@op("TopK", 10, attrs="axis largest sorted")
def _top_k(call: Call) -> tuple[Node, Node]:
    """An element's rank is how many come before it; place k of the result takes that of rank k."""
    x = call[0]
    rank = len(x.shape)
    axis = axis_of(call.attr_int("axis", -1), rank)
    wanted = call.read_sizes(1)[0]
    places = top(x, axis, wanted, call.attr_bool("largest", True))
    indices = [
        build.along(i, rank, s)
        for i, s in enumerate((*x.shape[:axis], wanted, *x.shape[axis + 1 :]))
    ]
    indices[axis] = places
    return build.take(x, *indices), cast(places, dtypes.i64)


def top(x: Node, axis: int, wanted: Size, largest: bool) -> Node:
    """Places of the ``wanted`` largest or smallest along ``axis``, in order; of equal ones the
    first comes first. i32."""
    rank = len(x.shape)
    count = x.shape[axis]
    last = build.unsqueeze(x, [rank])
    others = build.transpose(last, axis, rank)
    here, there = build.along(axis, rank + 1, count), build.along(rank, rank + 1, count)
    before = do("gt" if largest else "lt", others, last)
    tie = do("and", do("eq", others, last), do("lt", there, here))
    order = build.reduce("sum", cast(do("or", before, tie), dtypes.i32), [rank], keep=False)
    held = build.transpose(build.unsqueeze(order, [rank]), axis, rank)
    slot = build.along(axis, rank + 1, wanted)
    found = build.where(do("eq", held, slot), there, -1)
    return build.reduce("max", found, [rank], keep=False)
