"""How each dtype lies in 32-bit words, and conversions between its bits and a WGSL value.

pack2x16float may round toward zero, so narrower floats are rounded here: to nearest even, and
f8e8m0 up at a tie, as ml_dtypes has it. ``TEXT`` is name → (text, names that it calls).
"""

from __future__ import annotations

from dataclasses import dataclass

TEXT: dict[str, tuple[str, tuple[str, ...]]] = {
    "to_f16": (  # round to nearest even; the bits in the low half
        """fn to_f16(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  let a = u & 0x7fffffffu;
  let sign = (u >> 16u) & 0x8000u;
  if (a > 0x7f800000u) { return sign | 0x7e00u; }
  if (a >= 0x477ff000u) { return sign | 0x7c00u; }
  if (a < 0x38800000u) { return sign | (bitcast<u32>(bitcast<f32>(a) + 0.5) - 0x3f000000u); }
  return sign | ((a + 0xfffu + ((a >> 13u) & 1u) - 0x38000000u) >> 13u);
}
""",
        (),
    ),
    "to_bf16": (
        """fn to_bf16(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) { return (u >> 16u) | 0x40u; }
  return (u + 0x7fffu + ((u >> 16u) & 1u)) >> 16u;
}
""",
        (),
    ),
    "from_f64": (  # the bits of an f64 → the nearest f32
        """fn from_f64(w: vec2<u32>) -> f32 {
  let sign = w.y & 0x80000000u;
  let e = i32((w.y >> 20u) & 0x7ffu) - 896; // the exponent's field in f32
  let m = ((w.y & 0xfffffu) << 3u) | (w.x >> 29u);
  let rest = w.x & 0x1fffffffu;
  if (e == 1151) {
    let nan = ((w.y & 0xfffffu) | w.x) != 0u;
    return bitcast<f32>(sign | select(0x7f800000u, 0x7fc00000u, nan));
  }
  if (e >= 255) { return bitcast<f32>(sign | 0x7f800000u); }
  if (e < -23) { return bitcast<f32>(sign); }
  if (e < 1) {
    let shift = u32(1 - e);
    let whole = m | 0x800000u;
    let q = whole >> shift;
    let left = whole & ((1u << shift) - 1u);
    let half = 1u << (shift - 1u);
    let up = left > half || (left == half && (rest != 0u || (q & 1u) == 1u));
    return bitcast<f32>(sign | (q + select(0u, 1u, up)));
  }
  let up = rest > 0x10000000u || (rest == 0x10000000u && (m & 1u) == 1u);
  return bitcast<f32>(sign | (((u32(e) << 23u) | m) + select(0u, 1u, up)));
}
""",
        (),
    ),
    "to_f64": (  # exact
        """fn to_f64(x: f32) -> vec2<u32> {
  let bits = bitcast<u32>(x);
  let sign = bits & 0x80000000u;
  var m = bits & 0x7fffffu;
  var e = (bits >> 23u) & 0xffu;
  if (e == 255u) { return vec2<u32>(m << 29u, sign | 0x7ff00000u | (m >> 3u)); }
  e += 896u;
  if (e == 896u) {
    if (m == 0u) { return vec2<u32>(0u, sign); }
    let n = countLeadingZeros(m) - 8u;
    m = (m << n) & 0x7fffffu;
    e = 897u - n;
  }
  return vec2<u32>(m << 29u, sign | (e << 20u) | (m >> 3u));
}
""",
        (),
    ),
    "from_small": (  # sign, exponent and ``m`` bits of mantissa, all finite
        """fn from_small(code: u32, bits: u32, m: u32, bias: u32) -> f32 {
  let sign = (code >> (bits - 1u)) << 31u;
  let rest = code & ((1u << (bits - 1u)) - 1u);
  let e = rest >> m;
  let f = rest & ((1u << m) - 1u);
  let tiny = bitcast<u32>(f32(f) * bitcast<f32>((128u - bias - m) << 23u));
  let normal = ((e + 127u - bias) << 23u) | (f << (23u - m));
  return bitcast<f32>(sign | select(normal, tiny, e == 0u));
}
""",
        (),
    ),
    "to_small": (  # the bits of |x|, any exponent: larger numbers have larger codes
        """fn to_small(a: u32, m: u32, bias: u32) -> u32 {
  let e = i32(a >> 23u) - 127 + i32(bias);
  var whole = a;
  var shift = 23u - m;
  var base = (127u - bias) << m;
  if (e < 1) {
    whole = (a & 0x7fffffu) | 0x800000u;
    shift += u32(1 - e);
    base = 0u;
  }
  if (shift > 24u) { return 0u; }
  return ((whole + (1u << (shift - 1u)) - 1u + ((whole >> shift) & 1u)) >> shift) - base;
}
""",
        (),
    ),
    "from_f8e4m3fn": (
        """fn from_f8e4m3fn(code: u32) -> f32 {
  if ((code & 0x7fu) == 0x7fu) { return bitcast<f32>(infinity_bits | 0x400000u); }
  return from_small(code, 8u, 3u, 7u);
}
""",
        ("from_small",),
    ),
    "to_f8e4m3fn": (
        """fn to_f8e4m3fn(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  return ((u >> 24u) & 0x80u) | min(to_small(u & 0x7fffffffu, 3u, 7u), 0x7fu);
}
""",
        ("to_small",),
    ),
    "from_f8e5m2": (
        """fn from_f8e5m2(code: u32) -> f32 {
  return unpack2x16float(code << 8u).x;
}
""",
        (),
    ),
    "to_f8e5m2": (
        """fn to_f8e5m2(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  let a = u & 0x7fffffffu;
  let code = min(to_small(a, 2u, 15u), 0x7cu);
  return ((u >> 24u) & 0x80u) | select(code, 0x7eu, a > 0x7f800000u);
}
""",
        ("to_small",),
    ),
    "from_fnuz": (
        """fn from_fnuz(code: u32, m: u32, bias: u32) -> f32 {
  if (code == 0x80u) { return bitcast<f32>(infinity_bits | 0x400000u); }
  return from_small(code, 8u, m, bias);
}
""",
        ("from_small",),
    ),
    "to_fnuz": (
        """fn to_fnuz(x: f32, m: u32, bias: u32) -> u32 {
  let u = bitcast<u32>(x);
  let code = to_small(u & 0x7fffffffu, m, bias);
  if (code > 0x7fu) { return 0x80u; }
  return select(code | ((u >> 24u) & 0x80u), 0u, code == 0u);
}
""",
        ("to_small",),
    ),
    "from_f8e8m0": (
        """fn from_f8e8m0(code: u32) -> f32 {
  if (code == 0xffu) { return bitcast<f32>(infinity_bits | 0x400000u); }
  return bitcast<f32>(select(code << 23u, 0x400000u, code == 0u));
}
""",
        (),
    ),
    "to_f8e8m0": (  # zero and negative numbers: NaN
        """fn to_f8e8m0(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  if (u == 0u || u >= 0x7f800000u) { return 0xffu; }
  if (u < 0x800000u) { return select(0u, 1u, u > 0x400000u); }
  return (u + 0x400000u) >> 23u;
}
""",
        (),
    ),
    "to_f4e2m1": (  # beyond 6, infinity too: 6; NaN: zero
        """fn to_f4e2m1(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  let a = u & 0x7fffffffu;
  let sign = (u >> 28u) & 8u;
  if (a > 0x7f800000u) { return sign ^ 8u; }
  return sign | min(to_small(a, 1u, 1u), 7u);
}
""",
        ("to_small",),
    ),
}


@dataclass(frozen=True, slots=True)
class Format:
    """``bits`` of an element. ``value``: of its bits ``c``; ``code``: of a value ``v``, the bits.
    Both are u32, of 64 bits vec2<u32> (the low word first); unused upper bits are 0."""

    bits: int
    value: str
    code: str

    @property
    def width(self) -> int:
        """Elements that share a word; 1 for those of a word or more."""
        return max(1, 32 // self.bits)

    @property
    def words(self) -> int:
        """Words of an element that shares none."""
        return max(1, self.bits // 32)

    def load(self, buffer: str) -> str:
        """The value of element ``i`` (u32) of ``buffer``, an array<u32>."""
        if self.bits == 64:
            return self.value.format(c=f"vec2<u32>({buffer}[2u * i], {buffer}[2u * i + 1u])")
        if self.bits == 32:
            return self.value.format(c=f"{buffer}[i]")
        shift = self.width.bit_length() - 1
        word, at = f"{buffer}[i >> {shift}u]", f"(i & {self.width - 1}u) * {self.bits}u"
        if "{s}" in self.value:
            return self.value.format(s=f"extractBits(bitcast<i32>({word}), {at}, {self.bits}u)")
        return self.value.format(c=f"extractBits({word}, {at}, {self.bits}u)")

    def store(self, buffer: str, at: str) -> str:
        """Statements that write the value ``v`` to element ``at`` (u32) of ``buffer``, which shares
        no word."""
        assert self.width == 1
        if self.words == 1:
            return f"{buffer}[{at}] = {self.code};"
        return (
            f"let c = {self.code};\n  let to = 2u * ({at});\n"
            f"  {buffer}[to] = c.x;\n  {buffer}[to + 1u] = c.y;"
        )


def _signed(bits: int) -> Format:
    return Format(bits, "{s}", f"(bitcast<u32>(v) & {hex((1 << bits) - 1)}u)")


def _unsigned(bits: int) -> Format:
    return Format(bits, "{c}", f"(v & {hex((1 << bits) - 1)}u)")


FORMATS: dict[str, Format] = {
    "f64": Format(64, "from_f64({c})", "to_f64(v)"),
    "i64": Format(64, "{c}", "v"),
    "u64": Format(64, "{c}", "v"),
    "f32": Format(32, "bitcast<f32>({c})", "bitcast<u32>(v)"),
    "i32": Format(32, "bitcast<i32>({c})", "bitcast<u32>(v)"),
    "u32": Format(32, "{c}", "v"),
    "f16": Format(16, "unpack2x16float({c}).x", "to_f16(v)"),
    "bf16": Format(16, "bitcast<f32>({c} << 16u)", "to_bf16(v)"),
    "i16": _signed(16),
    "u16": _unsigned(16),
    "i8": _signed(8),
    "u8": _unsigned(8),
    "bool": Format(8, "({c} != 0u)", "select(0u, 1u, v)"),
    "f8e4m3fn": Format(8, "from_f8e4m3fn({c})", "to_f8e4m3fn(v)"),
    "f8e4m3fnuz": Format(8, "from_fnuz({c}, 3u, 8u)", "to_fnuz(v, 3u, 8u)"),
    "f8e5m2": Format(8, "from_f8e5m2({c})", "to_f8e5m2(v)"),
    "f8e5m2fnuz": Format(8, "from_fnuz({c}, 2u, 16u)", "to_fnuz(v, 2u, 16u)"),
    "f8e8m0": Format(8, "from_f8e8m0({c})", "to_f8e8m0(v)"),
    "i4": _signed(4),
    "u4": _unsigned(4),
    "f4e2m1": Format(4, "from_small({c}, 4u, 1u, 1u)", "to_f4e2m1(v)"),
    "i2": _signed(2),
    "u2": _unsigned(2),
}
