"""Products with stored weights against f64, at SmolLM2's shapes and odd ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fanlight import dtypes
from fanlight.codegen.wasm import blocks, dots
from fanlight.codegen.wasm.encoder import Function, ValueType
from fanlight.codegen.wasm.values import Local, Writer, i32x4, op
from fanlight.errors import UnsupportedError
from fanlight.kernels.launch import Launch, WasmLaunch
from fanlight.kernels.target import Operand, Part
from fanlight.plan import DimSpec
from fanlight.shapes import Dim, Size
from tests.codegen.wasm.harness import RELAXED, Array, Bench, f32, nmse, stored

ROWS = Dim("rows", "host", 128)
#: sums in f32 over at least four lanes; the worst that was seen at K = 1536 is 2e-14
NMSE = 1e-12
#: … and of each output, of the sum of its terms' sizes
ERROR = 1e-6
#: what rounding x to int16 costs, where it is rounded: the worst that was seen is 5e-10
ROUNDED = 1e-9


class Product:
    """x [rows, k] @ w [n, k].T, compiled; ``wanted`` in f64."""

    def __init__(
        self,
        dtype: str,
        rows: int,
        n: int,
        k: int,
        features: frozenset[str] = frozenset(),
        size: Size | None = None,
    ) -> None:
        rng = np.random.default_rng(rows + n + k)
        raw, self.w = stored(dtype, n, k, rng)
        self.x = rng.standard_normal((rows, k)).astype("f4")
        self.rounds = dtype in dots.DOTS and size is None and rows == 1
        self.bench = Bench(dims=(DimSpec(ROWS),), features=features)
        count = rows if size is None else size
        x = self.bench.value("x", self.x, "f32", (count, k))
        w = self.bench.value("w", raw, dtype, (n, k))
        self.launches = self.bench.op("matmul", [x, w], self.bench.empty("y", "f32", (count, n)))

    def run(self) -> Array:
        rows, n = len(self.x), len(self.w)
        return f32(self.bench.run(self.launches, ["y"], {"rows": rows})[0], (rows, n))

    def share(self, threads: int) -> bytes:
        return self.bench.share(self.launches, "y", threads, {"rows": len(self.x)})

    def check(self) -> None:
        got = self.run()
        close(got, rounded(self.x) if self.rounds else self.x, self.w)
        if len(self.w) > 30:  # enough for a mean
            assert nmse(got, self.x.astype("f8") @ self.w.T.astype("f8")) <= ROUNDED


def rounded(x: Array) -> Array:
    """x as products of one row take it: 32 elements at a time multiples of their largest over
    32767, to nearest."""
    groups = x.reshape(-1, 32).astype("f4")
    most = np.abs(groups).max(1, keepdims=True)
    with np.errstate(all="ignore"):
        quants = np.nan_to_num(np.rint(groups * (np.float32(32767) / most)))
    scales = (most / np.float32(32767)).astype("f8")
    values: Array = quants.astype("f8") * scales
    return values.reshape(x.shape)


def close(got: Array, x: Array, w: Array) -> None:
    """``got`` is x @ w.T, as the bounds above say."""
    x, w = x.astype("f8"), w.astype("f8")
    wanted, sizes = x @ w.T, np.abs(x) @ np.abs(w).T
    assert np.isfinite(got).all()
    assert nmse(got, wanted) <= NMSE
    assert (np.abs(got - wanted) <= ERROR * sizes).all()


@pytest.mark.parametrize("rows", [1, 2, 7, 37, 128])
@pytest.mark.parametrize(("n", "k"), [(192, 576), (576, 576), (1536, 576), (576, 1536)])
def test_smollm2(rows: int, n: int, k: int) -> None:
    Product("q4_1", rows, n, k).check()


@pytest.mark.parametrize("dtype", ["q8_0", "q4_1"])
def test_vocabulary(dtype: str) -> None:
    Product(dtype, 1, 49152, 576, RELAXED).check()


@pytest.mark.parametrize("features", [frozenset(), RELAXED])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("dtype", sorted(blocks.ROWS))
def test_every_dtype(dtype: str, rows: int, features: frozenset[str]) -> None:
    Product(dtype, rows, 37, 512, features).check()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 9])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 9, 31])
def test_odd_sizes(rows: int, n: int) -> None:
    Product("q4_1", rows, n, 32).check()
    Product("f32", rows, n, 4).check()
    Product("f32", rows, n, 36, RELAXED).check()


@pytest.mark.parametrize("rows", [1, 3, 128])
def test_rows_of_run_time(rows: int) -> None:
    """One kernel for any number of rows."""
    made = Product("q4_1", rows, 37, 96, size=ROWS)
    made.check()
    assert made.launches[0].kernel.name == Product("q4_1", 2, 37, 96).launches[0].kernel.name


def test_no_rows() -> None:
    made = Product("q4_1", 1, 8, 32, size=ROWS)
    assert not any(made.bench.share(made.launches, "y", 1, {"rows": 0}))


def test_leading_axes() -> None:
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((2, 3, 8)).astype("f4"), rng.standard_normal((5, 8)).astype("f4")
    bench = Bench()
    inputs = [bench.value("x", x, "f32"), bench.value("w", w, "f32")]
    launches = bench.op("matmul", inputs, bench.empty("y", "f32", (2, 3, 5)))
    close(f32(bench.run(launches, ["y"])[0], (6, 5)), x.reshape(6, 8), w)


@pytest.mark.parametrize("rows", [1, 6])
def test_weights_in_parts(rows: int) -> None:
    rng = np.random.default_rng(4)
    raw, w = stored("q4_0", 11, 64, rng)
    x = rng.standard_normal((rows, 64)).astype("f4")
    bench = Bench()
    parts = [Part(0, 7, ("a",)), Part(7, 1, ("b",)), Part(8, 3, ("c",))]
    for part in parts:
        assert isinstance(part.rows, int)
        bench.value(part.buffers[0], raw[part.first : part.first + part.rows], "q4_0")
    operand = Operand(dtypes.DTYPES["q4_0"], (11, 64), tuple(parts))
    out = bench.empty("y", "f32", (rows, 11))
    launches = bench.op("matmul", [bench.value("x", x, "f32"), operand], out)
    assert len(launches) == 3
    wanted = rounded(x) if rows == 1 else x
    close(f32(bench.run(launches, ["y"])[0], (rows, 11)), wanted, w)


@pytest.mark.parametrize("dtype", sorted(blocks.ROWS))
def test_one_hot_rows_read_the_weights(dtype: str) -> None:
    """Exactly in the form for more than one row; in that for one, but for the rounding of a
    scale's product where x is rounded."""
    k = 256
    raw, w = stored(dtype, 6, k, np.random.default_rng(5))
    bench = Bench()
    x = bench.value("x", np.eye(k, dtype="f4"), "f32")
    inputs = [x, bench.value("w", raw, dtype, (6, k))]
    launches = bench.op("matmul", inputs, bench.empty("y", "f32", (k, 6)))
    np.testing.assert_array_equal(f32(bench.run(launches, ["y"])[0], (k, 6)), w.T)
    one = bench.empty("one", "f32", (1, k))
    launches = bench.op("matmul", [one, inputs[1]], bench.empty("z", "f32", (1, 6)))
    plan = bench.plan(launches)
    for place in range(k):
        feeds = {"w": bench.feeds["w"], "one": np.eye(k, dtype="f4")[place].tobytes()}
        (data,) = bench.run_plan(plan, feeds, ["z"])
        bound = 3e-7 * np.abs(w).max() if dtype in dots.DOTS else 0.0
        np.testing.assert_allclose(f32(data, (6,)), w[:, place], rtol=0, atol=bound)


@pytest.mark.parametrize("features", [frozenset(), RELAXED])
@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("dtype", sorted(blocks.ROWS))
def test_same_bits_on_all_threads(dtype: str, rows: int, features: frozenset[str]) -> None:
    made = Product(dtype, rows, 13, 256, features)
    one = made.share(1)
    assert f32(one, (rows, 13)).tobytes() == made.run().tobytes()
    for threads in (2, 3, 5, 16):
        assert made.share(threads) == one, threads


def test_equal_names_are_equal_code() -> None:
    """The name says what the code depends on."""
    found: dict[str, bytes] = {}
    for features in (frozenset(), RELAXED):
        for dtype in blocks.ROWS:
            for rows in (1, 2):
                for n, k in ((3, 256), (256, 256), (3, 512)):
                    (launch,) = Product(dtype, rows, n, k, features).launches
                    code = _code(launch)
                    assert code not in found.values()
                    assert found.setdefault(launch.kernel.name, code) == code


def _code(launch: Launch) -> bytes:
    assert isinstance(launch, WasmLaunch)
    kernel = launch.kernel
    params: list[ValueType] = ["i32"] * (kernel.buffers + kernel.args + 2)
    function = Function(0, params, ())
    kernel.emit(function)
    return function.body()


@pytest.mark.parametrize(("rows", "dtype"), [(2, "q4_k"), (2, "q6_k"), (2, "q4_0"), (2, "q4_1")])
def test_swapped_nibbles_fail(dtype: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = blocks.nibbles
    monkeypatch.setattr(blocks, "nibbles", lambda *args: tuple(reversed(real(*args))))
    with pytest.raises(AssertionError):
        Product(dtype, rows, 37, 512).check()


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("dtype", sorted(dots.DOTS))
def test_x_of_any_size(dtype: str, size: float) -> None:
    """Blocks of very different sizes side by side, and one of zeros."""
    rng = np.random.default_rng(6)
    raw, w = stored(dtype, 5, 256, rng)
    x = rng.standard_normal((1, 256)).astype("f4") * np.float32(size)
    x[0, 32:64] *= np.float32(1e-3)
    x[0, 64:96] = 0
    bench = Bench()
    inputs = [bench.value("x", x, "f32"), bench.value("w", raw, dtype, (5, 256))]
    launches = bench.op("matmul", inputs, bench.empty("y", "f32", (1, 5)))
    close(f32(bench.run(launches, ["y"])[0], (1, 5)), rounded(x), w)


@pytest.mark.parametrize("dtype", sorted(dots.DOTS))
@pytest.mark.parametrize("part", ["_store", "_by_row", "_sum"])
def test_another_order_fails(dtype: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of prepared x's vectors, of rows of weights, of quants, in the form for one row."""
    real: Callable[..., Any] = getattr(dots, part)

    def swapped(w: Writer, *args: Any) -> Any:
        *others, last = args if part != "_sum" else args[::-1]
        first, second, *rest = last
        found = [*others, [second, first, *rest]]
        return real(w, *(found if part != "_sum" else found[::-1]))

    monkeypatch.setattr(dots, part, swapped)
    with pytest.raises(AssertionError):
        Product(dtype, 1, 37, 512).check()


@pytest.mark.parametrize("dtype", sorted(dots.DOTS))
def test_coarser_rounding_fails(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 12 bits instead of 16."""
    real: Callable[..., Any] = dots._rounded

    def coarse(w: Writer, x: Local, to: Local) -> Any:
        halves, total, scale = real(w, x, to)
        mask = i32x4(-0x000F0010)
        return [w.let(op("v128.and", half, mask)) for half in halves], total, scale

    monkeypatch.setattr(dots, "_rounded", coarse)
    with pytest.raises(AssertionError):
        Product(dtype, 1, 37, 512).check()


@pytest.mark.parametrize("element", [0, 575])
def test_one_wrong_weight_of_many_fails(element: int) -> None:
    """One quant that is 1 too high, in one of 192 rows."""
    made = Product("q4_1", 2, 192, 576)
    made.w[100, element] += np.ptp(made.w[100, element // 32 * 32 :][:32]) / 15
    with pytest.raises(AssertionError):
        made.check()


def test_what_no_code_reads() -> None:
    bench = Bench()
    x = bench.empty("x", "f32", (1, 48))
    y = bench.empty("y", "f32", (1, 4))
    with pytest.raises(UnsupportedError, match="i8"):
        bench.op("matmul", [x, bench.empty("w", "i8", (4, 48))], y)
    with pytest.raises(UnsupportedError, match="multiples of 32"):
        bench.op("matmul", [x, Operand(dtypes.DTYPES["q4_0"], (4, 48), ())], y)
