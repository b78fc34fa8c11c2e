"""Batched products of f32 matrices: any sizes, broadcast leading axes, sizes of a run."""

from __future__ import annotations

import numpy as np
import pytest

from fanlight import dtypes
from fanlight.codegen.wgsl import dot
from fanlight.ir.ops import apply
from fanlight.kernels.target import CPU
from fanlight.plan import DimSpec
from fanlight.shapes import Dim, Size, evaluate
from tests.codegen.wgsl.harness import Bench, f32, nmse

Shape = tuple[Size, ...]
M, K, N, B = (Dim(name, "host", 200) for name in "MKNB")


def _check(a: Shape, b: Shape, features: frozenset[str], dims: dict[str, int]) -> None:
    sizes = [evaluate(s, dims) for s in a], [evaluate(s, dims) for s in b]
    rng = np.random.default_rng(sum(sizes[0]))
    x, y = (rng.standard_normal(s).astype("f4") for s in sizes)
    node = apply("dot", *(apply("input", name="i", dtype=dtypes.f32, shape=s) for s in (a, b)))
    wanted = np.matmul(x.astype("f8"), y.astype("f8"))
    bench = Bench(dims=tuple(DimSpec(d) for d in (M, K, N, B)), features=features)
    guard = np.full(wanted.size + 64, 7, "f4")  # writes beyond y would show
    inputs = [bench.value("a", x, "f32", a), bench.value("b", y, "f32", b)]
    out = bench.value("y", guard, "f32", node.shape)
    (data,) = bench.run(bench.op("dot", inputs, out), ["y"], dims)
    bound = 1e-15 * max(1000, sizes[0][-1])  # grows with K, as rounding does
    assert nmse(f32(data, wanted.shape), wanted) < bound
    assert (np.frombuffer(data, "<f4")[wanted.size :] == 7).all()


@pytest.mark.parametrize("features", [frozenset(), frozenset({CPU})], ids=["gpu", "cpu"])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((1, 1), (1, 1)),
        ((33, 17), (17, 65)),
        ((32, 16), (16, 64)),
        ((1, 300), (300, 7)),
        ((3, 0), (0, 5)),
        ((70, 5), (5, 1)),
        ((2, 3, 33, 20), (20, 66)),
        ((2, 3, 9, 20), (2, 3, 20, 10)),
        ((2, 1, 9, 20), (3, 20, 10)),
        ((9, 20), (2, 3, 20, 10)),
        ((3, 1, 5, 8), (1, 4, 8, 6)),
        ((2, 70_000), (70_000, 3)),
        ((61, 21), (21, 33_795)),  # tiles of 64 x 128
        ((27, 21), (21, 33_795)),  # of 32 x 128
        ((2, 61, 21), (2, 21, 17_000)),
    ],
)
def test_products_equal_numpys(a: Shape, b: Shape, features: frozenset[str]) -> None:
    _check(a, b, features, {})


@pytest.mark.parametrize("features", [frozenset(), frozenset({CPU})], ids=["gpu", "cpu"])
@pytest.mark.parametrize("values", [(5, 40, 70, 3), (130, 7, 3, 1), (1, 1, 1, 2)])
def test_sizes_of_a_run(values: tuple[int, ...], features: frozenset[str]) -> None:
    dims = dict(zip("MKNB", values, strict=True))
    _check((B, M, K), (K, N), features, dims)
    _check((2, B, M, K), (B, K, N), features, dims)


def test_more_matrices_than_a_grid_is_deep() -> None:
    _check((65_600, 1, 2), (65_600, 2, 1), frozenset(), {})


def test_only_f32_has_a_kernel_of_its_own() -> None:
    for dtype, has in ((dtypes.f32, True), (dtypes.f64, False), (dtypes.i32, False)):
        x = apply("input", name="x", dtype=dtype, shape=(4, 4))
        assert dot.fits(apply("dot", x, x)) is has
