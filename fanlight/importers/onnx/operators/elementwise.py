"""Operators on one element at a time: arithmetic, functions, activations, casts, comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from fanlight import dtypes
from fanlight.dtypes import DType
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.registry import MICROSOFT, op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply


def _same(name: str, *rows: tuple[str, int]) -> None:
    """ONNX operators that are an op of ours on all their inputs."""

    def function(call: Call) -> Node:
        return call.elementwise(name, *(call[i] for i in range(len(call.inputs))))

    for onnx_name, since in rows:
        op(onnx_name, since)(function)


for _name, _onnx in {
    "abs": "Abs", "neg": "Neg", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "recip": "Reciprocal",
    "tanh": "Tanh", "sigmoid": "Sigmoid", "erf": "Erf", "sin": "Sin", "cos": "Cos", "atan": "Atan",
    "floor": "Floor", "ceil": "Ceil", "round": "Round", "sign": "Sign", "not": "Not",
    "isnan": "IsNaN", "bitnot": "BitwiseNot", "add": "Add", "sub": "Sub", "mul": "Mul",
    "div": "Div", "eq": "Equal", "lt": "Less", "gt": "Greater", "le": "LessOrEqual",
    "ge": "GreaterOrEqual", "and": "And", "or": "Or", "ne": "Xor", "bitand": "BitwiseAnd",
    "bitor": "BitwiseOr", "bitxor": "BitwiseXor",
}.items():  # fmt: skip
    _same(_name, (_onnx, 7 if _name in ("add", "sub", "mul", "div", "and", "or", "ne") else 1))


def _float(x: Node) -> Node:
    """Narrow floats are computed with as f32: an exporter's chain rounds where it says so."""
    return cast(x, dtypes.f32) if x.dtype.name in ("f16", "bf16") else x


Unary: TypeAlias = Callable[[Call, Node], Node]


def unary(
    name: str, since: int = 1, *, domain: str = "", attrs: str = ""
) -> Callable[[Unary], Unary]:
    """Puts a function of (call, x) into the table, computed in f32 for narrower floats."""

    def put(function: Unary) -> Unary:
        def whole(call: Call) -> Node:
            x = call[0]
            return cast(function(call, _float(x)), x.dtype)

        op(name, since, domain=domain, attrs=attrs)(whole)
        return function

    return put


@unary("Identity")
def _identity(call: Call, x: Node) -> Node:
    return call[0]


@unary("Tan", 7)
def _tan(call: Call, x: Node) -> Node:
    return do("div", apply("sin", x), apply("cos", x))


@unary("Asin", 7)
def _asin(call: Call, x: Node) -> Node:
    # atan2(x, sqrt(1 - x²)), where the root is not negative
    return _asin_of(x)


def _asin_of(x: Node) -> Node:
    rest = apply("sqrt", do("mul", do("sub", 1.0, x), do("add", 1.0, x)))
    return apply("atan", do("div", x, rest))


@unary("Acos", 7)
def _acos(call: Call, x: Node) -> Node:
    half = apply("sqrt", do("div", do("sub", 1.0, x), do("add", 1.0, x)))
    return do("mul", apply("atan", half), 2.0)


@unary("Sinh", 9)
def _sinh(call: Call, x: Node) -> Node:
    """Near 0 by its series, where the difference of powers would lose digits."""
    power = apply("exp", apply("abs", x))
    large = do("mul", do("sub", power, do("recip", power)), do("mul", apply("sign", x), 0.5))
    y = do("mul", x, x)
    series = do("add", do("mul", y, 1 / 5040), 1 / 120)
    series = do("add", do("mul", do("add", do("mul", series, y), 1 / 6), y), 1.0)
    return build.where(do("lt", apply("abs", x), 0.5), do("mul", x, series), large)


@unary("Cosh", 9)
def _cosh(call: Call, x: Node) -> Node:
    power = apply("exp", apply("abs", x))
    return do("mul", do("add", power, do("recip", power)), 0.5)


@unary("Asinh", 9)
def _asinh(call: Call, x: Node) -> Node:
    a = apply("abs", x)
    root = apply("sqrt", do("add", do("mul", a, a), 1.0))
    more = do("add", a, do("div", do("mul", a, a), do("add", root, 1.0)))  # asinh = log1p(more)
    return do("mul", apply("sign", x), _log1p(more))


@unary("Acosh", 9)
def _acosh(call: Call, x: Node) -> Node:
    less = do("sub", x, 1.0)
    return _log1p(do("add", less, apply("sqrt", do("mul", less, do("add", x, 1.0)))))


@unary("Atanh", 9)
def _atanh(call: Call, x: Node) -> Node:
    twice = do("div", do("mul", x, 2.0), do("sub", 1.0, x))
    return do("mul", _log1p(twice), 0.5)


def _log1p(x: Node) -> Node:
    """log(1 + x) without loss near 0 (Kahan): x log(u) / (u - 1), u = 1 + x rounded."""
    u = do("add", x, 1.0)
    near = do("sub", u, 1.0)
    safe = build.where(do("eq", near, 0.0), 1.0, near)
    scaled = do("div", do("mul", x, apply("log", u)), safe)
    return build.where(do("eq", near, 0.0), x, build.where(apply("isinf", u), u, scaled))


# --- activations


@unary("Relu")
def _relu(call: Call, x: Node) -> Node:
    return do("max", x, 0)


@unary("LeakyRelu", attrs="alpha")
def _leaky_relu(call: Call, x: Node) -> Node:
    return build.where(do("ge", x, 0.0), x, do("mul", x, call.attr_float("alpha", 0.01)))


@op("PRelu", 7)
def _prelu(call: Call) -> Node:
    x, slope = call[0], call[1]
    scaled = call.elementwise("mul", x, slope)
    return build.where(do("ge", x, 0), x, scaled)


@unary("ThresholdedRelu", 10, attrs="alpha")
def _thresholded_relu(call: Call, x: Node) -> Node:
    return build.where(do("gt", x, call.attr_float("alpha", 1.0)), x, 0.0)


@unary("Elu", attrs="alpha")
def _elu(call: Call, x: Node) -> Node:
    return _elu_of(x, call.attr_float("alpha", 1.0))


def _elu_of(x: Node, alpha: float) -> Node:
    low = do("mul", do("sub", apply("exp", do("min", x, 0.0)), 1.0), alpha)
    return build.where(do("gt", x, 0.0), x, low)


@unary("Selu", attrs="alpha gamma")
def _selu(call: Call, x: Node) -> Node:
    alpha = call.attr_float("alpha", 1.67326319217681884765625)
    return do("mul", _elu_of(x, alpha), call.attr_float("gamma", 1.05070102214813232421875))


@unary("Celu", 12, attrs="alpha")
def _celu(call: Call, x: Node) -> Node:
    alpha = call.attr_float("alpha", 1.0)
    return do("mul", _elu_of(do("div", x, alpha), 1.0), alpha)


@unary("HardSigmoid", attrs="alpha beta")
def _hard_sigmoid(call: Call, x: Node) -> Node:
    line = do("mul", x, call.attr_float("alpha", 0.2))
    return do("max", do("min", do("add", line, call.attr_float("beta", 0.5)), 1.0), 0.0)


@unary("HardSwish", 14)
def _hard_swish(call: Call, x: Node) -> Node:
    gate = do("max", do("min", do("add", do("mul", x, 1 / 6), 0.5), 1.0), 0.0)
    return do("mul", x, gate)


@unary("Softplus")
def _softplus(call: Call, x: Node) -> Node:
    return softplus(x)


def softplus(x: Node) -> Node:
    """log(1 + exp(x)), stable."""
    return do("add", do("max", x, 0.0), _log1p(apply("exp", apply("neg", apply("abs", x)))))


@unary("Softsign")
def _softsign(call: Call, x: Node) -> Node:
    return do("div", x, do("add", apply("abs", x), 1.0))


@unary("Mish", 18)
def _mish(call: Call, x: Node) -> Node:
    return do("mul", x, apply("tanh", softplus(x)))


@unary("Shrink", 9, attrs="bias lambd")
def _shrink(call: Call, x: Node) -> Node:
    bias, lambd = call.attr_float("bias", 0.0), call.attr_float("lambd", 0.5)
    if x.dtype.kind != "float":
        x = cast(x, dtypes.f32)
    high = build.where(do("gt", x, lambd), do("sub", x, bias), 0.0)
    return build.where(do("lt", x, -lambd), do("add", x, bias), high)


@unary("Swish", 24, attrs="alpha")
def _swish(call: Call, x: Node) -> Node:
    alpha = call.attr_float("alpha", 1.0)
    return apply("silu", x) if alpha == 1.0 else do("mul", x, apply("sigmoid", do("mul", x, alpha)))


@unary("QuickGelu", domain=MICROSOFT, attrs="alpha")
def _quick_gelu(call: Call, x: Node) -> Node:
    alpha = call.attr_float("alpha", 1.702)
    return do("mul", x, apply("sigmoid", do("mul", x, alpha)))


def gelu(x: Node, approximate: bool = False) -> Node:
    """x Φ(x), or its form with tanh."""
    if approximate:
        inner = do("mul", do("add", do("mul", do("mul", x, x), 0.044715), 1.0), x)
        return do("mul", do("mul", x, 0.5), do("add", apply("tanh", do("mul", inner, _ROOT)), 1.0))
    return do("mul", do("mul", x, 0.5), do("add", apply("erf", do("mul", x, math.sqrt(0.5))), 1.0))


_ROOT = math.sqrt(2 / math.pi)


@unary("Gelu", 20, attrs="approximate")
def _gelu(call: Call, x: Node) -> Node:
    return gelu(x, call.attr_string("approximate", "none") == "tanh")


@unary("Gelu", domain=MICROSOFT)
def _gelu_microsoft(call: Call, x: Node) -> Node:
    return gelu(x)


@op("FastGelu", domain=MICROSOFT)
def _fast_gelu(call: Call) -> Node:
    x = call[0]
    whole = x if call.get(1) is None else call.elementwise("add", x, call[1])
    return cast(gelu(_float(whole), approximate=True), x.dtype)


@op("BiasGelu", domain=MICROSOFT)
def _bias_gelu(call: Call) -> Node:
    return cast(gelu(_float(call.elementwise("add", call[0], call[1]))), call[0].dtype)


@op("SwiGLU", 28, attrs="alpha")
def _swiglu(call: Call) -> Node:
    gate, x = call[0], call[1]
    alpha = call.attr_float("alpha", 1.0)
    wide = _float(gate)
    made = do("mul", do("mul", wide, apply("sigmoid", do("mul", wide, alpha))), _float(x))
    return cast(made, gate.dtype)


# --- several operands


@op("Pow", 7)
def _pow(call: Call) -> Node:
    x, y = call[0], call[1]
    known = call.known(1)
    if known is not None and len(known) == 1 and known[0] in (2, 3, 0.5, 1, -1):
        power = known[0]
        if power == 2:
            return do("mul", x, x)
        if power == 3:
            return do("mul", do("mul", x, x), x)
        if power == 1:
            return x
        if x.dtype.kind == "float":
            return apply("sqrt", x) if power == 0.5 else apply("recip", x)
    wide = dtypes.f64 if x.dtype.bytes == 8 else dtypes.f32
    call.broadcast(x, y)
    if x.dtype.kind == "float":
        return cast(do("pow", cast(x, wide), cast(y, wide)), x.dtype)
    if y.dtype.kind != "float":
        return _integer_pow(x, cast(y, x.dtype))
    whole = do("and", do("eq", y, apply("floor", y)), do("ge", y, 0.0))
    exact = _integer_pow(x, cast(y, x.dtype))
    return build.where(whole, exact, cast(do("pow", cast(x, wide), cast(y, wide)), x.dtype))


def _integer_pow(x: Node, y: Node) -> Node:
    """By repeated squaring; a negative exponent gives 0, or ±1 of ±1."""
    bits = 8 * x.dtype.bytes - (x.dtype.kind == "int")
    steps = min(bits, 6)  # 2 to the 64 and more overflows: only 0 and ±1 have such powers
    result: Node = build.full(1, x.dtype, x.shape)
    square, left = x, y
    for _ in range(steps):
        odd = do("ne", do("bitand", left, 1), 0)
        result = build.where(odd, do("mul", result, square), result)
        square, left = do("mul", square, square), do("shr", left, 1)
    return result


@op("Mod", 10, attrs="fmod")
def _mod(call: Call) -> Node:
    x, y = call[0], call[1]
    call.broadcast(x, y)
    rest = do("mod", x, y)
    if call.attr_bool("fmod", False) or x.dtype.kind == "uint":
        return rest
    differs = do("ne", do("lt", rest, 0), do("lt", y, 0))
    return build.where(do("and", do("ne", rest, 0), differs), do("add", rest, y), rest)


@op("BitShift", 11, attrs="direction")
def _bit_shift(call: Call) -> Node:
    left = call.attr_string("direction") == "LEFT"
    return call.elementwise("shl" if left else "shr", call[0], call[1])


@op("IsInf", 10, attrs="detect_negative detect_positive")
def _is_inf(call: Call) -> Node:
    x = call[0]
    found = apply("isinf", x)
    if not call.attr_bool("detect_negative", True):
        found = do("and", found, do("gt", x, 0.0))
    if not call.attr_bool("detect_positive", True):
        found = do("and", found, do("lt", x, 0.0))
    return found


def _variadic(name: str) -> Callable[[Call], Node]:
    def function(call: Call) -> Node:
        total = call[0]
        for i in range(1, len(call.inputs)):
            total = call.elementwise(name, total, call[i])
        return total

    return function


op("Max", 8)(_variadic("max"))
op("Min", 8)(_variadic("min"))
op("Sum", 8)(_variadic("add"))


@op("Mean", 8)
def _mean(call: Call) -> Node:
    return do("div", _variadic("add")(call), len(call.inputs))


@op("Where", 9)
def _where(call: Call) -> Node:
    call.broadcast(call[0], call[1], call[2])
    return apply("where", call[0], call[1], call[2])


@op("Clip", 11)
def _clip(call: Call) -> Node:
    x, low, high = call[0], call.get(1), call.get(2)
    if low is not None:
        x = do("max", x, low)
    return do("min", x, high) if high is not None else x


@op("Clip", 1, 10, attrs="min max")
def _clip_attributes(call: Call) -> Node:
    x = call[0]
    if "min" in call.attributes:
        x = do("max", x, call.attr_float("min"))
    return do("min", x, call.attr_float("max")) if "max" in call.attributes else x


# --- casts


def convert(x: Node, to: DType, saturate: bool = True, round_mode: str = "up") -> Node:
    """ONNX's Cast. Float8 and float4 types saturate, infinities too, unless told otherwise;
    ``round_mode``, of powers of two alone (f8e8m0): up, down or nearest."""
    if to is x.dtype:
        return x
    if to.name == "f8e8m0":
        return _power_of_two(cast(x, dtypes.f32), saturate, round_mode)
    if to.name in LIMITS and x.dtype.kind != "bool":
        wide = cast(x, dtypes.f32)
        limit = LIMITS[to.name]
        if to.name == "f4e2m1" or saturate:
            inside = do("max", do("min", wide, limit), -limit)
            wide = build.where(apply("isnan", wide), wide, inside)
        return apply("cast", wide, to=to)
    if x.dtype.kind == "float" and to.kind == "uint":  # negative numbers wrap around
        x = apply("cast", x, to=dtypes.i32 if to.bytes < 4 else dtypes.i64)
    return apply("cast", x, to=to)


LIMITS = {"f8e4m3fn": 448.0, "f8e4m3fnuz": 240.0, "f8e5m2": 57344.0, "f8e5m2fnuz": 57344.0}
LIMITS |= {"f4e2m1": 6.0}


def _power_of_two(x: Node, saturate: bool, mode: str) -> Node:
    if saturate:
        # not a maximum: devices may flush its result, a number below f32's normal ones, to zero
        low = do("le", x, 2.0**-127)
        inside = build.where(low, 2.0**-127, do("min", x, 2.0**127))
        x = build.where(apply("isnan", x), x, inside)
    near = cast(apply("cast", x, to=dtypes.DTYPES["f8e8m0"]), dtypes.f32)
    if mode == "up":
        near = build.where(do("lt", near, x), do("mul", near, 2.0), near)
    elif mode == "down":
        near = build.where(do("gt", near, x), do("mul", near, 0.5), near)
    return apply("cast", near, to=dtypes.DTYPES["f8e8m0"])


@op("Cast", 6, attrs="to saturate round_mode")
def _cast(call: Call) -> Node:
    return _converted(call, call.attr_dtype("to"))


@op("BitCast", 26, attrs="to")
def _bit_cast(call: Call) -> Node:
    to = call.attr_dtype("to")
    return call[0] if to is call[0].dtype else apply("bitcast", call[0], of=call[0].dtype, to=to)


@op("CastLike", 15, attrs="saturate round_mode")
def _cast_like(call: Call) -> Node:
    return _converted(call, call[1].dtype)


def _converted(call: Call, to: DType) -> Node:
    mode = call.attr_string("round_mode", "up")
    if mode not in ("up", "down", "nearest"):
        call.fail("a rounding mode", got=mode)
    return convert(call[0], to, call.attr_bool("saturate", True), mode)


@op("Dropout", 7, attrs="ratio seed")
def _dropout(call: Call) -> tuple[Node, Node | None]:
    if call.get(2) is not None and call.numbers(2, "whether it trains")[0]:
        ratio = call.numbers(1, "the ratio")[0] if call.get(1) is not None else 0.5
        if ratio:
            call.fail("Dropout while training")
    mask = build.full(True, dtypes.boolean, call[0].shape) if call.wants(1) else None
    return call[0], mask
