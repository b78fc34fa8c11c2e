"""Products of one row of x with blocks of 32 weights, in registers: one table.

x is prepared once for all rows of weights: reordered as the bits of a block's 32-bit words come
out, and scaled by powers of two, so that a quant needs no shift of its own. Exact: one-hot rows of
x give what ``blocks.py`` dequantises. Dtypes without a row here are dequantised first. (Integer
products would quantise x in ``prepare``.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fanlight.codegen.wasm import math
from fanlight.codegen.wasm.blocks import multiply_add, splat_lane
from fanlight.codegen.wasm.values import Local, Value, Writer, f32x4, i32x4, op, shuffle


@dataclass(frozen=True, slots=True)
class Dot:
    """``prepare(w, x, to)`` writes 32 elements of x as ``bytes`` bytes.

    ``together``: how many rows of weights to take at a time. Four are the fastest while weights are
    in the cache; of eight bits, from memory, two are (``bench/wasm_kernels.py``, V8).
    ``add(w, at, rows, x, totals, relaxed)`` adds to each of ``totals`` the products of prepared x
    with one block; ``rows`` are the blocks' distances from ``at``, in bytes.
    """

    bytes: int
    together: int
    prepare: Callable[[Writer, Local, Local], None]
    add: Callable[[Writer, Local, Sequence[int], Local, Sequence[Local], bool], None]


def _columns(w: Writer, x: Local, first: int) -> list[Local]:
    """Sixteen elements as four vectors: 0, 4, 8, 12; 1, 5, 9, 13; …"""
    rows = [w.let(op("v128.load", x, offset=4 * first + 16 * i, align=4)) for i in range(4)]

    def pick(a: Value, b: Value, *words: int) -> Local:
        return w.let(shuffle(a, b, *(4 * word + i for word in words for i in range(4))))

    low = [pick(rows[i], rows[i + 1], 0, 4, 1, 5) for i in (0, 2)]
    high = [pick(rows[i], rows[i + 1], 2, 6, 3, 7) for i in (0, 2)]
    pairs = [(low, (0, 1, 4, 5)), (low, (2, 3, 6, 7)), (high, (0, 1, 4, 5)), (high, (2, 3, 6, 7))]
    return [pick(two[0], two[1], *words) for two, words in pairs]


def _store(w: Writer, to: Local, number: int, value: Value) -> None:
    w.do("v128.store", to, value, offset=16 * number, align=4)


def _halves(w: Writer, at: Local, places: Sequence[int]) -> list[Local]:
    """f16 numbers at ``places``, each in all lanes of a vector."""
    found = []
    for first in range(0, len(places), 4):
        four = places[first : first + 4]
        words = op("v128.load16_splat", at, offset=four[0], align=1)
        for lane, place in enumerate(four[1:], 1):
            words = op("v128.load16_lane", at, w.let(words), offset=place, align=1, lane=lane)
        values = w.let(math.from_f16(w, op("i32x4.extend_low_i16x8_u", words)))
        found += [w.let(splat_lane(values, lane)) for lane in range(len(four))]
    return found


# --- four bits: nibble n of word j is element 4 j + n // 2, and 16 more where n is odd


def _prepare_nibbles(w: Writer, x: Local, to: Local) -> Value:
    """Vectors 0 … 7; returns the sum of all, unscaled."""
    low, high = _columns(w, x, 0), _columns(w, x, 16)
    total = w.let(f32x4(0.0))
    for n in range(8):
        vector = (low, high)[n % 2][n // 2]
        w.set(total, op("f32x4.add", total, vector))
        scaled = vector if n in (0, 7) else op("f32x4.mul", vector, f32x4(16.0**-n))
        _store(w, to, n, scaled)
    return total


def _nibble(n: int, words: Local) -> Value:
    """16 ** n times nibble n; nibble 7 itself."""
    if n == 7:
        return op("i32x4.shr_u", words, 28)
    return op("v128.and", words, i32x4(15 << 4 * n))


def _add_nibbles(
    w: Writer, words: Sequence[Local], x: Local, sums: Sequence[Local], relaxed: bool
) -> None:
    for n in range(8):
        factor = w.let(op("v128.load", x, offset=16 * n, align=4))
        for word, total in zip(words, sums, strict=True):
            quant = op("f32x4.convert_i32x4_s", _nibble(n, word))
            w.set(total, multiply_add(relaxed, quant, factor, total))


def _words(w: Writer, at: Local, places: Sequence[int]) -> list[Local]:
    return [w.let(op("v128.load", at, offset=place, align=1)) for place in places]


def _prepare_q4_0(w: Writer, x: Local, to: Local) -> None:
    _store(w, to, 8, op("f32x4.mul", _prepare_nibbles(w, x, to), f32x4(-8.0)))


def _q4_0(
    w: Writer, at: Local, rows: Sequence[int], x: Local, totals: Sequence[Local], relaxed: bool
) -> None:
    sums = [w.let(op("v128.load", x, offset=128, align=4)) for _ in rows]
    _add_nibbles(w, _words(w, at, [row + 2 for row in rows]), x, sums, relaxed)
    for d, part, total in zip(_halves(w, at, rows), sums, totals, strict=True):
        w.set(total, multiply_add(relaxed, d, part, total))


def _prepare_q4_1(w: Writer, x: Local, to: Local) -> None:
    _store(w, to, 8, _prepare_nibbles(w, x, to))


def _q4_1(
    w: Writer, at: Local, rows: Sequence[int], x: Local, totals: Sequence[Local], relaxed: bool
) -> None:
    sums = [w.let(f32x4(0.0)) for _ in rows]
    _add_nibbles(w, _words(w, at, [row + 4 for row in rows]), x, sums, relaxed)
    scales = _halves(w, at, [row + place for row in rows for place in (0, 2)])
    whole = w.let(op("v128.load", x, offset=128, align=4))
    for number, total in enumerate(totals):
        d, m = scales[2 * number : 2 * number + 2]
        w.set(total, multiply_add(relaxed, d, sums[number], total))
        w.set(total, multiply_add(relaxed, m, whole, total))


# --- eight bits: byte i of word j is element 4 j + i


def _prepare_q8_0(w: Writer, x: Local, to: Local) -> None:
    for half in (0, 1):
        first, *others = _columns(w, x, 16 * half)
        _store(w, to, 4 * half, op("f32x4.mul", first, f32x4(2.0**-24)))
        for i, vector in enumerate(others, 1):
            _store(w, to, 4 * half + i, vector)


def _byte(i: int, words: Local) -> Value:
    """2 ** 24 times byte 0; bytes 1 to 3 themselves."""
    if i == 3:
        return op("i32x4.shr_s", words, 24)
    moved = op("i32x4.shl", words, 24 - 8 * i)
    return moved if i == 0 else op("i32x4.shr_s", moved, 24)


def _q8_0(
    w: Writer, at: Local, rows: Sequence[int], x: Local, totals: Sequence[Local], relaxed: bool
) -> None:
    sums = [w.let(f32x4(0.0)) for _ in rows]
    for half in (0, 1):
        words = _words(w, at, [row + 2 + 16 * half for row in rows])
        for i in range(4):
            factor = w.let(op("v128.load", x, offset=64 * half + 16 * i, align=4))
            for word, part in zip(words, sums, strict=True):
                quant = op("f32x4.convert_i32x4_s", _byte(i, word))
                w.set(part, multiply_add(relaxed, quant, factor, part))
    for d, part, total in zip(_halves(w, at, rows), sums, totals, strict=True):
        w.set(total, multiply_add(relaxed, d, part, total))


DOTS: dict[str, Dot] = {
    "q4_0": Dot(144, 4, _prepare_q4_0, _q4_0),
    "q4_1": Dot(144, 4, _prepare_q4_1, _q4_1),
    "q8_0": Dot(128, 2, _prepare_q8_0, _q8_0),
}
