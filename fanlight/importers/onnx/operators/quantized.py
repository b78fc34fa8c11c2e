"""com.microsoft's operators of 8-bit values: each is computed on what they mean, in f32, and
rounded."""

from __future__ import annotations

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.operators.quantization import dynamically, integer_product, rounded
from fanlight.importers.onnx.registry import MICROSOFT, op
from fanlight.ir import build
from fanlight.ir.build import axis_of, cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply


def _meant(call: Call, first: int) -> Node:
    """f32 numbers that input ``first`` means with its scale, the next one, and its zero point,
    the one after."""
    x, scale = call[first], build.reshape(call[first + 1], ())
    point = call.get(first + 2)
    value = cast(x, dtypes.f32)
    if point is not None:
        value = do("sub", value, build.reshape(cast(point, dtypes.f32), ()))
    return do("mul", value, scale)


def _kept(call: Call, value: Node, first: int, to: dtypes.DType) -> Node:
    """f32 numbers rounded by the scale in input ``first`` and the zero point behind it."""
    scaled = do("div", value, build.reshape(call[first], ()))
    point = call.get(first + 1)
    return rounded(
        scaled, None if point is None else build.reshape(cast(point, dtypes.f32), ()), to
    )


def _binary(name: str, kind: str) -> None:
    @op(name, domain=MICROSOFT)
    def pair(call: Call) -> Node:
        """a, its scale and zero point, b, the same, those of the result."""
        value = call.elementwise(kind, _meant(call, 0), _meant(call, 3))
        return _kept(call, value, 6, call[0].dtype)


_binary("QLinearAdd", "add")
_binary("QLinearMul", "mul")


@op("QLinearSigmoid", domain=MICROSOFT)
def _sigmoid(call: Call) -> Node:
    return _kept(call, apply("sigmoid", _meant(call, 0)), 3, call[0].dtype)


@op("QLinearLeakyRelu", domain=MICROSOFT, attrs="alpha")
def _leaky_relu(call: Call) -> Node:
    x = _meant(call, 0)
    value = build.where(do("ge", x, 0.0), x, do("mul", x, call.attr_float("alpha", 0.01)))
    return _kept(call, value, 3, call[0].dtype)


@op("QLinearGlobalAveragePool", domain=MICROSOFT, attrs="channels_last")
def _global_average_pool(call: Call) -> Node:
    """x [N, C, *S], or [N, *S, C] with ``channels_last``."""
    x, rank = _meant(call, 0), len(call[0].shape)
    axes = range(1, rank - 1) if call.attr_bool("channels_last", False) else range(2, rank)
    return _kept(call, build.mean(x, axes), 3, call[0].dtype)


@op("QLinearConcat", domain=MICROSOFT, attrs="axis")
def _concat(call: Call) -> Node:
    """The result's scale and zero point, then parts, each with its own."""
    parts = [_meant(call, first) for first in range(2, len(call.inputs), 3)]
    axis = axis_of(call.attr_int("axis"), len(parts[0].shape))
    return _kept(call, build.concat(parts, axis), 0, call[2].dtype)


# --- products


def _product(
    call: Call, a: Node, za: Node | None, b: Node, zb: Node | None, scale: Node, bias: Node | None
) -> Node:
    made = do("mul", cast(integer_product(call, a, za, b, zb), dtypes.f32), scale)
    return made if bias is None else call.elementwise("add", made, bias)


@op("MatMulIntegerToFloat", domain=MICROSOFT)
def _matmul_integer_to_float(call: Call) -> Node:
    """Inputs a, b, the scales of both, the zero points of both, a bias."""
    scale = do("mul", build.reshape(call[2], ()), call[3])
    return _product(call, call[0], call.get(4), call[1], call.get(5), scale, call.get(6))


@op("DynamicQuantizeMatMul", domain=MICROSOFT)
def _dynamic_quantize_matmul(call: Call) -> Node:
    """a in f32, which is rounded to 8 bits here, b, its scale and zero point, a bias."""
    a, scale, zero = dynamically(call[0])
    return _product(call, a, zero, call[1], call.get(3), do("mul", scale, call[2]), call.get(4))
