"""Loop kernels on WebAssembly against numpy; the same bits at any number of threads."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import wasmtime
from numpy.typing import NDArray

from fanlight.codegen.wasm import loops as wasm
from fanlight.codegen.wasm.encoder import MemoryImport, Module, ValueType
from fanlight.dtypes import DTYPES
from fanlight.ir.interpreter import MEANINGS, array_of
from fanlight.ir.ops import FLOAT_ONLY, INTEGER_ONLY
from fanlight.kernels import loops
from fanlight.kernels.loops import (
    FUNCTIONS,
    Apply,
    Axis,
    Cast,
    Const,
    Expr,
    Load,
    LoopKernel,
    Reduce,
    apply,
    extent,
    integer,
)
from fanlight.kernels.lower import lower
from fanlight.kernels.target import Context, Operand, Part
from fanlight.shapes import Dim, Size, evaluate
from tests.graphs import ALL, POS, T, random_array, random_graph
from tests.loop_reference import NUMPY, Memory, NumpyLaunch, NumpyTarget, packed, run_loop

Array = NDArray[Any]
N, M = Dim("n", "host", 50), Dim("m", "host", 40)


def run(
    kernel: LoopKernel,
    inputs: list[Array],
    old: Array,
    dims: Mapping[str, int] | None = None,
    threads: int = 1,
) -> Array:
    """The output buffer, which held ``old``; the threads' shares are run one after another."""
    launch = wasm.launch(kernel, ())
    starts, end = [], 64
    for array in (*inputs, old):
        starts.append(end)
        end = -(-(end + array.nbytes + 64) // 64) * 64
    pages = end // 65536 + 1
    module = Module(MemoryImport(pages, pages, False))
    params: list[ValueType] = ["i32"] * (launch.kernel.buffers + launch.kernel.args + 2)
    launch.kernel.emit(module.function(params, export="f"))
    store = wasmtime.Store()
    memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(pages, pages)))
    instance = wasmtime.Instance(store, wasmtime.Module(store.engine, module.encode()), [memory])
    for start, array in zip(starts, (*inputs, old), strict=True):
        memory.write(store, array.tobytes(), start)
    entry = instance.exports(store)["f"]
    assert isinstance(entry, wasmtime.Func)
    args = [evaluate(a, dims or {}) for a in launch.args]
    for tid in range(threads):
        entry(store, *starts, *args, tid, threads)
    data = memory.read(store, starts[-1], starts[-1] + old.nbytes)
    return np.frombuffer(bytes(data), old.dtype)


def check(
    kernel: LoopKernel,
    inputs: list[Array],
    dims: Mapping[str, int] | None = None,
    elements: int | None = None,
) -> None:
    """Right, the same bits at 1, 2, 3 and 5 threads, and nothing written beside. Inputs hold the
    bytes that the kernel reads."""
    values, dtype = dims or {}, kernel.output
    count = evaluate(kernel.elements, values) if elements is None else elements
    size = -(-count // dtype.block) * dtype.bytes
    old = np.zeros(-(-size // 4) * 4 + 64, "u1")
    names = tuple(f"b{n}" for n in range(len(inputs) + 1))
    buffers = [np.frombuffer(a.tobytes(), "u1").copy() for a in (*inputs, old)]
    memory = Memory(dict(zip(names, buffers, strict=True)), values)
    with np.errstate(all="ignore"):
        run_loop(kernel, memory, names)
    wanted = memory.values(names[-1], dtype)[:count]
    got = run(kernel, inputs, old, values)
    same(array_of(got[:size].tobytes(), dtype, [count]), wanted, kernel)
    np.testing.assert_array_equal(got[size:], old[size:])
    for threads in (2, 3, 5):
        again = run(kernel, inputs, old, values, threads)
        assert again.tobytes() == got.tobytes(), f"{kernel.name} at {threads} threads"


#: relative; of narrow floats the distance to their neighbours
TOLERANCE = {"f64": 1e-13, "f16": 2e-3, "bf16": 1e-2, "f8e4m3fn": 0.13, "f8e4m3fnuz": 0.13}
TOLERANCE |= {"f8e5m2": 0.26, "f8e5m2fnuz": 0.26, "f8e8m0": 1, "f4e2m1": 0.5}


def same(got: Array, wanted: Array, kernel: LoopKernel) -> None:
    if kernel.output.kind == "float":
        rtol = TOLERANCE.get(kernel.output.name, 3e-6)
        size = np.abs(wanted[np.isfinite(wanted)]).max(initial=1e-3)
        np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol * size, err_msg=kernel.name)
    else:
        np.testing.assert_array_equal(got, wanted, err_msg=kernel.name)


def load(param: int, index: Expr, dtype: str = "f32") -> Load:
    return Load(param, index, loops.SCALAR[dtype])


def at(*parts: Expr) -> Expr:
    total: Expr = integer(0)
    for part in parts:
        total = apply("add", total, part)
    return total


FLOATS = [n for n in FUNCTIONS if n not in ("and", "or", "not", "where") and n not in INTEGER_ONLY]
INTEGERS = [
    n for n in FUNCTIONS if n not in ("and", "or", "not", "where", "round") and n not in FLOAT_ONLY
]


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


@pytest.mark.parametrize("name", ["and", "or", "max", "min", "eq", "ne", "lt", "le", "gt", "ge"])
def test_functions_on_bools(name: str) -> None:
    a = np.array([0, 0, 1, 1] * 5, "?")
    b = np.array([0, 1, 0, 1] * 5, "?")
    value = apply(name, load(0, Axis(0), "bool"), load(1, Axis(0), "bool"))
    value = apply("where", value, apply("not", value), value) if name == "and" else value
    check(LoopKernel(name, (19,), (DTYPES["bool"],) * 2, DTYPES["bool"], value), [a, b])


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

    def loop(self, kernel: LoopKernel, buffers: tuple[str, ...]) -> Any:
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
