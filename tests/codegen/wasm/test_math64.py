"""The f64 functions against the C library's, with the bound of each."""

from __future__ import annotations

import math as c
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import wasmtime
from numpy.typing import NDArray

from fanlight.codegen.wasm import math64
from fanlight.codegen.wasm.encoder import MemoryImport, Module
from fanlight.codegen.wasm.values import Value, Writer, op
from fanlight.ir.interpreter import MEANINGS

Array = NDArray[Any]
COUNT = 8192  # numbers: 64 KiB


def run(write: Callable[..., Value], *inputs: Array) -> Array:
    """``write`` over f64 arrays of at most COUNT elements."""
    module = Module(MemoryImport(3, 3, False))
    f = module.function(("i32",), export="f")
    w = Writer(f)
    with w.for_range(0, w.params[0]) as i:
        at = w.let(i << 3)
        args = [op("f64.load", at, offset=n << 16) for n in range(len(inputs))]
        w.do("f64.store", at, w.let(write(w, *args)), offset=2 << 16)
    store = wasmtime.Store()
    memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(3, 3)))
    instance = wasmtime.Instance(store, wasmtime.Module(store.engine, module.encode()), [memory])
    for number, data in enumerate(inputs):
        memory.write(store, data.astype("f8").tobytes(), number << 16)
    entry = instance.exports(store)["f"]
    assert isinstance(entry, wasmtime.Func)
    entry(store, inputs[0].size)
    start = 2 << 16
    return np.frombuffer(memory.read(store, start, start + 8 * inputs[0].size), "f8")


def relative(got: Array, wanted: Array) -> float:
    """The largest error relative to a wanted number; to the least normal one, of smaller ones."""
    size = np.maximum(np.abs(wanted), 2.3e-308)
    return float((np.abs(got - wanted) / size).max())


def spread(low: float, high: float) -> Array:
    """Even and logarithmic spreads between the bounds, of both signs where both are inside."""
    rng = np.random.default_rng(2)
    even = rng.uniform(low, high, COUNT // 2)
    size = 10.0 ** rng.uniform(-300, np.log10(max(abs(low), abs(high))), COUNT // 4)
    near = 1 + rng.uniform(-1, 1, COUNT // 4) * 10.0 ** rng.uniform(-12, 0, COUNT // 4)
    signed = np.concatenate([size, near]) * (rng.choice([-1, 1], COUNT // 2) if low < 0 else 1)
    return np.asarray(np.clip(np.concatenate([even, signed]), low, high))


#: name → (range, the relative bound)
BOUNDS: dict[str, tuple[float, float, float]] = {
    "exp": (-745, 709.7, 1e-15),
    "log": (0, 1e308, 1e-15),
    "tanh": (-40, 40, 1e-15),
    "sigmoid": (-700, 700, 1e-15),
    "silu": (-700, 1e6, 1e-15),
    "erf": (-8, 8, 1e-15),
    "atan": (-1e6, 1e6, 1e-15),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_within_its_bound(name: str) -> None:
    low, high, bound = BOUNDS[name]
    x = spread(low, high)
    with np.errstate(all="ignore"):
        wanted = MEANINGS[name](np, [x], {})
    if name == "exp":  # the smallest ones have fewer digits
        assert relative(run(math64.exp, x), wanted) < bound
        tiny = wanted < 2.3e-308
        assert np.abs(run(math64.exp, x) - wanted)[tiny].max() <= 5e-324
        return
    worst = relative(run(math64.UNARY[name], x), wanted)
    print(f"{name}: {worst:.2e}")
    assert worst < bound


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_waves(name: str) -> None:
    """Absolute up to 1e6; relative for small ones, and near multiples of pi / 2."""
    x = spread(-1e6, 1e6)
    wanted = MEANINGS[name](np, [x], {})
    assert np.abs(run(math64.UNARY[name], x) - wanted).max() < 3e-16
    near = np.arange(-4000, 4000) * (np.pi / 2)
    assert relative(run(math64.UNARY[name], near), MEANINGS[name](np, [near], {})) < 1e-9
    small = x[np.abs(x) < 0.7]
    assert relative(run(math64.UNARY[name], small), MEANINGS[name](np, [small], {})) < 4e-16
    far = np.array([1e10, -1e15, 1e300, np.inf, np.nan])
    got = run(math64.UNARY[name], far)
    assert np.all(np.abs(got[:3]) <= 1) and np.isnan(got[3:]).all()


@pytest.mark.parametrize("name", BOUNDS)
def test_far_out(name: str) -> None:
    x = np.array([-1e308, -1e4, -750, -0.0, 0, 5e-324, 1e-310, 750, 1e4, 1e308, 1, -np.inf])
    x = np.concatenate([x, [np.inf, np.nan]])
    with np.errstate(all="ignore"):
        wanted = MEANINGS[name](np, [x], {})
    if name == "silu":
        wanted[11] = 0  # numpy: -inf * 0
    np.testing.assert_allclose(run(math64.UNARY[name], x), wanted, rtol=1e-15, atol=1e-322)


def test_powers() -> None:
    rng = np.random.default_rng(5)
    x = 10.0 ** rng.uniform(-300, 300, COUNT)
    y = rng.uniform(-700, 700, COUNT) / np.log(x)
    y[:2000] = np.round(rng.uniform(-20, 20, 2000))
    x[:2000] = rng.uniform(-8, 8, 2000)
    x[2000:4000] = 1 + rng.uniform(-1, 1, 2000) * 10.0 ** rng.uniform(-14, -3, 2000)
    y[2000:4000] = rng.uniform(-600, 600, 2000) / np.log(x[2000:4000])
    worst = relative(run(math64.pow_, x, y), x**y)
    print(f"pow: {worst:.2e}")
    assert worst < 1e-15


def test_powers_at_the_edges() -> None:
    inf, nan = np.inf, np.nan
    x = [0, 0, 0, -2, -2, -2, 1, inf, inf, nan, 5, 1e300, 1e-300, -1e300, 2, 0.5, -0.0, -0.0, -inf]
    y = [0.1, -1, 0, 3, 2, 0.5, nan, 0.1, -0.1, 0, 0, 2, 2, 3, 1e9, 1e9, -3, 2, 3]
    x += [-inf, -1, -1, 2, 2, 0.5, 5e-324, 4, nan, -8, 1.0000000000000002]
    y += [-3, inf, -inf, inf, -inf, -inf, 0.5, nan, 1, 1 / 3, 1e300]
    a, b = np.array(x, "f8"), np.array(y, "f8")
    with np.errstate(all="ignore"):
        wanted = a**b
    got = run(math64.pow_, a, b)
    np.testing.assert_allclose(got, wanted, rtol=1e-15)
    np.testing.assert_array_equal(np.signbit(got[wanted == 0]), np.signbit(wanted[wanted == 0]))


def test_remainder_is_exact() -> None:
    rng = np.random.default_rng(6)
    sizes = 10.0 ** rng.uniform(-320, 308, (2, 2000)) * rng.choice([-1, 1], (2, 2000))
    close = rng.uniform(-1e6, 1e6, 2000), rng.uniform(-3, 3, 2000)
    x, y = (np.concatenate([a, b]) for a, b in zip(sizes, close, strict=True))
    x[:7], y[:7] = [6, -6, 5, np.inf, 1, np.nan, 7], [3, 3, np.inf, 2, 0, 1, np.nan]
    pairs = zip(x, y, strict=True)
    wanted = np.array([c.fmod(a, b) if np.isfinite(a) and b else np.nan for a, b in pairs])
    np.testing.assert_array_equal(run(math64.mod, x, y), wanted)
