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
from fanlight.ir.interpreter import MEANINGS
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
from tests.graphs import POS, T, random_array, random_graph
from tests.loop_reference import NUMPY, Memory, NumpyLaunch, NumpyTarget, run_loop

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
    """Right, the same bits at 1, 2, 3 and 5 threads, and nothing written beside."""
    values = dims or {}
    count = evaluate(kernel.elements, values) if elements is None else elements
    old = np.zeros(-(-count // 4) * 4 + 20, NUMPY[kernel.output.name])
    names = tuple(f"b{n}" for n in range(len(inputs) + 1))
    buffers = [np.frombuffer(a.tobytes(), "u1").copy() for a in (*inputs, old)]
    memory = Memory(dict(zip(names, buffers, strict=True)), values)
    with np.errstate(all="ignore"):
        run_loop(kernel, memory, names)
    wanted = memory.view(names[-1], kernel.output)
    got = run(kernel, inputs, old, values)
    same(got[:count], wanted[:count], kernel)
    np.testing.assert_array_equal(got[count:], old[count:])
    for threads in (2, 3, 5):
        again = run(kernel, inputs, old, values, threads)
        assert again.tobytes() == got.tobytes(), f"{kernel.name} at {threads} threads"


def same(got: Array, wanted: Array, kernel: LoopKernel) -> None:
    if got.dtype.kind == "f":
        rtol = 2e-3 if got.dtype.itemsize == 2 else 3e-6
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


FLOATS = [name for name in FUNCTIONS if name not in ("and", "or", "not", "where")]


@pytest.mark.parametrize("name", FLOATS)
def test_functions_on_floats(name: str) -> None:
    rng = np.random.default_rng(7)
    args = [rng.uniform(-20, 20, 203).astype("f4") for _ in range(FUNCTIONS[name])]
    if name in ("log", "sqrt", "rsqrt", "pow"):
        args[0] = np.abs(args[0]) + 1
    value = apply(name, *(load(n, Axis(0)) for n in range(len(args))))
    out = DTYPES["bool" if value.type == "bool" else "f32"]
    check(LoopKernel(name, (203,), (DTYPES["f32"],) * len(args), out, value), args)
    check(LoopKernel(name, (203, 1), (DTYPES["f32"],) * len(args), out, value), args)


@pytest.mark.parametrize("name", "add sub mul div mod max min eq ne lt le gt ge neg abs".split())
@pytest.mark.parametrize("dtype", ["i32", "u32", "i8", "u8"])
def test_functions_on_integers(name: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    args = [rng.integers(-60 if dtype[0] == "i" else 0, 60, 75) for _ in range(FUNCTIONS[name])]
    if name in ("div", "mod"):
        args[1] = np.where(args[1] == 0, 7, args[1])
    if name == "sub" and dtype == "u8":
        args[0] = args[0] + 100  # the reference doesn't wrap to bytes
    arrays = [a.astype(NUMPY[dtype]) for a in args]
    value = apply(name, *(load(n, Axis(0), dtype) for n in range(len(args))))
    kind = DTYPES["bool" if value.type == "bool" else "i32" if dtype[0] == "i" else "u32"]
    kernel = LoopKernel(name, (75,), (DTYPES[dtype],) * len(args), kind, value)
    if name == "neg" and dtype[0] == "u":
        return
    check(kernel, arrays)


def test_divisions_that_would_trap() -> None:
    a = np.array([5, -5, -(1 << 31), 0, 7], "i4")
    b = np.array([0, 0, -1, 0, -1], "i4")
    for name, wanted in (("div", [5, -5, -(1 << 31), 0, -7]), ("mod", [0, 0, 0, 0, 0])):
        value = apply(name, load(0, Axis(0), "i32"), load(1, Axis(0), "i32"))
        kernel = LoopKernel(name, (5,), (DTYPES["i32"],) * 2, DTYPES["i32"], value)
        assert run(kernel, [a, b], np.zeros(5, "i4")).tolist() == wanted


@pytest.mark.parametrize("name", ["and", "or", "max", "min", "eq", "ne", "lt", "le", "gt", "ge"])
def test_functions_on_bools(name: str) -> None:
    a = np.array([0, 0, 1, 1] * 5, "?")
    b = np.array([0, 1, 0, 1] * 5, "?")
    value = apply(name, load(0, Axis(0), "bool"), load(1, Axis(0), "bool"))
    value = apply("where", value, apply("not", value), value) if name == "and" else value
    check(LoopKernel(name, (19,), (DTYPES["bool"],) * 2, DTYPES["bool"], value), [a, b])


@pytest.mark.parametrize("source", [d for d in loops.SCALAR if d != "bf16"])
@pytest.mark.parametrize("target", [d for d in loops.SCALAR if d != "bf16"])
def test_casts(source: str, target: str) -> None:
    rng = np.random.default_rng(5)
    low = 0 if "u" in source[0] + target[0] else -100
    x = rng.integers(0, 2, 45) if source == "bool" else rng.integers(low, 100, 45)
    value = Cast(load(0, Axis(0), source), loops.SCALAR[target])
    array = (x / 4 if source in ("f32", "f16") else x).astype(NUMPY[source])
    for shape in ((45,), (15, 3)):
        flat = Axis(0) if len(shape) == 1 else at(apply("mul", Axis(0), integer(3)), Axis(1))
        inner = Cast(load(0, flat, source), loops.SCALAR[target])
        check(LoopKernel("cast", shape, (DTYPES[source],), DTYPES[target], inner), [array])
    shifted = LoopKernel("off", (9,), (DTYPES[source],), DTYPES[target], value, integer(4))
    check(shifted, [array], elements=13)


@pytest.mark.parametrize("columns", [19, 20])
@pytest.mark.parametrize("dtype", [d for d in loops.SCALAR if d != "bf16"])
def test_loads_of_every_pattern(dtype: str, columns: int) -> None:
    """Transposed, broadcast, shifted, reversed and by division; rows of fours and others."""
    x = random_array(np.random.default_rng(1), DTYPES[dtype], [400])
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


@pytest.mark.parametrize("kind", ["sum", "max", "min"])
@pytest.mark.parametrize("dtype", ["f32", "i32", "u32", "bool"])
@pytest.mark.parametrize("along", ["rows", "columns", "all"])
def test_reductions(kind: Any, dtype: str, along: str) -> None:
    if dtype == "bool" and kind == "sum":
        return
    rng = np.random.default_rng(2)
    n, m = 37, 29
    x = (rng.standard_normal(n * m) * 50).astype(NUMPY[dtype] if dtype != "u32" else "i4")
    x = np.abs(x).astype("u4") if dtype == "u32" else x
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


@pytest.mark.parametrize("seed", range(40))
def test_kernels_of_random_graphs(seed: int) -> None:
    made, recorder = random_graph(seed), Recorder()
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
    """A negative f32 to u32: each side has its own answer."""
    return isinstance(expr, Cast) and expr.type == "u32" and expr.value.type == "f32"


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
