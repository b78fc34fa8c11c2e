"""Floats narrower and wider than f32, bit for bit those of numpy and ml_dtypes."""

from __future__ import annotations

from math import erf
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fanlight.dtypes import DTYPES
from fanlight.kernels import loops
from fanlight.kernels.loops import Axis, LoopKernel, apply
from tests.codegen.wgsl.harness import Array
from tests.codegen.wgsl.test_loops import run_loop

SMALL: dict[str, Any] = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "f8e4m3fn": ml_dtypes.float8_e4m3fn,
    "f8e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "f8e5m2": ml_dtypes.float8_e5m2,
    "f8e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "f8e8m0": ml_dtypes.float8_e8m0fnu,
    "f4e2m1": ml_dtypes.float4_e2m1fn,
}


def _copy(x: Array, of: str, to: str, out: Array) -> Array:
    """``x`` (bytes or elements of ``of``) as ``to``, written over ``out``."""
    load = loops.Load(0, Axis(0), loops.SCALAR[of])
    kind = loops.SCALAR[to]
    value = load if load.type == kind else loops.Cast(load, kind)
    count = x.nbytes * DTYPES[of].block // DTYPES[of].bytes
    return run_loop(LoopKernel("c", (count,), (DTYPES[of],), DTYPES[to], value), [x], out)


@pytest.mark.parametrize("dtype", SMALL)
def test_every_code_is_read(dtype: str) -> None:
    bits = 8 * DTYPES[dtype].bytes // DTYPES[dtype].block
    codes = np.arange(1 << bits, dtype=f"u{DTYPES[dtype].bytes}")
    with np.errstate(invalid="ignore"):
        wanted = codes.view(SMALL[dtype]).astype("f4")
    raw = codes if bits >= 8 else codes[::2] | codes[1::2] << 4
    got = _copy(raw, dtype, "f32", np.zeros(codes.size, "f4"))
    nan = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view("u4"), wanted[~nan].view("u4"))


@pytest.mark.parametrize("dtype", SMALL)
def test_floats_are_rounded_as_they_should_be(dtype: str) -> None:
    """Each value, each middle between two, and their neighbours in f32; all magnitudes; edges."""
    rng = np.random.default_rng(0)
    kind = SMALL[dtype]
    bits = 8 * DTYPES[dtype].bytes // DTYPES[dtype].block
    with np.errstate(all="ignore"):
        every = np.arange(1 << bits, dtype=f"u{DTYPES[dtype].bytes}").view(kind).astype("f8")
        every = np.unique(every[np.isfinite(every)])
        if bits == 16:
            every = np.sort(rng.choice(every, 3000))
        middles = np.concatenate([every, (every[1:] + every[:-1]) / 2, every[-1:] * 1.03])
        middles = middles.astype("f4")
        x = np.concatenate(
            [
                middles,
                np.nextafter(middles, np.float32(np.inf)),
                np.nextafter(middles, np.float32(-np.inf)),
                rng.integers(0, 1 << 32, 5000, dtype="u4").view("f4"),
                np.array([0, -0.0, np.inf, -np.inf, 3.4e38, 65519.99, 65520, 1e9], "f4"),
            ]
        )
        x = np.resize(x[~np.isnan(x)], -(-x.size // 8) * 8)
        if dtype != "f8e8m0":  # whose least number f32 has no room for; a device may flush it
            x = np.where(np.abs(x) < 2.0**-126, 0, x).astype("f4")
        wanted = x.astype(kind).view(f"u{DTYPES[dtype].bytes}")
    if bits == 4:
        wanted = wanted[::2] | wanted[1::2] << 4
    got = _copy(x, "f32", dtype, np.zeros(wanted.size, wanted.dtype))
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("dtype", [d for d in SMALL if d != "f4e2m1"])
def test_nan_stays_nan(dtype: str) -> None:
    x = np.array([np.nan, -np.nan, 1, np.nan], "f4")
    got = _copy(x, "f32", dtype, np.zeros(4, f"u{DTYPES[dtype].bytes}")).view(SMALL[dtype])
    assert np.isnan(got.astype("f4")).tolist() == [True, True, False, True]


def test_f64_is_rounded_when_read() -> None:
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 1 << 64, 3000, dtype="u8")
    near = rng.standard_normal(3000) * 2.0 ** rng.uniform(-160, 140, 3000)
    f4 = rng.standard_normal(1000).astype("f4")
    ties = (f4.astype("f8") + np.nextafter(f4, np.float32(9)).astype("f8")) / 2
    edges = np.array([0, -0.0, np.inf, -np.inf, np.nan, 3.4028235677973366e38, 1e-320])
    x = np.concatenate(
        [bits.view("f8"), near, ties, np.nextafter(ties, 9), np.nextafter(ties, -9), edges]
    )
    with np.errstate(all="ignore"):
        wanted = x.astype("f4")
    got = _copy(x, "f64", "f32", np.zeros(x.size, "f4"))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    keep = ~np.isnan(wanted)
    np.testing.assert_array_equal(got[keep].view("u4"), wanted[keep].view("u4"))


def test_f64_holds_every_f32_exactly() -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(0, 1 << 32, 5000, dtype="u4").view("f4")
    x = np.concatenate([x[~np.isnan(x)], np.array([0, -0.0, np.inf, -np.inf, 1e-45, -3e-39], "f4")])
    got = _copy(x, "f32", "f64", np.zeros(x.size, "f8"))
    np.testing.assert_array_equal(got.view("u8"), x.astype("f8").view("u8"))
    assert np.isnan(_copy(np.array([np.nan], "f4"), "f32", "f64", np.zeros(1, "f8"))).all()


@pytest.mark.parametrize("name", ["mul", "lt", "where", "erf"])
def test_functions_of_f64_are_those_of_f32(name: str) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal(64), rng.standard_normal(64)
    x, y = (loops.Load(i, Axis(0), "f64") for i in range(2))
    args = [x, y] if name != "where" else [apply("lt", x, y), x, y]
    value = apply(name, *args[: loops.FUNCTIONS[name]])
    out = "bool" if name == "lt" else "f64"
    kernel = LoopKernel(name, (64,), (DTYPES["f64"],) * 2, DTYPES[out], value)
    got = run_loop(kernel, [a, b], np.zeros(64, "?" if out == "bool" else "<f8"))
    wanted = {"mul": a * b, "lt": a < b, "where": np.minimum(a, b), "erf": np.vectorize(erf)(a)}
    np.testing.assert_allclose(got, wanted[name], rtol=1e-6)
