"""Products for adapters that are CPUs playing a GPU (``on_cpu.py``).

An invocation makes its outputs alone: some neighbouring rows of w, times one or eight rows of x.
Numbers (sizes, places) are read from a buffer, so that products of one dtype are one kernel: each
takes such an adapter's compiler tens of milliseconds and megabytes. That compiler optimises little:
a loop over the rows of w, or an array of x, costs more than it saves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fanlight.codegen.wgsl import blocks, text
from fanlight.codegen.wgsl.matvec import Segment
from fanlight.dtypes import DType
from fanlight.kernels.launch import Binding, WgslLaunch
from fanlight.kernels.target import Operand
from fanlight.shapes import Size, binary, ceildiv

_THREADS = 16
_ROWS, _COLUMNS = 8, 2  # outputs of an invocation, where x has several rows
_COLUMNS_OF_ONE = 4  # where it has one
_WORDS = "array<u32>"


@dataclass(frozen=True, slots=True)
class _Piece:
    """One step along a row. ``types``: how planes are bound; ``at``: the quads x0, x1 … of x, by
    ``s``; ``shared``: statements made once for all columns; ``given``: the vectors and numbers that
    ``dot`` takes; ``dot`` → f32; ``quads`` → the step's weights, as many vec4<f32> as x has
    (several in an array)."""

    types: tuple[str, ...]
    at: tuple[str, ...]
    shared: tuple[str, ...]
    given: tuple[str, ...]
    dot: str
    quads: str


# A nibble stays where it is in its byte's place and is worth 2^8, 2^16 or 2^24 times as much: that
# is taken from x, or from the scale, exactly. Signed, as a CPU makes floats of those at once.
_NIBBLES = """const PLACES = vec4<f32>(1.0, 0.00390625, 1.52587890625e-5, 5.9604644775390625e-8);
fn nibbles(w: u32) -> vec4<f32> {
  return vec4<f32>(vec4<i32>(vec4<u32>(w) & vec4<u32>(15u, 3840u, 983040u, 251658240u)));
}
"""
_TOPS = """fn bytes(w: u32) -> vec4<f32> { // signed, 2^24 times as much
  let v = bitcast<i32>(w);
  return vec4<f32>(vec4<i32>(v << 24u, v << 16u, v << 8u, v) & vec4<i32>(-16777216));
}
"""
_HELPERS = {**blocks.HELPERS, "nibbles(": _NIBBLES, "bytes(": _TOPS}
_HALVES = ("(s / 4u) * 8u + (s & 3u)", "(s / 4u) * 8u + (s & 3u) + 4u")
_SHARED = (
    "    let z0 = x0 * PLACES;",
    "    let z1 = x1 * PLACES;",
    "    let all = dot(x0 + x1, vec4<f32>(1.0));",
)
_WORD = "let w = P0[row * (QUADS / 2u) + s];\n  let unit = row * (QUADS / 8u) + s / 4u;\n"
_DOT = "dot(nibbles(w), z0) + dot(nibbles(w >> 4u), z1)"
_PAIR = "array<vec4<f32>, 2>"
_FILED = """let unit = (row * (QUADS / 8u) + s / 4u) * 5u;
  let w = P0[unit + 1u + (s & 3u)];
  let d = unpack2x16float(P0[unit]);
"""
_BYTES = """let unit = row * (QUADS / 8u) + s / 8u;
  let d = half_of(P1[unit >> 1u], unit) * 5.9604644775390625e-8;
"""

_PIECES: dict[str, _Piece] = {
    "q4_0": _Piece(
        (_WORDS, _WORDS),
        _HALVES,
        _SHARED,
        ("z0", "z1", "all"),
        f"{_WORD}  return half_of(P1[unit >> 1u], unit) * ({_DOT} - 8.0 * all);",
        f"""{_WORD}  let d = half_of(P1[unit >> 1u], unit);
  let scale = d * PLACES;
  return {_PAIR}(nibbles(w) * scale - 8.0 * d, nibbles(w >> 4u) * scale - 8.0 * d);""",
    ),
    "q4_1": _Piece(
        (_WORDS, _WORDS),
        _HALVES,
        _SHARED,
        ("z0", "z1", "all"),
        f"{_WORD}  let d = unpack2x16float(P1[unit]);\n  return d.x * ({_DOT}) + d.y * all;",
        f"""{_WORD}  let d = unpack2x16float(P1[unit]);
  let scale = d.x * PLACES;
  return {_PAIR}(nibbles(w) * scale + d.y, nibbles(w >> 4u) * scale + d.y);""",
    ),
    "q4_1 as filed": _Piece(
        (_WORDS,),
        _HALVES,
        _SHARED,
        ("z0", "z1", "all"),
        f"{_FILED}  return d.x * ({_DOT}) + d.y * all;",
        f"""{_FILED}  let scale = d.x * PLACES;
  return {_PAIR}(nibbles(w) * scale + d.y, nibbles(w >> 4u) * scale + d.y);""",
    ),
    "q8_0": _Piece(
        (_WORDS, _WORDS),
        ("s",),
        (),
        ("x0",),
        f"{_BYTES}  return d * dot(bytes(P0[row * QUADS + s]), x0);",
        f"{_BYTES}  return d * bytes(P0[row * QUADS + s]);",
    ),
}


def _piece(dtype: DType, planes: int, several: bool) -> _Piece:
    """Dtypes without a piece of their own are read by spans, or by quads for ``several`` rows."""
    row = blocks.kept(dtype, planes)
    own = f"{dtype} as filed" if row is not blocks.ROWS[dtype.name] else dtype.name
    if own in _PIECES:
        return _PIECES[own]
    types, at = tuple(p.type for p in row.planes), ("s",) if several else row.at
    names = tuple(f"x{i}" for i in range(len(at)))
    dot = re.sub(r"\bx\[(\d+)\]", r"x\1", row.span)
    return _Piece(types, at, (), names, dot, re.sub(r"\bk4\b", "s", row.quad))


class _Parameters:
    """Collects a launch's numbers. ``binding``: the number of the kernel's last binding."""

    def __init__(self, binding: int) -> None:
        self.binding = binding
        self.values: list[int] = []

    def __call__(self, size: Size) -> str:
        """``size`` as a u32 expression: read from the parameters where it is a number."""
        if not isinstance(size, int):
            return text.size_u32(size)
        self.values.append(size)
        return f"b{self.binding}[{len(self.values) - 1}]"


def launch(
    x: Operand, part: Segment, output: Operand, rows: Size, residual: str = ""
) -> WgslLaunch:
    """``rows`` of x times the part's rows of w, plus ``residual`` (a buffer, or none)."""
    together, columns = (1, _COLUMNS_OF_ONE) if rows == 1 else (_ROWS, _COLUMNS)
    piece = _piece(part.dtype, len(part.buffers), together > 1)
    out = 2 + len(piece.types)
    parameter = _Parameters(out + 1)
    k = x.shape[-1]
    assert isinstance(k, int)
    across = ceildiv(part.rows, columns)
    body = f"""  quads = {parameter(k // 4)};
  let width = {parameter(part.rows)};
  let base = {parameter(part.base)};
  let column = {parameter(part.column)};
  let n = {parameter(output.shape[-1])};
  let across = {parameter(across)};
  let residual = {parameter(int(bool(residual)))};
  let count = {parameter(rows)};
  let id = {text.GROUP} * {_THREADS}u + lane;
  let n0 = (id % across) * {columns}u;
  let m0 = (id / across) * {together}u;
  if (m0 >= count) {{ return; }}
  let rows = min({together}u, count - m0);
{_sums(piece, together, columns)}
  for (var r = 0u; r < rows; r++) {{
    for (var j = 0u; j < min({columns}u, width - n0); j++) {{
      let at = (m0 + r) * n + column + n0 + j;
      var sum = sums[r][j];
      if (residual != 0u) {{ sum += b1[at]; }}
      b{out}[at] = sum;
    }}
  }}"""
    code = _function(piece, together > 1) + text.entry(_THREADS, body)
    planes = (Binding(kind, "read") for kind in piece.types)
    bound = (
        Binding("array<vec4<f32>>", "read"),
        Binding("array<f32>", "read"),
        *planes,
        Binding("array<f32>", "read_write"),
        Binding(_WORDS, "read"),
    )
    sizes = (rows, part.rows, output.shape[-1])
    kernel = text.kernel(f"matmul_{part.dtype}_cpu", code, bound, sizes)
    buffers = (x.buffer, residual or x.buffer, *part.buffers, output.buffer)
    grid = text.fold_grid(ceildiv(binary("*", across, ceildiv(rows, together)), _THREADS))
    return WgslLaunch(kernel, buffers, grid, tuple(parameter.values))


def _sums(piece: _Piece, together: int, columns: int) -> str:
    """Statements that make ``sums``: for each row of x a vector of the columns' sums."""
    count, kind = len(piece.at), f"vec{columns}<f32>"
    lines = [f"  let w{j} = min(n0 + {j}u, width - 1u) + base;" for j in range(columns)]
    if together == 1:
        names = [f"sum{j}" for j in range(columns)]
        given = ", ".join(piece.given)
        lines += [f"  var {name} = 0.0;" for name in names]
        steps = [f"    let x{i} = b0[{at}];" for i, at in enumerate(piece.at)]
        steps += piece.shared
        steps += [f"    {name} += w_dot(w{j}, s, {given});" for j, name in enumerate(names)]
        last = f"  var sums = array<{kind}, 1>({kind}({', '.join(names)}));"
    else:
        lines += [f"  var sums: array<{kind}, {together}>;"]
        steps = [f"    let v{j} = w_quads(w{j}, s);" for j in range(columns)]
        steps += ["    for (var r = 0u; r < rows; r++) {", "      let start = (m0 + r) * quads;"]
        steps += [f"      let x{i} = b0[start + {at}];" for i, at in enumerate(piece.at)]
        dots = []
        for j in range(columns):
            values = [f"v{j}[{i}]" for i in range(count)] if count > 1 else [f"v{j}"]
            dots.append(" + ".join(f"dot(x{i}, {value})" for i, value in enumerate(values)))
        steps += [f"      sums[r] += {kind}({', '.join(dots)});", "    }"]
        last = ""
    loop = [f"  for (var s = 0u; s < quads / {count}u; s++) {{", *steps, "  }"]
    return "\n".join([*lines, *loop, last])


def _function(piece: _Piece, several: bool) -> str:
    """``w_dot`` or ``w_quads``, for planes at bindings from 2, and what it calls."""
    if several:
        kind = "vec4<f32>" if len(piece.at) == 1 else f"array<vec4<f32>, {len(piece.at)}>"
        code = f"fn w_quads(row: u32, s: u32) -> {kind} {{\n  {piece.quads}\n}}\n"
    else:
        given = ", ".join(f"{g}: {'f32' if g == 'all' else 'vec4<f32>'}" for g in piece.given)
        code = f"fn w_dot(row: u32, s: u32, {given}) -> f32 {{\n  {piece.dot}\n}}\n"
    helpers = "".join(helper for call, helper in _HELPERS.items() if call in code)
    code = (helpers + code).replace("QUADS", "quads")
    for i in range(len(piece.types)):
        code = code.replace(f"P{i}[", f"b{2 + i}[")
    return f"var<private> quads: u32;\n{code}"
