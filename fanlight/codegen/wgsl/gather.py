"""Rows of a stored table [N, ...] by i32 ids → f32 [..., ...] (or the table's own 32-bit integers).

One invocation writes four elements. A table in several parts takes one dispatch for each, which writes
the rows that it has. Ids outside the table are clamped into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight.codegen.wgsl import blocks, text
from fanlight.errors import UnsupportedError
from fanlight.kernels.launch import Binding, Launch, WgslLaunch
from fanlight.kernels.target import Context, Operand
from fanlight.shapes import Size, binary, ceildiv, product

THREADS = 64


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """One launch for each part of the table. Raises UnsupportedError for narrow integers."""
    table, ids = inputs
    width = product(table.shape[1:])
    plain = table.dtype.name in ("f32", "i32", "u32")
    aligned = isinstance(width, int) and width % 4 == 0
    if not plain and not (aligned and table.dtype.name in blocks.ROWS):
        raise UnsupportedError(
            "no gather from such a table", where="gather", got=f"{table.dtype}, rows of {width}"
        )
    whole = aligned and table.dtype.name in blocks.ROWS
    items = binary("//", width, 4) if whole else width
    launches: list[Launch] = []
    for part in table.parts:
        if whole:
            bindings = blocks.bindings(table.dtype)
            read = blocks.reader(table.dtype, "table", 1, text.size_u32(items))
            value, kind = "table_quad(row, item)", "array<vec4<f32>>"
        else:
            bindings = (Binding("array<u32>", "read"),)
            read, value, kind = "", f"b1[row * {text.size_u32(items)} + item]", "array<u32>"
        out = 1 + len(bindings)
        body = _body(table.shape[0], ids, items, part.first, part.rows, f"b{out}[at] = {value};")
        kernel = text.kernel(
            f"gather_{table.dtype}",
            read + text.entry(THREADS, body),
            (Binding("array<i32>", "read"), *bindings, Binding(kind, "read_write")),
            (table.shape[0], product(ids.shape), items, part.rows),
        )
        total = binary("*", product(ids.shape), items)
        grid = text.fold_grid(ceildiv(total, THREADS))
        launches.append(WgslLaunch(kernel, (ids.buffer, *part.buffers, output.buffer), grid))
    return launches


def _body(n: Size, ids: Operand, items: Size, first: int, rows: Size, store: str) -> str:
    return f"""  let at = {text.GROUP} * {THREADS}u + lane;
  let items = {text.size_u32(items)};
  if (at >= {text.size_u32(product(ids.shape))} * items) {{ return; }}
  let item = at % items;
  let id = u32(clamp(b0[at / items], 0, {text.size_i32(n)} - 1));
  if (id < {first}u || id - {first}u >= {text.size_u32(rows)}) {{ return; }}
  let row = id - {first}u;
  {store}"""
