"""f32 functions, four at a time: exp, log, tanh, sigmoid, silu, erf, sin, cos, atan, pow, mod.

Each takes and gives a v128 of four f32 and writes its code in place. Within 1e-6 relative over the
whole range (tests/codegen/wasm/test_math.py states each bound in ulp); subnormal results are
reached; no relaxed instruction, so the bits are the same everywhere. Polynomials and splits of ln 2
are those of Cephes (Moshier); sine, cosine, power and remainder compute in f64 and round once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fanlight.codegen.wasm.values import Local, Value, Writer, f32x4, i32x4, op, shuffle

Unary = Callable[[Writer, Value], Value]


def _add(a: Value, b: Value) -> Value:
    return op("f32x4.add", a, b)


def _sub(a: Value, b: Value) -> Value:
    return op("f32x4.sub", a, b)


def _mul(a: Value, b: Value) -> Value:
    return op("f32x4.mul", a, b)


def _div(a: Value, b: Value) -> Value:
    return op("f32x4.div", a, b)


def pick(mask: Value, a: Value, b: Value) -> Value:
    """``a`` where ``mask`` is all ones, ``b`` where it is 0."""
    return op("v128.bitselect", a, b, mask)


def _polynomial(x: Local, coefficients: Sequence[float]) -> Value:
    """Horner's rule; the highest power's coefficient comes first."""
    p = f32x4(coefficients[0])
    for c in coefficients[1:]:
        p = _add(_mul(p, x), f32x4(c))
    return p


def _two_to(k: Value) -> Value:
    """2 ** k, for i32 lanes from -126 to 127."""
    return op("i32x4.shl", op("i32x4.add", k, i32x4(127)), 23)


_EXP = (
    *(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3),
    *(4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
)


_ROUND = 12582912.0  # 1.5 * 2**23: added and taken off again, it leaves the nearest integer


def _inside(value: Value, low: float, high: float) -> Value:
    """``value`` within the bounds; NaN stays (of pmin and pmax the first argument does)."""
    return op("f32x4.pmax", op("f32x4.pmin", value, f32x4(high)), f32x4(low))


def exp(w: Writer, value: Value) -> Value:
    """Below -104 it is 0, above 88.73 infinite."""
    x = w.let(_inside(value, -104.0, 89.0))
    # k, and its integer in the low bits of a float between 2**23 and 2**24
    raised = w.let(_add(_mul(x, f32x4(1.44269504)), f32x4(_ROUND)))
    k = w.let(_sub(raised, f32x4(_ROUND)))
    r = w.let(_add(_sub(x, _mul(k, f32x4(0.693359375))), _mul(k, f32x4(2.12194440e-4))))
    p = w.let(_polynomial(r, _EXP))
    p = w.let(_add(_add(_mul(_mul(p, r), r), r), f32x4(1.0)))
    # Two factors, so that subnormal results are reached.
    n = w.let(op("i32x4.sub", raised, i32x4(0x4B400000)))
    half = w.let(op("i32x4.shr_s", n, 1))
    return _mul(_mul(p, _two_to(half)), _two_to(op("i32x4.sub", n, half)))


_LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)


def log(w: Writer, value: Value) -> Value:
    """-infinity at 0, NaN below."""
    x = w.let(value)
    tiny = w.let(op("f32x4.lt", x, f32x4(1.1754944e-38)))
    bits = w.let(pick(tiny, _mul(x, f32x4(8388608.0)), x))
    # The exponent for which m is in [sqrt(1/2), sqrt(2)).
    shifted = w.let(op("i32x4.sub", bits, i32x4(0x3F3504F3)))
    e = op("f32x4.convert_i32x4_s", op("i32x4.shr_s", shifted, 23))
    e = w.let(_sub(e, op("v128.and", tiny, f32x4(23.0))))
    mantissa = op("v128.and", shifted, i32x4(0x007FFFFF))
    m = w.let(_sub(op("i32x4.add", mantissa, i32x4(0x3F3504F3)), f32x4(1.0)))
    z = w.let(_mul(m, m))
    low = _mul(_mul(_polynomial(m, _LOG), m), z)
    low = _sub(_sub(low, _mul(e, f32x4(2.12194440e-4))), _mul(f32x4(0.5), z))
    result = w.let(_add(_add(m, low), _mul(e, f32x4(0.693359375))))
    zero = op("f32x4.eq", x, f32x4(0.0))
    result = w.let(pick(zero, f32x4(float("-inf")), result))
    # Infinity and NaN are themselves; numbers below zero give NaN.
    result = w.let(pick(op("f32x4.lt", x, f32x4(float("inf"))), result, x))
    return pick(op("f32x4.lt", x, f32x4(0.0)), f32x4(float("nan")), result)


_TANH = (
    -5.70498872745e-3,
    2.06390887954e-2,
    -5.37397155531e-2,
    1.33314422036e-1,
    -3.33332819422e-1,
)


def tanh(w: Writer, value: Value) -> Value:
    x = w.let(value)
    a = w.let(op("f32x4.abs", x))
    z = w.let(_mul(x, x))
    near = w.let(_add(_mul(_mul(_polynomial(z, _TANH), z), x), x))
    grown = exp(w, op("f32x4.min", _add(a, a), f32x4(40.0)))
    far = w.let(_sub(f32x4(1.0), _div(f32x4(2.0), _add(grown, f32x4(1.0)))))
    signed = op("v128.or", far, op("v128.and", x, i32x4(0x80000000)))
    return pick(op("f32x4.lt", a, f32x4(0.625)), near, signed)


def sigmoid(w: Writer, value: Value) -> Value:
    """Of x below 0: e / (1 + e) with e = exp(x), so that small results keep their precision."""
    return _mul_sigmoid(w, value, f32x4(1.0))


def silu(w: Writer, value: Value) -> Value:
    x = w.let(value)
    clipped = op("f32x4.max", x, f32x4(-200.0))  # -infinity times 0 would be NaN
    return _mul_sigmoid(w, x, w.let(clipped))


def _mul_sigmoid(w: Writer, value: Value, factor: Value) -> Value:
    x = w.let(value)
    e = w.let(exp(w, op("f32x4.neg", op("f32x4.abs", x))))
    top = pick(op("f32x4.lt", x, f32x4(0.0)), e, f32x4(1.0))
    return _mul(_div(top, _add(e, f32x4(1.0))), factor)


# erf(x) = x P(x²) / Q(x²) up to the least x whose erf rounds to 1: coefficients of XLA's ErfImpl32
_ERF_TOP = (
    *(2.2905065861350646e-4, 3.4082910107109506e-3, 5.0955695062380861e-2),
    *(1.8520832239976145e-1, 1.128379143519084),
)
_ERF_BOTTOM = (
    *(-1.1791602954361697e-7, 2.3547966471313185e-5, 1.0179625278914885e-3),
    *(1.4070470171167667e-2, 1.1098505178285362e-1, 4.9746925110067538e-1, 1.0),
)


def erf(w: Writer, value: Value) -> Value:
    x = w.let(_inside(value, -3.832506856900711, 3.832506856900711))
    z = w.let(_mul(x, x))
    top = w.let(_mul(_polynomial(z, _ERF_TOP), x))
    return _inside(_div(top, w.let(_polynomial(z, _ERF_BOTTOM))), -1.0, 1.0)


_ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)


def atan(w: Writer, value: Value) -> Value:
    x = w.let(value)
    a = w.let(op("f32x4.abs", x))
    steep = w.let(op("f32x4.gt", a, f32x4(2.414213562)))
    middle = w.let(op("f32x4.gt", a, f32x4(0.4142135624)))
    quotient = _div(_sub(a, f32x4(1.0)), _add(a, f32x4(1.0)))
    inner = pick(steep, _div(f32x4(-1.0), a), pick(middle, quotient, a))
    r = w.let(inner)
    z = w.let(_mul(r, r))
    near = _add(_mul(_mul(_polynomial(z, _ATAN), z), r), r)
    turn = pick(steep, f32x4(1.5707963), op("v128.and", middle, f32x4(0.78539816)))
    return op("v128.or", _add(turn, near), op("v128.and", x, i32x4(0x80000000)))


# --- in f64, two lanes at a time


def _f64x2(value: float) -> Value:
    return op("f64x2.splat", value)


def _halves(w: Writer, x: Value) -> tuple[Local, Local]:
    """The four f32 as two f64x2."""
    kept = w.let(x)
    high = shuffle(kept, kept, *range(8, 16), *range(8, 16))
    return (
        w.let(op("f64x2.promote_low_f32x4", kept)),
        w.let(op("f64x2.promote_low_f32x4", high)),
    )


def _joined(w: Writer, low: Value, high: Value) -> Value:
    a = op("f32x4.demote_f64x2_zero", low)
    b = op("f32x4.demote_f64x2_zero", high)
    return shuffle(a, b, *range(8), *range(16, 24))


def _polynomial64(x: Local, coefficients: Sequence[float]) -> Value:
    p = _f64x2(coefficients[0])
    for c in coefficients[1:]:
        p = op("f64x2.add", op("f64x2.mul", p, x), _f64x2(c))
    return p


# Taylor's: within 1e-11 for |r| <= pi / 4.
_SIN = (1 / 6227020800, -1 / 39916800, 1 / 362880, -1 / 5040, 1 / 120, -1 / 6, 1.0)
_COS = (1 / 479001600, -1 / 3628800, 1 / 40320, -1 / 720, 1 / 24, -0.5, 1.0)


def _wave(w: Writer, x: Local, quarter: int) -> Value:
    """sin(x + quarter * pi / 2) of f64x2. pi / 2 in two parts serves |x| up to 2**28; beyond, the
    result is a number in [-1, 1]."""
    k = w.let(op("f64x2.nearest", op("f64x2.mul", x, _f64x2(0.6366197723675814))))
    r = op("f64x2.sub", x, op("f64x2.mul", k, _f64x2(1.5707963109016418)))
    r = op("f64x2.sub", r, op("f64x2.mul", k, _f64x2(1.5893254773528197e-8)))
    r = op("f64x2.max", op("f64x2.min", r, _f64x2(0.7854)), _f64x2(-0.7854))
    r = w.let(r)
    z = w.let(op("f64x2.mul", r, r))
    sine = w.let(op("f64x2.mul", _polynomial64(z, _SIN), r))
    cosine = w.let(_polynomial64(z, _COS))
    # The quadrant, as an integer in the low bits of a large f64's mantissa.
    quadrant = w.let(
        op("f64x2.add", op("f64x2.add", k, _f64x2(quarter)), _f64x2(6755399441055744.0))
    )
    odd = op("i64x2.shr_s", op("i64x2.shl", quadrant, 63), 63)
    sign = op("i64x2.shl", op("i64x2.shr_u", quadrant, 1), 63)
    return op("v128.xor", op("v128.bitselect", cosine, sine, odd), sign)


def _waves(w: Writer, value: Value, quarter: int) -> Value:
    low, high = _halves(w, value)
    return _joined(w, w.let(_wave(w, low, quarter)), w.let(_wave(w, high, quarter)))


def sin(w: Writer, value: Value) -> Value:
    return _waves(w, value, 0)


def cos(w: Writer, value: Value) -> Value:
    return _waves(w, value, 1)


def mod(w: Writer, a: Value, b: Value) -> Value:
    """With the sign of ``a``; exact while the quotient is below 2**28."""
    kept, by = w.let(a), w.let(b)
    parts = []
    for x, y in zip(_halves(w, kept), _halves(w, by), strict=True):
        quotient = op("f64x2.trunc", op("f64x2.div", x, y))
        parts.append(w.let(op("f64x2.sub", x, op("f64x2.mul", quotient, y))))
    inside = op("f32x4.lt", op("f32x4.abs", kept), op("f32x4.abs", by))
    return pick(inside, kept, _joined(w, *parts))


_ATANH = (1 / 13, 1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0)
_EXP64 = (1 / 362880, 1 / 40320, 1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)
_HALF_ROOT = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)


def _i64x2(value: int) -> Value:
    return op("i64x2.splat", value)


def _log64(w: Writer, x: Local) -> Value:
    """Of f64x2 from the range of f32, at least 0; within 1e-11."""
    shifted = w.let(op("i64x2.sub", x, _i64x2(_HALF_ROOT)))
    mantissa = op("v128.and", shifted, _i64x2((1 << 52) - 1))
    m = w.let(op("i64x2.add", mantissa, _i64x2(_HALF_ROOT)))
    one = _f64x2(1.0)
    s = w.let(op("f64x2.div", op("f64x2.sub", m, one), op("f64x2.add", m, one)))
    z = w.let(op("f64x2.mul", s, s))
    series = op("f64x2.mul", op("f64x2.add", s, s), _polynomial64(z, _ATANH))
    # The exponent: from the 64-bit lanes' high words.
    e = op("i64x2.shr_s", shifted, 52)
    e = w.let(e)
    words = shuffle(e, e, *range(4), *range(8, 12), *range(8))
    power = op("f64x2.convert_low_i32x4_s", words)
    result = w.let(op("f64x2.add", series, op("f64x2.mul", power, _f64x2(0.6931471805599453))))
    infinite = op("f64x2.eq", x, _f64x2(float("inf")))
    result = w.let(op("v128.bitselect", x, result, infinite))
    none = op("f64x2.eq", x, _f64x2(0.0))
    return op("v128.bitselect", _f64x2(float("-inf")), result, none)


def _exp64(w: Writer, value: Value) -> Value:
    x = w.let(op("f64x2.max", op("f64x2.min", value, _f64x2(100.0)), _f64x2(-120.0)))
    k = w.let(op("f64x2.nearest", op("f64x2.mul", x, _f64x2(1.4426950408889634))))
    r = w.let(op("f64x2.sub", x, op("f64x2.mul", k, _f64x2(0.6931471805599453))))
    n = op("i64x2.extend_low_i32x4_s", op("i32x4.trunc_sat_f64x2_s_zero", k))
    scale = op("i64x2.shl", op("i64x2.add", n, _i64x2(1023)), 52)
    return op("f64x2.mul", _polynomial64(r, _EXP64), scale)


def pow_(w: Writer, base: Value, exponent: Value) -> Value:
    """Of negative bases whole exponents only, else NaN; anything to the power of 0 is 1."""
    a, b = w.let(base), w.let(exponent)
    parts = []
    for x, y in zip(_halves(w, op("f32x4.abs", a)), _halves(w, b), strict=True):
        parts.append(w.let(_exp64(w, op("f64x2.mul", y, _log64(w, x)))))
    size = w.let(_joined(w, *parts))
    whole = op("f32x4.eq", op("f32x4.trunc", b), b)
    negative = w.let(op("f32x4.lt", a, f32x4(0.0)))
    bounded = op("f32x4.lt", op("f32x4.abs", b), f32x4(16777216.0))
    last = op("i32x4.shl", op("i32x4.trunc_sat_f32x4_s", b), 31)
    sign = op("v128.and", op("v128.and", last, bounded), negative)
    result = w.let(op("v128.xor", size, sign))
    result = w.let(pick(op("v128.andnot", negative, whole), f32x4(float("nan")), result))
    return pick(op("f32x4.eq", b, f32x4(0.0)), f32x4(1.0), result)


#: the loop IR's functions of one f32 that need more than one instruction
UNARY: dict[str, Unary] = {
    "exp": exp,
    "log": log,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "silu": silu,
    "erf": erf,
    "sin": sin,
    "cos": cos,
    "atan": atan,
}
BINARY: dict[str, Callable[[Writer, Value, Value], Value]] = {"pow": pow_, "mod": mod}
