"""rms_norm: x f32 [..., K], weight f32 [K] → x / sqrt(mean(x²) + eps) · weight. K is a multiple of
4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight.codegen.wasm import blocks
from fanlight.codegen.wasm.encoder import Function
from fanlight.codegen.wasm.values import Local, Value, Writer, f32, i32, op
from fanlight.errors import UnsupportedError
from fanlight.kernels.launch import Launch, WasmKernel, WasmLaunch
from fanlight.kernels.target import Context, Operand
from fanlight.shapes import product


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """Raises UnsupportedError where K isn't a multiple of 4."""
    x, weight = inputs
    k, eps = x.shape[-1], attrs["eps"]
    if not isinstance(k, int) or k % 4:
        raise UnsupportedError("rows must be multiples of 4", where="rms_norm", got=k)

    def emit(function: Function) -> None:
        _write(Writer(function), k, eps)

    kernel = WasmKernel(f"rms_norm_{k}_{eps.hex()}", 3, 1, emit, (2,), elements=lambda a: a[0] * k)
    buffers = (x.buffer, weight.buffer, output.buffer)
    return [WasmLaunch(kernel, buffers, (product(x.shape[:-1]),))]


def _write(w: Writer, k: int, eps: float) -> None:
    """Threads share out the rows; a single row is the work of one thread."""
    x, weight, out, rows, tid, threads = w.params
    begin, end = blocks.share(w, rows, tid, threads)
    with w.for_range(begin, end) as m:
        at = w.let(x + m * (4 * k))
        to = w.let(out + m * (4 * k))
        mean = op("f32.div", _sum_of_squares(w, at, k), f32(float(k)))
        root = op("f32.sqrt", op("f32.add", mean, f32(eps)))
        factor = w.let(op("f32x4.splat", op("f32.div", f32(1.0), root)))
        with w.for_range(i32(0), 4 * k, 16) as i:
            value = op("f32x4.mul", op("v128.load", at + i, align=4), factor)
            scaled = op("f32x4.mul", value, op("v128.load", weight + i, align=4))
            w.do("v128.store", to + i, scaled, align=4)


def _sum_of_squares(w: Writer, at: Local, k: int) -> Value:
    total = w.let(blocks.zero())
    with w.for_range(i32(0), 4 * k, 16) as i:
        value = w.let(op("v128.load", at + i, align=4))
        w.set(total, op("f32x4.add", total, op("f32x4.mul", value, value)))
    return blocks.add_lanes(w, total)
