"""Numbers of few bits: quantising, its inverse, and products of quantised values."""

from __future__ import annotations

from fanlight import dtypes
from fanlight.dtypes import DType
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.operators.convolution import convolve_integers
from fanlight.importers.onnx.operators.elementwise import LIMITS, convert
from fanlight.importers.onnx.operators.linear import matmul
from fanlight.importers.onnx.operators.windows import ATTRS
from fanlight.importers.onnx.registry import Result, op
from fanlight.ir import build
from fanlight.ir.build import axis_of, cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import Size, product


def bits_of(dtype: DType) -> int:
    """Bits of one element."""
    return 8 * dtype.bytes // dtype.block


def limits(dtype: DType) -> tuple[int, int]:
    """The smallest and largest of an integer type."""
    bits = bits_of(dtype)
    if dtype.kind == "uint":
        return 0, (1 << bits) - 1
    return -(1 << bits - 1), (1 << bits - 1) - 1


def _beside(call: Call, scale: Node, x: Node) -> Node:
    """``scale`` in a shape that broadcasts with ``x``: one number, one for each place of an axis,
    or one for each block of an axis."""
    rank = len(x.shape)
    if not scale.shape or (len(scale.shape) == 1 and scale.shape[0] == 1):
        return build.reshape(scale, ())
    axis = axis_of(call.attr_int("axis", 1), rank)
    if len(scale.shape) == 1 and not call.attr_int("block_size", 0):
        shape: list[Size] = [1] * rank
        shape[axis] = scale.shape[0]
        return build.reshape(scale, shape)
    block = call.attr_int("block_size", 0)
    if not block:
        return scale
    at = do("div", build.along(axis, rank, x.shape[axis]), block)
    return build.take_along(scale, axis, at)


def dequantised(call: Call, x: Node, scale: Node, zero: Node | None, to: DType) -> Node:
    """(x - zero) * scale, with the node's axis and blocks."""
    if x.dtype.kind == "float":
        value = cast(x, dtypes.f32)
        if zero is not None:
            value = do("sub", value, _beside(call, cast(zero, dtypes.f32), x))
    else:
        whole = cast(x, dtypes.i32)
        if zero is not None:
            whole = do("sub", whole, _beside(call, cast(zero, dtypes.i32), x))
        value = cast(whole, dtypes.f32)
    return cast(do("mul", value, _beside(call, cast(scale, dtypes.f32), x)), to)


@op("DequantizeLinear", 10, attrs="axis block_size output_dtype")
def _dequantize(call: Call) -> Node:
    to = call[1].dtype
    if call.attr_int("output_dtype", 0):
        to = call.attr_dtype("output_dtype")
    return dequantised(call, call[0], call[1], call.get(2), to)


@op("QuantizeLinear", 10, attrs="axis block_size output_dtype precision saturate")
def _quantize(call: Call) -> Node:
    x, zero = call[0], call.get(2)
    to = dtypes.u8 if zero is None else zero.dtype
    if zero is None and call.attr_int("output_dtype", 0):
        to = call.attr_dtype("output_dtype")
    scaled = do("div", cast(x, dtypes.f32), _beside(call, cast(call[1], dtypes.f32), x))
    if to.name in LIMITS or to.kind == "float":
        if zero is not None:
            scaled = do("add", scaled, _beside(call, cast(zero, dtypes.f32), x))
        return convert(scaled, to, call.attr_bool("saturate", True))
    point = None if zero is None else _beside(call, cast(zero, dtypes.f32), x)
    return rounded(scaled, point, to)


def rounded(scaled: Node, zero: Node | None, to: DType) -> Node:
    """The nearest integers, plus ``zero`` (f32), moved into the type's range."""
    low, high = limits(to)
    near = apply("round", scaled)
    near = near if zero is None else do("add", near, zero)
    inside = do("max", do("min", near, float(high)), float(low))
    return cast(cast(inside, dtypes.i32), to)


@op("DynamicQuantizeLinear", 11)
def _dynamic_quantize(call: Call) -> Result:
    return dynamically(call[0])


def dynamically(x: Node) -> tuple[Node, Node, Node]:
    """u8 values, their scale, their zero point: the range of all of x, with 0 in it."""
    axes = range(len(x.shape))
    low = do("min", build.reduce("min", x, axes, keep=False), 0.0)
    high = do("max", build.reduce("max", x, axes, keep=False), 0.0)
    scale = do("div", do("sub", high, low), 255.0)
    safe = build.where(do("eq", scale, 0.0), 1.0, scale)
    zero = do("max", do("min", apply("round", do("div", apply("neg", low), safe)), 255.0), 0.0)
    return (
        rounded(do("div", x, safe), zero, dtypes.u8),
        scale,
        cast(cast(zero, dtypes.i32), dtypes.u8),
    )


def _less(x: Node, zero: Node | None, rows: bool) -> Node:
    """x - zero, in 32 bits; ``zero`` is one number, or one for each row or column."""
    whole = cast(x, dtypes.i32)
    if zero is None:
        return whole
    point = cast(zero, dtypes.i32)
    if len(point.shape) == 1 and point.shape[0] != 1:
        point = build.unsqueeze(point, [1]) if rows else point
    elif len(point.shape) < 2:
        point = build.reshape(point, ())
    return do("sub", whole, point)


@op("MatMulInteger", 10)
def _matmul_integer(call: Call) -> Node:
    return integer_product(call, call[0], call.get(2), call[1], call.get(3))


def integer_product(call: Call, a: Node, za: Node | None, b: Node, zb: Node | None) -> Node:
    """(a - za) @ (b - zb), i32, of 8-bit integers; zero points as :func:`_less` takes them."""
    whole = za is None or product(za.shape) == 1
    by_column = zb is None or product(zb.shape) == 1 or zb.shape == b.shape[-1:]
    if not (whole and by_column and len(a.shape) > 1 and len(b.shape) == 2):
        return matmul(call, _less(a, za, rows=True), _less(b, zb, rows=False))
    call.same(a.shape[-1], b.shape[-2], "the axis that is summed up")
    zero = build.constant([0], dtypes.i32)
    points = [
        zero if z is None else build.reshape(cast(z, dtypes.i32), (product(z.shape),))
        for z in (za, zb)
    ]
    return apply("dot_integer", a, b, *points)


@op("QLinearMatMul", 10)
def _qlinear_matmul(call: Call) -> Node:
    """Inputs a, its scale and zero point, b, the same, and those of the result."""
    total = cast(integer_product(call, call[0], call[2], call[3], call[5]), dtypes.f32)
    scale_a, scale_b = cast(call[1], dtypes.f32), cast(call[4], dtypes.f32)
    if len(scale_a.shape) == 1 and scale_a.shape[0] != 1:
        scale_a = build.unsqueeze(scale_a, [1])
    factor = do("div", do("mul", scale_a, scale_b), cast(call[6], dtypes.f32))
    return rounded(do("mul", total, factor), cast(call[7], dtypes.f32), call[7].dtype)


@op("QLinearConv", 10, attrs=f"{ATTRS} group")
def _qlinear_conv(call: Call) -> Node:
    """Inputs x, its scale and zero point, w, the same, those of the result, and an i32 bias."""
    w, scale = call[3], call[4]
    rank = len(w.shape)
    total = convolve_integers(call, call[0], call[2], w, call[5])
    if call.get(8) is not None:
        total = do("add", total, build.reshape(call[8], (w.shape[0], *(1,) * (rank - 2))))
    many = bool(scale.shape) and scale.shape[0] != 1
    beside = (scale.shape[0], *(1,) * (rank - 2)) if many else ()
    factor = do("mul", build.reshape(scale, beside), build.reshape(call[1], ()))
    factor = do("div", factor, build.reshape(call[6], ()))
    point = build.reshape(cast(call[7], dtypes.f32), ())
    return rounded(do("mul", cast(total, dtypes.f32), factor), point, call[7].dtype)
