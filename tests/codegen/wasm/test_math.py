"""The f32 functions against numpy in f64, with the bound of each; 16-bit floats exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import wasmtime
from numpy.typing import NDArray

from fanlight.codegen.wasm import math, small_floats
from fanlight.codegen.wasm.encoder import MemoryImport, Module
from fanlight.codegen.wasm.values import Value, Writer, op
from fanlight.ir.interpreter import MEANINGS

Array = NDArray[Any]
INPUTS = (0, 1 << 16)
OUTPUT = 2 << 16
COUNT = (1 << 16) // 4


def run(write: Callable[..., Value], *inputs: Array) -> Array:
    """``write`` over arrays of at most COUNT 32-bit elements; the result's bits as u32."""
    module = Module(MemoryImport(3, 3, False))
    f = module.function(("i32",), export="f")
    w = Writer(f)
    with w.for_range(0, w.params[0], 4) as i:
        at = w.let(i << 2)
        args = [op("v128.load", at, offset=INPUTS[n]) for n in range(len(inputs))]
        w.do("v128.store", at, w.let(write(w, *args)), offset=OUTPUT)
    store = wasmtime.Store()
    memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(3, 3)))
    instance = wasmtime.Instance(store, wasmtime.Module(store.engine, module.encode()), [memory])
    for address, data in zip(INPUTS, inputs, strict=False):
        memory.write(store, data.tobytes(), address)
    entry = instance.exports(store)["f"]
    assert isinstance(entry, wasmtime.Func)
    entry(store, inputs[0].size)
    return np.frombuffer(memory.read(store, OUTPUT, OUTPUT + 4 * inputs[0].size), "u4")


def ulps(got: Array, exact: Array) -> Any:
    """How far ``got`` is from the f64 ``exact``, in units of the last place of f32."""
    with np.errstate(over="ignore"):
        size = np.spacing(np.abs(exact).astype("f4")).astype("f8")
    return np.abs(got.astype("f8") - exact) / size


def everywhere(low: float, high: float, seed: int = 1) -> Array:
    """Even and logarithmic spreads between the bounds, with small numbers of both signs."""
    rng = np.random.default_rng(seed)
    even = rng.uniform(low, high, COUNT // 2)
    size = 10.0 ** rng.uniform(-38, np.log10(max(abs(low), abs(high))), COUNT // 2)
    signed = size * np.where(rng.random(COUNT // 2) < (0.5 if low < 0 else 0), -1, 1)
    return np.asarray(np.clip(np.concatenate([even, signed]), low, high), "f4")


#: name → (range, the bound in ulp)
BOUNDS: dict[str, tuple[float, float, float]] = {
    "exp": (-103.9, 88.7, 2),
    "log": (0, 3e38, 2),
    "tanh": (-30, 30, 3),
    "sigmoid": (-103, 103, 3),
    "silu": (-87, 1e6, 4),  # below it the results are under 1e-36
    "erf": (-10, 10, 6),
    "sin": (-1e8, 1e8, 1),
    "cos": (-1e8, 1e8, 1),
    "atan": (-1e4, 1e4, 3),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_within_its_bound(name: str) -> None:
    low, high, bound = BOUNDS[name]
    x = everywhere(low, high)
    got = run(math.UNARY[name], x).view("f4")
    with np.errstate(all="ignore"):
        exact = MEANINGS[name](np, [x.astype("f8")], {})
    worst = ulps(got, exact)[np.isfinite(exact)].max()
    print(f"{name}: {worst:.2f} ulp")
    assert worst <= bound
    np.testing.assert_array_equal(got[~np.isfinite(exact)], exact[~np.isfinite(exact)])


def test_power_within_one_ulp() -> None:
    rng = np.random.default_rng(5)
    x = (10.0 ** rng.uniform(-30, 30, COUNT)).astype("f4")
    y = (rng.uniform(-85, 85, COUNT) / np.log(x.astype("f8"))).astype("f4")
    y[:4000] = np.round(rng.uniform(-6, 6, 4000))
    x[:4000] = rng.uniform(-8, 8, 4000)
    got, exact = run(math.pow_, x, y).view("f4"), x.astype("f8") ** y.astype("f8")
    assert ulps(got, exact).max() <= 1


def test_remainder_is_exact() -> None:
    rng = np.random.default_rng(6)
    x = (rng.uniform(-1, 1, COUNT) * 10.0 ** rng.uniform(-3, 6, COUNT)).astype("f4")
    y = (rng.uniform(0.1, 1, COUNT) * rng.choice([-1, 1], COUNT)).astype("f4")
    x[:3], y[:3] = [6, -6, 5], [3, 3, np.inf]
    np.testing.assert_array_equal(run(math.mod, x, y).view("f4"), np.fmod(x, y))


@pytest.mark.parametrize("name", BOUNDS)
def test_far_out(name: str) -> None:
    """Huge arguments, infinities and NaN give what numpy gives; sine and cosine stay in [-1, 1]."""
    x = np.array([-3e38, -1e10, -1e4, -0.0, 0, 1e4, 1e10, 3e38, -np.inf, np.inf, np.nan, 1], "f4")
    got = run(math.UNARY[name], x).view("f4")
    if name in ("sin", "cos"):
        assert np.all(np.abs(got[:8]) <= 1) and np.isnan(got[8:11]).all()
        return
    with np.errstate(all="ignore"):
        wanted = MEANINGS[name](np, [x.astype("f8")], {}).astype("f4")
    if name == "silu":
        wanted[8] = 0  # numpy: -inf * 0
    np.testing.assert_allclose(got, wanted, rtol=3e-7)


def test_powers_at_the_edges() -> None:
    inf, nan = np.inf, np.nan
    x = np.array([0, 0, 0, -2, -2, -2, 1, inf, inf, nan, 5, 1e30, 1e-30, -1e30, 2, 0.5], "f4")
    y = np.array([0.1, -1, 0, 3, 2, 0.5, 7, 0.1, -0.1, 0, 0, 2, 2, 3, 1e9, 1e9], "f4")
    with np.errstate(all="ignore"):
        wanted = x**y
    np.testing.assert_allclose(run(math.pow_, x, y).view("f4"), wanted, rtol=2e-7)


def test_every_f16() -> None:
    bits = np.arange(1 << 16, dtype="u4")
    for part in np.split(bits, 4):
        got = run(small_floats.from_f16, part).view("f4")
        np.testing.assert_array_equal(got, part.astype("u2").view("f2").astype("f4"))


def test_to_f16_rounds_to_nearest_even() -> None:
    rng = np.random.default_rng(0)
    halves = np.arange(0x7C00, dtype="u2").view("f2").astype("f4")
    ties = (halves[:-1] + halves[1:]) / 2  # exact in f32
    random = (rng.standard_normal(COUNT) * 10.0 ** rng.uniform(-9, 6, COUNT)).astype("f4")
    edges = np.array([65504, 65519.99, 65520, 1e9, -1e9, np.inf, -np.inf, np.nan], "f4")
    for x in (ties[:COUNT], -ties[COUNT:][: COUNT // 4 * 4 - 4], random, edges):
        x = np.resize(x, -(-x.size // 4) * 4)
        with np.errstate(over="ignore"):
            wanted = x.astype("f2")
        got = run(small_floats.SMALL_FLOATS["f16"].encode, x).astype("u2").view("f2")
        np.testing.assert_array_equal(got, wanted)


def test_to_bf16_rounds_to_nearest_even() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 1 << 32, COUNT, dtype="u4").view("f4")
    x[:4] = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800001], "u4").view("f4")
    got = run(small_floats.to_bf16, x)
    bits = x.view("u4").astype("u8")
    wanted = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    number = ~np.isnan(x)
    np.testing.assert_array_equal(got[number], wanted[number])
    assert np.isnan((got[~number] << 16).astype("u4").view("f4")).all()
