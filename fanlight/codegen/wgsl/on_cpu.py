"""Products and attention for adapters that are CPUs playing a GPU (SwiftShader, lavapipe).

No workgroup memory and no barriers: there a barrier makes the compiler split the kernel at each one
and keep all that lives across it, which takes SwiftShader seconds and hundreds of megabytes a
kernel. Each invocation makes its outputs alone; a workgroup is small, since workgroups are what the
CPU's cores share out.
"""

from __future__ import annotations

from fanlight.codegen.wgsl import blocks, maths, text
from fanlight.kernels.launch import Binding, WgslLaunch
from fanlight.kernels.target import Operand
from fanlight.shapes import Size, product

_THREADS = 16
_HEADS = 4  # heads of a workgroup of attention: one SIMD word of a CPU, so that cores share a row


def attention(
    q: Operand, k: Operand, v: Operand, output: Operand, start: Size, scale: float
) -> WgslLaunch:
    """An invocation goes through a head's positions once, four at a time, with a running maximum
    (Milakov and Gimelshein, arXiv 1805.02867)."""
    rows, heads, depth = q.shape
    groups, context = k.shape[1], k.shape[0]
    assert isinstance(heads, int) and isinstance(depth, int) and isinstance(groups, int)
    quads = depth // 4
    first, grid = text.rowwise(rows, heads, _HEADS)
    keys = "\n".join(f"      products{j} += x * k_quad(at{j}, i);" for j in range(4))
    values = "".join(f" + weights[{j}] * v_quad(at{j}, i)" for j in range(4))
    body = f"""{first}
  let query = at * {quads}u;
  let length = min({text.size_u32(start)} + row + 1u, {text.size_u32(context)});
  let kv = place / {heads // groups}u;
  var highest = -3.0e38;
  var total = 0.0;
  var sums: array<vec4<f32>, {quads}>;
  for (var p = 0u; p < length; p += 4u) {{
    let at0 = p * {groups}u + kv;
    let at1 = min(p + 1u, length - 1u) * {groups}u + kv;
    let at2 = min(p + 2u, length - 1u) * {groups}u + kv;
    let at3 = min(p + 3u, length - 1u) * {groups}u + kv;
    var products0 = vec4<f32>(0.0);
    var products1 = vec4<f32>(0.0);
    var products2 = vec4<f32>(0.0);
    var products3 = vec4<f32>(0.0);
    for (var i = 0u; i < {quads}u; i++) {{
      let x = b0[query + i];
{keys}
    }}
    let ones = vec4<f32>({text.literal(scale, "f32")});
    let found = vec4<f32>(dot(products0, ones), dot(products1, ones), dot(products2, ones),
      dot(products3, ones));
    let there = vec4<u32>(p) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(length);
    let scores = select(vec4<f32>(-3.0e38), found, there);
    let most = max(max(scores.x, scores.y), max(scores.z, max(scores.w, highest)));
    let shrink = fl_exp(highest - most);
    let weights = vec4<f32>(fl_exp(scores.x - most), fl_exp(scores.y - most),
      fl_exp(scores.z - most), fl_exp(scores.w - most));
    total = total * shrink + dot(weights, vec4<f32>(1.0));
    for (var i = 0u; i < {quads}u; i++) {{ sums[i] = sums[i] * shrink{values}; }}
    highest = most;
  }}
  for (var i = 0u; i < {quads}u; i++) {{ b3[query + i] = sums[i] / total; }}"""
    code = blocks.reader(k.dtype, "k", 1, f"{quads}u") + blocks.reader(v.dtype, "v", 2, f"{quads}u")
    code += text.entry(_HEADS, body)
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
