"""Floats of 4 to 16 bits ↔ f32, four at a time; their bits lie in the low halves of i32 lanes.

Both ways as ``ml_dtypes`` does it: to nearest, ties to even; what is beyond the largest number
becomes infinity, else NaN, else the largest.
"""

from __future__ import annotations

from dataclasses import dataclass

from fanlight.codegen.wasm.math import pick
from fanlight.codegen.wasm.values import Value, Writer, f32x4, i32x4, op


@dataclass(frozen=True, slots=True)
class SmallFloat:
    """A format of ``bits`` bits: sign, exponent, ``mantissa`` bits. ``largest``, ``beyond`` and
    ``nan`` are codes without the sign; codes between ``largest`` and the sign are infinity and
    NaN. ``unsigned_zero``: the code of -0 is NaN."""

    bits: int
    mantissa: int
    bias: int
    largest: int
    beyond: int
    nan: int
    unsigned_zero: bool = False

    @property
    def sign(self) -> int:
        return 1 << (self.bits - 1)

    def decode(self, w: Writer, bits: Value) -> Value:
        """Exact; subnormals too: the bits, moved to f32's place, times a power of two."""
        h = w.let(bits)
        sign = op("i32x4.shl", op("v128.and", h, i32x4(self.sign)), 32 - self.bits)
        size = w.let(op("v128.and", h, i32x4(self.sign - 1)))
        moved = op("i32x4.shl", size, 23 - self.mantissa)
        value = op("f32x4.mul", moved, f32x4(2.0 ** (127 - self.bias)))
        if self.largest < self.sign - 1:
            special = op("i32x4.gt_s", size, i32x4(self.largest))
            value = op("v128.or", value, op("v128.and", special, i32x4(0x7F800000)))
        value = w.let(op("v128.or", value, sign))
        if self.unsigned_zero:
            nan = op("i32x4.eq", h, i32x4(self.sign))
            return pick(nan, i32x4(0x7FC00000), value)
        return value

    def encode(self, w: Writer, value: Value) -> Value:
        x, drop = w.let(value), 23 - self.mantissa
        a = w.let(op("v128.and", x, i32x4(0x7FFFFFFF)))
        odd = op("v128.and", op("i32x4.shr_u", a, drop), i32x4(1))
        half = (1 << (drop - 1)) - 1 - (127 - self.bias << 23)
        rounded = op("i32x4.shr_u", op("i32x4.add", op("i32x4.add", a, i32x4(half)), odd), drop)
        # Subnormal: adding a power of two rounds at the right bit.
        power = 24 - self.bias - self.mantissa
        small = op("i32x4.sub", op("f32x4.add", a, f32x4(2.0**power)), i32x4(127 + power << 23))
        least = i32x4(128 - self.bias << 23)
        code = w.let(pick(op("i32x4.lt_s", a, least), small, rounded))
        code = w.let(pick(op("i32x4.gt_s", code, i32x4(self.largest)), i32x4(self.beyond), code))
        code = w.let(pick(op("i32x4.gt_s", a, i32x4(0x7F800000)), i32x4(self.nan), code))
        sign = op("v128.and", op("i32x4.shr_u", x, 32 - self.bits), i32x4(self.sign))
        if self.unsigned_zero:
            signed = op("i32x4.gt_s", op("v128.and", code, i32x4(self.sign - 1)), i32x4(0))
            sign = op("v128.and", sign, signed)
        return op("v128.xor", code, sign)


SMALL_FLOATS: dict[str, SmallFloat] = {
    "f16": SmallFloat(16, 10, 15, 0x7BFF, 0x7C00, 0x7E00),
    "f8e4m3fn": SmallFloat(8, 3, 7, 0x7E, 0x7F, 0x7F),
    "f8e4m3fnuz": SmallFloat(8, 3, 8, 0x7F, 0x80, 0x80, unsigned_zero=True),
    "f8e5m2": SmallFloat(8, 2, 15, 0x7B, 0x7C, 0x7E),
    "f8e5m2fnuz": SmallFloat(8, 2, 16, 0x7F, 0x80, 0x80, unsigned_zero=True),
    "f4e2m1": SmallFloat(4, 1, 1, 0x7, 0x7, 0x8),
}


def from_f16(w: Writer, bits: Value) -> Value:
    return SMALL_FLOATS["f16"].decode(w, bits)


def from_bf16(w: Writer, bits: Value) -> Value:
    return op("i32x4.shl", bits, 16)


def to_bf16(w: Writer, value: Value) -> Value:
    """To nearest, ties to even; NaN stays NaN."""
    x = w.let(value)
    odd = op("v128.and", op("i32x4.shr_u", x, 16), i32x4(1))
    rounded = op("i32x4.shr_u", op("i32x4.add", op("i32x4.add", x, i32x4(0x7FFF)), odd), 16)
    nan = op("v128.or", op("i32x4.shr_u", x, 16), i32x4(0x40))
    return pick(op("f32x4.eq", x, x), rounded, nan)


def from_e8m0(w: Writer, bits: Value) -> Value:
    """Powers of two alone: 2 ** (code - 127); 255 is NaN."""
    h = w.let(bits)
    value = w.let(op("i32x4.shl", h, 23))
    value = w.let(pick(op("i32x4.eq", h, i32x4(0)), i32x4(0x00400000), value))
    return pick(op("i32x4.eq", h, i32x4(255)), i32x4(0x7FC00000), value)


def to_e8m0(w: Writer, value: Value) -> Value:
    """The nearest power of two, ties to the larger; between the least two: the larger. Of 0,
    negative numbers and NaN: NaN."""
    x = w.let(value)
    rounded = op("i32x4.shr_u", op("i32x4.add", x, i32x4(0x00400000)), 23)
    code = w.let(pick(op("i32x4.le_s", x, i32x4(0x00400000)), i32x4(0), rounded))
    return pick(op("f32x4.gt", x, f32x4(0.0)), code, i32x4(255))
