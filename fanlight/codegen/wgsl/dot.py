"""y = a @ b: a f32 […, M, K], b f32 […, K, N], y f32 […, M, N]; leading axes broadcast.

Tiles in workgroup memory; for adapters that are CPUs, 4 x 4 outputs to an invocation and no
barrier. All sizes may be symbolic and of any value; sums are in f32, in order. Where all rows of a
meet one b, they are one matrix. Inner loops are written out: lavapipe ends an invocation's loops
after 65,535 turns of all together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fanlight import dtypes
from fanlight.codegen.wgsl import text
from fanlight.ir.graph import Node
from fanlight.kernels.launch import Binding, Launch, WgslKernel, WgslLaunch
from fanlight.kernels.target import CPU, Context, Operand
from fanlight.shapes import Size, binary, ceildiv, product

TILE_K = 16
_DOWN, _ACROSS = 8, 16  # threads of a tile, each with 4 x 4 outputs or more
_ENOUGH = 264  # tiles, two for each multiprocessor of a large GPU
_CPU_THREADS = 16
_STEPS = 8  # of a turn along K on CPUs


def fits(node: Node) -> bool:
    """Only f32 has a kernel: the definition serves for others."""
    return node.dtype is dtypes.f32


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """One launch of ``dot``."""
    return [_launch(inputs, output, context, _Rows())]


def rule_shifted(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """One launch of ``dot_shifted``."""
    tap = f"(k % {attrs['taps']}u)"
    down, right, length = attrs["down"], attrs["right"], inputs[1].shape[-1]
    line, place = f"{tap} / {attrs['across']}u", f"{tap} % {attrs['across']}u"
    shift = f"{line} * {text.size_u32(down)} + {place} * {text.size_u32(right)}"
    begin = f"k / {attrs['taps']}u * {text.size_u32(length)} + {shift}"
    matrix = binary("*", inputs[1].shape[-2], length)
    return [_launch(inputs, output, context, _Rows(begin, matrix, (down, right, length)))]


@dataclass(frozen=True, slots=True)
class _Rows:
    """``begin``: where row ``k`` of b begins. ``matrix``: elements of one b, K N if None.
    ``sizes``: what both read."""

    begin: str = "k * N"
    matrix: Size | None = None
    sizes: tuple[Size, ...] = ()


def _launch(inputs: list[Operand], output: Operand, context: Context, rows: _Rows) -> WgslLaunch:
    a, b = inputs
    sizes = _sizes(a.shape, b.shape, output.shape, rows)
    kernel, grid = _alone(sizes) if CPU in context.features else _tiled(sizes)
    return WgslLaunch(kernel, (a.buffer, b.buffer, output.buffer), grid)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """``batch``: the leading axes of y; ``a`` and ``b``: those of a and b, as many."""

    m: Size
    k: Size
    n: Size
    batch: tuple[Size, ...]
    a: tuple[Size, ...]
    b: tuple[Size, ...]
    rows: _Rows

    @property
    def all(self) -> tuple[Size, ...]:
        matrix = () if self.rows.matrix is None else (self.rows.matrix,)
        return (self.m, self.k, self.n, *self.batch, *matrix, *self.rows.sizes)

    def starts(self) -> str:
        """Statements that give ``a_first``, ``b_first`` and ``y0``: where the matrices of ``batch``
        begin."""
        lines = ["var left = batch;", "var a_at = 0u;", "var b_at = 0u;"]
        strides = [("a_at", self.a), ("b_at", self.b)]
        for axis in reversed(range(len(self.batch))):
            lines += ["{", f"  let size = {text.size_u32(self.batch[axis])};"]
            for name, shape in strides:
                if shape[axis] != 1:
                    stride = text.size_u32(product(shape[axis + 1 :]))
                    lines.append(f"  {name} += (left % size) * {stride};")
            lines += ["  left = left / size;", "}"]
        m, k, n = (text.size_u32(s) for s in (self.m, self.k, self.n))
        lines.append(f"let a_first = a_at * {m} * {k};")
        matrix = self.rows.matrix
        each = f"{k} * {n}" if matrix is None else text.size_u32(matrix)
        lines.append(f"let b_first = b_at * {each};")
        lines.append(f"let y0 = batch * {m} * {n};")
        return "\n".join(f"    {line}" for line in lines)


def _sizes(a: tuple[Size, ...], b: tuple[Size, ...], y: tuple[Size, ...], below: _Rows) -> _Sizes:
    m, k, n = y[-2], a[-1], y[-1]
    if product(b[:-2]) == 1:
        return _Sizes(product(a[:-1]), k, n, (), (), (), below)
    rank = len(y) - 2

    def padded(shape: tuple[Size, ...]) -> tuple[Size, ...]:
        return (1,) * (rank + 2 - len(shape)) + shape[:-2]

    return _Sizes(m, k, n, y[:-2], padded(a), padded(b), below)


def _bound(label: str, code: str, sizes: _Sizes) -> WgslKernel:
    read, write = Binding("array<f32>", "read"), Binding("array<f32>", "read_write")
    return text.kernel(label, code, (read, read, write), sizes.all)


def _store(i: int) -> str:
    """Statements that write the four outputs ``sum{i}`` of row ``m + i``."""
    columns = "\n".join(
        f"    if (n + {j}u < N) {{ b2[y0 + (m + {i}u) * N + n + {j}u] = sum{i}[{j}]; }}"
        for j in range(4)
    )
    return f"  if (m + {i}u < M) {{\n{columns}\n  }}"


_CONSTANTS = """  let M = {m};
  let K = {k};
  let N = {n};
  let batches = {batches};"""


def _constants(sizes: _Sizes) -> str:
    return _CONSTANTS.format(
        m=text.size_u32(sizes.m),
        k=text.size_u32(sizes.k),
        n=text.size_u32(sizes.n),
        batches=text.size_u32(product(sizes.batch)),
    )


@dataclass(frozen=True, slots=True)
class _Tile:
    """What a workgroup makes: ``down`` x ``across`` threads with ``m`` x ``n`` outputs each."""

    m: int
    n: int
    down: int = _DOWN
    across: int = _ACROSS

    @property
    def rows(self) -> int:
        return self.m * self.down

    @property
    def columns(self) -> int:
        return self.n * self.across


#: by size: a large one reads less of workgroup memory for each product, and needs many tiles
_TILES = (_Tile(8, 8), _Tile(4, 8))


def _tile(sizes: _Sizes) -> _Tile:
    """The first of ``_TILES`` of which there are enough; of symbolic sizes nobody knows."""
    for tile in _TILES:
        m, n, batch = sizes.m, sizes.n, product(sizes.batch)
        if isinstance(m, int) and isinstance(n, int) and isinstance(batch, int):
            count = -(-m // tile.rows) * -(-n // tile.columns) * batch
            if count >= _ENOUGH and m > tile.rows // 2:
                return tile
    return _Tile(4, 4)


def _tiled(sizes: _Sizes) -> tuple[WgslKernel, tuple[Size, Size, Size]]:
    """Each thread makes quads of rows ``down`` quads apart, and quads of columns ``across`` quads
    apart, so that neighbours read neighbouring quads of workgroup memory."""
    tile = _tile(sizes)
    threads = tile.down * tile.across
    high, wide = tile.rows // 4, tile.columns // 4  # in quads
    pad = high + 1  # quads from one place of K to the next: no bank conflicts
    rows, columns = range(tile.m // 4), range(tile.n // 4)
    sums = [(i, j) for i in range(tile.m) for j in columns]
    zero = "\n".join(f"    var sum{i}_{j} = vec4<f32>(0.0);" for i, j in sums)
    reads = [f"var x{r}: vec4<f32>;" for r in rows] + [f"var w{j}: vec4<f32>;" for j in columns]
    steps = "\n".join(
        "".join(f"      x{r} = a_tile[{k * pad + r * tile.down}u + ty];\n" for r in rows)
        + "".join(f"      w{j} = b_tile[{k * wide + j * tile.across}u + tx];\n" for j in columns)
        + "\n".join(f"      sum{i}_{j} += x{i // 4}[{i % 4}] * w{j};" for i, j in sums)
        for k in range(TILE_K)
    )
    loads = "\n".join(
        [
            f"      {{ let q = lane + {at}u;"
            f" a_tile[(q % {TILE_K}u) * {pad}u + q / {TILE_K}u] ="
            f" a_quad(a_first, m0 + q / {TILE_K}u * 4u, k0 + q % {TILE_K}u, M, K); }}"
            for at in range(0, high * TILE_K, threads)
        ]
        + [
            f"      {{ let q = lane + {at}u;"
            f" b_tile[q] = b_quad(b_first, k0 + q / {wide}u, n0 + q % {wide}u * 4u, K, N); }}"
            for at in range(0, wide * TILE_K, threads)
        ]
    )
    a_rows = "\n".join(
        f"  if (m + {i}u < M) {{ quad[{i}] = b0[start + (m + {i}u) * K + k]; }}" for i in range(4)
    )
    b_columns = "\n".join(
        f"  if (n + {i}u < N) {{ quad[{i}] = b1[begin + n + {i}u]; }}" for i in range(4)
    )
    stores = "\n".join(
        f"    store_quad(y0, m0 + {4 * tile.down * (i // 4) + i % 4}u + 4u * ty,"
        f" n0 + {4 * tile.across * j}u + 4u * tx, M, N, sum{i}_{j});"
        for i, j in sums
    )
    body = f"""{_constants(sizes)}
  let tx = lane % {tile.across}u;
  let ty = lane / {tile.across}u;
  let wide = (N + {tile.columns - 1}u) / {tile.columns}u;
  let high = (M + {tile.rows - 1}u) / {tile.rows}u;
  let number = {text.GROUP};
  if (number >= wide * high * batches) {{ return; }}
  let n0 = number % wide * {tile.columns}u;
  let m0 = number / wide % high * {tile.rows}u;
  let batch = number / (wide * high);
{sizes.starts()}
{zero}
    {" ".join(reads)}
    for (var k0 = 0u; k0 < K; k0 += {TILE_K}u) {{
{loads}
      workgroupBarrier();
{steps}
      workgroupBarrier();
    }}
{stores}"""
    code = f"""var<workgroup> a_tile: array<vec4<f32>, {TILE_K * pad}>;
var<workgroup> b_tile: array<vec4<f32>, {TILE_K * wide}>;
fn a_quad(start: u32, m: u32, k: u32, M: u32, K: u32) -> vec4<f32> {{ // four rows; 0 outside
  var quad = vec4<f32>(0.0);
  if (k >= K) {{ return quad; }}
{a_rows}
  return quad;
}}
fn b_quad(start: u32, k: u32, n: u32, K: u32, N: u32) -> vec4<f32> {{ // four columns; 0 outside
  var quad = vec4<f32>(0.0);
  if (k >= K) {{ return quad; }}
  let begin = start + {sizes.rows.begin};
{b_columns}
  return quad;
}}
fn store_quad(y0: u32, m: u32, n: u32, M: u32, N: u32, quad: vec4<f32>) {{ // what is inside
  if (m >= M) {{ return; }}
  let at = y0 + m * N + n;
  if (n < N) {{ b2[at] = quad.x; }}
  if (n + 1u < N) {{ b2[at + 1u] = quad.y; }}
  if (n + 2u < N) {{ b2[at + 2u] = quad.z; }}
  if (n + 3u < N) {{ b2[at + 3u] = quad.w; }}
}}
"""
    tiles = (ceildiv(sizes.n, tile.columns), ceildiv(sizes.m, tile.rows), *sizes.batch)
    grid = text.fold_grid(product(tiles))
    return _bound("dot", code + text.entry(threads, body), sizes), grid


def _alone(sizes: _Sizes) -> tuple[WgslKernel, tuple[Size, Size, Size]]:
    """Places outside y are computed from its last row and column, and not stored."""
    zero = "\n".join(f"  var sum{i} = vec4<f32>(0.0);" for i in range(4))
    rows = "\n".join(f"    let row{i} = a_first + min(m + {i}u, M - 1u) * K;" for i in range(4))
    columns = "\n".join(f"    let at{i} = b_first + min(n + {i}u, N - 1u);" for i in range(4))
    step = "\n".join(
        [f"    begin = {sizes.rows.begin};"]
        + [f"    y = vec4<f32>({', '.join(f'b1[at{i} + begin]' for i in range(4))});"]
        + [f"    sum{i} += b0[row{i} + k] * y;" for i in range(4)]
        + ["    k++;"]
    )
    steps = "\n".join([step] * _STEPS)
    stores = "\n".join(map(_store, range(4)))
    body = f"""{_constants(sizes)}
  let across = (N + 3u) / 4u;
  let down = (M + 3u) / 4u;
  let place = {text.GROUP} * {_CPU_THREADS}u + lane;
  if (place >= across * down * batches) {{ return; }}
  let n = place % across * 4u;
  let m = place / across % down * 4u;
  let batch = place / (across * down);
{sizes.starts()}
{rows}
{columns}
{zero}
  var y: vec4<f32>;
  var begin: u32;
  var k = 0u;
  while (k + {_STEPS - 1}u < K) {{
{steps}
  }}
  while (k < K) {{
{step}
  }}
{stores}"""
    places = product((ceildiv(sizes.n, 4), ceildiv(sizes.m, 4), *sizes.batch))
    grid = text.fold_grid(ceildiv(places, _CPU_THREADS))
    return _bound("dot_cpu", text.entry(_CPU_THREADS, body), sizes), grid
