"""Causal grouped-query attention over a cache: q f32 [T, H, D], k and v [C, Hk, D] → f32 [T, H *
D].

Row t sees positions 0 … start + t. Threads share out (row, head) pairs; each computes all scores
into its scratch, their softmax, then the weighted sum of values. D is a multiple of 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight import plan as plans
from fanlight.codegen.wasm import blocks, math
from fanlight.codegen.wasm.encoder import Function
from fanlight.codegen.wasm.lanes import load_row
from fanlight.codegen.wasm.values import Local, Value, Writer, f32, f32x4, i32, op
from fanlight.errors import UnsupportedError
from fanlight.kernels.launch import Launch, WasmKernel, WasmLaunch
from fanlight.kernels.target import Context, Operand
from fanlight.shapes import Dim

_CACHES = {"f32": 4, "f16": 2, "bf16": 2}


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
    room = 4 * (-(-longest // 4) * 4)
    shape = _Attention(k.dtype.name, heads, groups, depth, longest, attrs["scale"], relaxed)
    threads = Dim(plans.THREADS, "host", context.max_threads)
    scratch = context.scratch(threads * room)
    tag = f"{k.dtype}_{heads}_{groups}_{depth}_{longest}_{attrs['scale'].hex()}"
    name = f"attention_{tag}{'_relaxed' if relaxed else ''}"
    kernel = WasmKernel(name, 5, 2, shape.write)
    buffers = (q.buffer, k.buffer, v.buffer, output.buffer, scratch)
    return [WasmLaunch(kernel, buffers, (rows, attrs["start"]))]


class _Attention:
    def __init__(
        self,
        cache: str,
        heads: int,
        groups: int,
        depth: int,
        longest: int,
        scale: float,
        relaxed: bool,
    ) -> None:
        self.cache, self.heads, self.depth, self.longest = cache, heads, depth, longest
        self.group = heads // groups
        self.scale, self.relaxed = scale, relaxed
        self.size = _CACHES[cache]
        self.stride = groups * depth * self.size  # bytes from position to position

    def write(self, function: Function) -> None:
        w = Writer(function)
        q, k, v, out, scratch, rows, start, tid, threads = w.params
        room = 4 * (-(-self.longest // 4) * 4)
        scores = w.let(scratch + tid * room)
        begin, end = blocks.share(w, rows * self.heads, tid, threads)
        with w.for_range(begin, end) as pair:
            t = w.let(op("i32.div_u", pair, i32(self.heads)))
            head = w.let(pair - t * self.heads)
            length = w.let(start + t + 1)
            with w.if_(op("i32.gt_s", length, self.longest)):
                w.set(length, self.longest)
            kv = w.let(op("i32.div_u", head, i32(self.group)) * (self.depth * self.size))
            row = w.let(pair * (4 * self.depth))
            highest = self._scores(w, w.let(q + row), w.let(k + kv), scores, length)
            total = self._weights(w, scores, length, highest)
            self._values(w, w.let(v + kv), scores, length, w.let(out + row), total)

    def _scores(self, w: Writer, q: Local, k: Local, scores: Local, length: Local) -> Local:
        """Scores of all positions; the highest."""
        highest = w.let(f32(float("-inf")))
        sums = [w.local("v128") for _ in range(min(4, self.depth // 4))]
        at = w.let(k)
        with w.for_range(i32(0), length) as p:
            for total in sums:
                w.set(total, blocks.zero())
            for number in range(self.depth // 4):
                a = op("v128.load", q, offset=16 * number, align=4)
                b = self._row(w, at, 4 * number)
                total = sums[number % len(sums)]
                w.set(total, blocks.multiply_add(self.relaxed, a, b, total))
            for total in sums[1:]:
                w.set(sums[0], op("f32x4.add", sums[0], total))
            score = w.let(blocks.add_lanes(w, sums[0]) * self.scale)
            w.do("f32.store", scores + (p << 2), score)
            w.set(highest, op("f32.max", highest, score))
            w.set(at, at + self.stride)
        return highest

    def _row(self, w: Writer, at: Local, element: int) -> Value:
        if self.cache == "f32":
            return op("v128.load", at, offset=4 * element, align=4)
        return load_row(w, self.cache, at + self.size * element)

    def _weights(self, w: Writer, scores: Local, length: Local, highest: Local) -> Local:
        """exp(score - highest) in place, 0 up to the next multiple of 4; 1 / their sum in all
        lanes."""
        with w.for_range(length, w.let((length + 3) & -4)) as p:
            w.do("f32.store", scores + (p << 2), f32(float("-inf")))
        total, top = w.let(blocks.zero()), w.let(op("f32x4.splat", highest))
        with w.for_range(i32(0), length, 4) as p:
            at = w.let(scores + (p << 2))
            weight = w.let(math.exp(w, op("f32x4.sub", op("v128.load", at, align=4), top)))
            w.do("v128.store", at, weight, align=4)
            w.set(total, op("f32x4.add", total, weight))
        return w.let(op("f32x4.div", f32x4(1.0), op("f32x4.splat", blocks.add_lanes(w, total))))

    def _values(
        self, w: Writer, v: Local, scores: Local, length: Local, out: Local, inverse: Local
    ) -> None:
        """The weighted sum, up to 32 elements of the head at a time."""
        for first in range(0, self.depth, 32):
            wide = min(32, self.depth - first) // 4
            sums = [w.let(blocks.zero()) for _ in range(wide)]
            at = w.let(v)
            with w.for_range(i32(0), length) as p:
                weight = w.let(op("v128.load32_splat", scores + (p << 2), align=4))
                for number, total in enumerate(sums):
                    value = self._row(w, at, first + 4 * number)
                    w.set(total, blocks.multiply_add(self.relaxed, weight, value, total))
                w.set(at, at + self.stride)
            for number, total in enumerate(sums):
                scaled = op("f32x4.mul", total, inverse)
                w.do("v128.store", out, scaled, offset=4 * first + 16 * number, align=4)
