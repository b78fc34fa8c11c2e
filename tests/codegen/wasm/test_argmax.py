"""argmax: the lowest index of equals, NaN never wins, always in range."""

from __future__ import annotations

import numpy as np
import pytest

from fanlight.kernels.launch import Launch
from fanlight.plan import DimSpec
from fanlight.shapes import Dim
from tests.codegen.wasm.harness import Array, Bench

ROWS, WIDTH = Dim("rows", "host", 128), Dim("width", "host", 1 << 16)


def compiled(x: Array) -> tuple[Bench, list[Launch], dict[str, int]]:
    bench = Bench(dims=(DimSpec(ROWS), DimSpec(WIDTH)))
    operand = bench.value("x", x, "f32", (ROWS, WIDTH))
    launches = bench.op("argmax", [operand], bench.empty("y", "i32", (ROWS,)))
    return bench, launches, {"rows": x.shape[0], "width": x.shape[1]}


def found(x: Array) -> list[int]:
    bench, launches, dims = compiled(x)
    (data,) = bench.run(launches, ["y"], dims)
    one = np.frombuffer(data, "<i4", len(x))
    for threads in (1, 2, 3, 16):
        other = bench.share(launches, "y", threads, dims)
        assert other == one.tobytes(), threads
    return [int(i) for i in one]


@pytest.mark.parametrize("rows", [1, 2, 7, 128])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 64, 1000])
def test_random(rows: int, width: int) -> None:
    x = np.random.default_rng(rows * width).standard_normal((rows, width)).astype("f4")
    assert found(x) == np.argmax(x, -1).tolist()


def test_ties_take_the_lowest() -> None:
    x = np.random.default_rng(1).integers(-2, 3, (128, 37)).astype("f4")
    assert found(x) == np.argmax(x, -1).tolist()
    assert found(np.array([[-0.0, 0.0], [0.0, -0.0]], "f4")) == [0, 0]


@pytest.mark.parametrize("place", [0, 1, 2, 3, 7, 49147, 49150, 49151])
def test_the_vocabulary(place: int) -> None:
    x = np.random.default_rng(2).standard_normal((1, 49152)).astype("f4")
    x[0, place] = 9.0
    assert found(x) == [place]
    x[0, 30000] = 9.0
    assert found(x) == [min(place, 30000)]


def test_numbers_beside_nan_win() -> None:
    nan, inf = np.nan, np.inf
    rows = [
        ([nan, 1, 2, nan, 5, nan, 3, 4], 4),
        ([nan] * 7 + [-3e38], 7),
        ([nan] * 8, 0),
        ([-inf] * 8, 0),
        ([nan, -inf, nan, nan, nan, nan, nan, -inf], None),
        ([1, inf, inf, nan, 0, 0, 0, 0], 1),
    ]
    got = found(np.array([row for row, _ in rows], "f4"))
    for index, (_, wanted) in zip(got, rows, strict=True):
        assert 0 <= index < 8
        assert wanted is None or index == wanted
