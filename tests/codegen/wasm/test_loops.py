"""Loop kernels on WebAssembly against numpy; the same bits at any number of threads."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fanlight.dtypes import DTYPES
from fanlight.ir.interpreter import MEANINGS
from fanlight.ir.ops import INTEGER_ONLY
from fanlight.kernels import loops
from fanlight.kernels.loops import (
    FUNCTIONS,
    Apply,
    Axis,
    Cast,
    Const,
    Expr,
    LoopKernel,
    Reduce,
    apply,
    extent,
    integer,
)
from fanlight.kernels.lower import lower
from fanlight.kernels.target import Context, Operand, Part
from fanlight.shapes import Dim, Size, evaluate
from tests.codegen.wasm.loop_check import at, check, load, run
from tests.graphs import ALL, POS, T, random_array, random_graph
from tests.loop_reference import NUMPY, NumpyLaunch, NumpyTarget, packed

Array = NDArray[Any]
N, M = Dim("n", "host", 50), Dim("m", "host", 40)


FLOATS = [n for n in FUNCTIONS if n not in ("and", "or", "not", "where") and n not in INTEGER_ONLY]


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", FLOATS)
def test_functions_on_floats(name: str, dtype: str) -> None:
    rng = np.random.default_rng(7)
    args = [rng.uniform(-20, 20, 203).astype(NUMPY[dtype]) for _ in range(FUNCTIONS[name])]
    if name in ("log", "sqrt", "rsqrt", "pow"):
        args[0] = np.abs(args[0]) + 1
    if name in ("sign", "isnan", "isinf", "eq", "max"):
        for arg in args:
            arg[::7], arg[1::9], arg[2::11], arg[3::11] = np.nan, np.inf, -np.inf, 0
    value = apply(name, *(load(n, Axis(0), dtype) for n in range(len(args))))
    out = DTYPES["bool" if value.type == "bool" else dtype]
    check(LoopKernel(name, (203,), (DTYPES[dtype],) * len(args), out, value), args)
    check(LoopKernel(name, (203, 1), (DTYPES[dtype],) * len(args), out, value), args)


@pytest.mark.parametrize("name", ["and", "or", "max", "min", "eq", "ne", "lt", "le", "gt", "ge"])
def test_functions_on_bools(name: str) -> None:
    a = np.array([0, 0, 1, 1] * 5, "?")
    b = np.array([0, 1, 0, 1] * 5, "?")
    value = apply(name, load(0, Axis(0), "bool"), load(1, Axis(0), "bool"))
    value = apply("where", value, apply("not", value), value) if name == "and" else value
    check(LoopKernel(name, (19,), (DTYPES["bool"],) * 2, DTYPES["bool"], value), [a, b])


@pytest.mark.parametrize("columns", [19, 20])
@pytest.mark.parametrize("dtype", loops.SCALAR)
def test_loads_of_every_pattern(dtype: str, columns: int) -> None:
    """Transposed, broadcast, shifted, reversed and by division; rows of fours and others."""
    x = packed(np.random.default_rng(1).integers(0, 7, 400), DTYPES[dtype])
    i, j = Axis(0), Axis(1)
    row = apply("mul", i, integer(20))
    for index in (
        at(apply("mul", j, integer(20)), i),
        i,
        j,
        integer(3),
        at(row, j, integer(5)),
        at(row, apply("sub", integer(19), j)),
        at(row, apply("mod", j, integer(8))),
        at(row, apply("mod", at(j, integer(4)), integer(8))),
        at(row, apply("mod", at(j, integer(3)), integer(8))),
        at(row, apply("mod", at(i, j), integer(8))),
        at(row, apply("mod", apply("mul", j, integer(2)), integer(8))),
        at(row, apply("div", apply("add", j, integer(8)), integer(4)), integer(0)),
        at(row, apply("div", j, integer(4))),
        at(row, apply("mod", j, integer(3))),
        at(row, apply("mul", apply("mod", j, integer(8)), integer(2))),
        apply("max", apply("sub", j, integer(4)), integer(0)),
    ):
        value = load(0, index, dtype)
        check(LoopKernel("load", (13, columns), (DTYPES[dtype],), DTYPES[dtype], value), [x])


@pytest.mark.parametrize("kind", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("dtype", ["f32", "i32", "u32", "bool", "f64", "i64", "u64", "i4", "f16"])
@pytest.mark.parametrize("along", ["rows", "columns", "all"])
def test_reductions(kind: Any, dtype: str, along: str) -> None:
    if dtype == "bool" and kind == "sum":
        return
    rng = np.random.default_rng(2)
    n, m = 37, 29
    spread = rng.standard_normal(n * m) * (0.5 if kind == "prod" else 50)
    if dtype == "u32" or dtype == "u64":
        spread = np.abs(spread)
    x = packed(spread if DTYPES[dtype].kind == "float" else spread.astype("i8"), DTYPES[dtype])
    shape: tuple[Size, ...] = {"rows": (N,), "columns": (M,), "all": ()}[along]
    i, j = (Axis(1), Axis(0)) if along == "columns" else (Axis(0), Axis(1))
    scalar = loops.SCALAR[dtype]
    if along == "all":
        i, j = Axis(0), Axis(1)
    body = load(0, at(apply("mul", i, extent(M)), j), dtype)
    if along == "all":
        inner = Reduce(kind, 1, M, body, scalar)
        value = Reduce(kind, 0, N, inner, scalar)
    else:
        value = Reduce(kind, 1, M if along == "rows" else N, body, scalar)
    kernel = LoopKernel(along, shape, (DTYPES[dtype],), DTYPES[dtype], value)
    check(kernel, [x], {"n": n, "m": m})
    if along != "all":
        check(kernel, [x], {"n": n, "m": 0} if along == "rows" else {"n": 0, "m": m})  # of nothing


def test_rows_chosen_by_64_bit_ids() -> None:
    """What has 64 bits is read once a row; the row itself is copied by lanes."""
    rng = np.random.default_rng(12)
    table, ids = rng.standard_normal((9, 24)).astype("f4"), rng.integers(-9, 9, 13).astype("i8")
    found = load(1, Axis(0), "i64")
    below = apply("add", found, Const(9, "i64"))
    row = Cast(apply("where", apply("lt", found, Const(0, "i64")), below, found), "i32")
    value = load(0, at(apply("mul", row, integer(24)), Axis(1)))
    kernel = LoopKernel("rows", (13, 24), (DTYPES["f32"], DTYPES["i64"]), DTYPES["f32"], value)
    check(kernel, [table, ids])
    total = Reduce("sum", 1, 24, apply("mul", value, Cast(found, "f32")), "f32")
    kernel = LoopKernel("sums", (13,), (DTYPES["f32"], DTYPES["i64"]), DTYPES["f32"], total)
    check(kernel, [table, ids])


def test_softmax_with_its_reductions_inside() -> None:
    """Row maxima and sums are computed once a row."""
    rng = np.random.default_rng(9)
    n, m = 11, 23
    x = rng.uniform(-5, 5, n * m).astype("f4")

    def element(axis: int) -> Expr:
        return load(0, at(apply("mul", Axis(0), extent(M)), Axis(axis)))

    most = Reduce("max", 2, M, element(2), "f32")
    total = Reduce("sum", 3, M, apply("exp", apply("sub", element(3), most)), "f32")
    value = apply("div", apply("exp", apply("sub", element(1), most)), total)
    kernel = LoopKernel("softmax", (N, M), (DTYPES["f32"],), DTYPES["f32"], value)
    check(kernel, [x], {"n": n, "m": m})
    got = run(kernel, [x], np.zeros(n * m, "f4"), {"n": n, "m": m}).reshape(n, m)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-6)


def test_bf16_both_ways() -> None:
    x = np.random.default_rng(1).standard_normal(21).astype("f4")
    halves = (x.view("u4") >> 16).astype("u2")
    kernel = LoopKernel("load", (21,), (DTYPES["bf16"],), DTYPES["f32"], load(0, Axis(0)))
    got = run(kernel, [halves], np.zeros(21, "f4"))
    np.testing.assert_array_equal(got, (halves.astype("u4") << 16).view("f4"))
    back = LoopKernel("store", (21,), (DTYPES["f32"],), DTYPES["bf16"], load(0, Axis(0)))
    np.testing.assert_array_equal(run(back, [got], np.zeros(21, "u2")), halves)


class Recorder(NumpyTarget):
    """Keeps the loop kernels that lowering makes."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: dict[str, LoopKernel] = {}

    def loop(
        self, kernel: LoopKernel, buffers: tuple[str, ...], features: frozenset[str] = frozenset()
    ) -> Any:
        self.kernels[kernel.name] = kernel
        return NumpyLaunch(kernel.name, buffers, lambda memory, names: None)


@pytest.mark.parametrize("seed", range(60))
def test_kernels_of_random_graphs(seed: int) -> None:
    made = random_graph(seed) if seed < 40 else random_graph(seed, kinds=ALL)
    recorder = Recorder()
    weights = {n: Operand(d, s, (Part(0, 1, (n,)),)) for n, (d, s) in made.weights.items()}

    def no_scratch(size: Size) -> str:
        raise AssertionError(size)

    context = Context(frozenset(), no_scratch)
    lower(made.graph, recorder, weights, lambda node: f"c{id(node)}", context, "t")
    rng = random.Random(seed)
    generator = np.random.default_rng(seed)
    for kernel in recorder.kernels.values():
        if any(map(_may_overflow, loops.walk(kernel.value))):
            continue
        dims = {T.name: rng.randint(1, T.max), POS.name: rng.randint(0, POS.max)}
        inputs = [random_array(generator, d, [2048]) for d in kernel.inputs]
        offset = evaluate_offset(kernel, dims)
        check(kernel, inputs, dims, offset + evaluate(kernel.elements, dims))


def _may_overflow(expr: Expr) -> bool:
    """A negative float to unsigned: each side has its own answer."""
    if not isinstance(expr, Cast):
        return False
    return expr.type in ("u32", "u64") and expr.value.type in ("f32", "f64")


def evaluate_offset(kernel: LoopKernel, dims: Mapping[str, int]) -> int:
    def value(expr: Expr) -> int:
        match expr:
            case Const():
                return int(expr.value)
            case loops.Extent():
                return evaluate(expr.size, dims)
            case Apply():
                return int(MEANINGS[expr.function](np, [np.int64(value(a)) for a in expr.args], {}))
        raise AssertionError(expr)

    return value(kernel.offset)
