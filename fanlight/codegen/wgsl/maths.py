"""f32 functions in WGSL, to 1e-6 relative on every device.

WGSL's own exp, log, sin, tanh and pow may be off by far more (sin by 2e-4 at 2,000 on SwiftShader).
The polynomials and the splits of ln 2 and pi / 2 are those
of the Cephes library (Moshier); their products with whole numbers are exact.
"""

from __future__ import annotations

from fanlight.codegen.wgsl import formats, wide

#: name → (text, names that it calls)
_TEXT: dict[str, tuple[str, tuple[str, ...]]] = {
    "fl_exp": (
        """fn fl_exp(value: f32) -> f32 {
  let x = clamp(value, -104.0, 89.0);
  let k = round(x * 1.44269504);
  let r = (x - k * 0.693359375) + k * 2.12194440e-4;
  var p = 1.9875691500e-4;
  p = p * r + 1.3981999507e-3;
  p = p * r + 8.3334519073e-3;
  p = p * r + 4.1665795894e-2;
  p = p * r + 1.6666665459e-1;
  p = p * r + 5.0000001201e-1;
  p = (p * r * r + r) + 1.0;
  let half = i32(k) / 2; // two factors, so that subnormal results are reached
  let a = bitcast<f32>(u32(half + 127) << 23u);
  let b = bitcast<f32>(u32(i32(k) - half + 127) << 23u);
  return p * a * b;
}
""",
        (),
    ),
    "fl_log": (
        """fn fl_log(x: f32) -> f32 {
  let bits = bitcast<u32>(x);
  if (bits << 1u == 0u) { return -bitcast<f32>(infinity_bits); } // devices' own may be finite
  // subnormal, infinite, negative
  if (bits < 0x00800000u || bits >= 0x7f800000u) { return log(x); }
  let shifted = bits - 0x3f3504f3u; // exponent such that m is in [sqrt(1/2), sqrt(2))
  let e = f32(bitcast<i32>(shifted) >> 23u);
  let m = bitcast<f32>((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0;
  let z = m * m;
  var p = 7.0376836292e-2;
  p = p * m - 1.1514610310e-1;
  p = p * m + 1.1676998740e-1;
  p = p * m - 1.2420140846e-1;
  p = p * m + 1.4249322787e-1;
  p = p * m - 1.6668057665e-1;
  p = p * m + 2.0000714765e-1;
  p = p * m - 2.4999993993e-1;
  p = p * m + 3.3333331174e-1;
  let low = p * m * z - e * 2.12194440e-4 - 0.5 * z;
  return (m + low) + e * 0.693359375;
}
""",
        (),
    ),
    "fl_pow": (
        """fn fl_pow(x: f32, y: f32) -> f32 {
  let whole = y == floor(y);
  if (whole && abs(y) <= 64.0) { // by squaring, any sign of x
    var n = u32(abs(y));
    var base = x;
    var result = 1.0;
    while (n > 0u) {
      if ((n & 1u) == 1u) { result *= base; }
      base *= base;
      n >>= 1u;
    }
    return select(result, 1.0 / result, y < 0.0);
  }
  if (x == 0.0) { return select(0.0, 1.0 / abs(x), y < 0.0); }
  let size = fl_exp(y * fl_log(abs(x)));
  let odd = whole && abs(y) < 16777216.0 && (u32(abs(y)) & 1u) == 1u;
  if (x < 0.0 && !whole) { return sqrt(x); } // not a number
  return select(size, -size, x < 0.0 && odd);
}
""",
        ("fl_exp", "fl_log"),
    ),
    "fl_tanh": (
        """fn fl_tanh(x: f32) -> f32 {
  let a = min(abs(x), 20.0);
  if (a < 0.625) {
    let z = x * x;
    var p = -5.70498872745e-3;
    p = p * z + 2.06390887954e-2;
    p = p * z - 5.37397155531e-2;
    p = p * z + 1.33314422036e-1;
    p = p * z - 3.33332819422e-1;
    return p * z * x + x;
  }
  return sign(x) * (1.0 - 2.0 / (fl_exp(2.0 * a) + 1.0));
}
""",
        ("fl_exp",),
    ),
    "fl_sigmoid": (
        "fn fl_sigmoid(x: f32) -> f32 { return 1.0 / (1.0 + fl_exp(-max(x, -87.0))); }\n",
        ("fl_exp",),
    ),
    "fl_silu": (
        "fn fl_silu(x: f32) -> f32 { let y = max(x, -87.0); return y / (1.0 + fl_exp(-y)); }\n",
        ("fl_exp",),
    ),
    "fl_erf": (  # below 1 Cephes; above it Abramowitz and Stegun 7.1.26, absolute error 1.5e-7
        """fn fl_erf(x: f32) -> f32 {
  let a = abs(x);
  if (a < 1.0) {
    let z = x * x;
    var p = 7.853861353153693e-5;
    p = p * z - 8.010193625184903e-4;
    p = p * z + 5.188327685732524e-3;
    p = p * z - 2.685381193529856e-2;
    p = p * z + 1.128358514861418e-1;
    p = p * z - 3.761262582423300e-1;
    p = p * z + 1.128379165726710;
    return p * x;
  }
  let t = 1.0 / (1.0 + 0.3275911 * a);
  var p = 1.061405429;
  p = p * t - 1.453152027;
  p = p * t + 1.421413741;
  p = p * t - 0.284496736;
  p = p * t + 0.254829592;
  return sign(x) * (1.0 - p * t * fl_exp(-min(a * a, 100.0)));
}
""",
        ("fl_exp",),
    ),
    "fl_wave": (  # sin(x + quarter * pi / 2); good to 1e-6 absolute for |x| up to 12,000
        """fn fl_wave(x: f32, quarter: i32) -> f32 {
  let k = round(x * 0.636619772);
  let r = ((x - k * 1.5703125) - k * 4.837512969970703125e-4) - k * 7.54978995489188216e-8;
  let z = r * r;
  let quadrant = i32(k) + quarter;
  var s = -1.9515295891e-4;
  s = s * z + 8.3321608736e-3;
  s = s * z - 1.6666654611e-1;
  s = s * z * r + r;
  var c = 2.443315711809948e-5;
  c = c * z - 1.388731625493765e-3;
  c = c * z + 4.166664568298827e-2;
  c = c * z * z - 0.5 * z + 1.0;
  let value = select(s, c, (quadrant & 1) == 1);
  return select(value, -value, (quadrant & 2) == 2);
}
""",
        (),
    ),
    "fl_atan": (
        """fn fl_atan(x: f32) -> f32 {
  let a = abs(x);
  var r = a;
  var base = 0.0;
  if (a > 2.414213562) {
    r = -1.0 / a;
    base = 1.57079632679;
  } else if (a > 0.4142135624) {
    r = (a - 1.0) / (a + 1.0);
    base = 0.785398163397;
  }
  let z = r * r;
  var p = 8.05374449538e-2;
  p = p * z - 1.38776856032e-1;
  p = p * z + 1.99777106478e-1;
  p = p * z - 3.33329491539e-1;
  let value = base + (p * z * r + r);
  return select(value, -value, x < 0.0);
}
""",
        (),
    ),
    # by bits, since compilers may take it that there is no NaN
    "fl_isnan": (
        """fn fl_isnan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }
""",
        (),
    ),
    "fl_isinf": (
        """fn fl_isinf(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) == 0x7f800000u; }
""",
        (),
    ),
    "fl_sign": (
        """fn fl_sign(x: f32) -> f32 {
  let bits = bitcast<u32>(x);
  let a = bits & 0x7fffffffu;
  if (a == 0u || a > 0x7f800000u) { return x; }
  return bitcast<f32>((bits & 0x80000000u) | 0x3f800000u);
}
""",
        (),
    ),
    # WGSL's own give x / 0 = x
    "fl_div_i32": (
        """fn fl_div_i32(a: i32, b: i32) -> i32 {
  if (b == 0) { return 0; }
  return a / b;
}
""",
        (),
    ),
    "fl_mod_f32": (  # exact for quotients below 2^24; by infinity and by zero as C's fmod
        """fn fl_mod_f32(a: f32, b: f32) -> f32 {
  let top = 0x7f800000u;
  let x = bitcast<u32>(a) & 0x7fffffffu;
  let y = bitcast<u32>(b) & 0x7fffffffu;
  if (x >= top || y == 0u || y > top) { return bitcast<f32>(infinity_bits | 0x400000u); }
  if (y == top) { return a; }
  return a - b * trunc(a / b);
}
""",
        (),
    ),
    "fl_mod_i32": (  # not %, which differs for negative values on NVIDIA's Vulkan
        """fn fl_mod_i32(a: i32, b: i32) -> i32 {
  if (b == 0) { return 0; }
  return a - a / b * b;
}
""",
        (),
    ),
    "fl_div_u32": (
        """fn fl_div_u32(a: u32, b: u32) -> u32 {
  if (b == 0u) { return 0u; }
  return a / b;
}
""",
        (),
    ),
    "fl_mod_u32": (
        """fn fl_mod_u32(a: u32, b: u32) -> u32 {
  if (b == 0u) { return 0u; }
  return a % b;
}
""",
        (),
    ),
}


def functions(text: str) -> str:
    """The definitions of all functions of this file, ``formats`` and ``wide`` that ``text`` calls,
    each once, after those that it calls."""
    table = _TEXT | formats.TEXT | wide.TEXT
    wanted: list[str] = []

    def add(name: str) -> None:
        for inner in table[name][1]:
            add(inner)
        if name not in wanted:
            wanted.append(name)

    for name in table:
        if f"{name}(" in text:
            add(name)
    return "".join(table[name][0] for name in wanted)
