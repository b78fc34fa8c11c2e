"""Element types: one table, plain scalars and block-quantised formats alike.

A block type packs ``block`` elements of the innermost axis into ``bytes`` bytes, as GGUF stores
them (sizes from ggml-common.h of llama.cpp). What a target stores and computes for a dtype is the
target's own table (``codegen/*/blocks.py``).
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
    DType("u32", "uint", 4),
    DType("u16", "uint", 2),
    DType("u8", "uint", 1),
    DType("bool", "bool", 1),
    DType("q4_0", "block", 18, 32),
    DType("q4_1", "block", 20, 32),
    DType("q8_0", "block", 34, 32),
    DType("q4_k", "block", 144, 256),
    DType("q6_k", "block", 210, 256),
)

DTYPES: dict[str, DType] = {d.name: d for d in _TABLE}

f32, f16, bf16 = DTYPES["f32"], DTYPES["f16"], DTYPES["bf16"]
i32, u32, u8 = DTYPES["i32"], DTYPES["u32"], DTYPES["u8"]
boolean = DTYPES["bool"]
