"""Norms: values moved and scaled by what is measured along axes, or was while training."""

from __future__ import annotations

from collections.abc import Sequence

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.operators.reduction import wide
from fanlight.importers.onnx.registry import MICROSOFT, Result, op
from fanlight.ir import build
from fanlight.ir.build import axis_of, cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import binary


def _per_channel(x: Node, rank: int) -> Node:
    """[C] → [C, 1, …], beside values [N, C, *S] of ``rank`` axes."""
    return build.reshape(x, (x.shape[0], *(1,) * (rank - 2)))


def normalised(x: Node, axes: Sequence[int], epsilon: float) -> tuple[Node, Node, Node]:
    """(x - mean) / sqrt(variance + epsilon) along ``axes``; the mean; the inverse deviation."""
    mean = build.mean(x, axes)
    less = do("sub", x, mean)
    variance = build.mean(do("mul", less, less), axes)
    inverse = apply("rsqrt", do("add", variance, epsilon))
    return do("mul", less, inverse), mean, inverse


def rms(x: Node, axes: Sequence[int], epsilon: float) -> tuple[Node, Node]:
    """x / sqrt(mean of squares + epsilon), and the inverse."""
    inverse = apply("rsqrt", do("add", build.mean(do("mul", x, x), axes), epsilon))
    return do("mul", x, inverse), inverse


@op("BatchNormalization", 9, attrs="epsilon momentum training_mode")
def _batch_normalization(call: Call) -> Result:
    """While training also the running mean and variance, [C], of which ``momentum`` is kept."""
    x = call[0]
    kind = wide(x.dtype)
    rank = len(x.shape)
    scale, bias, mean, variance = (_per_channel(cast(call[i], kind), rank) for i in range(1, 5))
    epsilon = call.attr_float("epsilon", 1e-5)
    if not call.attr_bool("training_mode", False):
        factor = do("mul", scale, apply("rsqrt", do("add", variance, epsilon)))
        moved = do("sub", cast(x, kind), mean)
        return cast(do("add", do("mul", moved, factor), bias), x.dtype)
    momentum = call.attr_float("momentum", 0.9)
    axes = [i for i in range(rank) if i != 1]
    measured = build.mean(cast(x, kind), axes)
    less = do("sub", cast(x, kind), measured)
    spread = build.mean(do("mul", less, less), axes)
    factor = do("mul", scale, apply("rsqrt", do("add", spread, epsilon)))
    running = [_kept(call[number], new, momentum) for number, new in ((3, measured), (4, spread))]
    return cast(do("add", do("mul", less, factor), bias), x.dtype), *running


def _kept(old: Node, new: Node, momentum: float) -> Node:
    """[C]: ``momentum`` of ``old``, the rest of ``new`` [1, C, 1, …]."""
    new = build.reshape(new, old.shape)
    share = do("mul", new, 1.0 - momentum)
    return cast(do("add", do("mul", cast(old, new.dtype), momentum), share), old.dtype)


@op("InstanceNormalization", 6, attrs="epsilon")
def _instance_normalization(call: Call) -> Node:
    x = call[0]
    kind, rank = wide(x.dtype), len(x.shape)
    made, _, _ = normalised(cast(x, kind), range(2, rank), call.attr_float("epsilon", 1e-5))
    scale, bias = (_per_channel(cast(call[i], kind), rank) for i in (1, 2))
    return cast(do("add", do("mul", made, scale), bias), x.dtype)


@op("GroupNormalization", 21, attrs="epsilon num_groups stash_type")
@op("GroupNormalization", 18, 20, attrs="epsilon num_groups")
def _group_normalization(call: Call) -> Node:
    x = call[0]
    kind, groups = wide(x.dtype), call.attr_int("num_groups")
    each = binary("//", x.shape[1], groups)
    split = build.reshape(cast(x, kind), (x.shape[0], groups, each, *x.shape[2:]))
    axes = range(2, len(split.shape))
    made, _, _ = normalised(split, axes, call.attr_float("epsilon", 1e-5))
    scale, bias = cast(call[1], kind), cast(call[2], kind)
    if call.opset < 21:  # one number for each group
        shape = (groups, *(1,) * (len(split.shape) - 2))
        made = do("mul", made, build.reshape(scale, shape))
        made = do("add", made, build.reshape(bias, shape))
        return cast(build.reshape(made, x.shape), x.dtype)
    made = build.reshape(made, x.shape)
    made = do("mul", made, _per_channel(scale, len(x.shape)))
    return cast(do("add", made, _per_channel(bias, len(x.shape))), x.dtype)


@op("LayerNormalization", 17, attrs="axis epsilon stash_type")
@op("LayerNormalization", 1, 16, attrs="axis epsilon stash_type")
def _layer_normalization(call: Call) -> Result:
    x, bias = call[0], call.get(2)
    kind, rank = wide(x.dtype), len(x.shape)
    axes = range(axis_of(call.attr_int("axis", -1), rank), rank)
    made, mean, inverse = normalised(cast(x, kind), axes, call.attr_float("epsilon", 1e-5))
    made = call.elementwise("mul", made, cast(call[1], kind))
    if bias is not None:
        made = call.elementwise("add", made, cast(bias, kind))
    return cast(made, x.dtype), cast(mean, dtypes.f32), cast(inverse, dtypes.f32)


@op("RMSNormalization", 23, attrs="axis epsilon stash_type")
@op("SimplifiedLayerNormalization", attrs="axis epsilon stash_type")
def _rms_normalization(call: Call) -> Result:
    x = call[0]
    kind, rank = wide(x.dtype), len(x.shape)
    axes = range(axis_of(call.attr_int("axis", -1), rank), rank)
    made, inverse = rms(cast(x, kind), axes, call.attr_float("epsilon", 1e-5))
    made = call.elementwise("mul", made, cast(call[1], kind))
    return cast(made, x.dtype), cast(inverse, dtypes.f32)


@op("SkipLayerNormalization", domain=MICROSOFT, attrs="epsilon")
def _skip_layer_normalization(call: Call) -> Result:
    """Inputs x, skip, gamma, beta, bias; the fourth output is the sum."""
    x, gamma, beta, bias = call[0], call[2], call.get(3), call.get(4)
    kind = wide(x.dtype)
    total = call.elementwise("add", cast(x, kind), cast(call[1], kind))
    total = total if bias is None else do("add", total, cast(bias, kind))
    last = [len(x.shape) - 1]
    made, _, _ = normalised(total, last, call.attr_float("epsilon", 1e-12))
    made = do("mul", made, cast(gamma, kind))
    made = made if beta is None else do("add", made, cast(beta, kind))
    return cast(made, x.dtype), None, None, cast(total, x.dtype)


@op("SkipSimplifiedLayerNormalization", domain=MICROSOFT, attrs="epsilon")
def _skip_simplified(call: Call) -> Result:
    """Inputs x, skip, gamma, bias; the fourth output is the sum."""
    x, bias = call[0], call.get(3)
    kind = wide(x.dtype)
    total = call.elementwise("add", cast(x, kind), cast(call[1], kind))
    total = total if bias is None else do("add", total, cast(bias, kind))
    made, _ = rms(total, [len(x.shape) - 1], call.attr_float("epsilon", 1e-12))
    return cast(do("mul", made, cast(call[2], kind)), x.dtype), None, None, cast(total, x.dtype)


@op("MeanVarianceNormalization", 9, attrs="axes")
def _mean_variance(call: Call) -> Node:
    x = cast(call[0], wide(call[0].dtype))
    axes = call.attr_ints("axes", (0, 2, 3))
    less = do("sub", x, build.mean(x, axes))
    deviation = apply("sqrt", build.mean(do("mul", less, less), axes))
    return cast(do("div", less, do("add", deviation, 1e-9)), call[0].dtype)


@op("LRN", attrs="alpha beta bias size")
def _lrn(call: Call) -> Node:
    """By the squares of neighbouring channels."""
    x, size = call[0], call.attr_int("size")
    rank = len(x.shape) + 1
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = do("mul", x, x)
    at = do("add", build.along(1, rank, x.shape[1]), build.along(rank - 1, rank, size))
    at = do("sub", at, before)
    inside = do("and", do("ge", at, 0), do("lt", at, build.size(x.shape[1], dtypes.i32)))
    del after
    places = [build.along(i, rank, s) for i, s in enumerate(x.shape)]
    places[1] = build.clamp(at, x.shape[1])
    near = build.where(inside, build.take(squares, *places), 0.0)
    total = build.reduce("sum", near, [rank - 1], keep=False)
    scale = do("mul", total, call.attr_float("alpha", 1e-4) / size)
    base = do("add", scale, call.attr_float("bias", 1.0))
    return do("div", x, do("pow", base, call.attr_float("beta", 0.75)))
