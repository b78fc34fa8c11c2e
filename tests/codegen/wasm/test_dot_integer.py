"""Products of 8-bit integers against numpy, exactly, at any number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fanlight.dtypes import DTYPES
from fanlight.ir.ops import apply, input_
from tests.codegen.wasm.harness import Bench

Array = NDArray[Any]


def bytes_of(dtype: str, *shape: int, seed: int) -> Array:
    info = np.iinfo(dtype)
    low, high = info.min, info.max + 1
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def check(
    m: int, k: int, n: int, kinds: tuple[str, str] = ("u8", "i8"), each: bool = False
) -> None:
    """The same numbers at 1, 2 and 3 threads."""
    a, b = (
        bytes_of({"u8": "uint8", "i8": "int8"}[kind], *shape, seed=m + 7 * k + n + i)
        for i, (kind, shape) in enumerate(zip(kinds, ((m, k), (k, n)), strict=True))
    )
    za = np.array([131 if kinds[0] == "u8" else -100], "<i4")
    zb = np.random.default_rng(n).integers(-90, 90, n if each else 1).astype("<i4")
    values = [(a, kinds[0]), (b, kinds[1]), (za, "i32"), (zb, "i32")]
    bench = Bench([])
    inputs = [bench.value(f"x{i}", x, kind) for i, (x, kind) in enumerate(values)]
    leaves = [input_(f"x{i}", DTYPES[kind], x.shape) for i, (x, kind) in enumerate(values)]
    node = apply("dot_integer", *leaves)
    launches = bench.op("dot_integer", inputs, bench.empty("c", "i32", node.shape))
    wanted = (a.astype("i8") - za) @ (b.astype("i8") - zb)
    (data,) = bench.run(launches, ["c"])
    got = np.frombuffer(data, "<i4")[: wanted.size].reshape(wanted.shape)
    np.testing.assert_array_equal(got, wanted)
    for threads in (1, 2, 3):
        assert bench.share(launches, "c", threads, {})[: got.nbytes] == got.tobytes(), threads


@pytest.mark.parametrize("m", [1, 3, 4, 9, 130])
@pytest.mark.parametrize("k", [1, 2, 15, 16, 33, 256, 257, 515])
@pytest.mark.parametrize("n", [1, 5, 16, 35])
def test_all_sizes(m: int, k: int, n: int) -> None:
    check(m, k, n)


@pytest.mark.parametrize("kinds", [("u8", "u8"), ("i8", "i8"), ("i8", "u8")])
@pytest.mark.parametrize("each", [False, True])
def test_signs_and_zero_points_of_columns(kinds: tuple[str, str], each: bool) -> None:
    check(7, 70, 37, kinds, each)
