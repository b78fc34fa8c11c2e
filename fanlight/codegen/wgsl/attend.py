"""The ops ``attend`` and ``attend_add`` (``ir/composite.py``): rope, caches, causal attention.

Many rows, or an adapter that is a CPU: caches are written, queries rotated, then ``attention.py``.
One row on a GPU: the positions are split among workgroups, so that a long past is read by all of
the GPU (flash decoding; Dao et al., 2023); each leaves its maximum, sum and weighted values, and a
second kernel combines them, or the product that follows does. How many splits there are follows
from the position on the device. The workgroup of the last split writes the row's own key and value,
unless heads have norms, which leave no binding for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fanlight import dtypes
from fanlight.codegen.wgsl import attention, blocks, maths, matmul, matvec, rope, text, tiles
from fanlight.codegen.wgsl.rope import Heads
from fanlight.kernels.launch import Binding, Launch, WgslLaunch
from fanlight.kernels.target import CPU, SUBGROUPS, Context, Operand, Part
from fanlight.shapes import Size, product

_QUADS = "array<vec4<f32>>"
_ABREAST = 4  # splits that are read at a time where they are combined


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


@dataclass(frozen=True, slots=True)
class _Team:
    """How a workgroup of ``threads`` goes through ``threads`` positions at a time. Scores:
    ``lanes`` neighbours share a position, so that they read the same lines of the cache. Values:
    each of ``teams`` of ``quads`` lanes has ``each`` positions, and reads those of ``ahead`` before
    it knows their scores. ``heads``: how many, at most 4, share what is read."""

    threads: int
    quads: int
    lanes: int
    teams: int
    each: int
    ahead: int
    heads: int

    @property
    def memory(self) -> int:
        """Bytes of workgroup memory."""
        vectors = self.threads * max(self.lanes, self.heads) + self.heads * self.quads
        return 16 * (vectors + self.threads + self.teams * (self.each + 2))


def _team(quads: int, shared: int) -> _Team:
    """For heads of ``quads`` quads, ``shared`` of which have the same keys and values."""
    tile = tiles.DECODE
    threads = max(tile.threads, 1 << (quads - 1).bit_length())
    lanes = next(n for n in (4, 2, 1) if quads % n == 0)
    each = -(-threads // (threads // quads))
    each = -(-each // tile.ahead) * tile.ahead
    counts = [n for n in range(tile.together, 1, -1) if shared % n == 0]
    for count in (*counts, 1):
        team = _Team(threads, quads, lanes, -(-threads // each), each, tile.ahead, count)
        if team.memory <= text.MAX_MEMORY:
            return team
    raise AssertionError(f"tiles.DECODE: {threads} threads need too much memory")


def _split(heads: Heads, partial: str, scale: float) -> WgslLaunch:
    """A workgroup: one split for some heads of one group of keys and values."""
    shared, normed = heads.heads // heads.groups, bool(heads.norms)
    team = _team(heads.depth // 4, shared)
    quads, threads, count = team.quads, team.threads, team.heads
    bunches = heads.heads // count
    k, v = heads.k.dtype, heads.v.dtype
    # bindings: a, cos, sin, [norm of q], k, v, partial
    at_k = 4 if normed else 3
    spreads = "\n".join(
        f"  let spread{r} = spread(0u, head + {r}u);" for r in range(count if normed else 0)
    )
    scales = ", ".join(f"spread{r}" if r < count else "0.0" for r in range(4))
    turn = rope.four(
        f"turned(0u, head + i / {quads}u, (i % {quads}u) * 4u + {{i}}u, length - 1u"
        + (f", vec4<f32>({scales})[i / {quads}u])" if normed else ")")
    )
    body = f"""  let split = {text.GROUP} / {bunches}u;
  let head = ({text.GROUP} % {bunches}u) * {count}u;
  let kv = head / {shared}u;
{_plan(heads)}  if (split >= splits) {{ return; }}
  let end = min((split + 1u) * each, length);
{spreads}
  for (var i = lane; i < {count * quads}u; i += {threads}u) {{
    query[i] = {turn} * {text.literal(scale, "f32")};
  }}
{"" if normed else _write(heads, at_k, threads)}
  workgroupBarrier();
{_rounds(team, heads.groups)}
{_merged(team)}
  for (var i = lane; i < {count * quads}u; i += {threads}u) {{
    var out = vec4<f32>(0.0);
    for (var j = 0u; j < {team.teams}u; j++) {{
      out += work[(i / {quads}u) * {threads}u + j * {quads}u + i % {quads}u];
    }}
    b{at_k + 2}[(split * {heads.heads}u + head + i / {quads}u) * {quads + 1}u + i % {quads}u] = out;
  }}
  if (lane < {count}u) {{
    let part = vec4<f32>(high[lane], all[lane], 0.0, 0.0);
    b{at_k + 2}[(split * {heads.heads}u + head + lane) * {quads + 1}u + {quads}u] = part;
  }}"""
    memory = f"""var<workgroup> query: array<vec4<f32>, {count * quads}>;
var<workgroup> work: array<vec4<f32>, {threads * max(team.lanes, count)}>;
var<workgroup> scores: array<vec4<f32>, {threads}>;
var<workgroup> weights: array<vec4<f32>, {team.teams * team.each}>; // the rest stays 0
var<workgroup> tops: array<vec4<f32>, {team.teams}>;
var<workgroup> totals: array<vec4<f32>, {team.teams}>;
fn exps(x: vec4<f32>) -> vec4<f32> {{
  return vec4<f32>(fl_exp(x.x), fl_exp(x.y), fl_exp(x.z), fl_exp(x.w));
}}
"""
    code = rope.turned(heads, 0, 1, 2, 3 if normed else None)
    code += blocks.reader(k, "k", at_k, f"{quads}u") + blocks.reader(v, "v", at_k + 1, f"{quads}u")
    code += memory + text.entry(threads, body)
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
    grid = text.fold_grid(bunches * tiles.DECODE.splits)
    return WgslLaunch(kernel, (*(x.buffer for x in names), partial), grid)


def _rounds(team: _Team, groups: int) -> str:
    """The loop over a split's positions. Component r of a vector is the head r's. Each team keeps
    the maximum, the sum and the weighted values of its own positions, so that a round takes three
    barriers. Positions beyond the end are read as the last one, with a weight of 0."""
    threads, lanes, count = team.threads, team.lanes, team.heads
    rows = "\n".join(
        f"    let row{j} = (base + min({j * threads // lanes}u + lane / {lanes}u, size - 1u))"
        f" * {groups}u + kv;\n    var score{j} = vec4<f32>(0.0);"
        for j in range(lanes)
    )
    dots = ", ".join([f"dot(q{r}, k)" for r in range(count)] + ["0.0"] * (4 - count))
    steps = []
    for at in range(0, team.quads, lanes):
        steps += ["    {", f"      let at = lane % {lanes}u + {at}u;"]
        steps += [f"      let q{r} = query[{r * team.quads}u + at];" for r in range(count)]
        for j in range(lanes):
            add_up = f"score{j} += vec4<f32>({dots});"
            steps.append(f"      {{ let k = k_quad(row{j}, at); {add_up} }}")
        steps.append("    }")
    products = "\n".join(steps)
    stores = "\n".join(f"    work[{j * threads}u + lane] = score{j};" for j in range(lanes))
    score = " + ".join(  # turned from lane to lane: no bank conflicts
        f"work[lane * {lanes}u + (lane / 2u + {j}u) % {lanes}u]" for j in range(lanes)
    )
    quad = f"v_quad((base + min(mine + {{at}}, size - 1u)) * {groups}u + kv, quad)"
    ahead = "\n".join(f"    var v{u} = {quad.format(at=f'{u}u')};" for u in range(team.ahead))
    more = "\n".join(f"      v{u} = {quad.format(at=f'i + {u}u')};" for u in range(team.ahead))

    def add(at: str) -> str:
        return "\n".join(
            f"      {{ let w = weights[mine + {at}{u}u] * grow; sum += w; "
            + " ".join(f"sum{r} += w[{r}] * v{u};" for r in range(count))
            + " }"
            for u in range(team.ahead)
        )

    sums = "\n".join(f"  var sum{r} = vec4<f32>(0.0);" for r in range(count))
    shrinks = "\n".join(f"    sum{r} *= shrink[{r}];" for r in range(count))
    return f"""  let quad = lane % {team.quads}u;
  let team = min(lane / {team.quads}u, {team.teams - 1}u);
  let mine = team * {team.each}u;
  let judged = lane / {team.each}u; // the team that has the position which this lane judges
  var highest = vec4<f32>(-3.0e38);
  var sum = vec4<f32>(0.0);
{sums}
  for (var base = split * each; base < end; base += {threads}u) {{
    let size = min({threads}u, end - base);
{ahead}
{rows}
{products}
{stores}
    workgroupBarrier();
    let score = select(vec4<f32>(-3.0e38), {score}, lane < size);
    scores[lane] = score;
    workgroupBarrier();
    var top = score;
    for (var i = 0u; i < {team.each}u; i++) {{
      top = max(top, scores[min(judged * {team.each}u + i, {threads - 1}u)]);
    }}
    weights[lane] = select(vec4<f32>(0.0), exps(score - top), lane < size);
    if (lane % {team.each}u == 0u) {{ tops[judged] = top; }}
    workgroupBarrier();
    let now = max(highest, tops[team]);
    let shrink = exps(highest - now);
    let grow = exps(tops[team] - now);
    highest = now;
    sum *= shrink;
{shrinks}
    {{
{add("")}
    }}
    for (var i = {team.ahead}u; i < {team.each}u; i += {team.ahead}u) {{
{more}
{add("i + ")}
    }}
  }}"""


def _merged(team: _Team) -> str:
    """From each team's maximum, sum and weighted values to ``high``, ``all`` and, in ``work``,
    values that may be added up."""
    stores = "\n".join(
        f"  work[{r * team.threads}u + lane] = sum{r} * scale[{r}];" for r in range(team.heads)
    )
    return f"""  workgroupBarrier();
  let first = lane == team * {team.quads}u;
  if (first) {{ tops[team] = highest; }}
  workgroupBarrier();
  var high = highest;
  for (var j = 0u; j < {team.teams}u; j++) {{ high = max(high, tops[j]); }}
  let scale = exps(highest - high);
{stores}
  if (first) {{ totals[team] = sum * scale; }}
  workgroupBarrier();
  var all = vec4<f32>(0.0);
  for (var j = 0u; j < {team.teams}u; j++) {{ all += totals[j]; }}"""


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
    """Quads of the values of all heads: the splits', weighted by their maxima, over their sums.
    Several splits are read at a time, since their latency is what a long past costs here."""
    quads = heads.depth // 4
    alone = quads % matvec.RUN == 0  # both quads are of one head
    heads_of = ["a"] if alone else ["a", "b"]
    loads, states, updates = [], [], []
    for u in range(_ABREAST):
        loads.append(f"    let i{u} = min(base + {u}u, splits - 1u) * {heads.heads}u;")
        for x in heads_of:
            at = f"(i{u} + {x} / {quads}u) * {quads + 1}u + {quads}u"
            loads.append(f"    let s{x}{u} = b0[{at}].xy;")
        for x in "ab":
            at = f"(i{u} + {x} / {quads}u) * {quads + 1}u + {x} % {quads}u"
            loads.append(f"    let v{x}{u} = b0[{at}];")
    for x in heads_of:
        states.append(f"  var high_{x} = -3.0e38;\n  var total_{x} = 0.0;")
        now = f"high_{x}"
        for u in range(_ABREAST):
            now = f"max({now}, s{x}{u}.x)"
        updates.append(f"    let now_{x} = {now};\n    let old_{x} = fl_exp(high_{x} - now_{x});")
        updates.append(f"    high_{x} = now_{x};\n    total_{x} *= old_{x};")
        for u in range(_ABREAST):
            weight = f"select(0.0, fl_exp(s{x}{u}.x - now_{x}), base + {u}u < splits)"
            updates.append(f"    let w{x}{u} = {weight};\n    total_{x} += w{x}{u} * s{x}{u}.y;")
    for x in "ab":
        of = heads_of[-1] if x == "b" else "a"
        states.append(f"  var sum_{x} = vec4<f32>(0.0);")
        parts = " + ".join(f"w{of}{u} * v{x}{u}" for u in range(_ABREAST))
        updates.append(f"    sum_{x} = sum_{x} * old_{of} + {parts};")
    lines = "\n".join
    code = f"""fn made(a: u32, b: u32) -> array<vec4<f32>, 2> {{
{_plan(heads)}{lines(states)}
  for (var base = 0u; base < splits; base += {_ABREAST}u) {{
{lines(loads)}
{lines(updates)}
  }}
  return array<vec4<f32>, 2>(sum_a / total_a, sum_b / total_{heads_of[-1]});
}}
"""
    return matvec.Made(code, (heads.start, heads.k.shape[0]))


def _combine(heads: Heads, partial: str, output: Operand) -> WgslLaunch:
    """The values of all heads; a lane makes one quad."""
    count, threads = heads.heads * heads.depth // 4, 64
    body = f"""  let at = {text.GROUP} * {threads}u + lane;
  if (at >= {count}u) {{ return; }}
  b1[at] = made(at, at)[0];"""
    made = _made(heads)
    code = made.code + text.entry(threads, body)
    bindings = (Binding(_QUADS, "read"), Binding(_QUADS, "read_write"))
    kernel = text.kernel("attend_combine", maths.functions(code) + code, bindings, made.sizes)
    grid = text.fold_grid(-(-count // threads))
    return WgslLaunch(kernel, (partial, output.buffer), grid)
