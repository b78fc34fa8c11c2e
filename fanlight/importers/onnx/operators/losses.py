"""Losses, as values."""

from __future__ import annotations

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.operators.reduction import wide
from fanlight.importers.onnx.registry import Result, op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply


def _likelihood(call: Call, log: Node, target: Node, weight: Node | None) -> Node:
    """Minus the logarithms [N, C, *S] at the classes [N, *S], weighed and reduced."""
    rank = len(target.shape)
    ids = build.shifted(target, log.shape[1])
    places = [build.along(i, rank, s) for i, s in enumerate(target.shape)]
    chosen = build.take(log, places[0], ids, *places[1:])
    loss = apply("neg", chosen)
    scale: Node | None = None if weight is None else build.take(cast(weight, log.dtype), ids)
    if "ignore_index" in call.attributes:
        ignored = do("eq", cast(target, dtypes.i32), call.attr_int("ignore_index"))
        scale = build.where(
            ignored, 0.0, build.full(1.0, log.dtype, target.shape) if scale is None else scale
        )
    if scale is not None:
        loss = do("mul", loss, scale)
    how = call.attr_string("reduction", "mean")
    axes = range(rank)
    if how == "none":
        return loss
    total = build.reduce("sum", loss, axes, keep=False)
    if how == "sum":
        return total
    if how != "mean":
        call.fail("a reduction", got=how)
    if scale is None:
        return do("div", total, build.count_of(loss, axes, loss.dtype))
    return do("div", total, build.reduce("sum", scale, axes, keep=False))


@op("NegativeLogLikelihoodLoss", 12, attrs="ignore_index reduction")
def _negative_log_likelihood(call: Call) -> Node:
    log = cast(call[0], wide(call[0].dtype))
    return cast(_likelihood(call, log, call[1], call.get(2)), call[0].dtype)


@op("SoftmaxCrossEntropyLoss", 12, attrs="ignore_index reduction")
def _softmax_cross_entropy(call: Call) -> Result:
    x = cast(call[0], wide(call[0].dtype))
    less = do("sub", x, build.reduce("max", x, [1]))
    log = do("sub", less, apply("log", build.reduce("sum", apply("exp", less), [1])))
    loss = _likelihood(call, log, call[1], call.get(2))
    return cast(loss, call[0].dtype), cast(log, call[0].dtype)
