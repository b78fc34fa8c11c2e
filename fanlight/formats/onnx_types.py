"""The element types of ONNX by number: name, bits, and the dtype of ours where there is one.

Numbers and names are those of ``TensorProto.DataType`` (onnx.proto of onnx 1.23).
"""

from __future__ import annotations

from dataclasses import dataclass

from fanlight.dtypes import DTYPES, DType


@dataclass(frozen=True, slots=True)
class ElementType:
    """``name``: ONNX's in lower case. ``bits``: of one element in raw data, where elements of less
    than a byte are packed, the first in the lowest bits; 0 for strings. ``stored``: the field that
    holds elements which are not raw. ``dtype``: ours, None where we have none."""

    number: int
    name: str
    bits: int
    stored: str
    dtype: DType | None

    def __str__(self) -> str:
        return self.name

    def nbytes(self, elements: int) -> int:
        """Bytes of ``elements`` elements as raw data."""
        return -(-elements * self.bits // 8)

    def stored_values(self, elements: int) -> int:
        """How many values of its field hold ``elements`` elements."""
        if self.name.startswith("complex"):
            return 2 * elements
        return -(-elements * self.bits // 8) if self.bits in (2, 4) else elements


_TABLE = """
    1 float 32 float_data f32           2 uint8 8 int32_data u8
    3 int8 8 int32_data i8              4 uint16 16 int32_data u16
    5 int16 16 int32_data i16           6 int32 32 int32_data i32
    7 int64 64 int64_data i64           8 string 0 string_data -
    9 bool 8 int32_data bool            10 float16 16 int32_data f16
    11 double 64 double_data f64        12 uint32 32 uint64_data u32
    13 uint64 64 uint64_data u64         14 complex64 64 float_data -
    15 complex128 128 double_data -     16 bfloat16 16 int32_data bf16
    17 float8e4m3fn 8 int32_data f8e4m3fn  18 float8e4m3fnuz 8 int32_data f8e4m3fnuz
    19 float8e5m2 8 int32_data f8e5m2   20 float8e5m2fnuz 8 int32_data f8e5m2fnuz
    21 uint4 4 int32_data u4            22 int4 4 int32_data i4
    23 float4e2m1 4 int32_data f4e2m1   24 float8e8m0 8 int32_data f8e8m0
    25 uint2 2 int32_data u2            26 int2 2 int32_data i2
    27 float6e2m3 6 int32_data -        28 float6e3m2 6 int32_data -
""".split()

ELEMENT_TYPES: dict[int, ElementType] = {
    int(number): ElementType(int(number), name, int(bits), stored, DTYPES.get(ours))
    for number, name, bits, stored, ours in zip(*(_TABLE[i::5] for i in range(5)), strict=True)
}
