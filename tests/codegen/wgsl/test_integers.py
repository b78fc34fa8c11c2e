"""Integers on the GPU, bit for bit those of Python: 64 bits in two words, shifts, division by 0."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fanlight.dtypes import DTYPES
from fanlight.kernels import loops
from fanlight.kernels.loops import FUNCTIONS, Axis, LoopKernel, apply
from tests.codegen.wgsl.harness import Array
from tests.codegen.wgsl.test_loops import NUMPY, run_loop

INTEGERS = ("i32", "u32", "i64", "u64")


def _wrap(value: int, dtype: str) -> int:
    bits = int(dtype[1:])
    value &= (1 << bits) - 1
    return value - (1 << bits) if dtype[0] == "i" and value >> bits - 1 else value


def _div(a: int, b: int) -> int:
    if b == 0:
        return 0
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _shr(a: int, b: int) -> int:
    return a >> min(b, 64)


PYTHON: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _div,
    "mod": lambda a, b: a - _div(a, b) * b if b else 0,
    "max": max,
    "min": min,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "bitand": lambda a, b: a & b,
    "bitor": lambda a, b: a | b,
    "bitxor": lambda a, b: a ^ b,
    "bitnot": lambda a: ~a,
    "shl": lambda a, b: a << min(b, 64),
    "shr": _shr,
    "neg": lambda a: -a,
    "abs": abs,
    "sign": lambda a: (a > 0) - (a < 0),
}


def _numbers(dtype: str, seed: int) -> Array:
    """All sizes from 0 bits to all bits, with the extremes."""
    rng = np.random.default_rng(seed)
    bits = int(dtype[1:])
    raw = rng.integers(0, 1 << 64, 2000, dtype="u8") >> rng.integers(64 - bits, 64, 2000).astype(
        "u8"
    )
    values = [_wrap(int(v) * (-1 if i % 3 == 0 else 1), dtype) for i, v in enumerate(raw)]
    edges = [0, 1, -1, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 32) - 1, 1 << 63, (1 << 63) - 1]
    return np.array(values + [_wrap(e, dtype) for e in edges], NUMPY[dtype])


def _grid(dtype: str) -> tuple[Array, Array]:
    """Random pairs, and every pair of edges."""
    a, b = _numbers(dtype, 1), _numbers(dtype, 2)
    edges = a[-9:]
    return (
        np.concatenate([a[:-9], np.repeat(edges, 9)]),
        np.concatenate([b[:-9], np.tile(edges, 9)]),
    )


def _run(name: str, args: list[Array], dtypes: list[Any], out: str) -> list[Any]:
    loads = [loops.Load(i, Axis(0), loops.SCALAR[d]) for i, d in enumerate(dtypes)]
    value = apply(name, *loads) if name != "cast" else loops.Cast(loads[0], loops.SCALAR[out])
    kernel = LoopKernel(name, args[0].shape, tuple(DTYPES[d] for d in dtypes), DTYPES[out], value)
    empty = np.zeros(args[0].size, NUMPY.get(out, "<f8"))
    return list(run_loop(kernel, args, empty).tolist())


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("name", PYTHON)
def test_functions_equal_pythons(name: str, dtype: str) -> None:
    a, b = _grid(dtype)
    if name in ("shl", "shr"):
        b = np.where(b < 0, 5, b).astype(NUMPY[dtype])
        b[:140] = np.arange(140) % 70
    args = [a, b][: FUNCTIONS[name]]
    meaning = PYTHON[name]
    wanted = [meaning(*pair) for pair in zip(*(x.tolist() for x in args), strict=True)]
    out = "bool" if isinstance(wanted[0], bool) else dtype
    got = _run(name, args, [dtype] * len(args), out)
    assert got == (wanted if out == "bool" else [_wrap(v, dtype) for v in wanted])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_where(dtype: str) -> None:
    a, b = _grid(dtype)
    c = np.arange(a.size) % 3 == 0
    assert _run("where", [c, a, b], ["bool", dtype, dtype], dtype) == np.where(c, a, b).tolist()


@pytest.mark.parametrize("to", [*INTEGERS, "i8", "u16", "bool"])
@pytest.mark.parametrize("of", [*INTEGERS, "i8", "u8", "bool"])
def test_casts_between_integers(of: str, to: str) -> None:
    x = _numbers(of, 3) if of in INTEGERS else np.arange(256).astype(NUMPY[of])
    wanted = [bool(v) if to == "bool" else _wrap(int(v), to) for v in x.tolist()]
    if loops.SCALAR[of] != loops.SCALAR[to]:
        assert _run("cast", [x], [of], to) == wanted


@pytest.mark.parametrize("of", ["i64", "u64"])
def test_casts_to_f32_are_to_nearest_even(of: str) -> None:
    x = _numbers(of, 4)
    ties = [(1 << 40) + (k << 16) + d for k in range(8) for d in (-1, 0, 1)]  # f32's step: 1 << 17
    x = np.concatenate([x, np.array(ties, NUMPY[of])])
    wanted = [_f32(v) for v in x.tolist()]
    assert _run("cast", [x], [of], "f32") == wanted
    assert _run("cast", [x], [of], "f64") == wanted


def _f32(value: int) -> float:
    """The nearest f32, ties to even, by whole numbers alone."""
    size = abs(value)
    shift = max(0, size.bit_length() - 24)
    q, rest = size >> shift, size & ((1 << shift) - 1)
    half = (1 << shift) >> 1
    q += shift > 0 and (rest > half or (rest == half and q & 1 == 1))
    out = float(q << shift)
    assert struct.unpack("<f", struct.pack("<f", out))[0] == out
    return -out if value < 0 else out


@pytest.mark.parametrize("to", ["i64", "u64"])
def test_casts_from_f32_are_toward_zero_and_stop_at_the_limits(to: str) -> None:
    rng = np.random.default_rng(5)
    x = (rng.standard_normal(2000) * 2.0 ** rng.uniform(-3, 66, 2000)).astype("f4")
    edges = [0.0, -0.0, 0.99, -0.99, 2.0**63, -(2.0**63), 2.0**64, np.inf, -np.inf, np.nan]
    x = np.concatenate([x, np.array(edges, "f4")])
    low, high = (-(1 << 63), (1 << 63) - 1) if to == "i64" else (0, (1 << 64) - 1)

    def whole(value: float) -> int:
        if value != value:
            return 0
        if abs(value) == float("inf"):
            return high if value > 0 else low
        return max(low, min(high, int(value)))

    assert _run("cast", [x], ["f32"], to) == [whole(v) for v in x.tolist()]
