"""y = x @ w.T: x f32 [..., K], w [N, K] of any stored dtype, y f32 [..., N]; sums in f32.

One row of x: each thread streams its rows of w once; blocks that ``dots.py`` knows are multiplied
with x rounded to int16, four rows at a time, others dequantised in registers. More rows: panels of
up to four rows of w are dequantised into the thread's scratch and multiplied with two rows of x at
a time. Threads share out rows of w, so that every output is summed in one order, at any number of
threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from fanlight import plan as plans
from fanlight.codegen.wasm import blocks, dots
from fanlight.codegen.wasm.dots import DOTS, Dot
from fanlight.codegen.wasm.encoder import Function
from fanlight.codegen.wasm.values import Local, Value, Writer, i32, op
from fanlight.kernels.launch import Launch, WasmKernel, WasmLaunch
from fanlight.kernels.target import Context, Operand
from fanlight.shapes import Dim, product

# Measured with bench/wasm_kernels.py (V8): tiles of 4 weights x 3 rows spill registers and reach
# 3/4 of the speed of 4 x 2, and so does unrolling the inner loop; 3 x 3 is as fast as 4 x 2.
_PANEL, _ROWS = 4, 2


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """One launch for each part of w. Raises UnsupportedError for dtypes without code."""
    x, w = inputs
    rows, n, k = product(x.shape[:-1]), w.shape[0], w.shape[1]
    row = blocks.row_of(w.dtype, "matmul", k)
    assert isinstance(k, int) and isinstance(n, int)
    relaxed = "relaxed-simd" in context.features
    dot = DOTS.get(w.dtype.name)
    threads = Dim(plans.THREADS, "host", context.max_threads)
    launches: list[Launch] = []
    for part in w.parts:
        assert isinstance(part.rows, int)
        shape = _Shape(row, part.rows, k, n, part.first, relaxed)
        tag = f"{w.dtype}_{part.rows}x{k}_{n}_{part.first}{'_relaxed' if relaxed else ''}"
        buffers = (x.buffer, part.buffers[0], output.buffer)
        if rows != 1:
            each = shape.panel * k * 4
            scratch = context.scratch(threads * each)
            kernel = WasmKernel(f"matmul_{tag}", 4, 1, shape.tiled, (2,), each)
            launches.append(WasmLaunch(kernel, (*buffers, scratch), (rows,)))
        elif dot is not None:
            each = k // dots.GROUP * dots.BYTES
            scratch = context.scratch(threads * each)
            kernel = WasmKernel(f"matvec_{tag}", 4, 0, partial(shape.dots, dot), (2,), each)
            launches.append(WasmLaunch(kernel, (*buffers, scratch)))
        else:
            kernel = WasmKernel(f"matvec_{tag}", 3, 0, shape.vector, (2,))
            launches.append(WasmLaunch(kernel, buffers))
    return launches


class _Shape:
    """Writes the kernels of one shape. ``first``: column of y where the part's rows go."""

    def __init__(
        self, row: blocks.Row, part: int, k: int, n: int, first: int, relaxed: bool
    ) -> None:
        self.row, self.part, self.k, self.n, self.first = row, part, k, n, first
        self.relaxed = relaxed
        self.panel = min(_PANEL, part)
        self.stride = k // row.step * row.bytes  # bytes of a row of w

    def vector(self, function: Function) -> None:
        w = Writer(function)
        x, weights, y, tid, threads = w.params
        begin, end = blocks.share(w, i32(self.part), tid, threads)
        sums = [w.local("v128") for _ in range(4)]
        at, row_end, xs = w.local("i32"), w.local("i32"), w.local("i32")
        w.set(at, weights + begin * self.stride)
        with w.for_range(begin, end) as n:
            for total in sums:
                w.set(total, blocks.zero())
            w.set(xs, x)
            w.set(row_end, at + self.stride)
            with w.while_(at < row_end):

                def sink(k: int, value: Value) -> None:
                    total = sums[(k // 4) % 4]
                    factor = op("v128.load", xs, offset=4 * k, align=4)
                    w.set(total, blocks.multiply_add(self.relaxed, value, factor, total))

                self.row.dequantise(w, at, sink)
                w.set(at, at + self.row.bytes)
                w.set(xs, xs + 4 * self.row.step)
            pairs = [op("f32x4.add", sums[i], sums[i + 2]) for i in (0, 1)]
            total_all = blocks.add_lanes(w, op("f32x4.add", *pairs))
            w.do("f32.store", y + (n << 2), total_all, offset=4 * self.first)

    def dots(self, dot: Dot, function: Function) -> None:
        """Each thread prepares x for itself, then takes groups of rows. The rows of a group lie
        far from each other, so that memory is read as four streams: processors fetch each ahead."""
        w = Writer(function)
        x, weights, y, scratch, tid, threads = w.params
        groups, count = self.row.step // dots.GROUP, -(-self.part // dots.ROWS)
        begin, end = blocks.share(w, i32(count), tid, threads)
        w.return_if(op("i32.ge_s", begin, end))
        mine = w.let(scratch + tid * (self.k // dots.GROUP * dots.BYTES))
        xs, to, x_end = w.let(x), w.let(mine), w.let(x + 4 * self.k)
        with w.while_(xs < x_end):
            dot.prepare(w, xs, to)
            w.set(xs, xs + 4 * dots.GROUP)
            w.set(to, to + dots.BYTES)
        total, row_end = w.local("v128"), w.local("i32")
        # The last streams overlap where rows are no multiple of four: the same sums again.
        firsts = [min(r * count, self.part - count) for r in range(dots.ROWS)]
        rows = [first * self.stride for first in firsts]
        at = w.let(weights + begin * self.stride)
        with w.for_range(begin, end) as n:
            w.set(row_end, at + self.stride)
            w.set(xs, mine)
            w.set(total, blocks.zero())
            with w.while_(at < row_end):
                dot.add(w, at, rows, xs, total, self.relaxed)
                w.set(at, at + self.row.bytes)
                w.set(xs, xs + groups * dots.BYTES)
            to_y = w.let(y + (n << 2))
            for lane, first in enumerate(firsts):
                offset = 4 * (self.first + first)
                w.do("v128.store32_lane", to_y, total, offset=offset, align=4, lane=lane)

    def _first_row(self, w: Writer, number: Value, wide: int) -> Local:
        """Of group ``number`` of ``wide`` rows. The last group overlaps the one before: the same
        sums again."""
        n = w.let(number * wide)
        with w.if_(op("i32.gt_s", n, self.part - wide)):
            w.set(n, self.part - wide)
        return n

    def tiled(self, function: Function) -> None:
        w = Writer(function)
        x, weights, y, scratch, rows, tid, threads = w.params
        panels = -(-self.part // self.panel)
        begin, end = blocks.share(w, i32(panels), tid, threads)
        mine = w.let(scratch + tid * (self.panel * self.k * 4))
        with w.for_range(begin, end) as number:
            n = self._first_row(w, number, self.panel)
            self._dequantise(w, weights + n * self.stride, mine)
            out = w.let(y + ((n + self.first) << 2))
            m = w.local("i32")
            w.set(m, 0)
            last = w.let(rows - (_ROWS - 1))
            with w.while_(m < last):
                self._tile(w, x, mine, out, m, _ROWS)
                w.set(m, m + _ROWS)
            with w.while_(m < rows):
                self._tile(w, x, mine, out, m, 1)
                w.set(m, m + 1)

    def _dequantise(self, w: Writer, source: Value, target: Local) -> None:
        """The panel's rows, one after the other, as f32."""
        at, to = w.let(source), w.let(target)
        end = w.let(target + self.panel * self.k * 4)
        with w.while_(to < end):

            def sink(k: int, value: Value) -> None:
                w.do("v128.store", to, value, offset=4 * k, align=4)

            self.row.dequantise(w, at, sink)
            w.set(at, at + self.row.bytes)
            w.set(to, to + 4 * self.row.step)

    def _tile(self, w: Writer, x: Local, panel: Local, out: Local, m: Local, rows: int) -> None:
        """``rows`` rows of x times the panel, in dot form: four partial sums for each output."""
        wide = self.k * 4
        xs = w.let(x + m * wide)
        ws, end = w.let(panel), w.let(panel + wide)
        sums = [[w.let(blocks.zero()) for _ in range(self.panel)] for _ in range(rows)]
        with w.while_(ws < end):
            values = [op("v128.load", xs, offset=r * wide, align=4) for r in range(rows)]
            factors = [w.let(v) for v in values]
            for c in range(self.panel):
                weight = w.let(op("v128.load", ws, offset=c * wide, align=4))
                for r in range(rows):
                    total = sums[r][c]
                    w.set(total, blocks.multiply_add(self.relaxed, factors[r], weight, total))
            w.set(xs, xs + 16)
            w.set(ws, ws + 16)
        for r in range(rows):
            to = w.let(out + (m + r) * (self.n * 4))
            for c in range(self.panel):
                w.do("f32.store", to, blocks.add_lanes(w, sums[r][c]), offset=4 * c)
