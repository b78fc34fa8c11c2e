"""c = (a - za) @ (b - zb): a u8 or i8 [..., M, K], b u8 or i8 [K, N], c i32 [..., M, N], exact.

Differences fit 16 bits, of which one instruction multiplies eight pairs and adds neighbours up.
Work is shared out as blocks of rows by panels of 16 columns. Both are copied to the thread's
scratch as differences, ``_DEPTH`` places of K at a time: rows of a as they are, once for all panels
of their block; two rows of b with their elements side by side. Sizes are arguments: one kernel
serves all shapes. ``dot_shifted`` is the same but for where a row of b begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight import plan as plans
from fanlight.codegen.wasm import blocks
from fanlight.codegen.wasm.encoder import Function
from fanlight.codegen.wasm.values import Local, Value, Writer, i32, i32x4, op, select, shuffle
from fanlight.ir.graph import Node
from fanlight.kernels.launch import Launch, WasmKernel, WasmLaunch
from fanlight.kernels.target import Context, Operand
from fanlight.shapes import Dim, Size, product

_TALL, _WIDE = 3, 16  # rows and columns of a tile: 12 sums and 4 columns stay in registers of x86
_BLOCK, _DEPTH = 128, 256
_VECTORS = _WIDE // 4
_PANEL = _DEPTH * _WIDE * 2  # bytes
_ROWS = _BLOCK * _DEPTH * 2
_STAGING = _BLOCK * _WIDE * 4
_SCRATCH = _PANEL + _ROWS + _STAGING + 64


def fits(node: Node) -> bool:
    """One matrix b for all rows."""
    return len(node.inputs[1].shape) == 2


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """One launch. Inputs: a, b, za (one i32), zb (one i32, or N)."""
    n = inputs[1].shape[1]
    each = inputs[3].shape != (1,)
    return [_launch(inputs, output, context, each, (n, 1, 1, 0, 0))]


def rule_shifted(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """One launch. Inputs: a, b, za, zb (one i32 each)."""
    length = inputs[1].shape[1]
    shifts = (length, attrs["taps"], attrs["across"], attrs["down"], attrs["right"])
    return [_launch(inputs, output, context, False, shifts)]


def _launch(
    inputs: list[Operand],
    output: Operand,
    context: Context,
    each: bool,
    shifts: tuple[Size, Size, Size, Size, Size],
) -> WasmLaunch:
    """``shifts``: elements from channel to channel of b, taps of a channel, and where they are."""
    a, b, za, zb = inputs
    signed = a.dtype.name == "i8", b.dtype.name == "i8"
    name = f"dot_{a.dtype}_{b.dtype}{'_each' if each else ''}"
    kernel = WasmKernel(name, 6, 8, _Kernel(*signed, each).emit, (4,), _SCRATCH)
    threads = Dim(plans.THREADS, "host", context.max_threads)
    scratch = context.scratch(threads * _SCRATCH)
    buffers = (a.buffer, b.buffer, za.buffer, zb.buffer, output.buffer, scratch)
    sizes = (product(a.shape[:-1]), a.shape[-1], output.shape[-1])
    return WasmLaunch(kernel, buffers, (*sizes, *shifts))


class _Kernel:
    """Writes one kernel."""

    def __init__(self, a_signed: bool, b_signed: bool, each: bool) -> None:
        self.a_sign, self.b_sign = ("s" if signed else "u" for signed in (a_signed, b_signed))
        self.each = each

    def emit(self, function: Function) -> None:
        w = self.w = Writer(function)
        a, b, za, zb, c, scratch, self.m, self.k, self.n, *shifts, tid, threads = w.params
        self.length, self.taps, self.across, self.down, self.right = shifts
        self.lines = w.let(op("i32.div_u", self.taps, self.across))
        self.at_line, self.at_place = w.local("i32"), w.local("i32")  # the tap of a row of b
        panels = w.let(op("i32.div_u", self.n + (_WIDE - 1), _WIDE))
        groups = w.let(op("i32.div_u", self.m + (_BLOCK - 1), _BLOCK))
        begin, end = blocks.share(w, w.let(panels * groups), tid, threads)
        self.panel = w.let(scratch + tid * _SCRATCH)
        self.rows = w.let(self.panel + _PANEL)
        self.staging = w.let(self.rows + _ROWS)
        self.line = w.let(self.staging + _STAGING)  # 16 bytes of a row, then 16 zero points
        self.zero = w.let(op("i32.load", za))
        self.zeros = w.let(op("i16x8.splat", self.zero))
        number = w.let(begin)
        with w.while_(number < end):
            first = w.let(op("i32.div_u", number, panels) * _BLOCK)
            panel = w.let(op("i32.rem_u", number, panels))
            many = w.let(_least(panels - panel, end - number, w))
            self._block(a, b, zb, c, first, panel, many)
            w.set(number, number + many)

    def _block(
        self, a: Local, b: Local, zb: Local, c: Local, first: Local, panel: Local, many: Local
    ) -> None:
        """``many`` panels, from ``panel``, of up to ``_BLOCK`` rows, from ``first``."""
        w, start = self.w, self.w.local("i32")
        rows = w.let(_least(self.m - first, _BLOCK, w))
        w.set(start, 0)
        with w.function.loop() as again:
            depth = w.let(_least(self.k - start, _DEPTH, w))
            self._pack_a(w.let(a + first * self.k + start), depth, rows)
            with w.for_range(i32(0), many) as number:
                column = w.let((panel + number) * _WIDE)
                wide = w.let(_least(self.n - column, _WIDE, w))
                partial = w.let(op("i32.lt_s", wide, _WIDE))
                self._points(zb, column, wide)
                place = w.let(c + ((first * self.n + column) << 2))
                out = w.let(select(partial, self.staging, place))
                stride = w.let(select(partial, i32(4 * _WIDE), self.n << 2))
                self._pack_b(w.let(b + column), start, depth, wide, partial)
                self._tiles(out, stride, rows, depth, start)
                done = op("i32.ge_s", start + depth, self.k)
                with w.if_(partial & done):  # the last panel, so that its sums stay until then
                    self._copy_out(place, rows, wide)
            w.set(start, start + _DEPTH)
            w.br_if(again, start < self.k)

    def _points(self, zb: Local, column: Local, wide: Local) -> None:
        """The zero points of the panel's columns, 16 bits each."""
        w = self.w
        self.points = [w.local("v128") for _ in range(2)]
        if not self.each:
            for local in self.points:
                w.set(local, op("i16x8.splat", op("i32.load", zb)))
            return
        source = w.let(zb + (column << 2))
        with w.for_range(i32(0), wide) as i:
            w.do("i32.store16", self.line + (i << 1), op("i32.load", source + (i << 2)), offset=16)
        for number, local in enumerate(self.points):
            w.set(local, op("v128.load", self.line, offset=16 + 16 * number, align=1))

    def _row(self, source: Local, wide: Local, partial: Local) -> list[Local]:
        """16 elements of a row of b, less their zero points, in two vectors. Columns that there are
        not hold anything."""
        w, held = self.w, self.w.local("v128")
        with w.if_(partial):
            with w.for_range(i32(0), wide) as i:
                w.do("i32.store8", self.line + i, op("i32.load8_u", source + i))
            w.set(held, op("v128.load", self.line, align=1))
        with w.if_(op("i32.eqz", partial)):
            w.set(held, op("v128.load", source, align=1))
        halves = (op(f"i16x8.extend_{half}_i8x16_{self.b_sign}", held) for half in ("low", "high"))
        return [w.let(op("i16x8.sub", x, z)) for x, z in zip(halves, self.points, strict=True)]

    def _seek(self, source: Local, number: Local) -> None:
        """Moves ``source`` from row 0 of b to row ``number``."""
        w = self.w
        channel = w.let(op("i32.div_u", number, self.taps))
        tap = w.let(number - channel * self.taps)
        w.set(self.at_line, op("i32.div_u", tap, self.across))
        w.set(self.at_place, tap - self.at_line * self.across)
        shift = self.at_line * self.down + self.at_place * self.right
        w.set(source, source + channel * self.length + shift)

    def _next(self, source: Local) -> None:
        """Moves ``source`` on to the next tap, line of taps, or channel."""
        w = self.w
        w.set(source, source + self.right)
        w.set(self.at_place, self.at_place + 1)
        with w.if_(op("i32.eq", self.at_place, self.across)):
            w.set(self.at_place, 0)
            w.set(self.at_line, self.at_line + 1)
            w.set(source, source + self.down - self.across * self.right)
            with w.if_(op("i32.eq", self.at_line, self.lines)):
                w.set(self.at_line, 0)
                w.set(source, source + self.length - self.lines * self.down)

    def _pack_b(
        self, source: Local, start: Local, depth: Local, wide: Local, partial: Local
    ) -> None:
        w, to, left = self.w, self.w.let(self.panel), self.w.let(depth)
        self._seek(source, start)
        with w.while_(op("i32.gt_s", left, 0)):
            one = self._row(source, wide, partial)
            self._next(source)
            other = [w.local("v128") for _ in range(2)]
            for local in other:
                w.set(local, i32x4(0, 0, 0, 0))
            with w.if_(op("i32.gt_s", left, 1)):
                following = self._row(source, wide, partial)
                self._next(source)
                for local, value in zip(other, following, strict=True):
                    w.set(local, value)
            for v in range(_VECTORS):
                lanes = [x for i in range(4) for x in _pair(4 * (v % 2) + i)]
                pairs = shuffle(one[v // 2], other[v // 2], *lanes)
                w.do("v128.store", to, pairs, offset=16 * v, align=1)
            w.set(to, to + 16 * _VECTORS)
            w.set(left, left - 2)

    def _pack_a(self, source: Local, depth: Local, rows: Local) -> None:
        """Where the depth is odd, one more element, which is 0."""
        w, to, load = self.w, self.w.let(self.rows), f"i32.load8_{self.a_sign}"
        with w.for_range(i32(0), rows):
            i = w.let(i32(0))
            with w.while_(op("i32.le_s", i + 16, depth)):
                held = w.let(op("v128.load", source + i, align=1))
                for number, half in enumerate(("low", "high")):
                    wide = op(f"i16x8.extend_{half}_i8x16_{self.a_sign}", held)
                    less = op("i16x8.sub", wide, self.zeros)
                    w.do("v128.store", to + (i << 1), less, offset=16 * number, align=1)
                w.set(i, i + 16)
            with w.while_(i < depth):
                w.do("i32.store16", to + (i << 1), op(load, source + i) - self.zero)
                w.set(i, i + 1)
            with w.if_(depth & 1):
                w.do("i32.store16", to + (depth << 1), i32(0))
            w.set(source, source + self.k)
            w.set(to, to + 2 * _DEPTH)

    def _tiles(self, out: Local, stride: Local, rows: Local, depth: Local, start: Local) -> None:
        w = self.w
        row = w.let(i32(0))
        last = w.let(rows - (_TALL - 1))
        for tall, until in ((_TALL, last), (1, rows)):
            with w.while_(row < until):
                at = w.let(self.rows + row * (2 * _DEPTH))
                self._tile(at, w.let(out + row * stride), stride, tall, depth, start)
                w.set(row, row + tall)

    def _tile(
        self, at: Local, place: Local, stride: Local, tall: int, depth: Local, start: Local
    ) -> None:
        w = self.w
        out = [place]
        for _ in range(tall - 1):
            out.append(w.let(out[-1] + stride))
        sums = [[w.let(i32x4(0, 0, 0, 0)) for _ in range(_VECTORS)] for _ in range(tall)]
        with w.if_(start):
            for r in range(tall):
                for v in range(_VECTORS):
                    w.set(sums[r][v], op("v128.load", out[r], offset=16 * v, align=1))
        b = w.let(self.panel)
        end = w.let(b + ((depth + 1) >> 1) * (16 * _VECTORS))
        with w.while_(op("i32.lt_u", b, end)):
            pairs = [w.let(op("v128.load", b, offset=16 * v, align=1)) for v in range(_VECTORS)]
            for r in range(tall):
                factor = w.let(op("v128.load32_splat", at, offset=2 * _DEPTH * r, align=1))
                for v in range(_VECTORS):
                    product_ = op("i32x4.dot_i16x8_s", factor, pairs[v])
                    w.set(sums[r][v], op("i32x4.add", sums[r][v], product_))
            w.set(b, b + 16 * _VECTORS)
            w.set(at, at + 4)
        for r in range(tall):
            for v in range(_VECTORS):
                w.do("v128.store", out[r], sums[r][v], offset=16 * v, align=1)

    def _copy_out(self, place: Local, rows: Local, wide: Local) -> None:
        """From the staging rows to the columns that there are."""
        w, source = self.w, self.w.let(self.staging)
        with w.for_range(i32(0), rows):
            with w.for_range(i32(0), wide) as i:
                w.do("i32.store", place + (i << 2), op("i32.load", source + (i << 2)))
            w.set(source, source + 4 * _WIDE)
            w.set(place, place + (self.n << 2))


def _pair(column: int) -> tuple[int, ...]:
    """Bytes of a column's element in one vector of 16-bit lanes, then in the other."""
    at = 2 * column
    return at, at + 1, 16 + at, 17 + at


def _least(value: Value, limit: int | Value, w: Writer) -> Value:
    kept = w.let(value)
    limit = limit if isinstance(limit, int) else w.let(limit)
    return select(kept < limit, kept, limit)
