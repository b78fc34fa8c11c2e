"""Causal grouped-query attention over a cache: q f32 [T, H, D], k and v [C, Hk, D] → f32 [T, H *
D].

Row t sees positions 0 … start + t. The queries of one cache head (those of its heads, in all rows)
are taken four at a time, so that each key and value is read, and decoded, once for four; threads
share out these tiles. A tile's scores lie in the thread's scratch, [position, 4]: all are computed,
then block by block their exponentials and the weighted sums of values. A query's result doesn't
depend on its neighbours. D is a multiple of 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight import plan as plans
from fanlight.codegen.wasm import blocks, math
from fanlight.codegen.wasm.access import load_row
from fanlight.codegen.wasm.blocks import multiply_add
from fanlight.codegen.wasm.encoder import Function
from fanlight.codegen.wasm.values import (
    Local,
    Value,
    Writer,
    f32,
    f32x4,
    i32,
    op,
    select,
    shuffle,
)
from fanlight.errors import UnsupportedError
from fanlight.kernels.launch import Launch, WasmKernel, WasmLaunch
from fanlight.kernels.target import Context, Operand
from fanlight.shapes import Dim

_CACHES = {"f32": 4, "f16": 2, "bf16": 2}
_WIDE = 4  # queries of a tile
_BLOCK = 64  # positions whose values are summed at once


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """Raises UnsupportedError for other caches or head sizes."""
    q, k, v = inputs
    rows, heads, depth = q.shape
    longest, groups = k.shape[0], k.shape[1]
    assert isinstance(heads, int) and isinstance(depth, int) and isinstance(groups, int)
    if k.dtype.name not in _CACHES or v.dtype is not k.dtype or depth % 4:
        got = f"{k.dtype} and {v.dtype}, {depth} elements a head"
        raise UnsupportedError("no attention over such a cache", where="attention", got=got)
    assert isinstance(longest, int)
    relaxed = "relaxed-simd" in context.features
    group = heads // groups
    wide = min(_WIDE, group) if rows == 1 else _WIDE
    heads_shape = (heads, groups, depth, longest)
    shape = _Attention(k.dtype.name, *heads_shape, wide, attrs["scale"], relaxed)
    scratch = context.scratch(Dim(plans.THREADS, "host", context.max_threads) * shape.room)
    tag = f"{k.dtype}_{heads}_{groups}_{depth}_{longest}_{wide}_{attrs['scale'].hex()}"
    name = f"attention_{tag}{'_relaxed' if relaxed else ''}"
    kernel = WasmKernel(name, 5, 2, shape.write, (3,), shape.room)
    buffers = (q.buffer, k.buffer, v.buffer, output.buffer, scratch)
    return [WasmLaunch(kernel, buffers, (rows, attrs["start"]))]


class _Attention:
    """Writes the kernel. ``wide``: queries of a tile, at most four."""

    def __init__(
        self,
        cache: str,
        heads: int,
        groups: int,
        depth: int,
        longest: int,
        wide: int,
        scale: float,
        relaxed: bool,
    ) -> None:
        self.cache, self.heads, self.groups = cache, heads, groups
        self.depth, self.longest, self.wide = depth, longest, wide
        self.group = heads // groups
        self.scale, self.relaxed = scale, relaxed
        self.size = _CACHES[cache]
        self.stride = groups * depth * self.size  # bytes from position to position
        self.row = 4 * depth  # bytes of a query or a result
        self.room = 16 * longest + wide * self.row  # scores, then the tile's scaled queries

    def write(self, function: Function) -> None:
        w = Writer(function)
        q, k, v, out, scratch, rows, start, tid, threads = w.params
        scores = w.let(scratch + tid * self.room)
        queries = w.let(scores + 16 * self.longest)
        last = w.let(rows * self.group - 1)
        tiles = w.let(op("i32.div_s", last + self.wide, i32(self.wide)))
        every = w.let(tiles * self.groups)
        unit = w.let(tid)
        with w.while_(unit < every):
            head = w.let(op("i32.div_u", unit, tiles))
            first = w.let((unit - head * tiles) * self.wide)
            outs, lengths = [], []
            for number in range(self.wide):
                query = w.let(first + number)
                w.set(query, select(query < last, query, last))  # the last tile repeats its last
                row = w.let(op("i32.div_u", query, i32(self.group)))
                index = row * (self.heads - self.group) + query + head * self.group
                place = w.let(index * self.row)
                outs.append(w.let(out + place))
                self._take(w, q + place, queries + number * self.row, outs[-1])
                length = w.let(start + row + 1)
                lengths.append(w.let(select(length < self.longest, length, self.longest)))
            kv = w.let(head * (self.depth * self.size))
            self._scores(w, queries, w.let(k + kv), scores, lengths[-1])
            highest = self._hide(w, scores, lengths)
            self._blend(w, w.let(v + kv), scores, lengths[-1], highest, outs)
            w.set(unit, unit + threads)

    def _take(self, w: Writer, q: Value, to: Value, out: Local) -> None:
        """A query, scaled, into the scratch; its result is 0 so far."""
        source, target = w.let(q), w.let(to)
        with w.for_range(i32(0), self.row, 16) as i:
            scaled = op("f32x4.mul", op("v128.load", source + i, align=4), f32x4(self.scale))
            w.do("v128.store", target + i, scaled, align=4)
            w.do("v128.store", out + i, blocks.zero(), align=4)

    # --- scores

    def _scores(self, w: Writer, queries: Local, k: Local, scores: Local, length: Local) -> None:
        """Of all positions below ``length``, two at a time."""
        at, to = w.let(k), w.let(scores)
        p, pairs = w.let(i32(0)), w.let(length - 1)
        with w.while_(p < pairs):
            self._products(w, queries, at, to, 2)
            w.set(at, at + 2 * self.stride)
            w.set(to, to + 32)
            w.set(p, p + 2)
        with w.if_(p < length):
            self._products(w, queries, at, to, 1)

    def _products(self, w: Writer, queries: Local, at: Local, to: Local, positions: int) -> None:
        sums = [[w.let(blocks.zero()) for _ in range(self.wide)] for _ in range(positions)]
        xs, ks, end = w.let(queries), w.let(at), w.let(queries + self.row)
        with w.while_(xs < end):
            keys = [w.let(self._load(w, ks, n * self.stride)) for n in range(positions)]
            for number in range(self.wide):
                x = w.let(op("v128.load", xs, offset=number * self.row, align=4))
                for key, row in zip(keys, sums, strict=True):
                    w.set(row[number], multiply_add(self.relaxed, x, key, row[number]))
            w.set(xs, xs + 16)
            w.set(ks, ks + 4 * self.size)
        for n, row in enumerate(sums):
            four = [*row, *([row[-1]] * (_WIDE - self.wide))]
            w.do("v128.store", to, _add_each(w, four), offset=16 * n, align=4)

    def _load(self, w: Writer, at: Local, offset: int) -> Value:
        """Four elements of the cache."""
        if self.cache == "f32":
            return op("v128.load", at, offset=offset, align=4)
        return load_row(w, self.cache, at + offset if offset else at)

    def _hide(self, w: Writer, scores: Local, lengths: list[Local]) -> Local:
        """What a query must not see gets -inf; returns the highest scores."""
        for number, length in enumerate(lengths[:-1]):
            with w.for_range(length, lengths[-1]) as p:
                w.do("f32.store", scores + (p << 4), f32(float("-inf")), offset=4 * number)
        highest = w.let(f32x4(float("-inf")))
        at, end = w.let(scores), w.let(scores + (lengths[-1] << 4))
        with w.while_(at < end):
            w.set(highest, op("f32x4.pmax", highest, op("v128.load", at, align=4)))
            w.set(at, at + 16)
        return highest

    # --- values

    def _blend(
        self,
        w: Writer,
        v: Local,
        scores: Local,
        length: Local,
        highest: Local,
        outs: list[Local],
    ) -> None:
        """exp(score - highest) in place and the weighted sums, by blocks of positions: values stay
        in the nearest cache, and sums are exact to more digits than one after another."""
        total, at = w.let(blocks.zero()), w.let(scores)
        end, values = w.let(scores + (length << 4)), w.let(v)
        with w.while_(at < end):
            stop = w.let(at + 16 * _BLOCK)
            w.set(stop, select(stop < end, stop, end))
            part, place = w.let(blocks.zero()), w.let(at)
            with w.while_(place < stop):
                score = op("v128.load", place, align=4)
                weight = w.let(math.exp(w, op("f32x4.sub", score, highest)))
                w.do("v128.store", place, weight, align=4)
                w.set(part, op("f32x4.add", part, weight))
                w.set(place, place + 16)
            w.set(total, op("f32x4.add", total, part))
            for element in range(0, self.depth, 8):
                self._add_values(w, values, at, stop, outs, element)
            w.set(values, values + _BLOCK * self.stride)
            w.set(at, stop)
        w.set(total, op("f32x4.div", f32x4(1.0), total))
        scales = [w.let(blocks.splat_lane(total, number)) for number in range(self.wide)]
        with w.for_range(i32(0), self.row, 16) as i:
            places = [w.let(out + i) for out in outs]
            loads = [op("v128.load", at, align=4) for at in places]
            self._store(
                w, places, [op("f32x4.mul", a, s) for a, s in zip(loads, scales, strict=True)], 0
            )

    def _add_values(
        self, w: Writer, v: Local, begin: Local, end: Local, outs: list[Local], element: int
    ) -> None:
        """Weighted sums of one block of positions, of up to eight elements of the head."""
        vectors = min(2, (self.depth - element) // 4)
        sums = [[w.let(blocks.zero()) for _ in range(vectors)] for _ in outs]
        place, at = w.let(begin), w.let(v + element * self.size)
        with w.while_(place < end):
            values = [w.let(self._load(w, at, 4 * n * self.size)) for n in range(vectors)]
            for number, row in enumerate(sums):
                weight = w.let(op("v128.load32_splat", place, offset=4 * number, align=4))
                for n, value in enumerate(values):
                    w.set(row[n], multiply_add(self.relaxed, weight, value, row[n]))
            w.set(place, place + 16)
            w.set(at, at + self.stride)
        for n in range(vectors):
            offset = 4 * element + 16 * n
            loads = [op("v128.load", out, offset=offset, align=4) for out in outs]
            results = [op("f32x4.add", a, row[n]) for a, row in zip(loads, sums, strict=True)]
            self._store(w, outs, results, offset)

    @staticmethod
    def _store(w: Writer, outs: list[Local], results: list[Value], offset: int) -> None:
        """All results are computed before the first is stored: two of ``outs`` may be the same."""
        kept = [w.let(value) for value in results]
        for out, value in zip(outs, kept, strict=True):
            w.do("v128.store", out, value, offset=offset, align=4)


def _add_each(w: Writer, vectors: list[Local]) -> Value:
    """The sums of four vectors' lanes, (0 + 2) + (1 + 3), as one vector."""

    def words(a: Value, b: Value, *lanes: int) -> Value:
        return shuffle(a, b, *(4 * lane + i for lane in lanes for i in range(4)))

    low, high = (
        w.let(op("f32x4.add", words(a, b, 0, 1, 4, 5), words(a, b, 2, 3, 6, 7)))
        for a, b in (vectors[:2], vectors[2:])
    )
    return op("f32x4.add", words(low, high, 0, 2, 4, 6), words(low, high, 1, 3, 5, 7))
