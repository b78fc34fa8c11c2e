"""com.microsoft's rows of tables: embeddings summed and normed, tables of few bits."""

from __future__ import annotations

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.operators.blocks import bits_at
from fanlight.importers.onnx.operators.normalization import normalised
from fanlight.importers.onnx.operators.reduction import wide
from fanlight.importers.onnx.registry import MICROSOFT, Result, op
from fanlight.ir import build
from fanlight.ir.build import axis_of, cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.shapes import binary


def _rows(table: Node, ids: Node) -> Node:
    """Rows ``ids`` [B, S] of [V, N]: [B, S, N]."""
    at = build.unsqueeze(build.shifted(ids, table.shape[0]), [2])
    return build.take(table, at, build.along(2, 3, table.shape[1]))


@op("EmbedLayerNormalization", domain=MICROSOFT, attrs="epsilon mask_index_type")
def _embed_layer_normalization(call: Call) -> Result:
    """ids and segments [B, S], the tables of words, positions and segments [V, N], gamma and beta
    [N], a mask [B, S], positions [B, S] → the sum normed [B, S, N], sums of the mask [B], the
    sum."""
    ids, segments, table = call[0], call.get(1), call[2]
    kind = wide(table.dtype)
    places = call.get(8)
    if places is None:
        places = build.unsqueeze(build.along(0, 1, ids.shape[1]), [0])
    total = do("add", _rows(cast(table, kind), ids), _rows(cast(call[3], kind), places))
    if segments is not None:
        total = do("add", total, _rows(cast(call[4], kind), segments))
    made, _, _ = normalised(total, [2], call.attr_float("epsilon", 1e-12))
    made = do("add", do("mul", made, cast(call[5], kind)), cast(call[6], kind))
    mask, counts = call.get(7), build.full(0, dtypes.i32, (ids.shape[0],))
    if mask is not None and call.attr_int("mask_index_type", 1):
        counts = build.reduce("sum", cast(mask, dtypes.i32), [1], keep=False)
    return cast(made, table.dtype), counts, cast(total, table.dtype)


@op("GatherBlockQuantized", domain=MICROSOFT, attrs="bits block_size gather_axis quantize_axis")
def _gather_block_quantized(call: Call) -> Node:
    """Entries ``ids`` along an axis of a table of 4 or 8 bits, in blocks along the last axis, each
    with a scale and perhaps a zero point. u8 elements hold 8 / bits numbers each, and so do their
    zero points."""
    table, ids, scales, zeros = call[0], call[1], call[2], call.get(3)
    rank, count = len(table.shape), len(ids.shape)
    axis = axis_of(call.attr_int("gather_axis", 0), rank)
    if axis_of(call.attr_int("quantize_axis", 1), rank) != rank - 1 or axis == rank - 1:
        call.fail("tables that are gathered along their blocks, or with other blocks than rows'")
    packed = table.dtype is dtypes.u8
    bits = call.attr_int("bits", 4) if packed else 4
    if bits not in (2, 4, 8):
        call.fail("a table of this many bits", got=bits)
    each = 8 // bits if packed else 1
    shape = (*table.shape[:axis], *ids.shape, *table.shape[axis + 1 : -1])
    width = binary("*", table.shape[-1], each)
    out = len(shape) + 1
    index = build.shifted(ids, table.shape[axis])
    places: list[Node] = [build.along(i, out, size) for i, size in enumerate(shape[:axis])]
    places.append(build.reshape(index, (*ids.shape, *(1,) * (rank - 1 - axis))))
    places += [build.along(i, out, shape[i]) for i in range(axis + count, len(shape))]
    column = build.along(out - 1, out, width)
    block = do("div", column, call.attr_int("block_size", 128))
    kind = wide(scales.dtype)

    def whole(x: Node, at: Node) -> Node:
        if packed:
            return cast(bits_at(x, places, at, bits), kind)
        return cast(cast(build.take(x, *places, at), dtypes.i32), kind)

    middle = float(1 << bits - 1) if packed else 0.0
    zero: Node | float = middle if zeros is None else whole(zeros, block)
    scale = build.take(cast(scales, kind), *places, block)
    return cast(do("mul", do("sub", whole(table, column), zero), scale), scales.dtype)
