"""How a weight of each dtype is kept in storage buffers, and the WGSL that reads it: a row a dtype.

A row's planes say which bytes of a source unit go where. Planes of whole words are copied word by
word; a plane of 2 bytes (a scale) packs two units into a word. ``quad`` gives four consecutive
elements of a row; ``span`` the dot product of one lane's step along a row (the hot loop of a
matrix-vector product). Byte layouts: ggml-common.h and ggml-quants.c of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fanlight.codegen.wgsl.formats import FORMATS
from fanlight.dtypes import DTYPES, DType
from fanlight.errors import UnsupportedError
from fanlight.kernels.launch import Binding
from fanlight.kernels.target import Plane, Storage


@dataclass(frozen=True, slots=True)
class Copied:
    """Plane ``suffix`` takes ``bytes`` bytes at ``offset`` of each unit; ``type``: its binding."""

    suffix: str
    offset: int
    bytes: int
    type: str


@dataclass(frozen=True, slots=True)
class Row:
    """``quad`` and ``span`` are function bodies over ``P0``, ``P1`` … (the planes' bindings).

    quad: ``row``, ``k4`` (index of the quad in the row), ``QUADS`` (quads in a row) → vec4<f32>.
    span: ``row``, ``s`` (index of the span in the row), ``x`` (array of vec4<f32>) → f32; ``at``
    lists which quads ``x`` holds, as expressions of ``s``.
    """

    planes: tuple[Copied, ...]
    direct: bool
    quad: str
    span: str
    at: tuple[str, ...]

    @property
    def step(self) -> int:
        """Elements of one span."""
        return 4 * len(self.at)


_F16 = """fn half_of(word: u32, i: u32) -> f32 {
  return unpack2x16float(word >> ((i & 1u) * 16u)).x;
}
"""
_NIBBLES = """fn low4(w: u32) -> vec4<f32> {
  return vec4<f32>((vec4<u32>(w) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u));
}
fn high4(w: u32) -> vec4<f32> {
  return vec4<f32>((vec4<u32>(w) >> vec4<u32>(4u, 12u, 20u, 28u)) & vec4<u32>(15u));
}
"""
_BYTES = """fn signed4(w: u32) -> vec4<f32> {
  return vec4<f32>((vec4<i32>(bitcast<i32>(w)) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}
"""
_K4 = """fn k4_scale(unit: u32, g: u32) -> vec2<f32> { // scale and minimum of the group g
  let head = P0[unit * 9u];
  let d = unpack2x16float(head.x);
  let shift = (g & 3u) * 8u;
  let a = head.y >> shift;
  let b = head.z >> shift;
  let c = head.w >> shift;
  if (g < 4u) { return d * vec2<f32>(f32(a & 63u), f32(b & 63u)); }
  let scale = (c & 15u) | ((a >> 2u) & 48u);
  let low = ((c >> 4u) & 15u) | ((b >> 2u) & 48u);
  return d * vec2<f32>(f32(scale), f32(low));
}
"""
_Q6 = """fn six(low: vec4<f32>, high: u32) -> vec4<f32> { // four bits and two
  let two = (vec4<u32>(high) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(3u);
  return low + vec4<f32>(two * 16u) - 32.0;
}
"""
_Q6_SCALE = """fn q6_scale(unit: u32, i: u32) -> f32 {
  let word = P0[unit * 13u + 12u][i >> 2u];
  return f32(extractBits(bitcast<i32>(word), (i & 3u) * 8u, 8u));
}
"""
HELPERS = {
    "half_of(": _F16,
    "low4(": _NIBBLES,
    "high4(": "",
    "signed4(": _BYTES,
    "k4_scale(": _K4,
    "six(": _Q6,
    "q6_scale(": _Q6_SCALE,
}

_BFLOATS = """vec4<u32>(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u)"""


def _dots(form: str, first: int) -> str:
    """``form`` of the four words of a vector, each times its quad of x from ``first``."""
    return " + ".join(f"dot({form.format(c)}, x[{first + i}])" for i, c in enumerate("xyzw"))


def _sum(first: int, count: int) -> str:
    """The sum of all elements of ``count`` quads of x."""
    total = " + ".join(f"x[{first + i}]" for i in range(count))
    return f"dot({total}, vec4<f32>(1.0))"


def _quads(count: int) -> tuple[str, ...]:
    """Spans of ``count`` quads side by side."""
    return tuple(f"s * {count}u + {i}u" for i in range(count))


_Q4_DOT = f"({_dots('low4(q.{})', 0)} + {_dots('high4(q.{})', 4)})"
_Q4_QUAD = """let unit = row * (QUADS / 8u) + k4 / 8u;
  let w = P0[unit][k4 & 3u];
  let q = select(low4(w), high4(w), (k4 & 4u) != 0u);
"""

ROWS: dict[str, Row] = {
    "f32": Row(
        (Copied("", 0, 4, "array<vec4<f32>>"),),
        True,
        "return P0[row * QUADS + k4];",
        "return dot(P0[row * QUADS + s], x[0]);",
        ("s",),
    ),
    "f16": Row(
        (Copied("", 0, 2, "array<vec2<u32>>"),),
        True,
        """let w = P0[row * QUADS + k4];
  return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));""",
        """let w = P0[row * QUADS + s];
  return dot(vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)), x[0]);""",
        ("s",),
    ),
    "bf16": Row(
        (Copied("", 0, 2, "array<vec2<u32>>"),),
        True,
        f"let w = P0[row * QUADS + k4];\n  return bitcast<vec4<f32>>({_BFLOATS});",
        f"let w = P0[row * QUADS + s];\n  return dot(bitcast<vec4<f32>>({_BFLOATS}), x[0]);",
        ("s",),
    ),
    "q4_0": Row(
        (Copied(".q", 2, 16, "array<vec4<u32>>"), Copied(".d", 0, 2, "array<u32>")),
        False,
        _Q4_QUAD + "  return half_of(P1[unit >> 1u], unit) * (q - 8.0);",
        f"""let unit = row * (QUADS / 8u) + s;
  let q = P0[unit];
  return half_of(P1[unit >> 1u], unit) * ({_Q4_DOT} - 8.0 * {_sum(0, 8)});""",
        _quads(8),
    ),
    "q4_1": Row(
        (Copied(".q", 4, 16, "array<vec4<u32>>"), Copied(".d", 0, 4, "array<u32>")),
        False,
        _Q4_QUAD + "  let d = unpack2x16float(P1[unit]);\n  return d.x * q + d.y;",
        f"""let unit = row * (QUADS / 8u) + s;
  let q = P0[unit];
  let d = unpack2x16float(P1[unit]);
  return d.x * {_Q4_DOT} + d.y * {_sum(0, 8)};""",
        _quads(8),
    ),
    "q8_0": Row(
        (Copied(".q", 2, 32, "array<vec4<u32>>"), Copied(".d", 0, 2, "array<u32>")),
        False,
        """let unit = row * (QUADS / 8u) + k4 / 8u;
  let w = P0[row * (QUADS / 4u) + k4 / 4u][k4 & 3u];
  return half_of(P1[unit >> 1u], unit) * signed4(w);""",
        f"""let unit = row * (QUADS / 8u) + s / 2u;
  let q = P0[row * (QUADS / 4u) + s];
  return half_of(P1[unit >> 1u], unit) * ({_dots("signed4(q.{})", 0)});""",
        _quads(4),
    ),
    "q4_k": Row(  # d, min; 12 bytes of 6-bit scales and minima; 4 × 32 bytes, low nibbles first
        (Copied("", 0, 144, "array<vec4<u32>>"),),
        True,
        """let unit = row * (QUADS / 64u) + k4 / 64u;
  let g = (k4 & 63u) / 8u;
  let i = k4 & 7u;
  let w = P0[unit * 9u + 1u + (g / 2u) * 2u + i / 4u][i & 3u];
  let d = k4_scale(unit, g);
  return d.x * select(low4(w), high4(w), (g & 1u) == 1u) - d.y;""",
        f"""let unit = row * (QUADS / 64u) + s / 4u;
  let g = (s & 3u) * 2u;
  let at = unit * 9u + 1u + g;
  let q = P0[at];
  let r = P0[at + 1u];
  let a = k4_scale(unit, g);
  let b = k4_scale(unit, g + 1u);
  let low = {_dots("low4(q.{})", 0)} + {_dots("low4(r.{})", 4)};
  let high = {_dots("high4(q.{})", 8)} + {_dots("high4(r.{})", 12)};
  return a.x * low - a.y * {_sum(0, 8)} + b.x * high - b.y * {_sum(8, 8)};""",
        _quads(16),
    ),
    "q6_k": Row(  # 128 bytes of low nibbles, 64 of upper pairs, 16 scales (i8), d
        (Copied(".q", 0, 208, "array<vec4<u32>>"), Copied(".d", 208, 2, "array<u32>")),
        False,
        """let unit = row * (QUADS / 64u) + k4 / 64u;
  let h = (k4 & 63u) / 32u;
  let part = (k4 & 31u) / 8u;
  let i = k4 & 7u;
  let base = unit * 13u;
  let w = P0[base + h * 4u + (part & 1u) * 2u + i / 4u][i & 3u];
  let high = P0[base + 8u + h * 2u + i / 4u][i & 3u] >> (part * 2u);
  let q = six(select(low4(w), high4(w), part >= 2u), high);
  return half_of(P1[unit >> 1u], unit) * q6_scale(unit, h * 8u + part * 2u + i / 4u) * q;""",
        f"""let unit = row * (QUADS / 64u) + s / 4u;
  let h = (s & 3u) / 2u;
  let j = s & 1u;
  let base = unit * 13u;
  let a = P0[base + h * 4u + j];
  let b = P0[base + h * 4u + 2u + j];
  let t = P0[base + 8u + h * 2u + j];
  let g = h * 8u + j;
  let sum = q6_scale(unit, g) * ({_dots("six(low4(a.{0}), t.{0})", 0)})
    + q6_scale(unit, g + 2u) * ({_dots("six(low4(b.{0}), t.{0} >> 2u)", 4)})
    + q6_scale(unit, g + 4u) * ({_dots("six(high4(a.{0}), t.{0} >> 4u)", 8)})
    + q6_scale(unit, g + 6u) * ({_dots("six(high4(b.{0}), t.{0} >> 6u)", 12)});
  return half_of(P1[unit >> 1u], unit) * sum;""",
        tuple(f"(s / 2u) * 32u + (s & 1u) * 4u + {p * 8 + i}u" for p in range(4) for i in range(4)),
    ),
}


#: Kept as in the file on adapters that are CPUs: units of whole words, which cost nothing to load
AS_FILED: dict[str, Row] = {
    "q4_1": Row(
        (Copied("", 0, 20, "array<u32>"),),
        True,
        """let unit = (row * (QUADS / 8u) + k4 / 8u) * 5u;
  let w = P0[unit + 1u + (k4 & 3u)];
  let d = unpack2x16float(P0[unit]);
  return d.x * select(low4(w), high4(w), (k4 & 4u) != 0u) + d.y;""",
        "",  # cpu_matmul has a form of its own
        (),
    )
}


def kept(dtype: DType, planes: int) -> Row:
    """How a weight in so many planes is kept."""
    filed = AS_FILED.get(dtype.name)
    return filed if filed and len(filed.planes) == planes else ROWS[dtype.name]


def _storage(dtype: DType, rows: Mapping[str, Row]) -> Storage:
    row = rows.get(dtype.name)
    if row is not None:
        return Storage(tuple(Plane(p.suffix, p.bytes) for p in row.planes), row.direct)
    assert dtype.name in FORMATS, dtype  # only loops and gather read it
    return Storage((Plane("", dtype.bytes),), True)


STORAGE: dict[str, Storage] = {d.name: _storage(d, ROWS) for d in DTYPES.values()}
STORAGE_ON_CPU: dict[str, Storage] = {
    d.name: _storage(d, {**ROWS, **AS_FILED}) for d in DTYPES.values()
}


def row_of(dtype: DType, where: str) -> Row:
    """The row, or UnsupportedError."""
    row = ROWS.get(dtype.name)
    if row is None:
        raise UnsupportedError("no kernel reads weights of this dtype", where=where, got=dtype)
    return row


def bindings(dtype: DType, planes: int = 0) -> tuple[Binding, ...]:
    """The bindings of a stored weight's planes, to be read. ``planes``: see ``kept``."""
    return tuple(Binding(p.type, "read") for p in kept(dtype, planes).planes)


def reader(dtype: DType, name: str, first: int, quads: str, planes: int = 0) -> str:
    """``fn NAME_quad(row: u32, k4: u32) -> vec4<f32>`` for planes at bindings from ``first``.
    ``quads``: their number in a row, a u32 expression; ``planes``: see ``kept``."""
    body = kept(dtype, planes).quad
    code = f"fn {name}_quad(row: u32, k4: u32) -> vec4<f32> {{\n  {body}\n}}\n"
    return _finish(_with_helpers(code), first, quads)


def dotter(dtype: DType, name: str, first: int, quads: str) -> str:
    """``fn NAME_dot(row: u32, s: u32, x: array<vec4<f32>, n>) -> f32``: see ``Row.span``."""
    row = ROWS[dtype.name]
    kind = f"array<vec4<f32>, {len(row.at)}>"
    code = f"fn {name}_dot(row: u32, s: u32, x: {kind}) -> f32 {{\n  {row.span}\n}}\n"
    return _finish(_with_helpers(code), first, quads)


def _with_helpers(code: str) -> str:
    return "".join(text for call, text in HELPERS.items() if call in code) + code


def _finish(code: str, first: int, quads: str) -> str:
    for i in range(4):
        code = code.replace(f"P{i}[", f"b{first + i}[")
    return code.replace("QUADS", quads)
