"""Attention: ONNX's own of opset 23 and on, and rotary embeddings."""

from __future__ import annotations

import math

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.operators.reduction import wide
from fanlight.importers.onnx.registry import Result, op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import Size, binary

_ATTRS = """is_causal kv_num_heads left_window_size q_num_heads qk_matmul_output_mode
right_window_size scale softcap softmax_precision"""


def heads_of(x: Node, count: int) -> Node:
    """[B, S, H D] → [B, H, S, D]."""
    split = build.reshape(x, (*x.shape[:2], count, binary("//", x.shape[2], count)))
    return build.permute(split, (0, 2, 1, 3))


def joined(x: Node) -> Node:
    """[B, H, S, D] → [B, S, H D]."""
    turned = build.permute(x, (0, 2, 1, 3))
    return build.reshape(turned, (*turned.shape[:2], binary("*", x.shape[1], x.shape[3])))


def repeated(x: Node, heads: Size) -> Node:
    """Each of [B, Hk, T, D] for as many query heads as share it: [B, H, T, D]."""
    batch, groups, rows, depth = x.shape
    if groups == heads:
        return x
    each = binary("//", heads, groups)
    wide_ = build.expand(build.unsqueeze(x, [2]), (batch, groups, each, rows, depth))
    return build.reshape(wide_, (batch, heads, rows, depth))


@op("Attention", 23, attrs=_ATTRS)
def _attention(call: Call) -> Result:
    q, k, v = call[0], call[1], call[2]
    dtype, flat = q.dtype, len(q.shape) == 3
    if flat:
        groups = call.attr_int("kv_num_heads")
        q, k, v = (
            heads_of(q, call.attr_int("q_num_heads")),
            heads_of(k, groups),
            heads_of(v, groups),
        )
    past: Size = 0
    if call.get(4) is not None:
        past = call[4].shape[2]
        k, v = build.concat([call[4], k], 2), build.concat([call[5], v], 2)
    present = (k, v)
    kind = wide(dtype)
    depth = q.shape[3]
    if not isinstance(depth, int):
        call.fail("heads of a free size")
    scale = call.attr_float("scale", 0.0) or 1 / math.sqrt(depth)
    keys, values = (cast(repeated(x, q.shape[1]), kind) for x in (k, v))
    raw = apply("dot", do("mul", cast(q, kind), scale), build.transpose(keys))
    capped = raw
    cap = call.attr_float("softcap", 0.0)
    if cap:
        capped = do("mul", apply("tanh", do("div", raw, cap)), cap)
    masked = _masked(call, capped, past, kind)
    # a row in which nothing is seen gives zeros
    high = build.reduce("max", masked, [3])
    high = build.where(apply("isinf", high), 0.0, high)
    powers = apply("exp", do("sub", masked, high))
    total = build.reduce("sum", powers, [3])
    weights = do("div", powers, build.where(do("eq", total, 0.0), 1.0, total))
    out = cast(apply("dot", weights, values), dtype)
    mode = call.attr_int("qk_matmul_output_mode", 0)
    shown = cast((raw, capped, masked, weights)[mode], dtype)
    return joined(out) if flat else out, *present, shown


def _masked(call: Call, scores: Node, past: Size, kind: dtypes.DType) -> Node:
    """Scores [B, H, S, T], minus infinity where a query doesn't see a key."""
    rows, columns = scores.shape[2], scores.shape[3]
    mask = call.get(3)
    low = float("-inf")
    column = build.along(3, 4, columns)
    if mask is not None:
        short = mask.shape[-1]
        if short != columns and isinstance(short, int) and isinstance(columns, int):
            pads: list[Size] = [0] * len(mask.shape)
            behind: list[Size] = [*pads[:-1], columns - short]
            mask = build.pad(mask, pads, behind, False if mask.dtype.kind == "bool" else low)
        if mask.dtype.kind == "bool":
            call.broadcast(mask, scores)
            scores = build.where(mask, scores, low)
        else:
            scores = call.elementwise("add", scores, cast(mask, kind))
    if call.get(6) is not None:
        lengths = build.reshape(cast(call[6], dtypes.i32), (call[6].shape[0], 1, 1, 1))
        scores = build.where(do("lt", column, lengths), scores, low)
    left, right = (call.attr_int(f"{side}_window_size", -1) for side in ("left", "right"))
    causal = call.attr_bool("is_causal", False)
    if causal or left >= 0 or right >= 0:
        row = do("add", build.along(2, 4, rows), build.size(past, dtypes.i32))
        if call.get(6) is not None and call.get(4) is None:
            lengths = build.reshape(cast(call[6], dtypes.i32), (call[6].shape[0], 1, 1, 1))
            row = do("add", do("sub", row, build.size(rows, dtypes.i32)), lengths)
        if causal or right >= 0:
            last = do("add", row, right) if not causal and right > 0 else row
            scores = build.where(do("le", column, last), scores, low)
        if left >= 0:
            scores = build.where(do("ge", column, do("sub", row, left)), scores, low)
    return scores


@op("RotaryEmbedding", 23, attrs="interleaved num_heads rotary_embedding_dim")
def _rotary(call: Call) -> Node:
    """Su et al., RoFormer (arXiv 2104.09864)."""
    x, cos, sin = call[0], call[1], call[2]
    flat = len(x.shape) == 3
    heads = heads_of(x, call.attr_int("num_heads")) if flat else x
    depth = heads.shape[3]
    if not isinstance(depth, int):
        call.fail("heads of a free size")
    turned = call.attr_int("rotary_embedding_dim", 0) or depth
    if call.get(3) is not None:  # tables [max, R / 2], rows by position
        at = build.shifted(call[3], cos.shape[0])
        cos, sin = (
            build.take(t, build.unsqueeze(at, [2]), build.along(2, 3, t.shape[1]))
            for t in (cos, sin)
        )
    cos, sin = (build.unsqueeze(cast(t, wide(x.dtype)), [1]) for t in (cos, sin))
    made = rotated(
        cast(heads, wide(x.dtype)), cos, sin, turned, call.attr_bool("interleaved", False)
    )
    made = cast(made, x.dtype)
    return joined(made) if flat else made


def rotated(x: Node, cos: Node, sin: Node, turned: int, interleaved: bool) -> Node:
    """x [B, H, S, D] with its first ``turned`` numbers rotated by pairs; tables [B, 1, S, R/2]."""
    depth, half = x.shape[3], turned // 2
    front = build.part(x, 3, 0, turned)
    rest = build.part(x, 3, turned, binary("-", depth, turned))
    if interleaved:
        pairs = build.reshape(front, (*front.shape[:3], half, 2))
        a, b = (build.squeeze(build.part(pairs, 4, i, 1), [4]) for i in (0, 1))
    else:
        a, b = build.part(front, 3, 0, half), build.part(front, 3, half, half)
    one = do("sub", do("mul", a, cos), do("mul", b, sin))
    two = do("add", do("mul", a, sin), do("mul", b, cos))
    if interleaved:
        both = build.concat([build.unsqueeze(one, [4]), build.unsqueeze(two, [4])], 4)
        made = build.reshape(both, front.shape)
    else:
        made = build.concat([one, two], 3)
    return made if rest.shape[3] == 0 else build.concat([made, rest], 3)


@op(
    "FlexAttention",
    domain="ai.onnx.preview",
    attrs="prob_mod scale score_mod softmax_precision",
)
def _flex_attention(call: Call) -> Node:
    """q [B, H, S, D], k and v [B, G, T, D] → [B, H, S, Dv]; the subgraphs change scores and
    weights [B, H, S, T]."""
    q, k, v = call[0], call[1], call[2]
    depth = q.shape[3]
    if not isinstance(depth, int):
        call.fail("heads of a free size")
    kind = wide(q.dtype)
    precise = call.attr_dtype("softmax_precision", dtypes.f64 if kind is dtypes.f64 else dtypes.f32)
    scale = call.attr_float("scale", 0.0) or 1 / math.sqrt(depth)
    keys, values = (cast(repeated(x, q.shape[1]), kind) for x in (k, v))
    scores = do("mul", apply("dot", cast(q, kind), build.transpose(keys)), scale)
    scores = _modified(call, "score_mod", cast(scores, precise))
    weights = build.softmax(cast(scores, wide(precise)), 3)
    weights = _modified(call, "prob_mod", cast(weights, precise))
    return cast(apply("dot", cast(weights, kind), values), q.dtype)


def _modified(call: Call, name: str, x: Node) -> Node:
    """What the subgraph ``name`` makes of ``x``, whose shape and dtype it keeps."""
    if name not in call.attributes:
        return x
    graph = call.attr_graph(name)
    label = f"{call.node.name or call.node.outputs[0]}.{name}"
    made = call.importer.subgraph(graph, call.scope, {graph.inputs[0].name: x}, label)
    if len(made) != 1 or made[0].shape != x.shape or made[0].dtype is not x.dtype:
        call.fail(f"a {name} that changes the shape or dtype")
    return made[0]
