"""Element types: one table, plain scalars, packed small numbers and block-quantised formats alike.

A packed type has elements of less than a byte, the first in the lowest bits; one value's elements
are packed without regard to its axes. ``f8e4m3fn`` … are the float8 and float4 types of ONNX
(https://onnx.ai/onnx/technical/float8.html). A block type packs ``block`` elements of the innermost
axis into ``bytes`` bytes, as GGUF stores them (sizes from ggml-common.h of llama.cpp). What a
target stores and computes for a dtype is the target's own table (``codegen/*/blocks.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["float", "int", "uint", "bool", "block"]


@dataclass(frozen=True, slots=True)
class DType:
    """``bytes`` bytes hold ``block`` elements."""

    name: str
    kind: Kind
    bytes: int
    block: int = 1

    def __str__(self) -> str:
        return self.name

    def nbytes(self, elements: int) -> int:
        """Bytes of ``elements`` consecutive elements; whole blocks only."""
        assert elements % self.block == 0, (self.name, elements)
        return elements // self.block * self.bytes


_TABLE = (
    DType("f32", "float", 4),
    DType("f16", "float", 2),
    DType("bf16", "float", 2),
    DType("f64", "float", 8),
    DType("i64", "int", 8),
    DType("i32", "int", 4),
    DType("i16", "int", 2),
    DType("i8", "int", 1),
    DType("u64", "uint", 8),
    DType("u32", "uint", 4),
    DType("u16", "uint", 2),
    DType("u8", "uint", 1),
    DType("bool", "bool", 1),
    DType("i4", "int", 1, 2),
    DType("u4", "uint", 1, 2),
    DType("i2", "int", 1, 4),
    DType("u2", "uint", 1, 4),
    DType("f8e4m3fn", "float", 1),
    DType("f8e4m3fnuz", "float", 1),
    DType("f8e5m2", "float", 1),
    DType("f8e5m2fnuz", "float", 1),
    DType("f8e8m0", "float", 1),
    DType("f4e2m1", "float", 1, 2),
    DType("q4_0", "block", 18, 32),
    DType("q4_1", "block", 20, 32),
    DType("q8_0", "block", 34, 32),
    DType("q4_k", "block", 144, 256),
    DType("q6_k", "block", 210, 256),
)

DTYPES: dict[str, DType] = {d.name: d for d in _TABLE}

f32, f16, bf16 = DTYPES["f32"], DTYPES["f16"], DTYPES["bf16"]
f64, i64, u64 = DTYPES["f64"], DTYPES["i64"], DTYPES["u64"]
i32, u32, u8, i8 = DTYPES["i32"], DTYPES["u32"], DTYPES["u8"], DTYPES["i8"]
boolean = DTYPES["bool"]
