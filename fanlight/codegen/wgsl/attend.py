"""The fused ops ``attend`` and ``attend_add`` (``ir/fused.py``): rope, caches, causal attention.

Many rows, or an adapter that is a CPU: caches are written, queries rotated, then ``attention.py``.
One row on a GPU: the positions are split among workgroups, so that a long past is read by all of
the GPU (flash decoding; Dao et al., 2023); each leaves its maximum, sum and weighted values, and a
second kernel combines them, or the product that follows does. How many splits there are follows
from the position on the device. The workgroup of the last split writes the row's own key and value,
unless heads have norms, which leave no binding for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight import dtypes
from fanlight.codegen.wgsl import attention, blocks, maths, matmul, matvec, rope, text, tiles
from fanlight.codegen.wgsl.rope import Heads
from fanlight.kernels.launch import Binding, Launch, WgslLaunch
from fanlight.kernels.target import CPU, SUBGROUPS, Context, Operand, Part
from fanlight.shapes import Size, product

_QUADS = "array<vec4<f32>>"


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """Raises UnsupportedError for other caches or head sizes than ``attention`` takes."""
    heads = _heads(inputs, attrs)
    if _whole(heads, context):
        return _many_rows(heads, output, attrs, context)
    launches, partial = _partials(heads, attrs, context)
    return [*launches, _combine(heads, partial, output)]


def rule_add(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """As :func:`rule`, and the product with its residual."""
    *attended, w, residual = inputs
    heads = _heads(attended, attrs)
    if _whole(heads, context) or not tiles.DECODE.fold:
        shape: tuple[Size, ...] = (heads.rows, heads.heads * heads.depth)
        values = _scratch(shape, context)
        launches = rule(attended, values, attrs, context)
        return [*launches, *matmul.products(values, [w], output, context, residual.buffer)]
    launches, partial = _partials(heads, attrs, context)
    around = matvec.Surroundings(residual=residual.buffer, made=_made(heads))
    subgroups = SUBGROUPS in context.features
    return [*launches, *matvec.launches(partial, [w], output.buffer, around, subgroups)]


def _heads(inputs: list[Operand], attrs: Mapping[str, Any]) -> Heads:
    a, k, v, cos, sin, *norms = inputs
    attention.check(k, v)
    start, turn, eps = attrs["start"], attrs["interleaved"], attrs["eps"]
    return Heads(a, k, v, cos, sin, tuple(norms), start, turn, eps)


def _whole(heads: Heads, context: Context) -> bool:
    """Whether positions are not split."""
    return heads.rows != 1 or CPU in context.features


def _scratch(shape: tuple[Size, ...], context: Context) -> Operand:
    buffer = context.scratch(product(shape) * 4)
    return Operand(dtypes.f32, shape, (Part(0, shape[0], (buffer,)),))


def _many_rows(
    heads: Heads, output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    q = _scratch((heads.rows, heads.heads, heads.depth), context)
    return [
        rope.write_caches(heads, context),
        rope.rotate(heads, q.buffer, context),
        *attention.rule([q, heads.k, heads.v], output, attrs, context),
    ]


def _partials(heads: Heads, attrs: Mapping[str, Any], context: Context) -> tuple[list[Launch], str]:
    """The launches that lead to all splits, and the buffer that they are in."""
    partial = context.scratch(tiles.DECODE.splits * heads.heads * (heads.depth + 4) * 4)
    first = [rope.write_caches(heads, context)] if heads.norms else []
    return [*first, _split(heads, partial, attrs["scale"])], partial


def _plan(heads: Heads) -> str:
    """``length``: positions seen; ``each`` of them in a split; ``splits`` that have any."""
    tile = tiles.DECODE
    context = text.size_u32(heads.k.shape[0])
    return f"""  let length = min({text.size_u32(heads.start)} + 1u, {context});
  let wanted = min((length + {tile.chunk - 1}u) / {tile.chunk}u, {tile.splits}u);
  let each = (length + wanted - 1u) / wanted;
  let splits = (length + each - 1u) / each;
"""


def _split(heads: Heads, partial: str, scale: float) -> WgslLaunch:
    """A workgroup: one split for ``count`` heads of one group of keys and values. A lane scores a
    position; then teams of ``quads`` lanes take turns with the positions to sum the values."""
    tile = tiles.DECODE
    shared = heads.heads // heads.groups
    quads = heads.depth // 4
    threads = max(tile.threads, 1 << (quads - 1).bit_length())

    def fits(n: int) -> bool:
        return 16 * (n * threads + 3 * threads + n * quads) <= text.MAX_MEMORY

    several = [n for n in range(2, tile.together + 1) if shared % n == 0 and fits(n)]
    count = max([1, *several])
    bunches = heads.heads // count
    teams, normed = threads // quads, bool(heads.norms)
    kind = "f32" if count == 1 else f"vec{count}<f32>"
    parts = [""] if count == 1 else [f".{c}" for c in "xyzw"[:count]]
    k, v = heads.k.dtype, heads.v.dtype

    def each(form: str) -> str:
        return "\n".join(form.format(r=r, c=c) for r, c in enumerate(parts))

    def vector(form: str) -> str:
        return f"{kind}({', '.join(form.format(r=r, c=c) for r, c in enumerate(parts))})"

    # bindings: a, cos, sin, [norm of q], k, v, partial
    at_k = 4 if normed else 3
    spreads = each("  let spread{r} = spread(0u, head + {r}u);") if normed else ""
    scale_of = vector("spread{r}") + ("" if count == 1 else f"[i / {quads}u]")
    turn = rope.four(
        f"turned(0u, head + i / {quads}u, (i % {quads}u) * 4u + {{i}}u, length - 1u"
        + (f", {scale_of})" if normed else ")")
    )
    own = "" if normed else _write(heads, at_k, threads)
    products = attention.scores(quads, each)
    loads = attention.values(kind, threads, teams, heads.groups)
    body = f"""  let split = {text.GROUP} / {bunches}u;
  let head = ({text.GROUP} % {bunches}u) * {count}u;
  let kv = head / {shared}u;
{_plan(heads)}  if (split >= splits) {{ return; }}
  let end = min((split + 1u) * each, length);
{spreads}
  for (var i = lane; i < {count * quads}u; i += {threads}u) {{
    query[i] = {turn} * {text.literal(scale, "f32")};
  }}
{own}
  let quad = lane % {quads}u;
  let team = lane / {quads}u;
  var highest = {kind}(-3.0e38);
  var sum = {kind}(0.0);
{each("  var sum{r} = vec4<f32>(0.0);")}
  for (var base = split * each; base < end; base += {threads}u) {{
    workgroupBarrier();
    var score = {kind}(-3.0e38);
    let row = (base + lane) * {heads.groups}u + kv;
    if (base + lane < end) {{
{each("      var products{r} = vec4<f32>(0.0);")}
{products}
      score = {vector("dot(products{r}, vec4<f32>(1.0))")};
    }}
    let now = max(highest, largest(score, lane));
    let shrink = {vector("fl_exp(highest{c} - now{c})")};
    let weight = {vector("fl_exp(score{c} - now{c})")};
    weights[lane] = select({kind}(0.0), weight, base + lane < end);
    workgroupBarrier();
    sum = sum * shrink + weights[lane];
{each("    sum{r} *= shrink{c};")}
    let size = min({threads}u, end - base);
    if (team < {teams}u) {{
      for (var i = team; i < size; i += {4 * teams}u) {{
{loads}
{each("        sum{r} += p0{c} * v0 + p1{c} * v1 + p2{c} * v2 + p3{c} * v3;")}
      }}
    }}
    highest = now;
  }}
  let all = add_up(sum, lane);
{each(f"  sums[{{r}}u * {threads}u + lane] = sum{{r}};")}
  workgroupBarrier();
  for (var i = lane; i < {count * quads}u; i += {threads}u) {{
    let r = i / {quads}u;
    var out = vec4<f32>(0.0);
    for (var j = 0u; j < {teams}u; j++) {{
      out += sums[r * {threads}u + j * {quads}u + i % {quads}u];
    }}
    b{at_k + 2}[(split * {heads.heads}u + head + r) * {quads + 1}u + i % {quads}u] = out;
  }}
  if (lane < {count}u) {{
    let high = highest{"" if count == 1 else "[lane]"};
    let part = vec4<f32>(high, all{"" if count == 1 else "[lane]"}, 0.0, 0.0);
    b{at_k + 2}[(split * {heads.heads}u + head + lane) * {quads + 1}u + {quads}u] = part;
  }}"""
    memory = attention.workspace(kind, threads, count, quads)
    code = rope.turned(heads, 0, 1, 2, 3 if normed else None)
    code += blocks.reader(k, "k", at_k, f"{quads}u") + blocks.reader(v, "v", at_k + 1, f"{quads}u")
    code += memory + text.reduction("largest", kind, threads, "max({a}, {b})")
    code += text.reduction("add_up", kind, threads, "{a} + {b}") + text.entry(threads, body)
    caches = [b for c in (k, v) for b in blocks.bindings(c)]
    if not normed:
        caches = [Binding(b.type, "read_write") for b in caches]
    floats = [Binding("array<f32>", "read")] * at_k
    kernel = text.kernel(
        f"attend_{k}",
        maths.functions(code) + code,
        (*floats, *caches, Binding(_QUADS, "read_write")),
        (heads.start, heads.k.shape[0]),
    )
    names = [heads.a, heads.cos, heads.sin, *heads.norms[:1], heads.k, heads.v]
    grid = text.fold_grid(bunches * tile.splits)
    return WgslLaunch(kernel, (*(x.buffer for x in names), partial), grid)


def _write(heads: Heads, at_k: int, threads: int) -> str:
    """The last split writes the row's key and value; where a group has several, all the same."""
    quads, groups, depth = heads.depth // 4, heads.groups, heads.depth
    key = rope.four(f"turned(0u, {heads.heads}u + kv, i * 4u + {{i}}u, length - 1u)")
    value = rope.four(f"b0[({heads.heads + groups}u + kv) * {depth}u + i * 4u + {{i}}u]")
    return f"""  if (split == splits - 1u) {{
    for (var i = lane; i < {quads}u; i += {threads}u) {{
      let key = {key};
      let value = {value};
      let to = ((length - 1u) * {groups}u + kv) * {quads}u + i;
      b{at_k}[to] = {rope.packed(heads.k.dtype, "key")};
      b{at_k + 1}[to] = {rope.packed(heads.v.dtype, "value")};
    }}
  }}
  storageBarrier();"""


def _made(heads: Heads) -> matvec.Made:
    """A quad of the values of all heads: the splits', weighted by their maxima, over their sums."""
    quads = heads.depth // 4
    code = f"""fn made(at: u32) -> vec4<f32> {{
  let head = at / {quads}u;
{_plan(heads)}  var highest = -3.0e38;
  for (var i = 0u; i < splits; i++) {{
    highest = max(highest, b0[(i * {heads.heads}u + head) * {quads + 1}u + {quads}u].x);
  }}
  var total = 0.0;
  var sum = vec4<f32>(0.0);
  for (var i = 0u; i < splits; i++) {{
    let first = (i * {heads.heads}u + head) * {quads + 1}u;
    let part = b0[first + {quads}u];
    let weight = fl_exp(part.x - highest);
    total += weight * part.y;
    sum += weight * b0[first + at % {quads}u];
  }}
  return sum / total;
}}
"""
    return matvec.Made(code, (heads.start, heads.k.shape[0]))


def _combine(heads: Heads, partial: str, output: Operand) -> WgslLaunch:
    """The values of all heads; a lane makes one quad."""
    count, threads = heads.heads * heads.depth // 4, 64
    body = f"""  let at = {text.GROUP} * {threads}u + lane;
  if (at >= {count}u) {{ return; }}
  b1[at] = made(at);"""
    made = _made(heads)
    code = made.code + text.entry(threads, body)
    bindings = (Binding(_QUADS, "read"), Binding(_QUADS, "read_write"))
    kernel = text.kernel("attend_combine", maths.functions(code) + code, bindings, made.sizes)
    grid = text.fold_grid(-(-count // threads))
    return WgslLaunch(kernel, (partial, output.buffer), grid)
