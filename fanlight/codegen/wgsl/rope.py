"""Rotated, and where asked normed, heads of a row of queries, keys and values; writes to caches.

In: a f32 [T, (H + 2 Hk) D], tables cos and sin [P, R / 2], weights of head norms. An invocation
makes four elements of a head. Rope: Su et al. (arXiv 2104.09864).
"""

from __future__ import annotations

from dataclasses import dataclass

from fanlight.codegen.wgsl import blocks, maths, text
from fanlight.dtypes import DType
from fanlight.kernels.launch import Binding, WgslLaunch
from fanlight.kernels.target import CPU, Context, Operand
from fanlight.shapes import Size, binary, ceildiv, maximum

_FLOATS = Binding("array<f32>", "read")


@dataclass(frozen=True, slots=True)
class Heads:
    """``heads`` of queries, then ``groups`` of keys, then as many of values, in each row of ``a``;
    ``norms``: none, or the weights for q and k."""

    a: Operand
    k: Operand
    v: Operand
    cos: Operand
    sin: Operand
    norms: tuple[Operand, ...]
    start: Size
    interleaved: bool
    eps: float

    @property
    def rows(self) -> Size:
        return self.a.shape[0]

    @property
    def depth(self) -> int:
        return _known(self.k.shape[2])

    @property
    def groups(self) -> int:
        return _known(self.k.shape[1])

    @property
    def heads(self) -> int:
        return _known(self.a.shape[1]) // self.depth - 2 * self.groups


def _known(size: Size) -> int:
    assert isinstance(size, int)
    return size


def turned(heads: Heads, a: int, cos: int, sin: int, norm: int | None) -> str:
    """``fn turned(row, head, d, position) -> f32``: element d of a head of queries or keys; the
    numbers are those of bindings. With a norm also ``fn spread(row, head) -> f32``, its scale,
    which ``turned`` takes as well, last."""
    depth, half = heads.depth, _known(heads.cos.shape[1])
    stride = _known(heads.a.shape[1])
    if heads.interleaved:
        pair, second = "d / 2u", "(d & 1u) == 1u"
        first, other = "base + 2u * pair", "base + 2u * pair + 1u"
    else:
        pair, second = f"d % {half}u", f"d >= {half}u"
        first, other = "base + pair", f"base + pair + {half}u"
    more, code = "", ""
    x, y, plain = (f"b{a}[{at}]" for at in (first, other, "base + d"))
    if norm is not None:
        more = ", scale: f32"
        x, y, plain = (
            f"{value} * scale * b{norm}[{at} - base]"
            for value, at in ((x, first), (y, other), (plain, "base + d"))
        )
        code = f"""fn spread(row: u32, head: u32) -> f32 {{
  let base = row * {stride}u + head * {depth}u;
  var sum = 0.0;
  for (var i = 0u; i < {depth}u; i++) {{ sum += b{a}[base + i] * b{a}[base + i]; }}
  return 1.0 / sqrt(sum / {depth}.0 + {text.literal(heads.eps, "f32")});
}}
"""
    rest = f"  if (d >= {2 * half}u) {{ return {plain}; }}\n" if 2 * half < depth else ""
    return f"""{code}fn turned(row: u32, head: u32, d: u32, position: u32{more}) -> f32 {{
  let base = row * {stride}u + head * {depth}u;
{rest}  let pair = {pair};
  let x = {x};
  let y = {y};
  let c = b{cos}[position * {half}u + pair];
  let s = b{sin}[position * {half}u + pair];
  return select(x * c - y * s, x * s + y * c, {second});
}}
"""


def four(call: str) -> str:
    """Four elements from ``call``, a format with ``{i}``."""
    return f"vec4<f32>({', '.join(call.format(i=i) for i in range(4))})"


def packed(dtype: DType, value: str) -> str:
    """``value``, a vec4<f32>, as an element of a cache's binding (``blocks.bindings``)."""
    if dtype.name == "f32":
        return value
    to = {"f16": "to_f16", "bf16": "to_bf16"}[dtype.name]
    bits = [f"{to}({value}.{c})" for c in "xyzw"]
    return f"vec2<u32>({bits[0]} | ({bits[1]} << 16u), {bits[2]} | ({bits[3]} << 16u))"


@dataclass(frozen=True, slots=True)
class _Places:
    """Where invocations work: ``code`` gives ``row`` and ``at``, the quad among those of all rows;
    ``sizes``: what it reads."""

    code: str
    threads: int
    sizes: tuple[Size, ...]
    grid: tuple[Size, Size, Size]
    cpu: bool

    def four(self, name: str, call: str) -> tuple[str, str]:
        """As :func:`four`, and the statements that it needs; where the adapter is a CPU, whose
        compiler takes longer the longer the code, a loop."""
        if not self.cpu:
            return four(call), ""
        each = f"{name}[i] = {call.replace('{i}u', 'i')};"
        return name, f"  var {name}: vec4<f32>;\n  for (var i = 0u; i < 4u; i++) {{ {each} }}\n"


def _places(rows: Size, across: int, context: Context) -> _Places:
    """``across``: quads of a row."""
    if CPU in context.features and maximum(rows) <= text.MAX_GROUPS:
        code, grid = text.rowwise(rows, across, 16)
        return _Places(code, 16, (), grid, True)
    code = f"""  let at = {text.GROUP} * 64u + lane;
  let row = at / {across}u;
  if (row >= {text.size_u32(rows)}) {{ return; }}"""
    grid = text.fold_grid(ceildiv(binary("*", rows, across), 64))
    return _Places(code, 64, (rows,), grid, False)


def rotate(heads: Heads, output: str, context: Context) -> WgslLaunch:
    """The queries, rotated, into ``output`` f32 [T, H, D]."""
    quads, normed = heads.depth // 4, bool(heads.norms)
    places = _places(heads.rows, heads.heads * quads, context)
    scale = ", scale" if normed else ""
    each, first = places.four("each", f"turned(row, head, d + {{i}}u, position{scale})")
    body = f"""{places.code}
  let head = (at / {quads}u) % {heads.heads}u;
  let d = (at % {quads}u) * 4u;
  let position = {text.size_u32(heads.start)} + row;
  {"let scale = spread(row, head);" if normed else ""}
{first}  b{3 + normed}[at] = {each};"""
    code = turned(heads, 0, 1, 2, 3 if normed else None) + text.entry(places.threads, body)
    bindings = (*[_FLOATS] * (3 + normed), Binding("array<vec4<f32>>", "read_write"))
    kernel = text.kernel("rope", code, bindings, (*places.sizes, heads.start))
    norm = [heads.norms[0].buffer] if normed else []
    buffers = (heads.a.buffer, heads.cos.buffer, heads.sin.buffer, *norm, output)
    return WgslLaunch(kernel, buffers, places.grid)


def write_caches(heads: Heads, context: Context) -> WgslLaunch:
    """Keys, rotated, and values into rows start … start + T - 1 of their caches."""
    quads, groups, normed = heads.depth // 4, heads.groups, bool(heads.norms)
    places = _places(heads.rows, groups * quads, context)
    stride = _known(heads.a.shape[1])
    scale = ", scale" if normed else ""
    turn = f"turned(row, {heads.heads}u + head, d + {{i}}u, position{scale})"
    key, first = places.four("turn", turn)
    value = four("b0[origin + {i}u]")
    n = 3 + normed
    body = f"""{places.code}
  let head = (at / {quads}u) % {groups}u;
  let d = (at % {quads}u) * 4u;
  let position = {text.size_u32(heads.start)} + row;
  if (position >= {text.size_u32(heads.k.shape[0])}) {{ return; }}
  {f"let scale = spread(row, {heads.heads}u + head);" if normed else ""}
{first}  let key = {key};
  let origin = row * {stride}u + ({heads.heads + groups}u + head) * {heads.depth}u + d;
  let value = {value};
  let to = (position * {groups}u + head) * {quads}u + d / 4u;
  b{n}[to] = {packed(heads.k.dtype, "key")};
  b{n + 1}[to] = {packed(heads.v.dtype, "value")};"""
    code = turned(heads, 0, 1, 2, 3 if normed else None) + text.entry(places.threads, body)
    caches = [
        Binding(b.type, "read_write") for c in (heads.k, heads.v) for b in blocks.bindings(c.dtype)
    ]
    bindings = (*[_FLOATS] * n, *caches)
    sizes = (*places.sizes, heads.start, heads.k.shape[0])
    kernel = text.kernel("write_caches", maths.functions(code) + code, bindings, sizes)
    norm = [heads.norms[1].buffer] if normed else []
    tables = (heads.cos.buffer, heads.sin.buffer)
    buffers = (heads.a.buffer, *tables, *norm, heads.k.buffer, heads.v.buffer)
    return WgslLaunch(kernel, buffers, places.grid)
