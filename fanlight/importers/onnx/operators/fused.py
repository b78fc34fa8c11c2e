"""com.microsoft's convolutions and products with an activation behind them."""

from __future__ import annotations

from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.operators.convolution import conv
from fanlight.importers.onnx.operators.linear import gemm
from fanlight.importers.onnx.operators.recurrent import activation
from fanlight.importers.onnx.operators.windows import ATTRS
from fanlight.importers.onnx.registry import MICROSOFT, op
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node


@op("FusedConv", domain=MICROSOFT, attrs=f"{ATTRS} activation activation_params group")
def _fused_conv(call: Call) -> Node:
    """Inputs of Conv, and one that is added before the activation."""
    made = conv(call)
    if call.get(3) is not None:
        made = call.elementwise("add", made, call[3])
    name = call.attr_string("activation", "")
    values = call.attr_floats("activation_params", ())
    if name == "Clip":
        return do("min", do("max", made, values[0]), values[1])
    first, second = (*values, None, None)[:2]
    return activation(call, name, first, second)(made) if name else made


@op(
    "FusedGemm",
    domain=MICROSOFT,
    attrs="""activation activation_alpha activation_beta alpha beta transA transB""",
)
def _fused_gemm(call: Call) -> Node:
    made, name = gemm(call), call.attr_string("activation", "")
    alpha = call.attr_float("activation_alpha", None)
    beta = call.attr_float("activation_beta", None)
    return activation(call, name, alpha, beta)(made) if name else made
