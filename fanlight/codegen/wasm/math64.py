"""f64 functions of one number: exp, log, tanh, sigmoid, silu, erf, sin, cos, atan, pow, remainder.

Each takes and gives an f64 and writes its code in place; within 1e-14 relative (sine and cosine:
absolute, up to 1e6; tests/codegen/wasm/test_math64.py states the bounds). Rational functions of
exp, tanh, erf, sine, cosine and atan are those of Cephes (Moshier); logarithms are the series of
the inverse hyperbolic tangent, carried as a sum of two f64 for powers, by the exact sums and
products of Dekker (Numerische Mathematik 18, 1971).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fanlight.codegen.wasm.values import Local, Operand, Value, Writer, f64, op, select


def _series(x: Local, coefficients: Sequence[float]) -> Value:
    """Horner's rule; the highest power's coefficient comes first."""
    p = f64(coefficients[0])
    for c in coefficients[1:]:
        p = p * x + c
    return p


def _min(a: Value, b: Operand) -> Value:
    return op("f64.min", a, b)


def _max(a: Value, b: Operand) -> Value:
    return op("f64.max", a, b)


def _abs(x: Value) -> Value:
    return op("f64.abs", x)


def _div(a: Operand, b: Value) -> Value:
    return op("f64.div", a, b)


def _less(a: Value, b: Operand) -> Value:
    return op("f64.lt", a, b)


def _two_to(k: Value) -> Value:
    """2 ** k, for an i64 from -1022 to 1023."""
    return op("f64.reinterpret_i64", (k + 1023) << 52)


_EXP_P = (1.26177193074810590878e-4, 3.02994407707441961300e-2, 9.99999999999999999910e-1)
_EXP_Q = (
    *(3.00198505138664455042e-6, 2.52448340349684104192e-3, 2.27265548208155028766e-1),
    2.00000000000000000009,
)


def exp(w: Writer, value: Value) -> Value:
    """Below -746 it is 0, above 709.79 infinite."""
    x = w.let(_max(_min(value, 710.0), -746.0))  # both pass NaN on
    k = w.let(op("f64.nearest", x * 1.4426950408889634))
    r = w.let(x - k * 6.93145751953125e-1 - k * 1.42860682030941723212e-6)
    z = w.let(r * r)
    p = w.let(r * _series(z, _EXP_P))
    grown = w.let(_div(p, _series(z, _EXP_Q) - p) * 2.0 + 1.0)
    # Two factors, so that subnormal results are reached.
    n = w.let(op("i64.trunc_sat_f64_s", k))
    half = w.let(n >> 1)
    return grown * _two_to(half) * _two_to(n - half)


_HALF_ROOT = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)
_ATANH = tuple(1 / n for n in range(27, 1, -2))
_LN2 = (0.6931471803691238, 1.9082149292705877e-10)  # the first has 21 zero bits at its end


def _split_exponent(w: Writer, x: Local) -> tuple[Local, Local]:
    """m in [sqrt(1/2), sqrt(2)) and whole e with x = m * 2 ** e, for finite x above 0."""
    tiny = w.let(_less(x, 2.2250738585072014e-308))
    bits = op("i64.reinterpret_f64", select(tiny, x * 2.0**54, x))
    shifted = w.let(bits - _HALF_ROOT)
    e = op("f64.convert_i64_s", shifted >> 52) - select(tiny, f64(54.0), 0.0)
    mantissa = (shifted & ((1 << 52) - 1)) + _HALF_ROOT
    return w.let(op("f64.reinterpret_i64", mantissa)), w.let(e)


def log(w: Writer, value: Value) -> Value:
    """-infinity at 0, NaN below."""
    x = w.let(value)
    m, e = _split_exponent(w, x)
    s = w.let(_div(m - 1.0, m + 1.0))
    z = w.let(s * s)
    twice = w.let(s + s)
    low = twice * z * _series(z, _ATANH) + e * _LN2[1]
    result = w.let(e * _LN2[0] + (twice + low))
    result = w.let(select(op("f64.eq", x, 0.0), f64(float("-inf")), result))
    # Infinity and NaN are themselves; numbers below zero give NaN.
    result = w.let(select(_less(x, float("inf")), result, x))
    return select(_less(x, 0.0), f64(float("nan")), result)


_TANH_P = (-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3)
_TANH_Q = (1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3)


def tanh(w: Writer, value: Value) -> Value:
    x = w.let(value)
    a = w.let(_abs(x))
    z = w.let(x * x)
    near = w.let(x * z * _div(_series(z, _TANH_P), _series(z, _TANH_Q)) + x)
    grown = exp(w, _min(a + a, 80.0))
    far = w.let(op("f64.copysign", f64(1.0) - _div(2.0, grown + 1.0), x))
    return select(_less(a, 0.625), near, far)


def sigmoid(w: Writer, value: Value) -> Value:
    """Of x below 0: e / (1 + e) with e = exp(x), so that small results keep their precision."""
    return _mul_sigmoid(w, value, f64(1.0))


def silu(w: Writer, value: Value) -> Value:
    x = w.let(value)
    clipped = w.let(_max(x, -1000.0))  # -infinity times 0 would be NaN
    return _mul_sigmoid(w, x, clipped)


def _mul_sigmoid(w: Writer, value: Value, factor: Value) -> Value:
    x = w.let(value)
    e = w.let(exp(w, op("f64.neg", _abs(x))))
    return _div(select(_less(x, 0.0), e, 1.0), e + 1.0) * factor


_ERF_T = (
    *(9.60497373987051638749, 9.00260197203842689217e1, 2.23200534594684319226e3),
    *(7.00332514112805075473e3, 5.55923013010394962768e4),
)
_ERF_U = (
    *(1.0, 3.35617141647503099647e1, 5.21357949780152679795e2, 4.59432382970980127987e3),
    *(2.26290000613890934246e4, 4.92673942608635921086e4),
)
_ERFC_P = (
    *(2.46196981473530512524e-10, 5.64189564831068821977e-1, 7.46321056442269912687),
    *(4.86371970985681366614e1, 1.96520832956077098242e2, 5.26445194995477358631e2),
    *(9.34528527171957607540e2, 1.02755188689515710272e3, 5.57535335369399327526e2),
)
_ERFC_Q = (
    *(1.0, 1.32281951154744992508e1, 8.67072140885989742329e1, 3.54937778887819891062e2),
    *(9.75708501743205489753e2, 1.82390916687909736289e3, 2.24633760818710981792e3),
    *(1.65666309194161350182e3, 5.57535340817727675546e2),
)


def erf(w: Writer, value: Value) -> Value:
    x = w.let(value)
    z = w.let(x * x)
    near = w.let(x * _div(_series(z, _ERF_T), _series(z, _ERF_U)))
    a = w.let(_min(_abs(x), 6.0))  # where 1 is the nearest
    fall = exp(w, op("f64.neg", a * a))
    rest = fall * _div(_series(a, _ERFC_P), _series(a, _ERFC_Q))
    far = w.let(op("f64.copysign", f64(1.0) - rest, x))
    return select(_less(_abs(x), 1.0), near, far)


_SIN = (
    *(1.58962301576546568060e-10, -2.50507477628578072866e-8, 2.75573136213857245213e-6),
    *(-1.98412698295895385996e-4, 8.33333333332211858878e-3, -1.66666666666666307295e-1),
)
_COS = (
    *(-1.13585365213876817300e-11, 2.08757008419747316778e-9, -2.75573141792967388112e-7),
    *(2.48015872888517045348e-5, -1.38888888888730564116e-3, 4.16666666666665929218e-2),
)
# pi / 2 in parts of 33 bits: their products with numbers below 2**20 are exact.
_QUARTERS = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487111665e-21)


def _wave(w: Writer, value: Value, quarter: int) -> Value:
    """sin(x + quarter * pi / 2); beyond 1e6 it loses digits, beyond 2**50 it is a number in [-1,
    1]."""
    x = w.let(value)
    k = w.let(op("f64.nearest", x * 0.6366197723675814))
    r: Value = x
    for part in _QUARTERS:
        r = r - k * part
    r = w.let(_max(_min(r, 0.7854), -0.7854))
    z = w.let(r * r)
    sine = w.let(r * z * _series(z, _SIN) + r)
    cosine = w.let(z * z * _series(z, _COS) - z * 0.5 + 1.0)
    quadrant = w.let(op("i32.wrap_i64", op("i64.trunc_sat_f64_s", k)) + quarter)
    result = w.let(select(quadrant & 1, cosine, sine))
    return select(quadrant & 2, op("f64.neg", result), result)


def sin(w: Writer, value: Value) -> Value:
    return _wave(w, value, 0)


def cos(w: Writer, value: Value) -> Value:
    return _wave(w, value, 1)


_ATAN_P = (
    *(-8.750608600031904122785e-1, -1.615753718733365076637e1, -7.500855792314704667340e1),
    *(-1.228866684490136173410e2, -6.485021904942025371773e1),
)
_ATAN_Q = (
    *(1.0, 2.485846490142306297962e1, 1.650270098316988542046e2, 4.328810604912902668951e2),
    *(4.853903996359136964868e2, 1.945506571482613964425e2),
)


def atan(w: Writer, value: Value) -> Value:
    x = w.let(value)
    a = w.let(_abs(x))
    steep, middle = w.let(op("f64.gt", a, 2.414213562373095)), w.let(op("f64.gt", a, 0.66))
    inner = select(steep, _div(-1.0, a), select(middle, _div(a - 1.0, a + 1.0), a))
    r = w.let(inner)
    z = w.let(r * r)
    near = r * z * _div(_series(z, _ATAN_P), _series(z, _ATAN_Q)) + r
    # pi / 2 or pi / 4; the factor is what f64 leaves out of them
    turn = select(steep, f64(1.5707963267948966), select(middle, f64(0.7853981633974483), 0.0))
    rest = select(
        steep, f64(6.123233995736766e-17), select(middle, f64(3.061616997868383e-17), 0.0)
    )
    return op("f64.copysign", turn + (near + rest), x)


# --- pairs of f64


def _sum(w: Writer, a: Value, b: Value) -> tuple[Local, Local]:
    """a + b exactly, for abs(a) >= abs(b)."""
    x, y = w.let(a), w.let(b)
    high = w.let(x + y)
    return high, w.let(y - (high - x))


def _halves(w: Writer, x: Local) -> tuple[Local, Local]:
    """x as a sum of two numbers of 26 bits."""
    c = w.let(x * 134217729.0)
    high = w.let(c - (c - x))
    return high, w.let(x - high)


def _product(w: Writer, x: Local, y: Local) -> tuple[Local, Local]:
    """x * y exactly."""
    high = w.let(x * y)
    (a, b), (c, d) = _halves(w, x), _halves(w, y)
    return high, w.let(a * c - high + a * d + b * c + b * d)


def pow_(w: Writer, base: Value, exponent: Value) -> Value:
    """Of negative bases whole exponents only, else NaN; anything to the power of 0 is 1, and 1 to
    any power."""
    a, b = w.let(base), w.let(exponent)
    x = w.let(_abs(a))
    m, e = _split_exponent(w, x)
    # log(x) = e ln 2 + 2 (s + s**3 / 3 + ...), s = (m - 1) / (m + 1) as s + more
    f, g = w.let(m - 1.0), w.let(m + 1.0)
    missing = w.let(m - (g - 1.0))
    s = w.let(_div(f, g))
    high, low = _product(w, s, g)
    more = w.let(_div(f - high - low - s * missing, g))
    z = w.let(s * s)
    twice = w.let(s + s)
    tail = w.let(twice * z * _series(z, _ATANH) + e * _LN2[1] + more * 2.0)
    # e ln 2 is 0 or larger than twice s
    first, rest = _sum(w, e * _LN2[0], twice)
    first, tail = _sum(w, first, rest + tail)
    y = w.let(_max(_min(b, 2.0**65), -(2.0**65)))
    p, error = _product(w, y, first)
    error = w.let(error + y * tail)
    grown = w.let(exp(w, p))
    size = w.let(select(_less(grown, float("inf")), grown + grown * error, grown))
    return _powers(w, a, b, x, size)


def _powers(w: Writer, a: Local, b: Local, x: Local, size: Local) -> Value:
    """The sign of ``size``, and what follows no logarithm."""
    infinity = float("inf")
    falls = _less(b, 0.0)
    zero = op("f64.eq", x, 0.0)
    end = op("i32.or", zero, op("f64.eq", x, infinity))
    # 0 ** y and infinity ** y are 0 or infinite
    extreme = select(op("i32.xor", zero, falls), f64(0.0), infinity)
    result = w.let(select(end, extreme, size))
    whole = w.let(op("f64.eq", op("f64.trunc", b), b))
    half = w.let(b * 0.5)
    odd = op("i32.and", whole, op("f64.ne", op("f64.trunc", half), half))
    negative = w.let(op("i64.lt_s", op("i64.reinterpret_f64", a), 0))
    flipped = select(op("i32.and", odd, negative), op("f64.neg", result), result)
    result = w.let(flipped)
    broken = op("i32.and", _less(a, 0.0), op("i32.eqz", whole))
    broken = op("i32.and", broken, _less(x, infinity))
    result = w.let(select(broken, f64(float("nan")), result))
    none = op("i32.or", op("f64.ne", a, a), op("f64.ne", b, b))
    result = w.let(select(none, f64(float("nan")), result))
    one = op("i32.or", op("f64.eq", b, 0.0), op("f64.eq", a, 1.0))
    return select(one, f64(1.0), result)


def mod(w: Writer, a: Value, b: Value) -> Value:
    """With the sign of ``a``; exact: doubles of b are taken away, the largest first."""
    x, y = w.let(a), w.let(_abs(b))
    rest, step = w.let(_abs(x)), w.let(y)
    limit = float("inf")
    finite = op("i32.and", op("f64.gt", y, 0.0), _less(_max(rest, y), limit))
    with w.if_(finite):
        with w.while_(op("f64.le", step + step, rest)):
            w.set(step, step + step)
        with w.while_(op("f64.ge", step, y)):
            w.set(rest, select(op("f64.ge", rest, step), rest - step, rest))
            w.set(step, step * 0.5)
    result = w.let(op("f64.copysign", rest, x))
    valid = op("i32.and", op("f64.gt", y, 0.0), _less(_abs(x), limit))
    return select(valid, result, f64(float("nan")))


UNARY: dict[str, Callable[[Writer, Value], Value]] = {
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
