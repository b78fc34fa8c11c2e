"""Attention over a cache against f64, at SmolLM2's shape and odd ones."""

from __future__ import annotations

import numpy as np
import pytest

from fanlight.errors import UnsupportedError
from fanlight.kernels.launch import Launch
from fanlight.plan import DimSpec
from fanlight.shapes import Dim, Size
from tests.codegen.wasm.harness import RELAXED, Array, Bench, f32, nmse

ROWS = Dim("rows", "host", 128)
PLACE = Dim("place", "device", 4096)
#: of f32 sums over 64 elements and 2,000 positions; caches of 16 bits are read exactly
NMSE = 1e-12
_NUMPY = {"f32": "f4", "f16": "f2"}


class Attention:
    """``rows`` queries from ``start`` on over a cache of ``context`` positions, of which those not
    seen are NaN."""

    def __init__(
        self,
        rows: int,
        start: int,
        cache: str = "f32",
        heads: tuple[int, int] = (9, 3),
        depth: int = 64,
        context: int = 0,
        size: float = 1.0,
        features: frozenset[str] = frozenset(),
        place: Size | None = None,
    ) -> None:
        rng = np.random.default_rng(rows + start)
        self.rows, self.start, context = rows, start, context or start + rows + 3
        self.q = (rng.standard_normal((rows, heads[0], depth)) * size).astype("f4")
        kv = rng.standard_normal((2, context, heads[1], depth)).astype("f4")
        kv[:, start + rows :] = np.nan
        self.scale = depth**-0.5
        self.bench = bench = Bench(
            dims=(DimSpec(ROWS), DimSpec(PLACE, "control", 4)), features=features
        )
        bench.value("control", np.array([-1, start], "<i4"), "i32")
        count: Size = ROWS if place is not None else rows
        inputs = [bench.value("q", self.q, "f32", (count, heads[0], depth))]
        self.k, self.v = kv
        for name, array in zip("kv", kv, strict=True):
            bits = array
            if cache == "bf16":
                bits = (array.view("u4") >> 16).astype("u2")
                array[:] = (array.view("u4") & 0xFFFF0000).view("f4")
            elif cache == "f16":
                bits = array.astype("f2")
                array[:] = bits.astype("f4")
            inputs.append(bench.value(name, bits, cache))
        out = bench.empty("out", "f32", (count, heads[0] * depth))
        self.launches: list[Launch] = bench.op(
            "attention", inputs, out, start=start if place is None else place, scale=self.scale
        )

    def run(self) -> Array:
        (data,) = self.bench.run(self.launches, ["out"], {"rows": self.rows})
        return f32(data, self.q.shape)

    def share(self, threads: int) -> bytes:
        dims = {"rows": self.rows, "place": self.start}
        return self.bench.share(self.launches, "out", threads, dims)

    def wanted(self) -> Array:
        """As the interpreter has it, one head at a time: [T, H, D]."""
        out = np.empty(self.q.shape, "f8")
        rows, heads, _ = self.q.shape
        group = heads // self.k.shape[1]
        seen = np.arange(self.start + rows) <= self.start + np.arange(rows)[:, None]
        for head in range(heads):
            k, v = (a[: self.start + rows, head // group].astype("f8") for a in (self.k, self.v))
            scores = self.q[:, head].astype("f8") @ k.T * self.scale
            scores = np.where(seen, scores, -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = p @ v / p.sum(-1, keepdims=True)
        return out

    def check(self, bound: float = NMSE) -> None:
        got, wanted = self.run(), self.wanted()
        assert np.isfinite(got).all()
        for head in range(got.shape[1]):
            assert nmse(got[:, head], wanted[:, head]) <= bound


@pytest.mark.parametrize("cache", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(
    ("rows", "start"),
    [(1, 0), (1, 1), (2, 0), (7, 0), (37, 0), (128, 0), (1, 500), (7, 513), (1, 2000), (37, 2011)],
)
def test_smollm2(rows: int, start: int, cache: str) -> None:
    Attention(rows, start, cache).check()


@pytest.mark.parametrize("features", [frozenset(), RELAXED])
@pytest.mark.parametrize("depth", [4, 12, 20, 32, 36, 80, 128])
@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (5, 1), (8, 2)])
def test_other_heads(heads: tuple[int, int], depth: int, features: frozenset[str]) -> None:
    Attention(5, 6, "f32", heads, depth, features=features).check()
    Attention(1, 30, "f16", heads, depth, features=features).check()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 9])
@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 62, 63])
def test_any_start(rows: int, start: int) -> None:
    """One kernel for all: rows and start are known when it runs."""
    Attention(rows, start, context=200, place=PLACE).check()


@pytest.mark.parametrize("size", [1e-3, 30.0, 1e4])
def test_scores_of_any_size(size: float) -> None:
    """Stable, though their exponentials overflow. Errors of the scores grow with them."""
    Attention(3, 100, size=size).check(1e-12 if size < 1 else 1e-8 if size < 1e3 else 1e-4)


def test_the_whole_context() -> None:
    Attention(4, 60, context=64).check()


@pytest.mark.parametrize("cache", ["f32", "f16"])
@pytest.mark.parametrize("features", [frozenset(), RELAXED])
def test_same_bits_on_all_threads(cache: str, features: frozenset[str]) -> None:
    for rows, start in ((1, 70), (6, 5)):
        made = Attention(rows, start, cache, features=features)
        one = made.share(1)
        assert made.run().tobytes() == one
        for threads in (2, 3, 5, 16):
            assert made.share(threads) == one, threads


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_row_is_the_same_whatever_its_neighbours(rows: int) -> None:
    """Chunks of a prefill may be cut anywhere without relaxed SIMD or with it."""
    for features in (frozenset[str](), RELAXED):
        made = Attention(rows, 40, features=features)
        together = made.run()
        single = Attention(1, 40 + rows - 1, context=40 + rows + 3, features=features)
        single.bench.feeds |= {name: made.bench.feeds[name] for name in ("k", "v")}
        single.bench.feeds["q"] = made.q[-1:].tobytes()
        np.testing.assert_array_equal(single.run()[0], together[-1])


@pytest.mark.parametrize("off", [-1, 1])
def test_one_position_too_many_or_too_few_fails(off: int) -> None:
    made = Attention(1, 2000)
    made.k, made.v = np.nan_to_num(made.k), np.nan_to_num(made.v)
    made.start += off
    with pytest.raises(AssertionError):
        made.check()


def test_a_wrong_scale_fails() -> None:
    made = Attention(1, 2000)
    made.scale *= 1.00001
    with pytest.raises(AssertionError):
        made.check()


def test_equal_names_are_equal_kernels() -> None:
    names = [
        Attention(1, 2, cache, heads, depth, context, features=features).launches[0].kernel.name
        for cache in ("f32", "f16")
        for heads in ((4, 2), (4, 4))
        for depth in (4, 8)
        for context in (8, 12)
        for features in (frozenset[str](), RELAXED)
    ]
    assert len(set(names)) == len(names)


def test_what_no_code_reads() -> None:
    for cache, depth in (("f32", 6), ("i8", 8)):
        bench = Bench()
        q = bench.empty("q", "f32", (1, 2, depth))
        k = bench.empty("k", cache, (4, 2, depth))
        out = bench.empty("out", "f32", (1, 2 * depth))
        with pytest.raises(UnsupportedError, match="cache"):
            bench.op("attention", [q, k, k], out, start=0, scale=1.0)
