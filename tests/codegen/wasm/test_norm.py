"""rms_norm against f64."""

from __future__ import annotations

import numpy as np
import pytest

from fanlight.errors import UnsupportedError
from fanlight.kernels.launch import Launch
from fanlight.plan import DimSpec
from fanlight.shapes import Dim, Size
from tests.codegen.wasm.harness import Array, Bench, f32

ROWS = Dim("rows", "host", 128)
#: relative error of each output: the sum's, a root, a division, two products
ERROR = 1e-6


def normed(x: Array, w: Array, eps: float) -> tuple[Bench, list[Launch]]:
    bench = Bench(dims=(DimSpec(ROWS),))
    shape: tuple[Size, ...] = (ROWS, *x.shape[1:])
    inputs = [bench.value("x", x, "f32", shape), bench.value("w", w, "f32")]
    return bench, bench.op("rms_norm", inputs, bench.empty("y", "f32", shape), eps=eps)


def check(x: Array, w: Array, eps: float, claimed: float | None = None) -> None:
    bench, launches = normed(x, w, eps)
    got = f32(bench.run(launches, ["y"], {"rows": len(x)})[0], x.shape)
    wide = x.astype("f8")
    wanted = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + (claimed or eps)) * w.astype("f8")
    np.testing.assert_allclose(got, wanted, rtol=ERROR, atol=0)


@pytest.mark.parametrize("rows", [1, 2, 7, 37, 128])
@pytest.mark.parametrize("k", [4, 64, 576, 1536])
def test_rows(rows: int, k: int) -> None:
    rng = np.random.default_rng(rows + k)
    x, w = rng.standard_normal((rows, k)), rng.standard_normal(k)
    check(x.astype("f4"), w.astype("f4"), 1e-5)


@pytest.mark.parametrize("size", [1e-12, 1e-4, 1e4, 1e15])
def test_small_and_large_values(size: float) -> None:
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((3, 576)) * size, rng.standard_normal(576)
    check(x.astype("f4"), w.astype("f4"), 1e-6)


def test_heads() -> None:
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((5, 9, 64)), rng.standard_normal(64)
    check(x.astype("f4"), w.astype("f4"), 1e-6)


def test_same_bits_on_all_threads() -> None:
    rng = np.random.default_rng(3)
    for rows in (1, 5):
        x, w = rng.standard_normal((rows, 576)).astype("f4"), np.ones(576, "f4")
        bench, launches = normed(x, w, 1e-5)
        one = bench.share(launches, "y", 1, {"rows": rows})
        assert one == bench.run(launches, ["y"], {"rows": rows})[0][: len(one)]
        for threads in (2, 3, 16):
            assert bench.share(launches, "y", threads, {"rows": rows}) == one


def test_another_eps_fails() -> None:
    x = np.full((1, 64), 1e-2, "f4")
    check(x, np.ones(64, "f4"), 1e-5)
    with pytest.raises(AssertionError):
        check(x, np.ones(64, "f4"), 1e-5, claimed=1.1e-5)


def test_equal_names_are_equal_kernels() -> None:
    x = np.ones((1, 64), "f4")
    names = {
        normed(x[:, :k], x[0, :k], eps)[1][0].kernel.name
        for k in (4, 64)
        for eps in (1e-5, 1e-6, 1.0000000000000001e-05)
    }
    assert len(names) == 4


def test_widths_that_no_code_reads() -> None:
    with pytest.raises(UnsupportedError, match="multiples of 4"):
        normed(np.ones((1, 6), "f4"), np.ones(6, "f4"), 1e-5)
