"""How weights of each dtype lie in memory, and code that dequantises them: one table.

Weights keep the bytes of their file (formats of ggml, see ``formats/dequant.py``), so that they
stream straight into place. ``dequantise`` emits code for one step of elements and hands them on,
four at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fanlight.codegen.wasm.access import ACCESS, load_row
from fanlight.codegen.wasm.small_floats import from_f16
from fanlight.codegen.wasm.values import Local, Value, Writer, f32x4, i32x4, op, shuffle
from fanlight.dtypes import DTYPES, DType
from fanlight.errors import UnsupportedError
from fanlight.kernels.target import NotYet, Plane, Storage

#: sink(k, value): elements k … k + 3 of the step
Sink = Callable[[int, Value], None]


@dataclass(frozen=True, slots=True)
class Row:
    """``step`` elements lie in ``bytes`` bytes. ``dequantise(w, address, sink)`` emits code for one
    step."""

    step: int
    bytes: int
    dequantise: Callable[[Writer, Local, Sink], None]


def _plain(dtype: str) -> Callable[[Writer, Local, Sink], None]:
    def dequantise(w: Writer, at: Local, sink: Sink) -> None:
        sink(0, load_row(w, dtype, at))

    return dequantise


def splat_lane(vector: Value, lane: int) -> Value:
    """One lane in all four."""
    return shuffle(vector, vector, *(list(range(4 * lane, 4 * lane + 4)) * 4))


def _halves(w: Writer, at: Local, offset: int) -> Local:
    """Two f16 neighbours as f32 in lanes 0 and 1 (a single one in lane 0: read 2 bytes more than
    it)."""
    words = op("v128.load32_zero", at, offset=offset, align=1)
    return w.let(from_f16(w, op("i32x4.extend_low_i16x8_u", words)))


def _half(w: Writer, at: Local, offset: int) -> Local:
    """One f16, in all lanes."""
    bits = op("i32x4.splat", op("i32.load16_u", at, offset=offset, align=1))
    return w.let(from_f16(w, bits))


def _sixteen(
    w: Writer, quants: Local, k: int, sign: str, sink: Sink, f: Callable[[Value], Value]
) -> None:
    """Sixteen bytes as f32, through ``f``: elements k … k + 15."""
    for number, part in enumerate(("low", "high")):
        words = w.let(op(f"i16x8.extend_{part}_i8x16_{sign}", quants))
        for inner, half in enumerate(("low", "high")):
            integers = op(f"i32x4.extend_{half}_i16x8_{sign}", words)
            sink(k + 8 * number + 4 * inner, f(op("f32x4.convert_i32x4_s", integers)))


def _scale(scale: Value, minimum: Value | None = None) -> Callable[[Value], Value]:
    def f(value: Value) -> Value:
        product = op("f32x4.mul", value, scale)
        return product if minimum is None else op("f32x4.add", product, minimum)

    return f


def nibbles(w: Writer, at: Local, offset: int) -> tuple[Local, Local]:
    packed = w.let(op("v128.load", at, offset=offset, align=1))
    low = w.let(op("v128.and", packed, i32x4(0x0F0F0F0F)))
    return low, w.let(op("i8x16.shr_u", packed, 4))


def _q4_0(w: Writer, at: Local, sink: Sink) -> None:
    d = _half(w, at, 0)
    f = _scale(d)
    for k, quants in zip((0, 16), nibbles(w, at, 2), strict=True):
        centred = w.let(op("i8x16.sub", quants, i32x4(0x08080808)))
        _sixteen(w, centred, k, "s", sink, f)


def _q4_1(w: Writer, at: Local, sink: Sink) -> None:
    both = _halves(w, at, 0)
    d, m = w.let(splat_lane(both, 0)), w.let(splat_lane(both, 1))
    for k, quants in zip((0, 16), nibbles(w, at, 4), strict=True):
        _sixteen(w, quants, k, "u", sink, _scale(d, m))


def _q8_0(w: Writer, at: Local, sink: Sink) -> None:
    d = _half(w, at, 0)
    for k in (0, 16):
        quants = w.let(op("v128.load", at, offset=2 + k, align=1))
        _sixteen(w, quants, k, "s", sink, _scale(d))


def _q4_k(w: Writer, at: Local, sink: Sink) -> None:
    """d, dmin f16; 8 scales and 8 minima of 6 bits in 12 bytes; 256 nibbles, 64 elements in 32
    bytes."""
    both = _halves(w, at, 0)
    d, dmin = w.let(splat_lane(both, 0)), w.let(splat_lane(both, 1))

    def byte(number: int) -> Value:
        return op("i32.load8_u", at, offset=4 + number)

    def six(j: int) -> tuple[Value, Value]:
        if j < 4:
            return byte(j) & 63, byte(j + 4) & 63
        scale = (byte(j + 4) & 15) | (op("i32.shr_u", byte(j - 4), 6) << 4)
        return scale, op("i32.shr_u", byte(j + 4), 4) | (op("i32.shr_u", byte(j), 6) << 4)

    for j in range(0, 8, 2):
        scales = []
        for number in (j, j + 1):
            s, m = six(number)
            real_s = op("f32x4.splat", op("f32.convert_i32_u", s))
            real_m = op("f32x4.splat", op("f32.convert_i32_u", m))
            scale = w.let(op("f32x4.mul", d, real_s))
            scales.append((scale, w.let(op("f32x4.neg", op("f32x4.mul", dmin, real_m)))))
        for part in (0, 16):
            low, high = nibbles(w, at, 16 + 16 * j + part)
            for number, quants in enumerate((low, high)):
                f = _scale(*scales[number])
                _sixteen(w, quants, 32 * (j + number) + part, "u", sink, f)


def _q6_k(w: Writer, at: Local, sink: Sink) -> None:
    """128 bytes of low nibbles, 64 of high bit pairs, 16 scales i8, d f16; 128 elements share 64 +
    32 bytes."""
    d = _half(w, at, 208)
    for half in (0, 1):
        for part in (0, 16):
            low = [nibbles(w, at, 64 * half + 32 * row + part) for row in (0, 1)]
            high = w.let(op("v128.load", at, offset=128 + 32 * half + part, align=1))
            for quarter in range(4):
                bits = op("i8x16.shr_u", high, 2 * quarter) if quarter else high
                pair = op("i8x16.shl", op("v128.and", bits, i32x4(0x03030303)), 4)
                quants = op("v128.or", low[quarter % 2][quarter // 2], pair)
                centred = w.let(op("i8x16.sub", quants, i32x4(0x20202020)))
                k = 128 * half + 32 * quarter + part
                scale = op("i32.load8_s", at, offset=192 + k // 16)
                real = op("f32x4.splat", op("f32.convert_i32_s", scale))
                _sixteen(w, centred, k, "s", sink, _scale(w.let(op("f32x4.mul", d, real))))


ROWS: dict[str, Row] = {
    "f32": Row(4, 16, _plain("f32")),
    "f16": Row(4, 8, _plain("f16")),
    "bf16": Row(4, 8, _plain("bf16")),
    "q4_0": Row(32, 18, _q4_0),
    "q4_1": Row(32, 20, _q4_1),
    "q8_0": Row(32, 34, _q8_0),
    "q4_k": Row(256, 144, _q4_k),
    "q6_k": Row(256, 210, _q6_k),
}


def _storage() -> dict[str, Storage | NotYet]:
    table: dict[str, Storage | NotYet] = {}
    for name, dtype in DTYPES.items():
        if name in ROWS or name in ACCESS:  # loop kernels read the latter
            table[name] = Storage((Plane("", dtype.bytes),), direct=True)
        else:
            table[name] = NotYet("no code reads it yet")
    return table


STORAGE = _storage()


def row_of(dtype: DType, op_name: str, k: object) -> Row:
    """The row of ``dtype``; UnsupportedError if there is none or rows of ``k`` elements don't fit
    it."""
    row = ROWS.get(dtype.name)
    if row is None:
        raise UnsupportedError("no code reads this dtype yet", where=op_name, got=dtype)
    if not isinstance(k, int) or k % row.step:
        raise UnsupportedError(f"rows must be multiples of {row.step}", where=op_name, got=k)
    return row


def zero() -> Value:
    return f32x4(0.0)


def multiply_add(relaxed: bool, a: Value, b: Value, c: Value) -> Value:
    """a * b + c; ``relaxed``: rounded once where the machine can."""
    if relaxed:
        return op("f32x4.relaxed_madd", a, b, c)
    return op("f32x4.add", op("f32x4.mul", a, b), c)


def add_lanes(w: Writer, vector: Value) -> Value:
    """The sum of the four lanes as f32: (0 + 2) + (1 + 3)."""
    v = w.let(vector)
    pairs = w.let(op("f32x4.add", v, shuffle(v, v, *range(8, 16), *range(8, 16))))
    first = op("f32x4.extract_lane", pairs, lane=0)
    return first + op("f32x4.extract_lane", pairs, lane=1)


def share(w: Writer, total: Value, tid: Value, threads: Value) -> tuple[Local, Local]:
    """[begin, end) of this thread among ``total``, nearly equal for all."""
    chunk = w.let(op("i32.div_u", total + threads - 1, threads))
    begin = w.let(tid * chunk)
    end = w.let(begin + chunk)
    with w.if_(op("i32.gt_s", end, total)):
        w.set(end, total)
    return begin, end
