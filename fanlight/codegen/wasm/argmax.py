"""argmax of rows: f32 [..., N] → i32 [...]; the lowest index of equals. A row without a number
gives 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight.codegen.wasm import blocks
from fanlight.codegen.wasm.encoder import Function
from fanlight.codegen.wasm.values import Writer, f32, i32, op
from fanlight.errors import UnsupportedError
from fanlight.kernels.launch import Launch, WasmKernel, WasmLaunch
from fanlight.kernels.target import Context, Operand
from fanlight.shapes import product


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """Raises UnsupportedError for other dtypes."""
    (x,) = inputs
    if x.dtype.name != "f32":
        raise UnsupportedError("f32 only; cast it first", where="argmax", got=x.dtype)
    kernel = WasmKernel("argmax", 2, 2, _emit, (1,))
    args = (product(x.shape[:-1]), x.shape[-1])
    return [WasmLaunch(kernel, (x.buffer, output.buffer), args)]


def _emit(function: Function) -> None:
    """Threads share out the rows."""
    w = Writer(function)
    x, out, rows, n, tid, threads = w.params
    begin, end = blocks.share(w, rows, tid, threads)
    value, best, found = w.local("f32"), w.local("f32"), w.local("i32")
    with w.for_range(begin, end) as m:
        at = w.let(x + (m * n << 2))
        w.set(best, f32(float("-inf")))
        w.set(found, 0)
        with w.for_range(i32(0), n) as i:
            w.set(value, op("f32.load", at + (i << 2)))
            with w.if_(op("f32.gt", value, best)):
                w.set(best, value)
                w.set(found, i)
        w.do("i32.store", out + (m << 2), found)
