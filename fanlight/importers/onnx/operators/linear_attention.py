"""Attention whose memory is a state of fixed size, and the causal convolution in front of it."""

from __future__ import annotations

import math

from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.loops import sequence
from fanlight.importers.onnx.operators.attention import heads_of, joined, repeated
from fanlight.importers.onnx.operators.reduction import wide
from fanlight.importers.onnx.registry import op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply


@op("CausalConvWithState", 27, attrs="activation")
def _causal_conv(call: Call) -> tuple[Node, Node]:
    """x [B, C, L], w [C, 1, K], state [B, C, K - 1] → [B, C, L] and the last K - 1 of what was
    seen, both of x's dtype."""
    x, w, kind = call[0], call[1], wide(call[0].dtype)
    batch, channels, length = x.shape
    taps = w.shape[2]
    if not isinstance(taps, int):
        call.fail("a kernel of a free size")
    if call.get(3) is not None:
        before = call[3]
    else:
        before = build.full(0, x.dtype, (batch, channels, taps - 1))
    whole = build.concat([before, x], 2) if taps > 1 else x
    total: Node | None = None
    for tap in range(taps):
        weight = build.reshape(build.part(cast(w, kind), 2, tap, 1), (channels, 1))
        part = do("mul", cast(build.part(whole, 2, tap, length), kind), weight)
        total = part if total is None else apply("add", total, part)
    assert total is not None
    if call.get(2) is not None:
        total = do("add", total, build.reshape(cast(call[2], kind), (channels, 1)))
    activation = call.attr_string("activation", "none")
    if activation in ("silu", "swish"):
        total = apply("silu", total)
    elif activation != "none":
        call.fail("an activation", got=activation)
    return cast(total, x.dtype), build.part(whole, 2, length, taps - 1)


@op("LinearAttention", 27, attrs="chunk_size kv_num_heads q_num_heads scale update_rule")
def _linear_attention(call: Call) -> tuple[Node, Node]:
    """The recurrence step by step: q [B, T, H Dk], k [B, T, G Dk], v [B, T, G Dv], state
    [B, G, Dk, Dv] → [B, T, H Dv] and the state. ``chunk_size`` changes no result.

    Gated: Yang et al. (arXiv 2312.06635); delta rule: arXiv 2406.06484; both: arXiv 2412.06464."""
    kind = wide(call[0].dtype)
    heads, groups = call.attr_int("q_num_heads"), call.attr_int("kv_num_heads")
    rule = call.attr_string("update_rule", "gated_delta")
    gated, delta = rule in ("gated", "gated_delta"), rule in ("delta", "gated_delta")
    if not gated and not delta and rule != "linear":
        call.fail("an update rule", got=rule)
    q = heads_of(cast(call[0], kind), heads)  # [B, H, T, Dk]
    k, v = (heads_of(cast(call[i], kind), groups) for i in (1, 2))
    batch, _, count, depth = k.shape
    if not isinstance(depth, int):
        call.fail("heads of a free size")
    scale = call.attr_float("scale", 0.0) or 1 / math.sqrt(depth)
    shape = (batch, groups, depth, v.shape[3])
    past = call.get(3)
    state = build.full(0.0, kind, shape) if past is None else cast(past, kind)
    decay = heads_of(cast(call[4], kind), groups) if gated else None  # [B, Hk, T, Dk or 1]
    beta = None
    if delta:  # [B, T, Hk or 1] -> [B, Hk or 1, T, 1]
        beta = build.unsqueeze(build.transpose(cast(call[5], kind), 1, 2), [3])

    def at_step(x: Node, at: Node) -> Node:
        """[B, H, T, D] -> [B, H, D]."""
        return build.squeeze(build.take_along(x, 2, build.reshape(at, (1, 1, 1, 1))), [2])

    def step(at: Node, held: list[Node]) -> tuple[list[Node], list[Node]]:
        (before,) = held
        key, value = at_step(k, at), at_step(v, at)
        if decay is not None:
            before = do("mul", before, build.unsqueeze(apply("exp", at_step(decay, at)), [3]))
        column = build.unsqueeze(key, [3])  # [B, Hk, Dk, 1]
        if beta is not None:
            seen = build.reduce("sum", do("mul", before, column), [2], keep=False)
            value = do("mul", do("sub", value, seen), at_step(beta, at))
        new = do("add", before, do("mul", column, build.unsqueeze(value, [2])))
        query = build.unsqueeze(at_step(q, at), [3])
        found = do("mul", repeated(new, heads), query)
        out = build.reduce("sum", found, [2], keep=False)  # [B, H, Dv]
        return [new], [do("mul", out, scale)]

    (last,), (rows,) = sequence(call, count, [state], step)  # [T, B, H, Dv]
    out = joined(build.permute(rows, (1, 2, 0, 3)))
    return cast(out, call[0].dtype), cast(last, call[0].dtype if past is None else past.dtype)
