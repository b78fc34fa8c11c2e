"""c = a @ b: a f32 [..., M, K], b [..., K, N], c f32 [..., M, N], as numpy.matmul broadcasts. b may
be narrower than f32, have a zero point, lie turned, [..., N, K], or be made of shifted rows.

Work is shared out as blocks of rows by panels of columns, the panels of a block one behind the
other, so that its part of a stays in the cache. A panel of b, ``_DEPTH`` of its rows at a
time, is copied to the thread's scratch, where its rows lie together; tiles of it stay in registers:
elements of a, each in all lanes, times four columns a vector. Each output is summed over K in
order, whatever the shapes and the number of threads. Sizes are arguments: one kernel serves all
shapes that broadcast alike. A single row reads b in place where it lies in rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fanlight import plan as plans
from fanlight.codegen.wasm import blocks
from fanlight.codegen.wasm.access import ACCESS, load, load_row
from fanlight.codegen.wasm.encoder import Function
from fanlight.codegen.wasm.values import (
    Local,
    Value,
    Writer,
    f32x4,
    i32,
    i32x4,
    op,
    select,
    shuffle,
)
from fanlight.ir.graph import Node
from fanlight.kernels.launch import Launch, WasmKernel, WasmLaunch
from fanlight.kernels.target import Context, Operand
from fanlight.shapes import Dim, Size, product

# Rows by vectors, the tallest first. Measured in Chromium 156 (relaxed, GFLOP/s of one core): 6 x 2
# 43, 2 x 4 42, 4 x 2 39, 3 x 3 41, 4 x 4 37 (V8 has 16 registers; 32 with elements of a spread by
# shuffles, not loaded into all lanes each).
_TILES = (6, 2), (2, 4), (1, 4)
_VECTORS = 4  # of a panel
_BLOCK, _DEPTH = 128, 256  # rows of a and of b that are taken together
_LEAST_BLOCK, _BLOCK_ELEMENTS = 16, 1 << 17  # fewer rows of a where these fill half a cache
_UNROLL = 2  # columns of a


def fits(node: Node) -> bool:
    return node.dtype.name == "f32"


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """One launch, of ``dot`` or ``dot_stored``."""
    b = inputs[1]
    stored = _Stored(b.dtype.name, bool(attrs.get("turned")), attrs.get("zero", 0))
    return [_launch(inputs, output, context, stored, ())]


def rule_shifted(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """One launch of ``dot_shifted``."""
    shifts = inputs[1].shape[-1], *(attrs[name] for name in ("taps", "across", "down", "right"))
    return [_launch(inputs, output, context, _Stored("f32", shifted=True), shifts)]


def _launch(
    inputs: list[Operand],
    output: Operand,
    context: Context,
    stored: _Stored,
    shifts: tuple[Size, ...],
) -> WasmLaunch:
    """``shifts``: elements from channel to channel, taps of a channel, and where they are."""
    a, b = inputs
    (m, k), n = a.shape[-2:], output.shape[-1]
    lead = output.shape[:-2]
    shared = product(b.shape[:-2]) == 1
    if shared and product(a.shape[:-2]) == product(lead):
        m, lead = product(a.shape[:-1]), ()  # more rows of one product
    moves = tuple(_moves(x.shape[:-2], lead) for x in inputs)
    vectors = min(_VECTORS, -(-n // 4)) if isinstance(n, int) else _VECTORS
    relaxed = "relaxed-simd" in context.features
    writer = _Dot(moves[0], moves[1], max(1, vectors), relaxed, stored)
    text = "".join("01"[x] + "01"[y] + "_" for x, y in zip(*moves, strict=True))
    name = f"dot_{text}{stored}{writer.vectors}{'_relaxed' if relaxed else ''}"
    sizes = (m, k, n, *shifts, *lead)
    kernel = WasmKernel(name, 4, len(sizes), writer.emit, (2,), writer.scratch)
    threads = Dim(plans.THREADS, "host", context.max_threads)
    scratch = context.scratch(threads * writer.scratch)
    return WasmLaunch(kernel, (a.buffer, b.buffer, output.buffer, scratch), sizes)


def _moves(shape: tuple[Size, ...], lead: tuple[Size, ...]) -> tuple[bool, ...]:
    """For each leading axis of the result, whether the operand moves along it."""
    ahead = len(lead) - len(shape)
    return tuple(i >= ahead and shape[i - ahead] != 1 for i in range(len(lead)))


@dataclass(frozen=True, slots=True)
class _Task:
    """Up to ``_BLOCK`` rows by one panel of columns. ``out``: where sums go, with bytes from row to
    row; ``wide``: columns that there are; ``partial``: fewer than a panel has."""

    a: Local
    b: Local
    c: Local
    rows: Local
    wide: Local
    partial: Local
    out: Local
    stride: Local


@dataclass(frozen=True, slots=True)
class _Stored:
    """How b lies in memory."""

    dtype: str
    turned: bool = False
    zero: int = 0
    shifted: bool = False

    def __str__(self) -> str:
        text = "" if self.dtype == "f32" else f"{self.dtype}_"
        text += "turned_" if self.turned else "shifted_" if self.shifted else ""
        return text + (f"{self.zero}_".replace("-", "m") if self.zero else "")

    @property
    def shift(self) -> int:
        """log2 of the bytes of an element."""
        return ACCESS[self.dtype].shift

    def row(self, w: Writer, address: Value) -> Value:
        """Four neighbours, f32."""
        lanes = load_row(w, self.dtype, address)
        if self.dtype not in ("i8", "u8"):
            return lanes
        if self.zero:
            lanes = op("i32x4.sub", lanes, i32x4(self.zero))
        return op("f32x4.convert_i32x4_s", lanes)

    def one(self, w: Writer, address: Value) -> Value:
        """One element, f32."""
        value = load(w, self.dtype, address, i32(0))
        if self.dtype not in ("i8", "u8"):
            return value
        return op("f32.convert_i32_s", value - self.zero if self.zero else value)


@dataclass(frozen=True, slots=True)
class _Row:
    """``begin``: elements before a row of a shifted b, of which it is tap ``place`` of ``line``."""

    begin: Local
    line: Local
    place: Local


class _Dot:
    """Writes one kernel."""

    def __init__(
        self,
        a_moves: tuple[bool, ...],
        b_moves: tuple[bool, ...],
        vectors: int,
        relaxed: bool,
        stored: _Stored,
    ) -> None:
        self.a_moves, self.b_moves = a_moves, b_moves
        self.vectors, self.relaxed, self.stored = vectors, relaxed, stored
        self.wide = 4 * vectors
        self.scratch = (_DEPTH + _BLOCK) * self.wide * 4

    def emit(self, function: Function) -> None:
        w = self.w = Writer(function)
        a, b, c, scratch, self.m, self.k, self.n, *lead, tid, threads = w.params
        count = 5 if self.stored.shifted else 0
        self.shifts, lead = lead[:count], lead[count:]
        panels = w.let(op("i32.div_u", self.n + (self.wide - 1), self.wide))
        few = op("i32.div_u", i32(_BLOCK_ELEMENTS), self.k + 1) & -2
        self.block = w.let(_most(w, _least(w, few, _BLOCK), _LEAST_BLOCK))
        groups = w.let(op("i32.div_u", self.m + self.block - 1, self.block))
        total: Value = panels * groups
        for size in lead:
            total = total * size
        begin, end = blocks.share(w, w.let(total), tid, threads)
        self.panel = w.let(scratch + tid * self.scratch)
        self.staging = w.let(self.panel + _DEPTH * self.wide * 4)
        self.k_bytes, self.n_bytes = w.let(self.k << 2), w.let(self.n << 2)
        across = self.k if self.stored.turned else self.n
        self.b_bytes = w.let(across << self.stored.shift)  # from row to row, as it is stored
        with w.for_range(begin, end) as number:
            column = w.let(op("i32.rem_u", number, panels) * self.wide)
            rest = w.let(op("i32.div_u", number, panels))
            group = w.let(op("i32.rem_u", rest, groups))
            batch = w.let(op("i32.div_u", rest, groups))
            first = w.let(group * self.block)
            a_batch, b_batch = self._batches(batch, lead)
            a_at = a + (a_batch * self.m + first) * self.k_bytes
            b_at = b + (b_batch * self._matrix() << self.stored.shift)
            if self.stored.turned:
                b_at = b_at + column * self.b_bytes
            else:
                b_at = b_at + (column << self.stored.shift)
            c_at = c + (batch * self.m + first) * self.n_bytes + (column << 2)
            self._task(w.let(a_at), w.let(b_at), w.let(c_at), first, column)

    def _matrix(self) -> Value:
        """Elements of one b."""
        if not self.stored.shifted:
            return self.k * self.n
        length, taps, *_ = self.shifts
        return op("i32.div_u", self.k, taps) * length

    def _batches(self, batch: Local, lead: list[Local]) -> tuple[Local, Local]:
        """Which matrices of a and of b make matrix ``batch`` of the result."""
        w, rest = self.w, self.w.let(batch)
        found = [w.let(i32(0)), w.let(i32(0))]
        steps = [w.let(i32(1)), w.let(i32(1))]
        for axis in reversed(range(len(lead))):
            at = w.let(op("i32.rem_u", rest, lead[axis]))
            w.set(rest, op("i32.div_u", rest, lead[axis]))
            for i, moves in enumerate((self.a_moves, self.b_moves)):
                if moves[axis]:
                    w.set(found[i], found[i] + at * steps[i])
                    w.set(steps[i], steps[i] * lead[axis])
        return found[0], found[1]

    def _task(self, a: Local, b: Local, c: Local, first: Local, column: Local) -> None:
        w = self.w
        rows = w.let(_least(w, self.m - first, self.block))
        wide = w.let(_least(w, self.n - column, self.wide))
        partial = w.let(op("i32.lt_s", wide, self.wide))
        out = w.let(select(partial, self.staging, c))
        stride = w.let(select(partial, i32(self.wide * 4), self.n_bytes))
        task = _Task(a, b, c, rows, wide, partial, out, stride)
        start, depth = w.local("i32"), w.local("i32")
        w.set(start, 0)
        alone = w.let(op("i32.gt_s", op("i32.eq", rows, 1), partial))
        with w.function.loop() as again:
            w.set(depth, _least(w, self.k - start, _DEPTH))
            if self.stored.turned or self.stored.shifted:
                pack = self._pack_turned if self.stored.turned else self._pack
                pack(task, start, depth)
                self._rows(task, start, depth)
            else:
                with w.if_(alone):
                    self._tile(task, i32(0), 1, start, depth, range(self.vectors), in_place=True)
                with w.if_(op("i32.eqz", alone)):
                    self._pack(task, start, depth)
                    self._rows(task, start, depth)
            w.set(start, start + _DEPTH)
            w.br_if(again, start < self.k)
        with w.if_(partial):
            self._copy_out(task)

    def _pack(self, task: _Task, start: Local, depth: Local) -> None:
        """The panel's rows, one after the other; columns that there are not are 0."""
        w = self.w
        row = self._shifts(start) if self.stored.shifted else None
        first = row.begin << 2 if row else start * self.b_bytes
        source = w.let(task.b + first)
        to = w.let(self.panel)
        with w.for_range(0, depth):
            with w.if_(task.partial):
                self._zero(to)
                self._pack_part(source, to, task.wide)
            with w.if_(op("i32.eqz", task.partial)):
                for v in range(self.vectors):
                    value = self.stored.row(w, source + (4 * v << self.stored.shift))
                    w.do("v128.store", to, value, offset=16 * v, align=16)
            if row:
                self._next_row(row, source)
            else:
                w.set(source, source + self.b_bytes)
            w.set(to, to + 4 * self.wide)

    def _shifts(self, k: Local) -> _Row:
        """Row ``k`` of a shifted b."""
        w = self.w
        length, taps, across, down, right = self.shifts
        channel = w.let(op("i32.div_u", k, taps))
        tap = w.let(k - channel * taps)
        line = w.let(op("i32.div_u", tap, across))
        place = w.let(tap - line * across)
        begin = w.let(channel * length + line * down + place * right)
        return _Row(begin, line, place)

    def _next_row(self, row: _Row, source: Local) -> None:
        """Moves on to the next tap, line of taps, or channel."""
        w = self.w
        length, taps, across, down, right = self.shifts
        w.set(source, source + (right << 2))
        w.set(row.place, row.place + 1)
        with w.if_(op("i32.eq", row.place, across)):
            w.set(row.place, 0)
            w.set(row.line, row.line + 1)
            w.set(source, source + ((down - across * right) << 2))
            with w.if_(op("i32.eq", row.line * across, taps)):
                w.set(row.line, 0)
                w.set(source, source + ((length - op("i32.div_u", taps, across) * down) << 2))

    def _pack_part(self, source: Local, to: Local, count: Local) -> None:
        """``count`` columns of one row."""
        if self.stored.dtype == "f32":
            self._copy(source, to, count)
            return
        w = self.w
        with w.for_range(0, count) as i:
            value = self.stored.one(w, source + (i << self.stored.shift))
            w.do("f32.store", to + (i << 2), value)

    def _pack_turned(self, task: _Task, start: Local, depth: Local) -> None:
        """As ``_pack``, 4 x 4 elements at a time; columns that there are not repeat the last."""
        w, shift = self.w, self.stored.shift
        last, many = w.let(task.wide - 1), w.let(depth & -4)
        for v in range(self.vectors):
            rows = []
            for i in range(4):
                column = w.let(i32(4 * v + i))
                near = w.let(select(column < last, column, last))
                rows.append(w.let(task.b + near * self.b_bytes + (start << shift)))
            to = w.let(self.panel + 16 * v)
            with w.for_range(0, many, 4):
                loaded = [w.let(self.stored.row(w, row)) for row in rows]
                for i, value in enumerate(_turned(w, loaded)):
                    w.do("v128.store", to, value, offset=4 * self.wide * i, align=16)
                for row in rows:
                    w.set(row, row + (4 << shift))
                w.set(to, to + 16 * self.wide)
            with w.for_range(many, depth):
                for i, row in enumerate(rows):
                    w.do("f32.store", to, self.stored.one(w, row), offset=4 * i)
                    w.set(row, row + (1 << shift))
                w.set(to, to + 4 * self.wide)

    def _zero(self, to: Local) -> None:
        for v in range(self.vectors):
            self.w.do("v128.store", to, f32x4(0.0), offset=16 * v, align=16)

    def _rows(self, task: _Task, start: Local, depth: Local) -> None:
        w, row = self.w, self.w.local("i32")
        w.set(row, 0)
        for tall, across in _TILES:
            last = w.let(task.rows - (tall - 1))
            with w.while_(row < last):
                self._tile(task, row, tall, start, depth, range(min(across, self.vectors)))
                for v in range(across, self.vectors, across):
                    with w.if_(op("i32.gt_s", task.wide, 4 * v)):
                        part = range(v, min(v + across, self.vectors))
                        self._tile(task, row, tall, start, depth, part)
                w.set(row, row + tall)

    def _tile(
        self,
        task: _Task,
        row: Value,
        tall: int,
        start: Local,
        depth: Local,
        part: range,
        in_place: bool = False,
    ) -> None:
        """Adds to the vectors ``part`` of ``tall`` rows of sums the products of ``depth`` columns
        of a, from ``start``."""
        w = self.w
        at = [w.let(task.a + row * self.k_bytes + (start << 2))]
        out = [w.let(task.out + row * task.stride)]
        for _ in range(tall - 1):
            at.append(w.let(at[-1] + self.k_bytes))
            out.append(w.let(out[-1] + task.stride))
        sums = [[w.let(f32x4(0.0)) for _ in part] for _ in range(tall)]
        with w.if_(start):
            for r in range(tall):
                for total, v in zip(sums[r], part, strict=True):
                    w.set(total, op("v128.load", out[r], offset=16 * v, align=4))
        b = w.let(task.b + start * self.b_bytes if in_place else self.panel)
        end = w.let(at[0] + (depth << 2))
        many = w.let(at[0] + ((depth & -_UNROLL) << 2))
        for until, steps in ((many, _UNROLL), (end, 1)):
            with w.while_(op("i32.lt_u", at[0], until)):
                for u in range(steps):
                    factors = [op("v128.load32_splat", x, offset=4 * u, align=4) for x in at]
                    self._step(factors, self._columns(b, u, part, in_place), sums)
                    if in_place:
                        w.set(b, b + self.b_bytes)
                for pointer in at:
                    w.set(pointer, pointer + 4 * steps)
                if not in_place:
                    w.set(b, b + 4 * self.wide * steps)
        for r in range(tall):
            for total, v in zip(sums[r], part, strict=True):
                w.do("v128.store", out[r], total, offset=16 * v, align=4)

    def _columns(self, b: Local, u: int, part: range, in_place: bool) -> list[Local]:
        """Vectors of a row of b: the one at ``b`` itself, or row ``u`` of the panel there."""
        w = self.w
        if in_place:
            return [w.let(self.stored.row(w, b + (4 * v << self.stored.shift))) for v in part]
        places = [4 * self.wide * u + 16 * v for v in part]
        return [w.let(op("v128.load", b, offset=place, align=16)) for place in places]

    def _step(self, factors: list[Value], columns: list[Local], sums: list[list[Local]]) -> None:
        """One column of a times one row of b."""
        w = self.w
        for element, totals in zip(factors, sums, strict=True):
            factor = w.let(element)
            for column, total in zip(columns, totals, strict=True):
                w.set(total, blocks.multiply_add(self.relaxed, factor, column, total))

    def _copy(self, source: Local, to: Local, count: Local) -> None:
        """``count`` columns."""
        w, i, size = self.w, self.w.local("i32"), self.w.let(count << 2)
        w.set(i, 0)
        with w.while_(op("i32.le_s", i + 16, size)):
            w.do("v128.store", to + i, op("v128.load", source + i, align=4), align=4)
            w.set(i, i + 16)
        with w.while_(i < size):
            w.do("f32.store", to + i, op("f32.load", source + i))
            w.set(i, i + 4)

    def _copy_out(self, task: _Task) -> None:
        """From the staging rows to the columns that there are."""
        w = self.w
        source, to = w.let(self.staging), w.let(task.c)
        with w.for_range(0, task.rows):
            self._copy(source, to, task.wide)
            w.set(source, source + 4 * self.wide)
            w.set(to, to + self.n_bytes)


def _turned(w: Writer, rows: list[Local]) -> list[Value]:
    """Of 4 x 4 elements the columns."""
    pairs = [
        [w.let(shuffle(rows[i], rows[i + 1], *_words(k, k + 4, k + 1, k + 5))) for i in (0, 2)]
        for k in (0, 2)
    ]
    return [shuffle(a, b, *_words(k, k + 1, k + 4, k + 5)) for a, b in pairs for k in (0, 2)]


def _words(*numbers: int) -> list[int]:
    """The bytes of these of eight words."""
    return [4 * number + i for number in numbers for i in range(4)]


def _least(w: Writer, value: Value, limit: int | Local) -> Value:
    kept = w.let(value)
    return select(kept < limit, kept, limit)


def _most(w: Writer, value: Value, limit: int) -> Value:
    kept = w.let(value)
    return select(kept < limit, i32(limit), kept)
