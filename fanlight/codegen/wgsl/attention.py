"""Causal grouped-query attention: q f32 [T, H, D], caches k and v [C, Hk, D] → f32 [T, H * D].

Row t sees positions 0 … start + t. One workgroup for a head and one row, or four rows that share
what is read of the cache, goes through the positions a block at a time with a running maximum and
sum (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135): its memory doesn't
grow with the length. D is a multiple of 4, at most 256.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fanlight.codegen.wgsl import blocks, maths, on_cpu, text
from fanlight.dtypes import DType
from fanlight.errors import UnsupportedError
from fanlight.kernels.launch import Binding, Launch, WgslLaunch
from fanlight.kernels.target import CPU, Context, Operand
from fanlight.shapes import Size, binary, ceildiv, maximum

_CACHES = ("f32", "f16", "bf16")


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """Raises UnsupportedError for other caches or head sizes."""
    q, k, v = inputs
    rows, heads, depth = q.shape
    groups = k.shape[1]
    assert isinstance(heads, int) and isinstance(depth, int) and isinstance(groups, int)
    check(k, v)
    start: Size = attrs["start"]
    if CPU in context.features and maximum(rows) <= text.MAX_GROUPS:
        return [on_cpu.attention(q, k, v, output, start, attrs["scale"])]
    together = 1 if maximum(rows) == 1 else 4
    threads = max(256 if together == 1 else 64, 1 << (depth // 4 - 1).bit_length())
    shape = _Shape(rows, k.shape[0], heads, groups, depth // 4, threads, together)
    code = _text(k.dtype, v.dtype, shape, start, attrs["scale"])
    bindings = (
        Binding("array<vec4<f32>>", "read"),
        *blocks.bindings(k.dtype),
        *blocks.bindings(v.dtype),
        Binding("array<vec4<f32>>", "read_write"),
    )
    kernel = text.kernel(f"attention_{k.dtype}", code, bindings, (rows, start, k.shape[0]))
    buffers = (q.buffer, k.buffer, v.buffer, output.buffer)
    grid = text.fold_grid(binary("*", ceildiv(rows, together), heads))
    return [WgslLaunch(kernel, buffers, grid)]


def check(k: Operand, v: Operand) -> None:
    """Raises UnsupportedError for caches of other dtypes or heads of other sizes."""
    depth = k.shape[2]
    known = isinstance(depth, int) and depth % 4 == 0 and depth <= 256
    if k.dtype.name not in _CACHES or v.dtype.name not in _CACHES or not known:
        got = f"{k.dtype} and {v.dtype}, {depth} elements a head"
        raise UnsupportedError("no attention over such a cache", where="attention", got=got)


@dataclass(frozen=True, slots=True)
class _Shape:
    """``quads``: of a head's depth; ``together``: rows of q in one workgroup, 1 or 4."""

    rows: Size
    context: Size
    heads: int
    groups: int
    quads: int
    threads: int
    together: int


def _text(k: DType, v: DType, shape: _Shape, start: Size, scale: float) -> str:
    """A lane scores one position of the block for all rows of the workgroup; then ``teams`` of
    ``quads`` lanes take turns with the positions to sum the values."""
    heads, quads, threads = shape.heads, shape.quads, shape.threads
    count, teams = shape.together, shape.threads // shape.quads
    kind = "f32" if count == 1 else "vec4<f32>"
    part = [""] if count == 1 else [".x", ".y", ".z", ".w"]

    def each(form: str) -> str:
        """``form`` for each row r, its component c."""
        return "\n".join(form.format(r=r, c=c) for r, c in enumerate(part))

    def vector(form: str) -> str:
        return f"{kind}({', '.join(form.format(r=r, c=c) for r, c in enumerate(part))})"

    products = _scores(quads, each)
    loads = _values(kind, threads, teams, shape.groups)
    body = f"""  let head = {text.GROUP} % {heads}u;
  let t = ({text.GROUP} / {heads}u) * {count}u;
  let rows = {text.size_u32(shape.rows)};
  if (t >= rows) {{ return; }}
  let first = {text.size_u32(start)} + t + 1u; // positions that the first row sees
  let context = {text.size_u32(shape.context)};
  let length = min({text.size_u32(start)} + min(t + {count}u, rows), context);
  let kv = head / {heads // shape.groups}u;
  for (var i = lane; i < {count * quads}u; i += {threads}u) {{
    let at = (min(t + i / {quads}u, rows - 1u) * {heads}u + head) * {quads}u + i % {quads}u;
    query[i] = b0[at] * {text.literal(scale, "f32")};
  }}
  let quad = lane % {quads}u;
  let team = lane / {quads}u;
  var highest = {kind}(-3.0e38);
  var total = {kind}(0.0);
{each("  var sum{r} = vec4<f32>(0.0);")}
  for (var base = 0u; base < length; base += {threads}u) {{
    workgroupBarrier();
    var score = {kind}(-3.0e38);
    let row = (base + lane) * {shape.groups}u + kv;
    if (base + lane < length) {{
{each("      var products{r} = vec4<f32>(0.0);")}
{products}
{each("      if (base + lane < first + {r}u) {{ score{c} = dot(products{r}, vec4<f32>(1.0)); }}")}
    }}
    let now = max(highest, largest(score, lane));
    let shrink = {vector("fl_exp(highest{c} - now{c})")};
    let weight = {vector("select(0.0, fl_exp(score{c} - now{c}), base + lane < first + {r}u)")};
    weights[lane] = select({kind}(0.0), weight, base + lane < length);
    workgroupBarrier();
    total = total * shrink + weights[lane];
{each("    sum{r} *= shrink{c};")}
    let size = min({threads}u, length - base);
    if (team < {teams}u) {{
      for (var i = team; i < size; i += {4 * teams}u) {{
{loads}
{each("        sum{r} += p0{c} * v0 + p1{c} * v1 + p2{c} * v2 + p3{c} * v3;")}
      }}
    }}
    highest = now;
  }}
  let all = add_up(total, lane);
{each(f"  sums[{{r}}u * {threads}u + lane] = sum{{r}};")}
  workgroupBarrier();
  for (var i = lane; i < {count * quads}u; i += {threads}u) {{
    let r = i / {quads}u;
    let at = i % {quads}u;
    var out = vec4<f32>(0.0);
    for (var j = 0u; j < {teams}u; j++) {{ out += sums[r * {threads}u + j * {quads}u + at]; }}
    out /= all{"" if count == 1 else "[r]"};
    if (t + r < rows) {{ b3[((t + r) * {heads}u + head) * {quads}u + at] = out; }}
  }}"""
    memory = _workspace(kind, threads, count, quads)
    code = blocks.reader(k, "k", 1, f"{quads}u") + blocks.reader(v, "v", 2, f"{quads}u") + memory
    code += text.reduction("largest", kind, threads, "max({a}, {b})")
    code += text.reduction("add_up", kind, threads, "{a} + {b}") + text.entry(threads, body)
    return maths.functions(code) + code


def _scores(quads: int, each: Callable[[str], str]) -> str:
    """Queries times the keys of ``row``, in all columns that ``each`` repeats a form for. Unrolled:
    a loop that naga bounds keeps one load in flight."""
    return "\n".join(
        f"      let k{i} = k_quad(row, {i}u);\n"
        + each(f"      products{{r}} += query[{{r}}u * {quads}u + {i}u] * k{i};")
        for i in range(quads)
    )


def _values(kind: str, threads: int, teams: int, groups: int) -> str:
    """Weights and values of four of a team's positions: one load's latency, not four."""
    return "\n".join(
        f"""        let j{u} = i + {u * teams}u;
        let p{u} = select({kind}(0.0), weights[min(j{u}, {threads - 1}u)], j{u} < size);
        let v{u} = v_quad((base + min(j{u}, size - 1u)) * {groups}u + kv, quad);"""
        for u in range(4)
    )


def _workspace(kind: str, threads: int, count: int, quads: int) -> str:
    """A workgroup's memory for ``count`` queries of ``quads`` quads."""
    return f"""var<workgroup> query: array<vec4<f32>, {count * quads}>;
var<workgroup> weights: array<{kind}, {threads}>;
var<workgroup> sums: array<vec4<f32>, {count * threads}>;
"""
