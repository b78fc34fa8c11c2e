"""Loop kernels on WebAssembly: integers and casts of every dtype, small floats, what would trap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fanlight.dtypes import DTYPES
from fanlight.ir.interpreter import array_of
from fanlight.ir.ops import FLOAT_ONLY
from fanlight.kernels import loops
from fanlight.kernels.loops import (
    FUNCTIONS,
    Axis,
    Cast,
    Const,
    Expr,
    LoopKernel,
    apply,
    integer,
)
from tests.codegen.wasm.loop_check import at, check, load, run
from tests.loop_reference import NUMPY, packed

Array = NDArray[Any]
INTEGERS = [
    n for n in FUNCTIONS if n not in ("and", "or", "not", "where", "round") and n not in FLOAT_ONLY
]


WHOLE = [n for n in loops.SCALAR if DTYPES[n].kind in ("int", "uint")]


def whole_numbers(rng: np.random.Generator, dtype: str, count: int) -> Array:
    """Bytes of all kinds of numbers: the whole range, its ends, and small ones."""
    spec = DTYPES[dtype]
    bits = 8 * spec.bytes // spec.block
    low, high = (0, 1 << bits) if spec.kind == "uint" else (-(1 << bits - 1), 1 << bits - 1)
    kind: Any = "u8" if spec.kind == "uint" else "i8"
    values = rng.integers(low, high - 1, count, dtype=kind, endpoint=True)
    near = rng.integers(max(low, -9), min(high, 9), count).astype(kind)
    values = np.where(rng.random(count) < 0.5, near, values)
    values[:4] = [low, high - 1, 0, 1]
    return packed(values, spec)


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("dtype", WHOLE)
def test_functions_on_integers(name: str, dtype: str) -> None:
    if name == "neg" and dtype[0] == "u":
        return
    rng = np.random.default_rng(3)
    args = [whole_numbers(rng, dtype, 76) for _ in range(FUNCTIONS[name])]
    if name in ("shl", "shr"):
        bits = 8 * DTYPES[dtype].bytes // DTYPES[dtype].block
        args[1] = packed(np.arange(76) % (1 << min(bits - 1, 7)), DTYPES[dtype])
    value = apply(name, *(load(n, Axis(0), dtype) for n in range(len(args))))
    out = "bool" if value.type == "bool" else dtype
    for shape in ((75,), (15, 5)):
        flat = Axis(0) if len(shape) == 1 else at(apply("mul", Axis(0), integer(5)), Axis(1))
        value = apply(name, *(load(n, flat, dtype) for n in range(len(args))))
        kernel = LoopKernel(name, shape, (DTYPES[dtype],) * len(args), DTYPES[out], value)
        check(kernel, args)


@pytest.mark.parametrize("bits", [0, 3, 31, 32, 40])
@pytest.mark.parametrize("name", ["shl", "shr"])
@pytest.mark.parametrize("dtype", ["i32", "u32", "i64", "u64"])
def test_shifts_by_a_known_number(dtype: str, name: str, bits: int) -> None:
    x = whole_numbers(np.random.default_rng(4), dtype, 75)
    value = apply(name, load(0, Axis(0), dtype), Const(bits, loops.SCALAR[dtype]))
    check(LoopKernel(name, (75,), (DTYPES[dtype],), DTYPES[dtype], value), [x])


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("dtype", ["i32", "i64", "u32", "u64"])
def test_divisions_that_would_trap(dtype: str, known: bool) -> None:
    """By 0 it is 0; the least number by -1 is itself."""
    least = np.iinfo(NUMPY[dtype]).min
    a = np.array([5, 7, least, 0, 6], NUMPY[dtype])
    b = np.array([0, 0, -1, 0, 4] if dtype[0] == "i" else [0, 0, 1, 0, 4]).astype(NUMPY[dtype])
    for name, wanted in (("div", [0, 0, least, 0, 1]), ("mod", [0, 0, 0, 0, 2])):
        got = []
        for n in range(5):
            by: Expr = load(1, integer(n), dtype)
            by = Const(int(b[n]), loops.SCALAR[dtype]) if known else by
            value = apply(name, load(0, integer(n), dtype), by)
            kernel = LoopKernel(name, (1,), (DTYPES[dtype],) * 2, DTYPES[dtype], value)
            got += run(kernel, [a, b], np.zeros(1, NUMPY[dtype])).tolist()
        assert got == wanted


@pytest.mark.parametrize("source", ["f32", "f64"])
@pytest.mark.parametrize("target", ["i32", "u32", "i64", "u64"])
def test_floats_become_the_nearest_integers_that_there_are(source: str, target: str) -> None:
    x = np.array([1e30, -1e30, np.inf, -np.inf, np.nan, 2.9, -2.9, 3e9], NUMPY[source])
    limits = np.iinfo(NUMPY[target])
    low, high = int(limits.min), int(limits.max)
    wanted = [high, low, high, low, 0, 2, max(-2, low), min(3 * 10**9, high)]
    for shape in ((8,), (8, 1)):
        value = Cast(load(0, Axis(0), source), loops.SCALAR[target])
        kernel = LoopKernel("cast", shape, (DTYPES[source],), DTYPES[target], value)
        assert run(kernel, [x], np.zeros(8, NUMPY[target])).tolist() == wanted


SMALL = [n for n in loops.SCALAR if n not in ("f32", "f64") and DTYPES[n].kind == "float"]


@pytest.mark.parametrize("dtype", SMALL)
def test_small_floats_round_as_ml_dtypes_rounds(dtype: str) -> None:
    """All numbers, what lies halfway between two, its neighbours, and numbers of every size."""
    spec, rng = DTYPES[dtype], np.random.default_rng(1)
    codes = 1 << min(16, 8 * spec.bytes // spec.block)
    raw = packed(np.arange(codes), DTYPES["u4"]) if spec.block > 1 else None
    data = np.arange(codes, dtype="u2" if spec.bytes == 2 else "u1") if raw is None else raw
    every = array_of(data.tobytes(), spec, [codes])
    opened = LoopKernel("load", (codes,), (spec,), DTYPES["f32"], load(0, Axis(0), dtype))
    np.testing.assert_array_equal(run(opened, [data], np.zeros(codes, "f4")), every)
    finite = np.sort(every[np.isfinite(every)]).astype("f8")
    middle = ((finite[1:] + finite[:-1]) / 2).astype("f4")
    sizes = (rng.standard_normal(4096) * 2.0 ** rng.uniform(-135, 124, 4096)).astype("f4")
    near = [np.nextafter(middle, np.float32(s)) for s in (-np.inf, np.inf)]
    edges = np.array([np.inf, -np.inf, np.nan, 0, -0.0, 3e38, -3e38], "f4")
    most = finite[-1:] * np.array([1.01, 1.03, 1.0625, 1.125, 1.25, 1.5, 2, -2, -1.25])
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.concatenate([every, middle, *near, sizes, edges, most.astype("f4")])
        wanted = packed(x, spec)
    for shape in ((x.size,), (x.size, 1)):
        stored = LoopKernel("store", shape, (DTYPES["f32"],), spec, load(0, Axis(0)))
        got = run(stored, [x], np.zeros(wanted.size, "u1"))
        numbers, right = (array_of(a.tobytes(), spec, [x.size]) for a in (got, wanted))
        np.testing.assert_array_equal(numbers, right)
        if spec.block == 1:
            nan = np.isnan(right)  # whose bits may differ
            rows, bits = (a.reshape(-1, spec.bytes)[~nan] for a in (got, wanted))
            np.testing.assert_array_equal(rows, bits)


@pytest.mark.parametrize("source", loops.SCALAR)
@pytest.mark.parametrize("target", loops.SCALAR)
def test_casts(source: str, target: str) -> None:
    rng = np.random.default_rng(5)
    low = 0 if "u" in source[0] + target[0] or "f8e8m0" in (source, target) else -100
    x = rng.integers(0, 2, 48) if source == "bool" else rng.integers(low, 100, 48)
    x = np.maximum(x, 1) if "f8e8m0" in (source, target) else x
    array = packed(x / 4 if DTYPES[source].kind == "float" else x, DTYPES[source])
    for shape in ((45,), (15, 3)):
        flat = Axis(0) if len(shape) == 1 else at(apply("mul", Axis(0), integer(3)), Axis(1))
        inner = Cast(load(0, flat, source), loops.SCALAR[target])
        check(LoopKernel("cast", shape, (DTYPES[source],), DTYPES[target], inner), [array])
    value = Cast(load(0, Axis(0), source), loops.SCALAR[target])
    shifted = LoopKernel("off", (9,), (DTYPES[source],), DTYPES[target], value, integer(16))
    check(shifted, [array], elements=25)


def test_whole_numbers_to_wider_and_narrower_ones() -> None:
    rng = np.random.default_rng(8)
    for source in ("i32", "u32", "i64", "u64", "i16"):
        for target in ("i64", "u64", "i32", "u32", "u16", "i4", "f64", "f32"):
            x = whole_numbers(rng, source, 64)
            value = Cast(load(0, Axis(0), source), loops.SCALAR[target])
            check(LoopKernel("cast", (64,), (DTYPES[source],), DTYPES[target], value), [x])
