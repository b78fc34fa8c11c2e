"""64-bit integers in WGSL: ``vec2<u32>``, the low word first. Exact, and they wrap around.

``TEXT`` is name → (text, names that it calls), ``CALLS`` the expression of an elementwise op. What
has a sign differs by the suffix: ``_i64`` and ``_u64``. Division is bit by bit, but for numbers of
one word; by zero it gives 0, and so does its remainder.
"""

from __future__ import annotations

TEXT: dict[str, tuple[str, tuple[str, ...]]] = {
    "w_add": (
        """fn w_add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
  let low = a.x + b.x;
  return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}
""",
        (),
    ),
    "w_sub": (
        """fn w_sub(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
  return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}
""",
        (),
    ),
    "w_neg": (
        "fn w_neg(a: vec2<u32>) -> vec2<u32> { return w_sub(vec2<u32>(0u, 0u), a); }\n",
        ("w_sub",),
    ),
    "w_mul": (  # the low words by halves, so that their product's upper word is known
        """fn w_mul(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
  let a0 = a.x & 0xffffu;
  let a1 = a.x >> 16u;
  let b0 = b.x & 0xffffu;
  let b1 = b.x >> 16u;
  let p = a0 * b0;
  let q = a1 * b0 + (p >> 16u);
  let r = a0 * b1 + (q & 0xffffu);
  let high = a1 * b1 + (q >> 16u) + (r >> 16u);
  return vec2<u32>((r << 16u) | (p & 0xffffu), high + a.x * b.y + a.y * b.x);
}
""",
        (),
    ),
    "w_lt_u64": (
        """fn w_lt_u64(a: vec2<u32>, b: vec2<u32>) -> bool {
  return a.y < b.y || (a.y == b.y && a.x < b.x);
}
""",
        (),
    ),
    "w_lt_i64": (
        """fn w_lt_i64(a: vec2<u32>, b: vec2<u32>) -> bool {
  return bitcast<i32>(a.y) < bitcast<i32>(b.y) || (a.y == b.y && a.x < b.x);
}
""",
        (),
    ),
    "w_abs": (
        """fn w_abs(a: vec2<u32>) -> vec2<u32> {
  return select(a, w_neg(a), (a.y >> 31u) == 1u);
}
""",
        ("w_neg",),
    ),
    "w_sign_i64": (
        """fn w_sign_i64(a: vec2<u32>) -> vec2<u32> {
  let some = select(vec2<u32>(0u, 0u), vec2<u32>(1u, 0u), (a.x | a.y) != 0u);
  return select(some, vec2<u32>(0xffffffffu, 0xffffffffu), (a.y >> 31u) == 1u);
}
""",
        (),
    ),
    "w_divide": (  # quotient and remainder of numbers without a sign
        """fn w_divide(a: vec2<u32>, b: vec2<u32>) -> vec4<u32> {
  if ((b.x | b.y) == 0u) { return vec4<u32>(0u, 0u, 0u, 0u); }
  if ((a.y | b.y) == 0u) { return vec4<u32>(a.x / b.x, 0u, a.x % b.x, 0u); }
  var q = a;
  var r = vec2<u32>(0u, 0u);
  for (var i = 0u; i < 64u; i++) {
    let carry = r.y >> 31u;
    r = vec2<u32>((r.x << 1u) | (q.y >> 31u), (r.y << 1u) | (r.x >> 31u));
    q = vec2<u32>(q.x << 1u, (q.y << 1u) | (q.x >> 31u));
    if (carry == 1u || !w_lt_u64(r, b)) {
      r = w_sub(r, b);
      q.x |= 1u;
    }
  }
  return vec4<u32>(q, r);
}
""",
        ("w_lt_u64", "w_sub"),
    ),
    "w_div_i64": (
        """fn w_div_i64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
  let q = w_divide(w_abs(a), w_abs(b)).xy;
  return select(q, w_neg(q), ((a.y ^ b.y) >> 31u) == 1u);
}
""",
        ("w_divide", "w_abs"),
    ),
    "w_mod_i64": (
        """fn w_mod_i64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
  let r = w_divide(w_abs(a), w_abs(b)).zw;
  return select(r, w_neg(r), (a.y >> 31u) == 1u);
}
""",
        ("w_divide", "w_abs"),
    ),
    "w_shl": (
        """fn w_shl(a: vec2<u32>, by: vec2<u32>) -> vec2<u32> {
  let n = by.x & 31u;
  if (by.y != 0u || by.x >= 64u) { return vec2<u32>(0u, 0u); }
  if (by.x >= 32u) { return vec2<u32>(0u, a.x << n); }
  if (n == 0u) { return a; }
  return vec2<u32>(a.x << n, (a.y << n) | (a.x >> (32u - n)));
}
""",
        (),
    ),
    "w_shr": (  # ``fill``: what comes in from above
        """fn w_shr(a: vec2<u32>, by: vec2<u32>, fill: u32) -> vec2<u32> {
  let n = by.x & 31u;
  if (by.y != 0u || by.x >= 64u) { return vec2<u32>(fill, fill); }
  var w = a;
  if (by.x >= 32u) { w = vec2<u32>(a.y, fill); }
  if (n == 0u) { return w; }
  let rest = 32u - n;
  return vec2<u32>((w.x >> n) | (w.y << rest), (w.y >> n) | (fill << rest));
}
""",
        (),
    ),
    "w_shr_i64": (
        """fn w_shr_i64(a: vec2<u32>, by: vec2<u32>) -> vec2<u32> {
  return w_shr(a, by, 0u - (a.y >> 31u));
}
""",
        ("w_shr",),
    ),
    "w_of_i32": (
        """fn w_of_i32(x: i32) -> vec2<u32> {
  return vec2<u32>(bitcast<u32>(x), bitcast<u32>(x >> 31u));
}
""",
        (),
    ),
    "w_f32_of_u64": (  # to nearest even
        """fn w_f32_of_u64(a: vec2<u32>) -> f32 {
  if ((a.x | a.y) == 0u) { return 0.0; }
  let zeros = select(countLeadingZeros(a.y), 32u + countLeadingZeros(a.x), a.y == 0u);
  let s = w_shl(a, vec2<u32>(zeros, 0u)); // its first bit is 1
  let bits = ((190u - zeros) << 23u) | ((s.y >> 8u) & 0x7fffffu);
  let low = s.y & 0xffu;
  let up = low > 128u || (low == 128u && (s.x != 0u || (bits & 1u) == 1u));
  return bitcast<f32>(bits + select(0u, 1u, up));
}
""",
        ("w_shl",),
    ),
    "w_f32_of_i64": (
        """fn w_f32_of_i64(a: vec2<u32>) -> f32 {
  let size = w_f32_of_u64(w_abs(a));
  return select(size, -size, (a.y >> 31u) == 1u);
}
""",
        ("w_f32_of_u64", "w_abs"),
    ),
    "w_size_of_f32": (  # |x| toward zero, below 2 to the 64
        """fn w_size_of_f32(bits: u32) -> vec2<u32> {
  let e = (bits >> 23u) & 0xffu;
  let m = vec2<u32>((bits & 0x7fffffu) | 0x800000u, 0u);
  if (e < 127u) { return vec2<u32>(0u, 0u); }
  if (e < 150u) { return vec2<u32>(m.x >> (150u - e), 0u); }
  return w_shl(m, vec2<u32>(e - 150u, 0u));
}
""",
        ("w_shl",),
    ),
    "w_u64_of_f32": (
        """fn w_u64_of_f32(x: f32) -> vec2<u32> {
  let bits = bitcast<u32>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u || (bits >> 31u) == 1u) { return vec2<u32>(0u, 0u); }
  if (bits >= 0x5f800000u) { return vec2<u32>(0xffffffffu, 0xffffffffu); }
  return w_size_of_f32(bits);
}
""",
        ("w_size_of_f32",),
    ),
    "w_i64_of_f32": (
        """fn w_i64_of_f32(x: f32) -> vec2<u32> {
  let bits = bitcast<u32>(x);
  let a = bits & 0x7fffffffu;
  let negative = (bits >> 31u) == 1u;
  if (a > 0x7f800000u) { return vec2<u32>(0u, 0u); }
  if (a >= 0x5f000000u) {
    return select(vec2<u32>(0xffffffffu, 0x7fffffffu), vec2<u32>(0u, 0x80000000u), negative);
  }
  let size = w_size_of_f32(a);
  return select(size, w_neg(size), negative);
}
""",
        ("w_size_of_f32", "w_neg"),
    ),
}

_EITHER = {
    "add": "w_add({0}, {1})",
    "sub": "w_sub({0}, {1})",
    "mul": "w_mul({0}, {1})",
    "neg": "w_neg({0})",
    "eq": "all({0} == {1})",
    "ne": "any({0} != {1})",
    "bitand": "{0} & {1}",
    "bitor": "{0} | {1}",
    "bitxor": "{0} ^ {1}",
    "bitnot": "~{0}",
    "shl": "w_shl({0}, {1})",
    "where": "select({2}, {1}, {0})",
}
_BY_SIGN = {
    "lt": "w_lt_TYPE({0}, {1})",
    "le": "!w_lt_TYPE({1}, {0})",
    "gt": "w_lt_TYPE({1}, {0})",
    "ge": "!w_lt_TYPE({0}, {1})",
    "max": "select({0}, {1}, w_lt_TYPE({0}, {1}))",
    "min": "select({0}, {1}, w_lt_TYPE({1}, {0}))",
}

#: (op, scalar) → the expression of its arguments
CALLS: dict[tuple[str, str], str] = {
    (name, scalar): form.replace("TYPE", scalar)
    for scalar in ("i64", "u64")
    for name, form in (_EITHER | _BY_SIGN).items()
}
CALLS |= {
    ("div", "i64"): "w_div_i64({0}, {1})",
    ("mod", "i64"): "w_mod_i64({0}, {1})",
    ("abs", "i64"): "w_abs({0})",
    ("sign", "i64"): "w_sign_i64({0})",
    ("shr", "i64"): "w_shr_i64({0}, {1})",
    ("div", "u64"): "w_divide({0}, {1}).xy",
    ("mod", "u64"): "w_divide({0}, {1}).zw",
    ("abs", "u64"): "{0}",
    ("sign", "u64"): "select(vec2<u32>(0u, 0u), vec2<u32>(1u, 0u), any({0} != vec2<u32>(0u, 0u)))",
    ("shr", "u64"): "w_shr({0}, {1}, 0u)",
}

#: (from, to) → the expression of a cast
CASTS: dict[tuple[str, str], str] = {}
for _wide in ("i64", "u64"):
    CASTS |= {
        ("i32", _wide): "w_of_i32({0})",
        ("u32", _wide): "vec2<u32>({0}, 0u)",
        ("bool", _wide): "vec2<u32>(u32({0}), 0u)",
        ("f32", _wide): f"w_{_wide}_of_f32({{0}})",
        (_wide, "f32"): f"w_f32_of_{_wide}({{0}})",
        (_wide, "i32"): "bitcast<i32>({0}.x)",
        (_wide, "u32"): "{0}.x",
        (_wide, "bool"): "any({0} != vec2<u32>(0u, 0u))",
    }
