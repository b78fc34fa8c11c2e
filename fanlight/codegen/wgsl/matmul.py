"""y = x @ w.T: x f32 [..., K], w [N, K] of any stored dtype, y f32 [..., N]; sums in f32.

One row of x: ``matvec.py``. More rows: tiles in workgroup memory, each weight dequantised once for
32 rows of x. A weight in several parts takes one dispatch for each. Rows of plain floats whose
length is no multiple of 4, or unknown, take the plain loop form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight.codegen.wgsl import blocks, cpu_matmul, matvec, text
from fanlight.codegen.wgsl import loops as wgsl_loops
from fanlight.codegen.wgsl.matvec import Segment
from fanlight.kernels import loops
from fanlight.kernels.launch import Launch, WgslKernel, WgslLaunch
from fanlight.kernels.loops import Expr, apply, extent
from fanlight.kernels.target import CPU, SUBGROUPS, Context, Operand
from fanlight.shapes import Size, ceildiv, product

TILE_M, TILE_N, TILE_QUADS = 32, 64, 8  # 32 x 64 outputs, 32 elements of K at a time
TILE_THREADS = 128
_PAD = TILE_QUADS + 1  # quads from row to row in workgroup memory: no bank conflicts


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """One launch for each part of w. UnsupportedError for a w that isn't of floats or blocks."""
    x, w = inputs
    rows, k = product(x.shape[:-1]), w.shape[1]
    blocks.row_of(w.dtype, "matmul")
    if not isinstance(k, int) or k % 4:
        return [_loop(x, w, output, rows)]
    return products(x, [w], output, context)


def products(
    x: Operand, weights: list[Operand], output: Operand, context: Context, residual: str = ""
) -> list[Launch]:
    """The products by several weights, side by side in ``output``, plus ``residual`` (a buffer of
    its shape). Rows are multiples of 4 elements."""
    rows, k = product(x.shape[:-1]), x.shape[-1]
    assert isinstance(k, int) and k % 4 == 0
    if rows == 1 and CPU not in context.features:
        around = matvec.Surroundings(residual=residual)
        subgroups = SUBGROUPS in context.features
        return [*matvec.launches(x.buffer, weights, output.buffer, around, subgroups)]
    segments = matvec.segments(weights)
    if CPU in context.features:
        return [cpu_matmul.launch(x, segment, output, rows, residual) for segment in segments]
    width = output.shape[-1]
    launches: list[Launch] = []
    extra = (residual,) if residual else ()
    for segment in segments:
        kernel, grid = _tiled(segment, rows, width, k, bool(residual))
        buffers = (x.buffer, *extra, *segment.buffers, output.buffer)
        launches.append(WgslLaunch(kernel, buffers, grid))
    return launches


def _loop(x: Operand, w: Operand, output: Operand, rows: Size) -> Launch:
    """The definition, as a loop kernel."""
    n, k = w.shape
    axis = loops.Axis(2)

    def load(param: int, row: int) -> Expr:
        at = apply("add", apply("mul", loops.Axis(row), extent(k)), axis)
        return loops.Load(param, at, "f32")

    total = loops.Reduce("sum", 2, k, apply("mul", load(0, 0), load(1, 1)), "f32")
    kernel = loops.LoopKernel("matmul", (rows, n), (x.dtype, w.dtype), output.dtype, total)
    return wgsl_loops.launch(kernel, (x.buffer, w.buffer, output.buffer))


# --- many rows of x


def _tiled(
    part: Segment, rows: Size, n: Size, k: int, residual: bool
) -> tuple[WgslKernel, tuple[Size, Size, Size]]:
    """Each thread makes 4 x 4 outputs: columns tx + 16 j, rows ty + 8 i of the tile."""
    first = 2 if residual else 1
    out = f"b{first + len(part.buffers)}"
    value = "b1[at] + sum[j]" if residual else "sum[j]"
    quads = text.size_u32(k // 4)
    zero = "\n".join(f"  var sum{i} = vec4<f32>(0.0);" for i in range(4))
    products = "\n".join(
        f"""      if (ty + {8 * i}u < rows) {{
        let a = x_tile[(ty + {8 * i}u) * {_PAD}u + q];
        sum{i} += vec4<f32>(dot(a, w0), dot(a, w1), dot(a, w2), dot(a, w3));
      }}"""
        for i in range(4)
    )
    weights = "\n".join(
        f"      let w{j} = w_tile[(tx + {16 * j}u) * {_PAD}u + q];" for j in range(4)
    )
    stores = "\n".join(
        f"  if (ty + {8 * i}u < rows) {{ store(m0 + ty + {8 * i}u, n0 + tx, sum{i}); }}"
        for i in range(4)
    )
    body = f"""  let n0 = group.x * {TILE_N}u;
  let m0 = group.y * {TILE_M}u;
  let count = {text.size_u32(rows)};
  let width = {text.size_u32(part.rows)};
  if (m0 >= count || n0 >= width) {{ return; }}
  let rows = min({TILE_M}u, count - m0);
  let tx = lane % 16u;
  let ty = lane / 16u;
{zero}
  for (var k0 = 0u; k0 < {quads}; k0 += {TILE_QUADS}u) {{
    for (var i = lane; i < rows * {TILE_QUADS}u; i += {TILE_THREADS}u) {{
      let q = k0 + i % {TILE_QUADS}u;
      let value = b0[(m0 + i / {TILE_QUADS}u) * {quads} + min(q, {quads} - 1u)];
      let kept = select(vec4<f32>(0.0), value, q < {quads});
      x_tile[(i / {TILE_QUADS}u) * {_PAD}u + i % {TILE_QUADS}u] = kept;
    }}
    for (var i = lane; i < {TILE_N * TILE_QUADS}u; i += {TILE_THREADS}u) {{
      let q = k0 + i % {TILE_QUADS}u;
      let row = min(n0 + i / {TILE_QUADS}u, width - 1u) + {part.base}u;
      let value = w_quad(row, min(q, {quads} - 1u));
      w_tile[(i / {TILE_QUADS}u) * {_PAD}u + i % {TILE_QUADS}u] = value;
    }}
    workgroupBarrier();
    for (var q = 0u; q < {TILE_QUADS}u; q++) {{
{weights}
{products}
    }}
    workgroupBarrier();
  }}
{stores}"""
    code = f"""var<workgroup> x_tile: array<vec4<f32>, {TILE_M * _PAD}>;
var<workgroup> w_tile: array<vec4<f32>, {TILE_N * _PAD}>;
fn store(m: u32, n: u32, sum: vec4<f32>) {{
  for (var j = 0u; j < 4u; j++) {{
    if (n + 16u * j < {text.size_u32(part.rows)}) {{
      let at = m * {text.size_u32(n)} + {part.column}u + n + 16u * j;
      {out}[at] = {value};
    }}
  }}
}}
"""
    code = blocks.reader(part.dtype, "w", first, quads) + code + text.entry(TILE_THREADS, body)
    bound = matvec.bindings(part, residual)
    kernel = text.kernel(f"matmul_{part.dtype}", code, bound, (rows, n, k, part.rows))
    return kernel, (ceildiv(part.rows, TILE_N), ceildiv(rows, TILE_M), 1)
