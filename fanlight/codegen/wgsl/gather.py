"""Rows of a stored table [N, ...] by i32 ids → [*ids, ...]: f32, or the table's own integers.

One invocation writes four elements. A table in several parts takes one dispatch for each, which
writes the rows that it has. Plain tables whose rows are no multiple of 4 take the loop form. Ids
outside the table are clamped into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight.codegen.wgsl import blocks, text
from fanlight.codegen.wgsl import loops as wgsl_loops
from fanlight.errors import UnsupportedError
from fanlight.kernels import loops
from fanlight.kernels.launch import Binding, Launch, WgslLaunch
from fanlight.kernels.loops import apply, extent, integer
from fanlight.kernels.target import CPU, Context, Operand, Part
from fanlight.shapes import Size, binary, ceildiv, maximum, product

THREADS = 64


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """One launch for each part of the table. Raises UnsupportedError for a plain table in several
    parts whose rows are no multiple of 4, and for dtypes that neither form reads."""
    table, ids = inputs
    width = product(table.shape[1:])
    if isinstance(width, int) and width % 4 == 0 and table.dtype.name in blocks.ROWS:
        cpu = CPU in context.features and maximum(product(ids.shape)) <= text.MAX_GROUPS
        return [_quads(table, part, ids, output, width // 4, cpu) for part in table.parts]
    if table.dtype.name not in loops.SCALAR or len(table.parts) != 1:
        got = f"{table.dtype}, rows of {width}, {len(table.parts)} parts"
        raise UnsupportedError("no gather from such a table", where="gather", got=got)
    return [_loop(table, ids, output, width)]


def _loop(table: Operand, ids: Operand, output: Operand, width: Size) -> Launch:
    last = apply("sub", extent(table.shape[0]), integer(1))
    id_ = loops.Load(0, loops.Axis(0), "i32")
    row = apply("max", apply("min", id_, last), integer(0))
    at = apply("add", apply("mul", row, extent(width)), loops.Axis(1) if width != 1 else integer(0))
    value = loops.Load(1, at, loops.SCALAR[table.dtype.name])
    shape = (product(ids.shape), width)
    kernel = loops.LoopKernel("gather", shape, (ids.dtype, table.dtype), output.dtype, value)
    return wgsl_loops.launch(kernel, (ids.buffer, table.buffer, output.buffer))


def _quads(
    table: Operand, part: Part, ids: Operand, output: Operand, quads: int, cpu: bool
) -> Launch:
    """``quads``: groups of four elements in a row."""
    planes = blocks.bindings(table.dtype, len(part.buffers))
    rows = product(ids.shape)
    first = f"""  let at = {text.GROUP} * {THREADS}u + lane;
  if (at >= {text.size_u32(rows)} * {quads}u) {{ return; }}"""
    grid = text.fold_grid(ceildiv(binary("*", rows, quads), THREADS))
    sizes: tuple[Size, ...] = (table.shape[0], rows, part.rows)
    if cpu:
        first, grid = text.rowwise(rows, quads, THREADS)
        sizes = (table.shape[0], part.rows)
    body = f"""{first}
  let id = u32(clamp(b0[at / {quads}u], 0, {text.size_i32(table.shape[0])} - 1));
  if (id < {part.first}u || id - {part.first}u >= {text.size_u32(part.rows)}) {{ return; }}
  b{1 + len(planes)}[at] = table_quad(id - {part.first}u + {part.base}u, at % {quads}u);"""
    kernel = text.kernel(
        f"gather_{table.dtype}",
        blocks.reader(table.dtype, "table", 1, f"{quads}u", len(planes))
        + text.entry(THREADS, body),
        (Binding("array<i32>", "read"), *planes, Binding("array<vec4<f32>>", "read_write")),
        sizes,
    )
    return WgslLaunch(kernel, (ids.buffer, *part.buffers, output.buffer), grid)
