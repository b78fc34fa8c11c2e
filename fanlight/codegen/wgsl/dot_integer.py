"""c = (a - za) @ (b - zb): a u8 or i8 [..., M, K], b u8 or i8 [K, N], c i32 [..., M, N], exact.

Sums are of the bytes themselves, four places of K to a word: sum ab - za sum b - zb sum a + K za zb
in 32 bits that wrap around. Signed bytes are taken 128 greater, and their zero points. Tiles in
workgroup memory; for adapters that are CPUs 4 x 4 outputs to an invocation and no barrier. The same
for ``dot_shifted``, whose b has a row for each channel and shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight.codegen.wgsl import text
from fanlight.ir.graph import Node
from fanlight.kernels.launch import Binding, Launch, WgslLaunch
from fanlight.kernels.target import CPU, Context, Operand
from fanlight.shapes import Size, binary, ceildiv, product

TILE_M, TILE_N, TILE_K = 32, 64, 8  # K in words of four
_THREADS = 128  # 8 x 16, each with 4 x 4 outputs
_CPU_THREADS = 16

_BYTES = """fn bytes(w: u32) -> vec4<u32> {
  return (vec4<u32>(w) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
}
"""
_ALIGNED = "  return b1[at >> 2u];\n"
_ANYWHERE = """  let shift = (at & 3u) * 8u;
  let low = b1[at >> 2u] >> shift;
  if (shift == 0u) { return low; }
  return low | (b1[(at >> 2u) + 1u] << (32u - shift));
"""


def fits(node: Node) -> bool:
    """One matrix b for all rows."""
    return len(node.inputs[1].shape) == 2


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """One launch. Inputs: a, b, za (one i32), zb (one i32, or N)."""
    return [_launch(inputs, output, context, "k * N", ())]


def rule_shifted(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """One launch. Inputs: a, b, za, zb (one i32 each)."""
    length, down, right = inputs[1].shape[1], attrs["down"], attrs["right"]
    taps, across = attrs["taps"], attrs["across"]
    tap = f"(k % {taps}u)"
    shift = f"{tap} / {across}u * {text.size_u32(down)} + {tap} % {across}u"
    begin = f"k / {taps}u * {text.size_u32(length)} + {shift} * {text.size_u32(right)}"
    return [_launch(inputs, output, context, begin, (length, down, right))]


def _launch(
    inputs: list[Operand], output: Operand, context: Context, begin: str, sizes: tuple[Size, ...]
) -> WgslLaunch:
    """``begin``: where row ``k`` of b begins; ``sizes``: what it reads."""
    a, b, za, zb = inputs
    m, k, n = product(a.shape[:-1]), a.shape[-1], output.shape[-1]
    cpu = CPU in context.features
    code = _loads(a.dtype.name == "i8", b.dtype.name == "i8", k, n, begin)
    code += (_alone if cpu else _tiled)(m, k, n, zb.shape != (1,))
    kinds = ("u32", "u32", "i32", "i32")
    bound = [Binding(f"array<{kind}>", "read") for kind in kinds]
    bound.append(Binding("array<i32>", "read_write"))
    label = "dot_integer_cpu" if cpu else "dot_integer"
    kernel = text.kernel(label, code, tuple(bound), (m, k, n, *sizes))
    if cpu:
        places = binary("*", ceildiv(m, 4), ceildiv(n, 4))
        grid = text.fold_grid(ceildiv(places, _CPU_THREADS))
    else:
        grid = text.fold_grid(binary("*", ceildiv(n, TILE_N), ceildiv(m, TILE_M)))
    buffers = (a.buffer, b.buffer, za.buffer, zb.buffer, output.buffer)
    return WgslLaunch(kernel, buffers, grid)


def _loads(a_signed: bool, b_signed: bool, k: Size, n: Size, begin: str) -> str:
    """``a_word(m, k, M, K)``: places k … k + 3 of a row; ``b_words(k, n, K, N)``: those of four
    columns. 0 outside."""
    wide = ["0x80808080u" if signed else "0u" for signed in (a_signed, b_signed)]
    code = f"""fn byte0(at: u32) -> u32 {{
  return extractBits(b0[at >> 2u], (at & 3u) * 8u, 8u) ^ {"0x80u" if a_signed else "0u"};
}}
"""
    if isinstance(k, int) and k % 4 == 0:
        row = f"return b0[(m * K + k) >> 2u] ^ {wide[0]};"
    else:
        row = "\n  ".join(
            ["var word = 0u;"]
            + [
                f"if (k + {i}u < K) {{ word |= byte0(m * K + k + {i}u) << {8 * i}u; }}"
                for i in range(4)
            ]
            + ["return word;"]
        )
    code += f"""fn a_word(m: u32, k: u32, M: u32, K: u32) -> u32 {{
  if (m >= M || k >= K) {{ return 0u; }}
  {row}
}}
"""
    rows = "".join(
        f"""  if (k + {i}u < K) {{
    words |= bytes((four(row(k + {i}u, N) + n) ^ {wide[1]}) & inside) << vec4<u32>({8 * i}u);
  }}
"""
        for i in range(4)
    )
    aligned = isinstance(n, int) and n % 4 == 0 and begin == "k * N"
    return f"""{_BYTES}{code}fn row(k: u32, N: u32) -> u32 {{ return {begin}; }}
fn four(at: u32) -> u32 {{
{_ALIGNED if aligned else _ANYWHERE}}}
fn b_words(k: u32, n: u32, K: u32, N: u32) -> vec4<u32> {{
  var words = vec4<u32>(0u);
  if (n >= N) {{ return words; }}
  let inside = 0xffffffffu >> (32u - 8u * min(N - n, 4u));
{rows}  return words;
}}
fn za_of() -> u32 {{ return bitcast<u32>(b2[0]) + {128 if a_signed else 0}u; }}
fn zb_of(n: u32) -> u32 {{ return bitcast<u32>(b3[n]) + {128 if b_signed else 0}u; }}
"""


def _sizes(m: Size, k: Size, n: Size) -> str:
    values = (("M", m), ("K", k), ("N", n))
    return "\n".join(f"  let {name} = {text.size_u32(size)};" for name, size in values)


_SUMS = """  var sum0 = vec4<u32>(0u);
  var sum1 = vec4<u32>(0u);
  var sum2 = vec4<u32>(0u);
  var sum3 = vec4<u32>(0u);
  var of_rows = vec4<u32>(0u);
  var of_columns = vec4<u32>(0u);"""


def _step() -> str:
    """Adds the words ``x`` (of four rows) times ``y`` (of four columns)."""
    lines = []
    for i in range(4):
        dots = ", ".join(f"dot4U8Packed(x[{i}], y[{j}])" for j in range(4))
        lines.append(f"sum{i} += vec4<u32>({dots});")
    for name, letter in (("of_rows", "x"), ("of_columns", "y")):
        dots = ", ".join(f"dot4U8Packed({letter}[{i}], 0x01010101u)" for i in range(4))
        lines.append(f"{name} += vec4<u32>({dots});")
    return "\n".join(f"      {line}" for line in lines)


def _stores(each: bool) -> str:
    lines = []
    for i in range(4):
        for j in range(4):
            zb = f"zb_of(n + {j}u)" if each else "zb_of(0u)"
            value = f"sum{i}[{j}] - za * of_columns[{j}] - {zb} * (of_rows[{i}] - K * za)"
            place = f"b4[(m + {i}u) * N + n + {j}u]"
            lines.append(
                f"  if (m + {i}u < M && n + {j}u < N) {{ {place} = bitcast<i32>({value}); }}"
            )
    return "\n".join(["  let za = za_of();", *lines])


def _tiled(m: Size, k: Size, n: Size, each: bool) -> str:
    """Each thread makes rows 4 ty … 4 ty + 3 and columns 4 tx … 4 tx + 3 of the tile."""
    a_loads = "\n".join(
        f"    a_tile[{i}u + lane] = a_word(m0 + ({i}u + lane) % {TILE_M}u, "
        f"k0 + ({i}u + lane) / {TILE_M}u * 4u, M, K);"
        for i in range(0, TILE_K * TILE_M, _THREADS)
    )
    body = f"""{_sizes(m, k, n)}
  let tx = lane % 16u;
  let ty = lane / 16u;
  let wide = (N + {TILE_N - 1}u) / {TILE_N}u;
  let number = {text.GROUP};
  if (number >= wide * ((M + {TILE_M - 1}u) / {TILE_M}u)) {{ return; }}
  let m0 = number / wide * {TILE_M}u;
  let m = m0 + 4u * ty;
  let n = number % wide * {TILE_N}u + 4u * tx;
{_SUMS}
  for (var k0 = 0u; k0 < K; k0 += {4 * TILE_K}u) {{
{a_loads}
    b_tile[lane] = b_words(k0 + ty * 4u, n, K, N);
    workgroupBarrier();
    for (var i = 0u; i < {TILE_K}u; i++) {{
      let at = i * {TILE_M}u + 4u * ty;
      let x = vec4<u32>(a_tile[at], a_tile[at + 1u], a_tile[at + 2u], a_tile[at + 3u]);
      let y = b_tile[i * {TILE_N // 4}u + tx];
{_step()}
    }}
    workgroupBarrier();
  }}
{_stores(each)}"""
    return f"""var<workgroup> a_tile: array<u32, {TILE_K * TILE_M}>;
var<workgroup> b_tile: array<vec4<u32>, {TILE_K * TILE_N // 4}>;
{text.entry(_THREADS, body)}"""


def _alone(m: Size, k: Size, n: Size, each: bool) -> str:
    rows = ", ".join(f"a_word(m + {i}u, k, M, K)" for i in range(4))
    body = f"""{_sizes(m, k, n)}
  let across = (N + 3u) / 4u;
  let place = {text.GROUP} * {_CPU_THREADS}u + lane;
  if (place >= across * ((M + 3u) / 4u)) {{ return; }}
  let n = place % across * 4u;
  let m = place / across * 4u;
{_SUMS}
  for (var k = 0u; k < K; k += 4u) {{
      let x = vec4<u32>({rows});
      let y = b_words(k, n, K, N);
{_step()}
  }}
{_stores(each)}"""
    return text.entry(_CPU_THREADS, body)
