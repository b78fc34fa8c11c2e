"""com.microsoft's attention: Attention, MultiHeadAttention, GroupQueryAttention."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.operators.attention import heads_of, joined, repeated, rotated
from fanlight.importers.onnx.operators.linear import matmul
from fanlight.importers.onnx.operators.reduction import wide
from fanlight.importers.onnx.registry import MICROSOFT, Result, op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import Size, binary

_NEVER = float("-inf")


def _scores(call: Call, q: Node, k: Node) -> Node:
    """q [B, H, S, D] times k [B, H, T, D], scaled: [B, H, S, T]."""
    depth = q.shape[3]
    if not isinstance(depth, int):
        call.fail("heads of a free size")
    scale = call.attr_float("scale", 0.0) or 1 / math.sqrt(depth)
    call.same(depth, k.shape[3], "the size of a head")
    call.same(q.shape[0], k.shape[0], "the batch")
    return do("mul", apply("dot", q, build.transpose(k)), scale)


def _padded(call: Call, scores: Node, mask: Node | None) -> Node:
    """Scores [B, H, S, T] with ``mask_filter_value`` added where an i32 ``mask`` says so: [B, T] or
    [B, S, T], 0 at what is hidden; [B], the number of keys; [2 B], that and the first key."""
    if mask is None or (len(mask.shape) == 2 and mask.shape[1] == 1):
        return scores
    batch, _, rows, columns = scores.shape
    rank = len(mask.shape)
    if rank == 1:
        column = build.along(3, 4, columns)
        ends = build.reshape(build.part(mask, 0, 0, batch), (batch, 1, 1, 1))
        seen = do("lt", column, ends)
        if mask.shape[0] == binary("*", 2, batch):
            first = build.reshape(build.part(mask, 0, batch, batch), (batch, 1, 1, 1))
            seen = do("and", seen, do("ge", column, first))
        elif mask.shape[0] != batch:
            call.fail("a mask of this shape", got=mask.shape)
    elif rank in (2, 3):
        call.same(mask.shape[-1], columns, "the keys of the mask")
        middle = (1, 1) if rank == 2 else (1, rows)
        seen = do("gt", build.reshape(mask, (batch, *middle, columns)), 0)
    else:
        call.fail("a mask of this shape", got=mask.shape)
    hidden = call.attr_float("mask_filter_value", -10000.0)
    return do("add", scores, build.where(seen, build.scalar(0.0, scores.dtype), hidden))


def _attended(
    call: Call, q: Node, k: Node, v: Node, past: Size, mask: Node | None, bias: Node | None
) -> tuple[Node, Node]:
    """q [B, H, S, D], k and v [B, H, T, …], of which ``past`` came before: [B, S, H Dv], and the
    scores [B, H, S, T]."""
    kind = wide(q.dtype)
    scores = _padded(call, _scores(call, cast(q, kind), cast(k, kind)), mask)
    if bias is not None:
        scores = call.elementwise("add", scores, cast(bias, kind))
    if call.attr_bool("unidirectional", False):
        row = do("add", build.along(2, 4, scores.shape[2]), build.size(past, dtypes.i32))
        seen = do("le", build.along(3, 4, scores.shape[3]), row)
        scores = build.where(seen, scores, _NEVER)
    made = apply("dot", build.softmax(scores, 3), cast(v, kind))
    return joined(cast(made, q.dtype)), cast(scores, q.dtype)


@op(
    "Attention",
    domain=MICROSOFT,
    attrs="mask_filter_value num_heads qkv_hidden_sizes scale unidirectional",
)
def _attention(call: Call) -> Result:
    """x [B, S, I] times weights [I, Nq + Nk + Nv], mask, past [2, B, H, P, D], bias of scores."""
    x, weights, past = call[0], call[1], call.get(4)
    heads = call.attr_int("num_heads")
    made = matmul(call, x, weights)
    if call.get(2) is not None:
        made = do("add", made, call[2])
    third = binary("//", weights.shape[1], 3)
    widths: Sequence[Size] = call.attr_ints("qkv_hidden_sizes", ()) or [third] * 3
    starts: list[Size] = [0, widths[0], binary("+", widths[0], widths[1])]
    q, k, v = (
        heads_of(build.part(made, 2, start, width), heads)
        for start, width in zip(starts, widths, strict=True)
    )
    before: Size = 0
    if past is not None:
        before = past.shape[3]
        call.same(past.shape[1], x.shape[0], "the batch of the past")
        held = (build.squeeze(build.part(past, 0, i, 1), [0]) for i in range(2))
        k, v = (build.concat([a, b], 2) for a, b in zip(held, (k, v), strict=True))
    out, _ = _attended(call, q, k, v, before, call.get(3), call.get(5))
    present = None
    if call.wants(1):
        present = build.concat([build.unsqueeze(x, [0]) for x in (k, v)], 0)
    return out, present


@op(
    "MultiHeadAttention",
    domain=MICROSOFT,
    attrs="mask_filter_value num_heads scale unidirectional",
)
def _multi_head_attention(call: Call) -> Result:
    """q [B, S, H D] with k and v [B, T, H D] or [B, H, T, D]; or q with k and v together,
    [B, T, H, 2, D]; or all together, [B, S, H, 3, D]. Then a bias of all three, the mask, a bias of
    scores, and past keys and values [B, H, P, D]."""
    heads = call.attr_int("num_heads")
    if call.get(8) is not None or call.get(9) is not None:
        call.fail("a cache of keys with an indirection")
    q, k, v = _three(call, heads)
    if call.get(3) is not None:
        q, k, v = _biased(call, [q, k, v])
    before: Size = 0
    if call.get(6) is not None:
        before = call[6].shape[2]
        call.same(call[6].shape[0], q.shape[0], "the batch of the past")
        call.same(call[7].shape[0], q.shape[0], "the batch of the past")
        call.same(call[7].shape[2], before, "the past")
        k, v = build.concat([call[6], k], 2), build.concat([call[7], v], 2)
    out, scores = _attended(call, q, k, v, before, call.get(4), call.get(5))
    return out, k, v, scores


def _three(call: Call, heads: int) -> tuple[Node, Node, Node]:
    """Queries, keys, values: [B, H, S or T, D]."""
    packed = call[0] if len(call[0].shape) == 5 else call.get(1)
    if packed is not None and len(packed.shape) == 5:  # [B, T, H, 2 or 3, D]
        split = [
            build.permute(build.squeeze(build.part(packed, 3, i, 1), [3]), (0, 2, 1, 3))
            for i in range(2 if packed is call.get(1) else 3)
        ]
        q = heads_of(call[0], heads) if len(split) == 2 else split[0]
        return q, split[-2], split[-1]
    k, v = (x if len(x.shape) == 4 else heads_of(x, heads) for x in (call[1], call[2]))
    return heads_of(call[0], heads), k, v


def _biased(call: Call, parts: list[Node]) -> tuple[Node, Node, Node]:
    """Each of [B, H, S, D] with its share of the bias [H (D + D + Dv)]."""
    made, at = [], 0
    for x in parts:
        heads, depth = x.shape[1], x.shape[3]
        if not (isinstance(heads, int) and isinstance(depth, int)):
            call.fail("heads of a free size")
        share = build.part(call[3], 0, at, heads * depth)
        made.append(do("add", x, build.reshape(share, (heads, 1, depth))))
        at += heads * depth
    return made[0], made[1], made[2]


@op(
    "GroupQueryAttention",
    domain=MICROSOFT,
    attrs="""do_rotary kv_num_heads local_window_size num_heads qk_output rotary_interleaved scale
smooth_softmax softcap""",
)
def _group_query_attention(call: Call) -> Result:
    """q [B, S, H D], k and v [B, S, G D] (or all in q), past keys and values [B, G, P, D], the
    last place of each row [B], the longest row's length, tables of angles [max, R / 2], positions
    [B, S], a bias of scores, a sink [H] → [B, S, H D], keys and values [B, G, max(P, length), D].
    Keys lie in the result by their place in the row, zeros behind them."""
    heads, groups = call.attr_int("num_heads"), call.attr_int("kv_num_heads")
    if call.attr_int("qk_output", 0):
        call.fail("scores as an output (qk_output)")
    if call.get(1) is None:
        whole = heads_of(call[0], heads + 2 * groups)
        starts = (0, heads, heads + groups)
        counts = (heads, groups, groups)
        q, k, v = (build.part(whole, 1, a, n) for a, n in zip(starts, counts, strict=True))
    else:
        q, k, v = heads_of(call[0], heads), heads_of(call[1], groups), heads_of(call[2], groups)
    batch, rows = q.shape[0], q.shape[2]
    length = call.read_sizes(6)[0]
    # [B, 1, 1, 1]: how many keys of each row came before; none where the whole is given
    last = build.reshape(cast(call[5], dtypes.i32), (batch, 1, 1, 1))
    before = do("add", do("sub", last, build.size(rows, dtypes.i32)), 1)
    first = do("eq", build.size(length, dtypes.i32), build.size(rows, dtypes.i32))
    before = build.where(first, 0, before)
    row = do("add", build.along(2, 4, rows), before)  # [B, 1, S, 1]
    if call.attr_bool("do_rotary", False):
        q, k = _turned(call, [q, k], row)
    keys, values = (_present(call, call.get(at), x, before, length) for at, x in ((3, k), (4, v)))
    kind = wide(q.dtype)
    shown = [cast(repeated(build.part(x, 2, 0, length), heads), kind) for x in (keys, values)]
    scores = _scores(call, cast(q, kind), shown[0])
    cap = call.attr_float("softcap", 0.0)
    if cap:
        scores = do("mul", apply("tanh", do("div", scores, cap)), cap)
    if call.get(10) is not None:
        scores = call.elementwise("add", scores, cast(call[10], kind))
    column = build.along(3, 4, length)
    seen = do("le", column, do("min", row, last))
    window = call.attr_int("local_window_size", -1)
    if window >= 0:
        seen = do("and", seen, do("gt", column, do("sub", row, window)))
    made = apply("dot", _weights(call, build.where(seen, scores, _NEVER)), shown[1])
    return joined(cast(made, q.dtype)), keys, values


def _turned(call: Call, parts: list[Node], row: Node) -> list[Node]:
    """Heads [B, H, S, D] rotated by the tables' angles at their places [B, 1, S, 1]."""
    cos, sin, positions = call[7], call[8], call.get(9)
    if positions is not None:
        for axis, size in enumerate((parts[0].shape[0], parts[0].shape[2])):
            call.same(positions.shape[axis], size, "the positions")
        row = build.unsqueeze(cast(positions, dtypes.i32), [1, 3])
    half = cos.shape[1]
    if not isinstance(half, int):
        call.fail("a table of angles of free width")
    at = build.clamp(row, cos.shape[0])
    kind = wide(parts[0].dtype)
    cos, sin = (cast(build.take(t, at, build.along(3, 4, half)), kind) for t in (cos, sin))
    interleaved = call.attr_bool("rotary_interleaved", False)
    return [cast(rotated(cast(x, kind), cos, sin, 2 * half, interleaved), x.dtype) for x in parts]


def _present(call: Call, past: Node | None, x: Node, before: Node, length: Size) -> Node:
    """[B, G, max(P, length), D]: ``past`` to ``before`` [B, 1, 1, 1], from there x [B, G, S, D]."""
    held = 0 if past is None else past.shape[2]
    count = length if past is None else binary("max", held, length)
    places = [build.along(i, 4, s) for i, s in enumerate((*x.shape[:2], count, x.shape[3]))]
    at = do("sub", places[2], before)
    inside = do("and", do("ge", at, 0), do("lt", at, build.size(x.shape[2], dtypes.i32)))
    new = build.take(x, places[0], places[1], build.clamp(at, x.shape[2]), places[3])
    if past is None:
        return build.where(inside, new, 0.0)
    call.same(past.shape[0], x.shape[0], "the batch of the past")
    # one place behind the past, so that there is one where the past is empty
    padded = build.pad(past, (0, 0, 0, 0), (0, 0, 1, 0))
    kept = build.take(padded, *places[:2], build.clamp(places[2], padded.shape[2]), places[3])
    kept = build.where(do("lt", places[2], before), kept, 0.0)
    return build.where(inside, new, kept)


def _weights(call: Call, scores: Node) -> Node:
    """Softmax over the last axis, with a sink of zero or one for each head beside the scores."""
    sink = call.get(11)
    if sink is None and not call.attr_bool("smooth_softmax", False):
        return build.softmax(scores, 3)
    beside = build.scalar(0.0, scores.dtype)
    if sink is not None:
        beside = build.reshape(cast(sink, scores.dtype), (sink.shape[0], 1, 1))
    high = do("max", build.reduce("max", scores, [3]), beside)
    powers = apply("exp", do("sub", scores, high))
    total = do("add", build.reduce("sum", powers, [3]), apply("exp", do("sub", beside, high)))
    return do("div", powers, total)


@op(
    "RotaryEmbedding",
    domain=MICROSOFT,
    attrs="interleaved is_packed_batching num_heads rotary_embedding_dim scale",
)
def _rotary(call: Call) -> Node:
    """x [B, S, H D] or [B, H, S, D], positions [1] (of the first) or [B, S], tables [max, R / 2].
    Su et al., RoFormer (arXiv 2104.09864)."""
    x, positions, cos, sin = (call[i] for i in range(4))
    if call.attr_bool("is_packed_batching", False) or call.attr_float("scale", 1.0) != 1.0:
        call.fail("packed batches, or a scale")
    turned = call.attr_int("rotary_embedding_dim", 0)
    half = cos.shape[1]
    if not isinstance(half, int):
        call.fail("a table of angles of free width")
    flat = len(x.shape) == 3
    if flat:
        count = call.attr_int("num_heads", 0) or binary("//", x.shape[2], turned or 2 * half)
        if not isinstance(count, int):
            call.fail("a free number of heads")
        x = heads_of(x, count)
    at = cast(positions, dtypes.i32)
    if len(at.shape) == 2:
        at = build.unsqueeze(at, [1, 3])
    else:
        at = do("add", build.reshape(at, ()), build.along(2, 4, x.shape[2]))
    at = build.clamp(at, cos.shape[0])
    kind = wide(x.dtype)
    cos, sin = (cast(build.take(t, at, build.along(3, 4, half)), kind) for t in (cos, sin))
    interleaved = call.attr_bool("interleaved", False)
    made = cast(rotated(cast(x, kind), cos, sin, 2 * half, interleaved), x.dtype)
    return joined(made) if flat else made
