"""com.microsoft's weights of few bits in blocks."""

from __future__ import annotations

from collections.abc import Sequence

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.operators.linear import matmul
from fanlight.importers.onnx.operators.reduction import wide
from fanlight.importers.onnx.registry import MICROSOFT, op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node


def bits_at(packed: Node, places: Sequence[Node], column: Node, bits: int) -> Node:
    """Elements of bytes […, M] that hold 8 / bits each along the last axis, the first in the lowest
    bits, at ``places`` of the axes before that; i32."""
    each = 8 // bits
    byte = cast(build.take(packed, *places, do("div", column, each)), dtypes.i32)
    shift = do("mul", do("mod", column, each), bits)
    return do("bitand", do("shr", byte, shift), (1 << bits) - 1)


@op("MatMulNBits", domain=MICROSOFT, attrs="K N accuracy_level bits block_size")
def _matmul_bits(call: Call) -> Node:
    """a […, K] times the transposed [N, K], which is kept in blocks along K: bytes
    [N, blocks, bytes of a block], a scale each, and a zero point, packed or a number."""
    a, packed, scales, zeros = call[0], call[1], call[2], call.get(3)
    k, n = call.attr_int("K"), call.attr_int("N")
    bits, block = call.attr_int("bits", 4), call.attr_int("block_size")
    if bits not in (2, 4, 8):
        call.fail("weights of this many bits", got=bits)
    blocks = -(-k // block)
    kind = wide(a.dtype)
    row, column = build.along(0, 2, n), build.along(1, 2, k)
    flat = build.reshape(packed, (n, blocks * (block * bits // 8)))
    values = cast(bits_at(flat, [row], column, bits), kind)
    at = do("div", column, block)
    if call.get(4) is not None:
        if zeros is not None:
            call.fail("zero points beside an order of groups (g_idx)")
        # [1, K]: the block that each place belongs to
        at = build.reshape(cast(call[4], dtypes.i32), (1, k))
    if zeros is None:
        zero: Node | float = float(1 << bits - 1)
    elif zeros.dtype.kind == "float":
        zero = build.take(cast(build.reshape(zeros, (n, blocks)), kind), row, at)
    else:
        held = build.reshape(zeros, (n, -(-blocks * bits // 8)))
        zero = cast(bits_at(held, [row], at, bits), kind)
    scale = build.take(cast(build.reshape(scales, (n, blocks)), kind), row, at)
    weights = do("mul", do("sub", values, zero), scale)
    made = matmul(call, cast(a, kind), build.transpose(weights))
    if call.get(5) is not None:
        made = do("add", made, cast(call[5], kind))
    return cast(made, a.dtype)
