"""How elements of each dtype lie in memory, and code that loads and stores them: one, or four.

Values are those of ``scalars.py`` and ``lanes.py``. Packed dtypes have elements of less than a
byte; they are loaded one by one, and stored by ``loops.py``, which knows the neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fanlight.codegen.wasm import small_floats
from fanlight.codegen.wasm.lanes import joined
from fanlight.codegen.wasm.small_floats import SMALL_FLOATS
from fanlight.codegen.wasm.values import Value, Writer, i32x4, op, shuffle

Coder = Callable[[Writer, Value], Value]


def _as_is(w: Writer, value: Value) -> Value:
    return value


def _not_zero(w: Writer, value: Value) -> Value:
    return op("i32x4.ne", value, i32x4(0))


def _one(w: Writer, value: Value) -> Value:
    return op("v128.and", value, i32x4(1))


@dataclass(frozen=True, slots=True)
class Access:
    """``decode`` and ``encode``: bits ↔ values, in lanes of 32 bits."""

    bits: int
    load: str
    store: str
    decode: Coder = _as_is
    encode: Coder = _as_is
    signed: bool = False

    @property
    def packed(self) -> int:
        """log2 of the elements in a byte."""
        return {4: 1, 2: 2}.get(self.bits, 0)

    @property
    def shift(self) -> int:
        """log2 of the bytes of an element; none of packed ones."""
        assert not self.packed
        return self.bits.bit_length() - 4


def _small(bits: int, decode: Coder, encode: Coder) -> Access:
    load, store = ("i32.load16_u", "i32.store16") if bits == 16 else ("i32.load8_u", "i32.store8")
    return Access(bits, load, store, decode, encode)


#: dtype → its access; the dtypes of ``kernels.loops.SCALAR``
ACCESS: dict[str, Access] = {
    "f32": Access(32, "f32.load", "f32.store"),
    "f64": Access(64, "f64.load", "f64.store"),
    "i64": Access(64, "i64.load", "i64.store"),
    "u64": Access(64, "i64.load", "i64.store"),
    "i32": Access(32, "i32.load", "i32.store"),
    "u32": Access(32, "i32.load", "i32.store"),
    "i16": Access(16, "i32.load16_s", "i32.store16", signed=True),
    "u16": Access(16, "i32.load16_u", "i32.store16"),
    "i8": Access(8, "i32.load8_s", "i32.store8", signed=True),
    "u8": Access(8, "i32.load8_u", "i32.store8"),
    "i4": Access(4, "i32.load8_u", "i32.store8", signed=True),
    "u4": Access(4, "i32.load8_u", "i32.store8"),
    "i2": Access(2, "i32.load8_u", "i32.store8", signed=True),
    "u2": Access(2, "i32.load8_u", "i32.store8"),
    "bool": Access(8, "i32.load8_u", "i32.store8", _not_zero, _one),
    "bf16": _small(16, small_floats.from_bf16, small_floats.to_bf16),
    "f8e8m0": _small(8, small_floats.from_e8m0, small_floats.to_e8m0),
    **{name: _small(f.bits, f.decode, f.encode) for name, f in SMALL_FLOATS.items()},
}
FLOATS = frozenset({"bf16", "f8e8m0", *SMALL_FLOATS})  # of less than 32 bits


def _address(base: Value, dtype: str, index: Value) -> Value:
    shift = ACCESS[dtype].shift
    return base + (index << shift if shift else index)


def _bits(w: Writer, dtype: str, base: Value, index: Value) -> Value:
    """One element, as it lies there: of less than 32 bits in the low ones of an i32."""
    access = ACCESS[dtype]
    if not access.packed:
        return op(access.load, _address(base, dtype, index))
    at = w.let(index)
    byte = op(access.load, base + op("i32.shr_u", at, access.packed))
    place = (at & ((1 << access.packed) - 1)) * access.bits
    if access.signed:
        top = op("i32.sub", 32 - access.bits, place)
        return op("i32.shl", byte, top) >> (32 - access.bits)
    return op("i32.shr_u", byte, place) & ((1 << access.bits) - 1)


def load(w: Writer, dtype: str, base: Value, index: Value) -> Value:
    """Element ``index``."""
    bits = _bits(w, dtype, base, index)
    if dtype == "bool":
        return op("i32.ne", bits, 0)
    if dtype in FLOATS:
        lanes = ACCESS[dtype].decode(w, op("i32x4.splat", bits))
        return op("f32x4.extract_lane", lanes, lane=0)
    return bits


def load_row(w: Writer, dtype: str, address: Value) -> Value:
    """Four neighbours, not packed."""
    access = ACCESS[dtype]
    sign = "s" if access.signed else "u"
    if access.shift == 2:
        return op("v128.load", address, align=4)
    if access.shift == 1:
        return access.decode(w, op(f"v128.load16x4_{sign}", address, align=2))
    words = op(f"i16x8.extend_low_i8x16_{sign}", op("v128.load32_zero", address, align=1))
    return access.decode(w, op(f"i32x4.extend_low_i16x8_{sign}", words))


def load_each(w: Writer, dtype: str, base: Value, indices: list[Value]) -> Value:
    """Four elements from anywhere."""
    access = ACCESS[dtype]
    if access.bits == 32:
        out = op("v128.load32_zero", _address(base, dtype, indices[0]))
        for number, index in enumerate(indices[1:], 1):
            kept = w.let(out)
            out = op("v128.load32_lane", _address(base, dtype, index), kept, lane=number)
        return out
    return access.decode(w, joined([_bits(w, dtype, base, i) for i in indices]))


def encoded(w: Writer, dtype: str, value: Value) -> Value:
    """What is stored of one number: an i32 of which the low bits count, or the number itself."""
    if dtype not in FLOATS:
        return value
    lanes = ACCESS[dtype].encode(w, op("f32x4.splat", value))
    return op("i32x4.extract_lane", lanes, lane=0)


def store(w: Writer, dtype: str, address: Value, value: Value) -> None:
    """One element, not packed."""
    w.do(ACCESS[dtype].store, address, encoded(w, dtype, value))


def store_row(w: Writer, dtype: str, address: Value, value: Value) -> None:
    """Four neighbours, not packed."""
    access = ACCESS[dtype]
    if access.shift == 2:
        w.do("v128.store", address, value, align=4)
        return
    bits = w.let(access.encode(w, value))
    if access.shift == 1:
        packed = shuffle(bits, bits, 0, 1, 4, 5, 8, 9, 12, 13, *range(8))
        w.do("v128.store64_lane", address, packed, align=2, lane=0)
    else:
        packed = shuffle(bits, bits, 0, 4, 8, 12, *range(12))
        w.do("v128.store32_lane", address, packed, align=1, lane=0)
