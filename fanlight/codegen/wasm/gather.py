"""Rows of a stored table [N, K] by i32 ids [M] → f32 [M, K]. Ids outside the table take its nearest
row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight.codegen.wasm import blocks
from fanlight.codegen.wasm.encoder import Function
from fanlight.codegen.wasm.values import Value, Writer, i32, op, select
from fanlight.kernels.launch import Launch, WasmKernel, WasmLaunch
from fanlight.kernels.target import Context, Operand
from fanlight.shapes import product


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """Raises UnsupportedError for dtypes without code."""
    table, ids = inputs
    (part,) = table.parts
    n, k = table.shape[0], product(table.shape[1:])
    row = blocks.row_of(table.dtype, "gather", k)
    assert isinstance(k, int) and isinstance(n, int)

    def emit(function: Function) -> None:
        _write(Writer(function), row, n, k)

    name = f"gather_{table.dtype}_{n}x{k}"
    kernel = WasmKernel(name, 3, 1, emit, (2,), elements=lambda a: a[0] * k)
    buffers = (part.buffers[0], ids.buffer, output.buffer)
    return [WasmLaunch(kernel, buffers, (product(ids.shape),))]


def _write(w: Writer, row: blocks.Row, n: int, k: int) -> None:
    table, ids, out, rows, tid, threads = w.params
    steps = k // row.step
    begin, end = blocks.share(w, rows * steps, tid, threads)
    with w.for_range(begin, end) as unit:
        m = w.let(op("i32.div_u", unit, i32(steps)))
        found = w.let(op("i32.load", ids + (m << 2)))
        w.set(found, select(found < 0, i32(0), found))
        w.set(found, select(found < n, found, n - 1))
        block = unit - m * steps
        at = w.let(table + (found * steps + block) * row.bytes)
        to = w.let(out + unit * (4 * row.step))

        def sink(k: int, value: Value) -> None:
            w.do("v128.store", to, value, offset=4 * k, align=4)

        row.dequantise(w, at, sink)
