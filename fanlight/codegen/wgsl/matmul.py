"""y = x @ w.T: x f32 [..., K], w [N, K] of any stored dtype, y f32 [..., N]; sums in f32.

One row of x: lanes step along rows of w, several rows in a workgroup, one barrier (no subgroup
operations: any subgroup size is right). More rows: tiles in workgroup memory, each weight
dequantised once for 32 rows of x. A weight in several parts takes one dispatch for each. Rows of
plain floats whose length is no multiple of 4, or unknown, take the plain loop form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight.codegen.wgsl import blocks, on_cpu, text
from fanlight.codegen.wgsl import loops as wgsl_loops
from fanlight.kernels import loops
from fanlight.kernels.launch import Binding, Launch, WgslKernel, WgslLaunch
from fanlight.kernels.loops import Expr, apply, extent
from fanlight.kernels.target import CPU, Context, Operand, Part
from fanlight.shapes import Size, ceildiv, maximum, product

VECTOR_THREADS = 64
TILE_M, TILE_N, TILE_QUADS = 32, 64, 8  # 32 x 64 outputs, 32 elements of K at a time
TILE_THREADS = 128
_PAD = TILE_QUADS + 1  # quads from row to row in workgroup memory: no bank conflicts

_X = Binding("array<vec4<f32>>", "read")
_Y = Binding("array<f32>", "read_write")


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """One launch for each part of w. UnsupportedError for a w that isn't of floats or blocks."""
    x, w = inputs
    rows, n, k = product(x.shape[:-1]), w.shape[0], w.shape[1]
    blocks.row_of(w.dtype, "matmul")
    if not isinstance(k, int) or k % 4:
        return [_loop(x, w, output, rows)]
    launches: list[Launch] = []
    for part in w.parts:
        if CPU in context.features:
            kernel, grid = on_cpu.matmul(w, part, rows, n, k)
        elif rows == 1:
            kernel, grid = _vector(w, part, k)
        else:
            kernel, grid = _tiled(w, part, rows, n, k)
        buffers = (x.buffer, *part.buffers, output.buffer)
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


def _bindings(w: Operand) -> tuple[Binding, ...]:
    return (_X, *blocks.bindings(w.dtype), _Y)


# --- one row of x


def _vector(w: Operand, part: Part, k: int) -> tuple[WgslKernel, tuple[Size, Size, Size]]:
    """``lanes`` lanes share ``each`` consecutive rows of w; ``teams`` such groups a workgroup."""
    row = blocks.ROWS[w.dtype.name]
    spans = k // row.step
    lanes, each = share(maximum(part.rows), spans)
    teams = VECTOR_THREADS // lanes
    quads = text.size_u32(k // 4)
    kind = f"array<vec4<f32>, {len(row.at)}>"
    out = f"b{1 + len(row.planes)}"
    values = ", ".join(f"b0[{at}]" for at in row.at)
    sums = "\n".join(f"    sum{r} += w_dot(first + {r}u, s, x);" for r in range(each))
    stores = "\n".join(f"  partial[{r}u * {VECTOR_THREADS}u + lane] = sum{r};" for r in range(each))
    zero = "\n".join(f"  var sum{r} = 0.0;" for r in range(each))
    body = f"""  let rows = {text.size_u32(part.rows)};
  let first = ({text.GROUP} * {teams}u + lane / {lanes}u) * {each}u;
{zero}
  for (var s = lane % {lanes}u; s < {text.size_u32(k)} / {row.step}u; s += {lanes}u) {{
    let x = {kind}({values});
{sums}
  }}
{stores}
  workgroupBarrier();
  if (lane < {teams * each}u) {{
    let n = {text.GROUP} * {teams * each}u + lane;
    let at = (lane % {each}u) * {VECTOR_THREADS}u + (lane / {each}u) * {lanes}u;
    var total = 0.0;
    for (var i = 0u; i < {lanes}u; i++) {{ total += partial[at + i]; }}
    if (n < rows) {{ {out}[{part.first}u + n] = total; }}
  }}"""
    memory = f"var<workgroup> partial: array<f32, {VECTOR_THREADS * each}>;\n"
    code = blocks.dotter(w.dtype, "w", 1, quads) + memory + text.entry(VECTOR_THREADS, body)
    kernel = text.kernel(f"matvec_{w.dtype}", code, _bindings(w), (k, part.rows))
    return kernel, text.fold_grid(ceildiv(part.rows, teams * each))


def share(rows: int, spans: int) -> tuple[int, int]:
    """Lanes to a row, and rows to a lane, for ``rows`` rows of ``spans`` spans."""
    lanes = _power_of_two(spans // 2, 4, VECTOR_THREADS // 2)
    return lanes, 4 if rows * lanes >= 1 << 17 else 2 if rows * lanes >= 1 << 16 else 1


def _power_of_two(value: int, low: int, high: int) -> int:
    """The largest power of two at most ``value``, inside [low, high]."""
    return max(low, min(high, 1 << max(0, value.bit_length() - 1)))


# --- many rows of x


def _tiled(
    w: Operand, part: Part, rows: Size, n: Size, k: int
) -> tuple[WgslKernel, tuple[Size, Size, Size]]:
    """Each thread makes 4 x 4 outputs: columns tx + 16 j, rows ty + 8 i of the tile."""
    out = f"b{1 + len(blocks.ROWS[w.dtype.name].planes)}"
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
      let value = w_quad(min(n0 + i / {TILE_QUADS}u, width - 1u), min(q, {quads} - 1u));
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
      {out}[m * {text.size_u32(n)} + {part.first}u + n + 16u * j] = sum[j];
    }}
  }}
}}
"""
    code = blocks.reader(w.dtype, "w", 1, quads) + code + text.entry(TILE_THREADS, body)
    kernel = text.kernel(f"matmul_{w.dtype}", code, _bindings(w), (rows, n, k, part.rows))
    return kernel, (ceildiv(part.rows, TILE_N), ceildiv(rows, TILE_M), 1)
