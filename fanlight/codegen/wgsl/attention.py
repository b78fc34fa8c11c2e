"""Causal grouped-query attention: q f32 [T, H, D], caches k and v [C, Hk, D] → f32 [T, H * D].

Row t sees positions 0 … start + t. One workgroup for each row and head goes through the positions
a block at a time with a running maximum and sum (Milakov and Gimelshein, arXiv 1805.02867; Dao et
al., arXiv 2205.14135): its memory doesn't grow with the length. D is a multiple of 4, at most 256.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight.codegen.wgsl import blocks, maths, text
from fanlight.errors import UnsupportedError
from fanlight.kernels.launch import Binding, Launch, WgslLaunch
from fanlight.kernels.target import Context, Operand
from fanlight.shapes import Size, binary, maximum

_CACHES = ("f32", "f16", "bf16")


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """Raises UnsupportedError for other caches or head sizes."""
    q, k, v = inputs
    rows, heads, depth = q.shape
    groups = k.shape[1]
    assert isinstance(heads, int) and isinstance(depth, int) and isinstance(groups, int)
    if k.dtype.name not in _CACHES or v.dtype.name not in _CACHES or depth % 4 or depth > 256:
        got = f"{k.dtype} and {v.dtype}, {depth} elements a head"
        raise UnsupportedError("no attention over such a cache", where="attention", got=got)
    start: Size = attrs["start"]
    threads = 256 if maximum(rows) == 1 else 64
    threads = max(threads, 1 << (depth // 4 - 1).bit_length())
    code = _text(k, v, threads, rows, heads, groups, depth, start, attrs["scale"])
    bindings = (
        Binding("array<vec4<f32>>", "read"),
        *blocks.bindings(k.dtype),
        *blocks.bindings(v.dtype),
        Binding("array<vec4<f32>>", "read_write"),
    )
    kernel = text.kernel(f"attention_{k.dtype}", code, bindings, (rows, start, k.shape[0]))
    buffers = (q.buffer, k.buffer, v.buffer, output.buffer)
    return [WgslLaunch(kernel, buffers, text.fold_grid(binary("*", rows, heads)))]


def _text(
    k: Operand,
    v: Operand,
    threads: int,
    rows: Size,
    heads: int,
    groups: int,
    depth: int,
    start: Size,
    scale: float,
) -> str:
    """``quads`` threads cover a head's depth; ``teams`` of them take turns with the positions of a block."""
    quads = depth // 4
    teams = threads // quads
    read = blocks.reader(k.dtype, "k", 1, f"{quads}u")
    read += blocks.reader(v.dtype, "v", 2, f"{quads}u")
    loads = "\n".join(  # four at a time: one load's latency, not four
        f"""        let j{u} = i + {u * teams}u;
        let p{u} = select(0.0, weights[min(j{u}, {threads - 1}u)], j{u} < size);
        let v{u} = v_quad((base + min(j{u}, size - 1u)) * {groups}u + kv, quad);"""
        for u in range(4)
    )
    products = "\n".join(  # unrolled: a loop that naga bounds keeps one load in flight
        f"      products += query[{i}] * k_quad(row, {i}u);" for i in range(quads)
    )
    body = f"""  let head = {text.GROUP} % {heads}u;
  let t = {text.GROUP} / {heads}u;
  if (t >= {text.size_u32(rows)}) {{ return; }}
  let length = min({text.size_u32(start)} + t + 1u, {text.size_u32(k.shape[0])});
  let kv = head / {heads // groups}u;
  if (lane < {quads}u) {{
    query[lane] = b0[{text.GROUP} * {quads}u + lane] * {text.literal(scale, "f32")};
  }}
  let quad = lane % {quads}u;
  let team = lane / {quads}u;
  var highest = -3.0e38;
  var total = 0.0;
  var sum = vec4<f32>(0.0);
  for (var base = 0u; base < length; base += {threads}u) {{
    workgroupBarrier();
    var score = -3.0e38;
    if (base + lane < length) {{
      let row = (base + lane) * {groups}u + kv;
      var products = vec4<f32>(0.0);
{products}
      score = dot(products, vec4<f32>(1.0));
    }}
    let now = max(highest, largest(score, lane));
    let shrink = fl_exp(highest - now);
    weights[lane] = select(0.0, fl_exp(score - now), base + lane < length);
    workgroupBarrier();
    total = total * shrink + weights[lane];
    sum *= shrink;
    let size = min({threads}u, length - base);
    if (team < {teams}u) {{
      for (var i = team; i < size; i += {4 * teams}u) {{
{loads}
        sum += p0 * v0 + p1 * v1 + p2 * v2 + p3 * v3;
      }}
    }}
    highest = now;
  }}
  let all = add_up(total, lane);
  sums[lane] = sum;
  workgroupBarrier();
  if (lane < {quads}u) {{
    var out = vec4<f32>(0.0);
    for (var i = 0u; i < {teams}u; i++) {{ out += sums[i * {quads}u + lane]; }}
    b3[{text.GROUP} * {quads}u + lane] = out / all;
  }}"""
    memory = f"""var<workgroup> query: array<vec4<f32>, {quads}>;
var<workgroup> weights: array<f32, {threads}>;
var<workgroup> sums: array<vec4<f32>, {threads}>;
"""
    reductions = text.reduction("largest", "f32", threads, "max({a}, {b})")
    reductions += text.reduction("add_up", "f32", threads, "{a} + {b}")
    code = read + memory + reductions + text.entry(threads, body)
    return maths.functions(code) + code
