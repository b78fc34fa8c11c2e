"""Products of 8-bit integers against numpy, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fanlight.dtypes import DTYPES
from fanlight.ir.ops import apply, input_
from fanlight.kernels.target import CPU
from tests.codegen.wgsl.harness import Bench

Array = NDArray[Any]
_NUMPY = {"u8": np.uint8, "i8": np.int8}


def check(
    m: int, k: int, n: int, hint: str, kinds: tuple[str, str] = ("u8", "i8"), each: bool = False
) -> None:
    rng = np.random.default_rng(m + 7 * k + n)
    a, b = (
        rng.integers(np.iinfo(_NUMPY[kind]).min, np.iinfo(_NUMPY[kind]).max + 1, shape)
        for kind, shape in zip(kinds, ((m, k), (k, n)), strict=True)
    )
    za = np.array([131 if kinds[0] == "u8" else -100], "<i4")
    zb = rng.integers(-90, 90, n if each else 1).astype("<i4")
    values = [(a.astype(_NUMPY[kinds[0]]), kinds[0]), (b.astype(_NUMPY[kinds[1]]), kinds[1])]
    values += [(za, "i32"), (zb, "i32")]
    bench = Bench(features=frozenset({hint}))
    inputs = [bench.value(f"x{i}", x, kind) for i, (x, kind) in enumerate(values)]
    leaves = [input_(f"x{i}", DTYPES[kind], x.shape) for i, (x, kind) in enumerate(values)]
    out = bench.empty("c", "i32", apply("dot_integer", *leaves).shape)
    (data,) = bench.run(bench.op("dot_integer", inputs, out), ["c"])
    got = np.frombuffer(data, "<i4")[: m * n].reshape(m, n)
    np.testing.assert_array_equal(got, (a - za) @ (b - zb))


@pytest.mark.parametrize("hint", ["", CPU])
@pytest.mark.parametrize("m", [1, 5, 33])
@pytest.mark.parametrize("k", [1, 4, 7, 130])
@pytest.mark.parametrize("n", [1, 8, 67])
def test_sizes(m: int, k: int, n: int, hint: str) -> None:
    check(m, k, n, hint)


@pytest.mark.parametrize("hint", ["", CPU])
@pytest.mark.parametrize("kinds", [("u8", "u8"), ("i8", "i8"), ("i8", "u8")])
def test_signs_and_zero_points_of_columns(kinds: tuple[str, str], hint: str) -> None:
    check(6, 70, 36, hint, kinds, each=True)
