"""Products and attention for adapters that are CPUs playing a GPU (SwiftShader, lavapipe).

No workgroup memory and no barriers: there a barrier makes the compiler split the kernel at each one
and keep all that lives across it, which takes SwiftShader seconds and hundreds of megabytes a
kernel. Each invocation makes its outputs alone; a workgroup is small, since workgroups are what the
CPU's cores share out.
"""

from __future__ import annotations

from fanlight.codegen.wgsl import blocks, maths, text
from fanlight.codegen.wgsl.matvec import Segment, bindings
from fanlight.kernels.launch import Binding, WgslLaunch
from fanlight.kernels.target import Operand
from fanlight.shapes import Size, binary, ceildiv, product

_THREADS = 16
_ROWS, _COLUMNS = 4, 4  # outputs of an invocation
_QUADS = 4  # of a head's values, summed by one invocation
_NUMBERS = Binding("array<u32>", "read")
_INVOCATION = f"({text.GROUP} * {_THREADS}u + lane)"

Grid = tuple[Size, Size, Size]


class _Parameters:
    """Collects a launch's numbers: kernels that differ in nothing else are one kernel, which takes
    a CPU's compiler tens of milliseconds. ``binding``: the number of the kernel's last binding."""

    def __init__(self, binding: int) -> None:
        self.binding = binding
        self.values: list[int] = []

    def __call__(self, size: Size) -> str:
        """``size`` as a u32 expression: read from the parameters where it is a number."""
        if not isinstance(size, int):
            return text.size_u32(size)
        self.values.append(size)
        return f"b{self.binding}[{len(self.values) - 1}]"


def matmul(
    x: Operand, part: Segment, output: Operand, rows: Size, residual: str = ""
) -> WgslLaunch:
    """``rows`` of x times the part's rows of w, plus ``residual`` (a buffer, or none)."""
    together = 1 if rows == 1 else _ROWS
    row = blocks.ROWS[part.dtype.name]
    out = 2 + len(row.planes)
    parameter = _Parameters(out + 1)
    k = x.shape[-1]
    assert isinstance(k, int)
    names = f"""  quads = {parameter(k // 4)};
  let width = {parameter(part.rows)};
  let base = {parameter(part.base)};
  let column = {parameter(part.column)};
  let n = {parameter(output.shape[-1])};
  let across = {parameter(ceildiv(part.rows, _COLUMNS))};
  let residual = {parameter(int(bool(residual)))};
  let count = {parameter(rows)};
"""
    if together == 1:
        kind = f"array<vec4<f32>, {len(row.at)}>"
        values = ", ".join(f"b0[{at}]" for at in row.at)
        loop = f"""  for (var s = 0u; s < quads / {len(row.at)}u; s++) {{
    let x = {kind}({values});
    for (var j = 0u; j < {_COLUMNS}u; j++) {{
      sums[j].x += w_dot(min(n0 + j, width - 1u) + base, s, x);
    }}
  }}"""
        code = blocks.dotter(part.dtype, "w", 2, "quads")
    else:
        xs = ", ".join(f"b0[x{r} + q]" for r in range(_ROWS))
        places = "\n".join(
            f"  let x{r} = min(m0 + {r}u, count - 1u) * quads;" for r in range(_ROWS)
        )
        dots = ", ".join(f"dot(x[{r}], value)" for r in range(_ROWS))
        loop = f"""{places}
  for (var q = 0u; q < quads; q++) {{
    let x = array<vec4<f32>, {_ROWS}>({xs});
    for (var j = 0u; j < {_COLUMNS}u; j++) {{
      let value = w_quad(min(n0 + j, width - 1u) + base, q);
      sums[j] += vec4<f32>({dots});
    }}
  }}"""
        code = blocks.reader(part.dtype, "w", 2, "quads")
    body = f"""{names}  let n0 = ({_INVOCATION} % across) * {_COLUMNS}u;
  let m0 = ({_INVOCATION} / across) * {together}u;
  if (m0 >= count) {{ return; }}
  var sums: array<vec4<f32>, {_COLUMNS}>;
{loop}
  for (var r = 0u; r < min({together}u, count - m0); r++) {{
    for (var j = 0u; j < min({_COLUMNS}u, width - n0); j++) {{
      let at = (m0 + r) * n + column + n0 + j;
      var sum = sums[j][r];
      if (residual != 0u) {{ sum += b1[at]; }}
      b{out}[at] = sum;
    }}
  }}"""
    code = "var<private> quads: u32;\n" + code + text.entry(_THREADS, body)
    bound = (*bindings(part, True), _NUMBERS)
    sizes = (rows, part.rows, output.shape[-1])
    kernel = text.kernel(f"matmul_{part.dtype}_cpu", code, bound, sizes)
    buffers = (x.buffer, residual or x.buffer, *part.buffers, output.buffer)
    grid = _grid(binary("*", ceildiv(part.rows, _COLUMNS), ceildiv(rows, together)))
    return WgslLaunch(kernel, buffers, grid, tuple(parameter.values))


def attention(
    q: Operand, k: Operand, v: Operand, output: Operand, start: Size, scale: float
) -> WgslLaunch:
    """An invocation goes through a head's positions once, with a running maximum (Milakov and
    Gimelshein, arXiv 1805.02867), for up to four quads of the head's values."""
    rows, heads, depth = q.shape
    groups, context = k.shape[1], k.shape[0]
    assert isinstance(heads, int) and isinstance(depth, int) and isinstance(groups, int)
    quads = depth // 4
    parts = -(-quads // _QUADS)
    first, grid = text.rowwise(rows, heads * parts, _THREADS)
    body = f"""{first}
  let part = place % {parts}u;
  let head = place / {parts}u;
  let query = (row * {heads}u + head) * {quads}u;
  let length = min({text.size_u32(start)} + row + 1u, {text.size_u32(context)});
  let kv = head / {heads // groups}u;
  let first = part * {_QUADS}u;
  let count = min({_QUADS}u, {quads}u - first);
  var highest = -3.0e38;
  var total = 0.0;
  var sums: array<vec4<f32>, {_QUADS}>;
  for (var p = 0u; p < length; p++) {{
    let at = p * {groups}u + kv;
    var products = vec4<f32>(0.0);
    for (var i = 0u; i < {quads}u; i++) {{ products += b0[query + i] * k_quad(at, i); }}
    let score = dot(products, vec4<f32>({text.literal(scale, "f32")}));
    let lower = fl_exp(-abs(score - highest));
    let shrink = select(1.0, lower, score > highest);
    let weight = select(lower, 1.0, score > highest);
    total = total * shrink + weight;
    for (var i = 0u; i < count; i++) {{
      sums[i] = sums[i] * shrink + weight * v_quad(at, first + i);
    }}
    highest = max(highest, score);
  }}
  for (var i = 0u; i < count; i++) {{ b3[query + first + i] = sums[i] / total; }}"""
    code = blocks.reader(k.dtype, "k", 1, f"{quads}u") + blocks.reader(v.dtype, "v", 2, f"{quads}u")
    code += text.entry(_THREADS, body)
    code = maths.functions(code) + code
    bound = (
        Binding("array<vec4<f32>>", "read"),
        *blocks.bindings(k.dtype),
        *blocks.bindings(v.dtype),
        Binding("array<vec4<f32>>", "read_write"),
    )
    kernel = text.kernel(f"attention_{k.dtype}_cpu", code, bound, (start, context))
    buffers = (q.buffer, k.buffer, v.buffer, output.buffer)
    return WgslLaunch(kernel, buffers, grid)


def rms_norm(x: Operand, weight: Operand, output: Operand, eps: float) -> WgslLaunch:
    """Four invocations, which a CPU runs as one, sum up a row alike and share its writing."""
    rows, k = product(x.shape[:-1]), x.shape[-1]
    assert isinstance(k, int)
    wide = k % 4 == 0
    kind, square = ("vec4<f32>", "dot(v, v)") if wide else ("f32", "v * v")
    items = k // 4 if wide else k
    body = f"""  let first = group.y * {items}u;
  var sum = 0.0;
  for (var i = 0u; i < {items}u; i++) {{
    let v = b0[first + i];
    sum += {square};
  }}
  let scale = 1.0 / sqrt(sum / {k}.0 + {text.literal(eps, "f32")});
  for (var i = lane; i < {items}u; i += 4u) {{ b2[first + i] = b0[first + i] * scale * b1[i]; }}"""
    read = Binding(f"array<{kind}>", "read")
    bound = (read, read, Binding(f"array<{kind}>", "read_write"))
    kernel = text.kernel("rms_norm_cpu", text.entry(4, body), bound)
    return WgslLaunch(kernel, (x.buffer, weight.buffer, output.buffer), (1, rows, 1))


def gating(both: Operand, output: Operand, rows: Size, width: int) -> WgslLaunch:
    """silu of the first half of each row times the second."""
    first, grid = text.rowwise(rows, width, _THREADS)
    body = f"""{first}
  b1[at] = fl_silu(b0[at + row * {width}u]) * b0[at + (row + 1u) * {width}u];"""
    code = text.entry(_THREADS, body)
    bound = (Binding("array<f32>", "read"), Binding("array<f32>", "read_write"))
    kernel = text.kernel("gating_cpu", maths.functions(code) + code, bound)
    return WgslLaunch(kernel, (both.buffer, output.buffer), grid)


def _grid(invocations: Size) -> Grid:
    return text.fold_grid(ceildiv(invocations, _THREADS))
