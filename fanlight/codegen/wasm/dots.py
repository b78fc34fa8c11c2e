"""Products of one row of x with blocks of weights, four rows of weights at a time: one table.

x is rounded once for all rows of weights: 32 elements become int16 with one f32 scale, so that
``i32x4.dot_i16x8_s`` multiplies them with the quants as they are. Sums of a block are exact
integers; blocks are summed in f32, a lane for each row. The rounding is what x loses: an NMSE near
4e-10 for normal x, whatever the weights. Dtypes without a row here are dequantised instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fanlight.codegen.wasm.blocks import multiply_add
from fanlight.codegen.wasm.values import Local, Value, Writer, f32, f32x4, i32x4, op, shuffle

ROWS = 4  # of weights, taken together
GROUP = 32  # elements of x that share a scale
BYTES = 80  # of a prepared group: int16 in the order of the quants, then:
_SCALE, _SUM = 64, 68  # f32; what a quant's offset is multiplied with, by dtype


@dataclass(frozen=True, slots=True)
class Dot:
    """``prepare(w, x, to)`` writes 32 elements of x as ``BYTES`` bytes.

    ``add(w, at, rows, x, total, relaxed)`` adds to the lanes of ``total`` the products of prepared
    x with one block of each of ``ROWS`` rows, at ``rows`` bytes from ``at``; a block of 256 takes
    eight times 32 elements.
    """

    prepare: Callable[[Writer, Local, Local], None]
    add: Callable[[Writer, Local, Sequence[int], Local, Local, bool], None]


# --- x


def _rounded(w: Writer, x: Local, to: Local) -> tuple[list[Local], Local, Local]:
    """32 elements as int16, eight a vector; their sum, i32; and their scale, f32, which it stores:
    the largest of them over 32767."""
    values = [w.let(op("v128.load", x, offset=16 * i, align=4)) for i in range(8)]
    most = w.let(op("f32x4.abs", values[0]))
    for value in values[1:]:
        w.set(most, op("f32x4.max", most, op("f32x4.abs", value)))
    for lanes in ((2, 3, 0, 1), (1, 0, 3, 2)):
        w.set(most, op("f32x4.max", most, _words(most, most, *lanes)))
    scale = w.let(op("f32.div", op("f32x4.extract_lane", most, lane=0), f32(32767.0)))
    w.do("f32.store", to, scale, offset=_SCALE, align=4)
    factor = w.let(op("f32x4.div", f32x4(32767.0), most))  # of zeros: NaN, which becomes 0
    integers = []
    for value in values:
        nearest = op("f32x4.nearest", op("f32x4.mul", value, factor))
        integers.append(w.let(op("i32x4.trunc_sat_f32x4_s", nearest)))
    pairs = list(zip(integers[::2], integers[1::2], strict=True))
    sums = w.let(op("i32x4.add", *pairs[0]))
    for pair in pairs[1:]:
        w.set(sums, op("i32x4.add", sums, op("i32x4.add", *pair)))
    parts = [op("i32x4.extract_lane", sums, lane=i) for i in range(4)]
    total = w.local("i32")
    w.set(total, op("i32.add", op("i32.add", *parts[:2]), op("i32.add", *parts[2:])))
    return [w.let(op("i16x8.narrow_i32x4_s", a, b)) for a, b in pairs], total, scale


def _words(a: Value, b: Value, *lanes: int) -> Value:
    """Four words of 32 bits, those of ``b`` from 4."""
    return shuffle(a, b, *(4 * lane + i for lane in lanes for i in range(4)))


def _store(w: Writer, to: Local, vectors: Sequence[Value]) -> None:
    for number, vector in enumerate(vectors):
        w.do("v128.store", to, vector, offset=16 * number, align=4)


def _store_by_nibble(w: Writer, to: Local, halves: Sequence[Local]) -> None:
    """As the nibbles of eight 16-bit words come, lowest first: of word j the elements 2 j,
    2 j + 16, 2 j + 1, 2 j + 17."""
    _store(
        w, to, [_every_second(half, first) for first in (0, 1) for half in (halves[:2], halves[2:])]
    )


def _every_second(half: Sequence[Local], first: int) -> Value:
    """Of sixteen int16 in two vectors."""
    return shuffle(half[0], half[1], *(2 * n + i for n in range(first, 16, 2) for i in (0, 1)))


def _prepare_q4_0(w: Writer, x: Local, to: Local) -> None:
    halves, total, _ = _rounded(w, x, to)
    _store_by_nibble(w, to, halves)
    w.do("i32.store", to, total * -8, offset=_SUM, align=4)


def _prepare_q4_1(w: Writer, x: Local, to: Local) -> None:
    halves, total, scale = _rounded(w, x, to)
    _store_by_nibble(w, to, halves)
    w.do("f32.store", to, op("f32.convert_i32_s", total) * scale, offset=_SUM, align=4)


def _prepare_q4_k(w: Writer, x: Local, to: Local) -> None:
    """The nibbles of a byte belong to two groups of 32: elements 2 j, then 2 j + 1."""
    halves, total, scale = _rounded(w, x, to)
    _store(
        w, to, [_every_second(half, first) for half in (halves[:2], halves[2:]) for first in (0, 1)]
    )
    w.do("f32.store", to, op("f32.convert_i32_s", total) * scale, offset=_SUM, align=4)


def _prepare_bytes(w: Writer, x: Local, to: Local) -> None:
    halves, _, _ = _rounded(w, x, to)
    _store(w, to, halves)


# --- products


def _nibbles(w: Writer, words: Local) -> list[Value]:
    """Of eight 16-bit words, lowest first."""
    low = i32x4(0x000F000F)
    shifted = [op("v128.and", op("i16x8.shr_u", words, n), low) for n in (4, 8)]
    return [op("v128.and", words, low), *shifted, op("i16x8.shr_u", words, 12)]


def _sum(w: Writer, quants: Sequence[Value], factors: Sequence[Local]) -> Local:
    """Eight products a pair of vectors, in four partial sums."""
    products = [op("i32x4.dot_i16x8_s", a, b) for a, b in zip(quants, factors, strict=True)]
    total = w.let(products[0])
    for product in products[1:]:
        w.set(total, op("i32x4.add", total, product))
    return total


def _factors(w: Writer, x: Local, group: int = 0) -> list[Local]:
    places = [BYTES * group + 16 * i for i in range(4)]
    return [w.let(op("v128.load", x, offset=place, align=4)) for place in places]


def _splat(x: Local, place: int, group: int = 0) -> Value:
    return op("v128.load32_splat", x, offset=BYTES * group + place, align=4)


def _by_row(w: Writer, sums: Sequence[Local]) -> Local:
    """Four rows' partial sums → one vector, a lane for each row."""
    a, b, c, d = sums

    def halves(x: Local, y: Local) -> Local:
        low, high = _words(x, y, 0, 4, 1, 5), _words(x, y, 2, 6, 3, 7)
        return w.let(op("i32x4.add", low, high))

    return halves(halves(a, c), halves(b, d))


def _scales(w: Writer, at: Local, rows: Sequence[int], skip: int = 0) -> Local:
    """32 bits of each row's block, ``skip`` bytes into it."""
    words = w.let(op("v128.load32_zero", at, offset=rows[0] + skip, align=1))
    for lane, row in enumerate(rows[1:], 1):
        w.set(words, op("v128.load32_lane", at, words, offset=row + skip, align=1, lane=lane))
    return words


def _half(words: Value, high: bool = False) -> Value:
    """The low or the high half of each word, an f16 that is finite, as f32: sign and bits, moved to
    f32's places, times 2 ** 112."""
    moved = op("i32x4.shr_s", words if high else op("i32x4.shl", words, 16), 3)
    bits = op("v128.and", moved, i32x4(0x8FFFE000))
    return op("f32x4.mul", bits, f32x4(2.0**112))


def _add_nibbles(w: Writer, at: Local, rows: Sequence[int], x: Local, skip: int) -> Local:
    """Sums of x times the nibbles, which begin ``skip`` bytes into a block."""
    factors = _factors(w, x)
    sums = []
    for row in rows:
        words = w.let(op("v128.load", at, offset=row + skip, align=1))
        sums.append(_sum(w, _nibbles(w, words), factors))
    return _by_row(w, sums)


def _scaled(
    w: Writer, d: Value, x: Local, sums: Value, total: Local, relaxed: bool, group: int = 0
) -> None:
    scale = op("f32x4.mul", d, _splat(x, _SCALE, group))
    real = op("f32x4.convert_i32x4_s", sums)
    w.set(total, multiply_add(relaxed, real, scale, total))


def _q4_0(w: Writer, at: Local, rows: Sequence[int], x: Local, total: Local, relaxed: bool) -> None:
    sums = _add_nibbles(w, at, rows, x, 2)
    offset = _splat(x, _SUM)
    d = _half(_scales(w, at, rows))
    _scaled(w, d, x, op("i32x4.add", sums, offset), total, relaxed)


def _q4_1(w: Writer, at: Local, rows: Sequence[int], x: Local, total: Local, relaxed: bool) -> None:
    sums = _add_nibbles(w, at, rows, x, 4)
    scales = _scales(w, at, rows)
    m = _half(scales, high=True)
    _scaled(w, _half(scales), x, sums, total, relaxed)
    whole = _splat(x, _SUM)
    w.set(total, multiply_add(relaxed, m, whole, total))


def _q8_0(w: Writer, at: Local, rows: Sequence[int], x: Local, total: Local, relaxed: bool) -> None:
    factors = _factors(w, x)
    sums = []
    for row in rows:
        places = [row + 2 + 8 * i for i in range(4)]
        quants = [op("v128.load8x8_s", at, offset=place, align=1) for place in places]
        sums.append(_sum(w, quants, factors))
    _scaled(w, _half(_scales(w, at, rows)), x, _by_row(w, sums), total, relaxed)


# --- blocks of 256


def _six_bits(packed: Sequence[Local], j: int, which: int) -> Value:
    """Scale (``which`` 0) or minimum (1) of group j, of each row, from its twelve packed bytes."""
    words, both = packed[which], packed[2]
    if j < 4:
        return op("v128.and", op("i32x4.shr_u", words, 8 * j), i32x4(63))
    low = op("v128.and", op("i32x4.shr_u", both, 8 * (j - 4) + 4 * which), i32x4(15))
    high = op("v128.and", op("i32x4.shr_u", words, 8 * (j - 4) + 2), i32x4(48))
    return op("v128.or", low, high)


def _q4_k(w: Writer, at: Local, rows: Sequence[int], x: Local, total: Local, relaxed: bool) -> None:
    scales = _scales(w, at, rows)
    factors = [w.let(_half(scales)), w.let(op("f32x4.neg", _half(scales, high=True)))]
    packed = [_scales(w, at, rows, 4 + 4 * i) for i in range(3)]
    for pair in range(0, 8, 2):
        xs = [_factors(w, x, pair + i) for i in (0, 1)]
        sums: list[list[Local]] = [[], []]
        for row in rows:
            quants: list[list[Value]] = [[], []]
            for part in (0, 16):
                place = row + 16 + 16 * pair + part
                nibbles = _nibbles(w, w.let(op("v128.load", at, offset=place, align=1)))
                for i in (0, 1):
                    quants[i] += nibbles[i::2]
            for i in (0, 1):
                sums[i].append(_sum(w, quants[i], xs[i]))
        for i in (0, 1):
            group = pair + i
            d, m = (
                op("f32x4.mul", f, op("f32x4.convert_i32x4_s", _six_bits(packed, group, which)))
                for which, f in enumerate(factors)
            )
            _scaled(w, d, x, _by_row(w, sums[i]), total, relaxed, group)
            w.set(total, multiply_add(relaxed, m, _splat(x, _SUM, group), total))


def _q6_k(w: Writer, at: Local, rows: Sequence[int], x: Local, total: Local, relaxed: bool) -> None:
    """A quant times the scale of its sixteen is an int16 still: at most 32 * 128."""
    d = w.let(_half(_scales(w, at, rows, 206), high=True))
    with w.for_range(0, 2) as half:
        low, high, signs = (w.let(at + (half << n)) for n in (6, 5, 3))
        xs = w.let(x + half * (4 * BYTES))
        for quarter in range(4):
            factors = _factors(w, xs, quarter)
            sums = [_sum(w, _sixes(w, (low, high, signs), row, quarter), factors) for row in rows]
            _scaled(w, d, xs, _by_row(w, sums), total, relaxed, quarter)


def _sixes(w: Writer, ats: Sequence[Local], row: int, quarter: int) -> list[Value]:
    """32 scaled quants, as int16; ``ats``: where the half's low bits, high bits and scales are,
    less their places in the block."""
    out = []
    for part in (0, 1):
        place = row + 32 * (quarter % 2) + 16 * part
        four = op("v128.load", ats[0], offset=place, align=1)
        if quarter > 1:
            four = op("i16x8.shr_u", four, 4)
        two = op("v128.load", ats[1], offset=row + 128 + 16 * part, align=1)
        by = 4 - 2 * quarter
        moved = op("i16x8.shl", two, by) if by > 0 else op("i16x8.shr_u", two, -by)
        high = op("v128.and", moved, i32x4(0x30303030))
        quants = op("v128.or", op("v128.and", four, i32x4(0x0F0F0F0F)), high)
        centred = w.let(op("i8x16.sub", quants, i32x4(0x20202020)))
        scale = op("i32.load8_s", ats[2], offset=row + 192 + 2 * quarter + part)
        scales = w.let(op("i16x8.splat", scale))
        words = [op(f"i16x8.extend_{end}_i8x16_s", centred) for end in ("low", "high")]
        out += [op("i16x8.mul", word, scales) for word in words]
    return out


DOTS: dict[str, Dot] = {
    "q4_0": Dot(_prepare_q4_0, _q4_0),
    "q4_1": Dot(_prepare_q4_1, _q4_1),
    "q8_0": Dot(_prepare_bytes, _q8_0),
    "q4_k": Dot(_prepare_q4_k, _q4_k),
    "q6_k": Dot(_prepare_bytes, _q6_k),
}
