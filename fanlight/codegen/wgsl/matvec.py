"""Products by one row of x, with what surrounds them: y[column + n] = x · w[n] for rows n of w.

    gain      x is normed (RMS) first: x * gain multiplies w, the mean square is summed on the way,
              and the scale is applied to the sums at the end
    residual  is added to the result
    gated     pairs of products become silu(a) * b
    made      x is no buffer but what a function makes of one, e.g. of the splits of an attention

All threads of a workgroup go along the same few rows, so each quad of x is read once for all of
them, and their sums are added up at the end: by subgroup operations where the device has them.
Several weights take one dispatch where their planes can be bound together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fanlight.codegen.wgsl import blocks, maths, pieces, text, tiles
from fanlight.codegen.wgsl.link import MAX_STORAGE
from fanlight.codegen.wgsl.pieces import Piece, piece_of
from fanlight.dtypes import DType
from fanlight.kernels.launch import Binding, WgslKernel, WgslLaunch
from fanlight.kernels.target import Operand
from fanlight.shapes import Size, binary, ceildiv, maximum

RUN = 8  # quads of x; a piece's come in pairs that lie in one aligned run


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows of weights in one buffer for each plane, from its row ``base`` on, whose results begin
    at ``column``."""

    dtype: DType
    rows: Size
    column: int
    base: int
    buffers: tuple[str, ...]

    def followed_by(self, other: Segment) -> bool:
        """Whether the two are one: side by side in memory and in the result."""
        rows = self.rows if isinstance(self.rows, int) else -1
        here = (self.dtype, self.buffers, self.base + rows, self.column + rows)
        return here == (other.dtype, other.buffers, other.base, other.column)


@dataclass(frozen=True, slots=True)
class Made:
    """``code``: ``fn made(a: u32, b: u32) -> array<vec4<f32>, 2>``, the quads ``a`` and ``b`` of x
    from the vectors of b0, both in one aligned run of ``RUN``; ``sizes``: what it reads."""

    code: str
    sizes: tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """See the module's text. ``gain`` and ``residual`` are names of buffers."""

    gain: str = ""
    eps: float = 0.0
    residual: str = ""
    gated: bool = False
    made: Made | None = None

    @property
    def buffers(self) -> tuple[str, ...]:
        return tuple(name for name in (self.gain, self.residual) if name)


def segments(weights: Sequence[Operand], column: int = 0) -> list[Segment]:
    """The weights' parts, their results side by side from ``column`` on."""
    found: list[Segment] = []
    for w in weights:
        for part in w.parts:
            at = column + part.first
            segment = Segment(w.dtype, part.rows, at, part.base, part.buffers)
            if found and found[-1].followed_by(segment):
                last = found.pop()
                segment = replace(last, rows=binary("+", last.rows, segment.rows))
            found.append(segment)
        size = w.shape[0]
        column += size if isinstance(size, int) else 0  # only the last may be unknown
    return found


def bindings(segment: Segment, residual: bool) -> tuple[Binding, ...]:
    """Of a product that reads rows by quads: x, the residual, the planes, y."""
    return (
        Binding("array<vec4<f32>>", "read"),
        *(Binding("array<f32>", "read") for _ in range(residual)),
        *blocks.bindings(segment.dtype),
        Binding("array<f32>", "read_write"),
    )


def launches(
    x: str,
    weights: Sequence[Operand],
    output: str,
    around: Surroundings,
    subgroups: bool,
) -> list[WgslLaunch]:
    """As few launches as bindings allow. Gated: gate's weight, then up's, alike in their parts."""
    k = weights[0].shape[1]
    assert isinstance(k, int)
    found: list[list[Segment]]
    if around.gated:
        gate, up = (segments([w]) for w in weights)
        found = [list(pair) for pair in zip(gate, up, strict=True)]
    else:
        found = [[s] for s in segments(weights)]
    out: list[WgslLaunch] = []
    for together in _bindable(found, MAX_STORAGE - 2 - len(around.buffers) - bool(around.made)):
        kernel, grid = _kernel(together, k, around, subgroups)
        planes = [name for unit in together for s in unit for name in s.buffers]
        out.append(WgslLaunch(kernel, (x, *around.buffers, *planes, output), grid))
    return out


def _bindable(units: list[list[Segment]], most: int) -> list[list[list[Segment]]]:
    """``units`` in their order, cut where the planes would be more than ``most``."""
    out: list[list[list[Segment]]] = []
    held = most + 1
    for unit in units:
        planes = sum(len(s.buffers) for s in unit)
        if held + planes > most:
            out.append([])
            held = 0
        out[-1].append(unit)
        held += planes
    return out


def _kernel(
    units: list[list[Segment]], k: int, around: Surroundings, subgroups: bool
) -> tuple[WgslKernel, tuple[Size, Size, Size]]:
    tile = tiles.GATED if around.gated else tiles.COMBINING if around.made else tiles.PRODUCT
    flat = [s for unit in units for s in unit]
    found = [piece_of(s.dtype, tile.wide) for s in flat]
    total = sum(maximum(unit[0].rows) for unit in units)
    ways = len(units[0])
    memory_most = text.MAX_MEMORY * (4 if subgroups else 1)  # a subgroup of 4 or more takes a word
    threads, each = tile.share(total, max(k // p.step for p in found), ways, memory_most)
    count = each * ways + bool(around.gain)
    first = 1 + len(around.buffers)
    numbers = []
    for piece in found:
        numbers.append(first)
        first += len(piece.types)
    out = f"b{first}"
    memory, add_up, parts = text.sums(count, threads, subgroups)
    branches, begin = [], ""
    groups: Size = 0
    for index, unit in enumerate(units):
        loop = _loop(unit, found, index * ways, k, threads, each, tile.unroll, around)
        branches.append(
            f"""if (at < {text.size_u32(binary("+", groups, ceildiv(unit[0].rows, each)))}) {{
    first = (at - {text.size_u32(groups)}) * {each}u;
    rows = {text.size_u32(unit[0].rows)};
    column = {unit[0].column}u;
{loop}
  }}"""
        )
        groups = binary("+", groups, ceildiv(unit[0].rows, each))
    begin = "\n".join(f"  var sum{i} = 0.0;" for i in range(count))
    body = f"""  let at = {text.GROUP};
  if (at >= {text.size_u32(groups)}) {{ return; }}
  var first = 0u;
  var rows = 0u;
  var column = 0u;
{begin}
  {" else ".join(branches)}
{add_up}
  if (lane < {each}u && first + lane < rows) {{
{_finish(around, each, count, parts, k)}
    {out}[column + first + lane] = value;
  }}"""
    code = pieces.functions(list(zip(found, numbers, strict=True)), f"{k // 4}u", tile.bits)
    made = around.made or Made("", ())
    code = made.code + code + memory + text.entry(threads, body, subgroups)
    quads, floats = Binding("array<vec4<f32>>", "read"), Binding("array<f32>", "read")
    bound = [quads] + [quads] * bool(around.gain) + [floats] * bool(around.residual)
    bound += [b for piece in found for b in pieces.bindings(piece)]
    bound.append(Binding("array<f32>", "read_write"))
    kinds = "_".join(dict.fromkeys(str(s.dtype) for s in flat))
    kernel = text.kernel(
        f"{_label(around)}_{kinds}",
        maths.functions(code) + code,
        tuple(bound),
        (k, *(s.rows for s in flat), *made.sizes),
        ("subgroups",) if subgroups else (),
    )
    return kernel, text.fold_grid(groups)


def _label(around: Surroundings) -> str:
    if around.gated:
        return "swiglu"
    if around.made:
        return "combine_matvec_add"
    return "project" if around.gain else "matvec_add" if around.residual else "matvec"


def _loop(
    unit: list[Segment],
    found: list[Piece],
    number: int,
    k: int,
    threads: int,
    each: int,
    unroll: int,
    around: Surroundings,
) -> str:
    """Adds to the sums along ``each`` rows of the unit's weights, from ``first`` on."""
    piece = found[number]
    alike = all(p.at == piece.at for p in found[number : number + len(unit)])
    assert alike, "gate and up are of one dtype"
    spans = k // piece.step
    rows = unit[0].rows
    fits = isinstance(rows, int) and rows % each == 0

    def row(r: int, base: int) -> str:
        place = f"first + {r}u" if fits else f"min(first + {r}u, rows - 1u)"
        return f"{place} + {base}u" if base else place

    names = [f"x{i}" for i in range(len(piece.at))]
    if around.made:
        pairs = range(0, len(names), 2)
        loads = "\n".join(
            f"      let made{i} = made({piece.at[i]}, {piece.at[i : i + 2][-1]});" for i in pairs
        )
        names = [f"made{i & ~1}[{i & 1}]" for i in range(len(names))]
    else:
        loads = "\n".join(
            f"      let {x} = b0[{at}];" for x, at in zip(names, piece.at, strict=True)
        )
    squares = ""
    if around.gain:
        squares = " + ".join(f"dot({x}, {x})" for x in names)
        squares = f"      sum{each * len(unit)} += {squares};\n"
        names = [f"{x} * b1[{at}]" for x, at in zip(names, piece.at, strict=True)]
    products = "\n".join(
        f"      sum{i * each + r} += w{number + i}_dot({row(r, unit[i].base)}, s, x);"
        for r in range(each)
        for i in range(len(unit))
    )
    kind = f"array<vec4<f32>, {len(piece.at)}>"
    step = f"{loads}\n{squares}      let x = {kind}({', '.join(names)});\n{products}"
    whole, rest = divmod(spans, threads)
    if rest or (whole > unroll and whole % unroll):
        return f"    for (var s = lane; s < {spans}u; s += {threads}u) {{\n{step}\n    }}"
    if whole <= unroll:
        steps = (
            f"    {{\n      let s = lane + {i * threads}u;\n{step}\n    }}" for i in range(whole)
        )
        return "\n".join(steps)
    inner = "\n".join(
        f"    {{\n      let s = base + {i * threads}u;\n{step}\n    }}" for i in range(unroll)
    )
    stride = threads * unroll
    return f"    for (var base = lane; base < {spans}u; base += {stride}u) {{\n{inner}\n    }}"


def _finish(around: Surroundings, each: int, count: int, parts: str, k: int) -> str:
    """``value`` of the row ``first + lane`` from the sums."""
    lines, scaled = [f"    let parts = {parts};"], ""
    if around.gain:
        mean = f"total({count - 1}u, parts) / {k}.0"
        lines.append(f"    let scale = 1.0 / sqrt({mean} + {text.literal(around.eps, 'f32')});")
        scaled = " * scale"
    lines.append(f"    let sum = total(lane, parts){scaled};")
    if around.gated:
        lines.append(f"    let value = fl_silu(sum) * (total({each}u + lane, parts){scaled});")
    elif around.residual:
        at = "b2" if around.gain else "b1"
        lines.append(f"    let value = {at}[column + first + lane] + sum;")
    else:
        lines.append("    let value = sum;")
    return "\n".join(lines)
