"""Loop kernels on the GPU: every function and dtype, reductions, packed stores, any graph."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fanlight.codegen.wgsl import loops as wgsl
from fanlight.codegen.wgsl.table import TARGET
from fanlight.dtypes import DTYPES
from fanlight.ir.graph import Node
from fanlight.ir.interpreter import MEANINGS, Interpreter
from fanlight.ir.ops import INTEGER_ONLY, LOGICAL
from fanlight.kernels import loops
from fanlight.kernels.loops import FUNCTIONS, Axis, LoopKernel, Reduce, apply, extent, integer
from fanlight.kernels.lower import Lowered, lower
from fanlight.kernels.target import Context, Operand, Part
from fanlight.plan import Buffer, DimSpec
from fanlight.shapes import Dim, evaluate, maximum, product
from tests.codegen.wgsl.harness import Array, Bench
from tests.graphs import POS, RandomGraph, T, random_graph, random_values

NUMPY = {
    "f32": "<f4",
    "f16": "<f2",
    "i64": "<i8",
    "u64": "<u8",
    "i32": "<i4",
    "u32": "<u4",
    "i16": "<i2",
    "u16": "<u2",
    "i8": "<i1",
    "u8": "<u1",
    "bool": "?",
}
Values = dict[str, Array]
FLOATS = [f for f in FUNCTIONS if f not in LOGICAL | INTEGER_ONLY | {"where"}]


def run_loop(
    kernel: LoopKernel, inputs: list[Array], out: Array, bench: Bench | None = None
) -> Array:
    """The content of the output buffer, which held ``out``."""
    bench = bench or Bench()
    names = []
    for number, (dtype, array) in enumerate(zip(kernel.inputs, inputs, strict=True)):
        names.append(f"x{number}")
        bench.value(names[-1], array, dtype.name)
    bench.value("y", out, kernel.output.name)
    (data,) = bench.run([wgsl.launch(kernel, (*names, "y"))], ["y"])
    return np.frombuffer(data, out.dtype)[: out.size]


def _arguments(name: str) -> list[Array]:
    """Where each function is held to 1e-6: its domain, at sizes that models meet."""
    rng = np.random.default_rng(7)
    a, b = (rng.uniform(-20, 20, 4096).astype("f4") for _ in range(2))
    if name in ("log", "sqrt", "rsqrt"):
        a = np.concatenate([rng.uniform(0.9, 1.1, 2048), 10.0 ** rng.uniform(-30, 30, 2048)])
    if name == "exp":
        a = rng.uniform(-87, 88, 4096)
    if name in ("sin", "cos"):
        a = rng.uniform(-8000, 8000, 4096)
    if name in ("tanh", "erf"):
        a = np.concatenate(
            [rng.uniform(-1, 1, 3000), rng.uniform(-9, 9, 1092), [1e30, -1e30, 0, 60]]
        )
    if name == "pow":
        a, b = rng.uniform(0.1, 8, 4096), rng.uniform(-4, 4, 4096)
        b[:1000] = np.round(b[:1000])
        a[:500] *= -1
    if name in ("sign", "isnan", "isinf"):
        a[:6] = [0, np.nan, -np.nan, np.inf, -np.inf, 3e38]
    if name == "atan":
        a = np.concatenate([a[:2048], rng.uniform(-1, 1, 2044), [1e30, -1e30, np.inf, 1e-30]])
    if name == "mod":
        b = np.where(np.abs(b) < 0.5, 1, b)
    return [a.astype("f4"), b.astype("f4")][: FUNCTIONS[name]]


@pytest.mark.parametrize("name", FLOATS)
def test_functions_on_floats(name: str) -> None:
    args = _arguments(name)
    loads = [loops.Load(i, Axis(0), "f32") for i in range(len(args))]
    value = apply(name, *loads)
    kind = DTYPES["bool" if value.type == "bool" else "f32"]
    kernel = LoopKernel(name, (4096,), (DTYPES["f32"],) * len(args), kind, value)
    got = run_loop(kernel, args, np.zeros(4096, NUMPY[kind.name]))
    wanted = MEANINGS[name](np, [a.astype("f8") for a in args], {})
    if kind.name == "bool":
        np.testing.assert_array_equal(got, wanted)
    elif name in ("sin", "cos", "mod"):
        np.testing.assert_allclose(got, wanted, atol=2e-6, rtol=0)
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("name", ["exp", "sigmoid", "silu", "tanh"])
def test_functions_far_out_are_finite_or_infinite_but_numbers(name: str) -> None:
    args = np.array([-1e30, -1e4, -104, -90, 0, 90, 200, 1e4, 1e30], "f4")
    kernel = LoopKernel(
        name, (9,), (DTYPES["f32"],), DTYPES["f32"], apply(name, loops.Load(0, Axis(0), "f32"))
    )
    got = run_loop(kernel, [args], np.zeros(9, "f4"))
    with np.errstate(over="ignore"):
        wanted = MEANINGS[name](np, [args.astype("f8")], {}).astype("f4")
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize(
    "name", ["add", "sub", "mul", "div", "mod", "max", "min", "lt", "eq", "neg", "abs"]
)
@pytest.mark.parametrize("dtype", ["i32", "u32"])
def test_functions_on_integers(name: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    low = -1000 if dtype == "i32" else 0
    args = [
        rng.integers(low, 1000, 512).astype(NUMPY[dtype]),
        rng.integers(1, 50, 512).astype(NUMPY[dtype]),
    ]
    args = args[: FUNCTIONS[name]]
    value = apply(name, *(loops.Load(i, Axis(0), dtype) for i in range(len(args))))  # type: ignore[arg-type]
    out = "bool" if value.type == "bool" else dtype
    kernel = LoopKernel(name, (512,), (DTYPES[dtype],) * len(args), DTYPES[out], value)
    got = run_loop(kernel, args, np.zeros(512, NUMPY[out]))
    np.testing.assert_array_equal(got, MEANINGS[name](np, args, {}).astype(NUMPY[out]))


@pytest.mark.parametrize("dtype", loops.SCALAR)
@pytest.mark.parametrize("count", [1, 5, 130])
def test_packed_stores_keep_their_neighbours(dtype: str, count: int) -> None:
    """Elements 16 to 16 + count are written; what lies around them, in shared words too, stays."""
    rng = np.random.default_rng(count)
    bits = 8 * DTYPES[dtype].bytes // DTYPES[dtype].block
    high = {"bool": 2, "f8e8m0": 255}.get(dtype, 1 << min(bits, 8) - 1)
    codes = rng.integers(0, high, count + 32, dtype="u8")
    if dtype == "f64":
        codes = codes.astype("f8").view("u8")
    if high == 128 and dtype.startswith("f8"):
        codes %= 0x78  # no NaN
    old = rng.integers(0, high, count + 32, dtype="u8")
    value = loops.Load(0, Axis(0), loops.SCALAR[dtype])
    kernel = LoopKernel("copy", (count,), (DTYPES[dtype],), DTYPES[dtype], value, integer(16))
    got = run_loop(kernel, [_packed(codes, bits)], _packed(old, bits))
    wanted = old.copy()
    wanted[16 : 16 + count] = codes[:count]
    np.testing.assert_array_equal(got, _packed(wanted, bits))


def _packed(codes: Array, bits: int) -> Array:
    """The bytes of elements of ``bits`` bits, the first in the lowest."""
    flags = codes[:, None] >> np.arange(bits, dtype="u8") & np.uint64(1)
    return np.packbits(flags.astype("u1").reshape(-1), bitorder="little")


def test_f16_rounds_to_nearest_even() -> None:
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        x = (rng.standard_normal(4096) * 10.0 ** rng.uniform(-9, 6, 4096)).astype("f4")
        x[:6] = [65504, 65519.99, 65520, 1e9, 2.9802322387695312e-08, -1.5 * 2.0**-24]
        wanted = x.astype("f2")
    load = loops.Load(0, Axis(0), "f32")
    kernel = LoopKernel("cast", (4096,), (DTYPES["f32"],), DTYPES["f16"], load)
    got = run_loop(kernel, [x], np.zeros(4096, "f2"))
    np.testing.assert_array_equal(got.view("u2"), wanted.view("u2"))


@pytest.mark.parametrize("dtype", ["f32", "i32", "u32", "i64", "u64"])
@pytest.mark.parametrize("kind", ["sum", "max", "min", "prod"])
@pytest.mark.parametrize(("rows", "extent_"), [(1, 5000), (3, 64), (700, 9), (5000, 65)])
def test_reductions(kind: Any, dtype: Any, rows: int, extent_: int) -> None:
    rng = np.random.default_rng(rows)
    x = (rng.standard_normal((rows, extent_)) * 100).astype("i4")
    if kind == "prod":  # small for floats, beyond 64 bits for integers
        odd = rng.integers(-9, 9, x.shape) * 2 + 1
        x = np.where(rng.random(x.shape) < 0.01, -2, 1) if dtype == "f32" else odd
    if dtype in ("i64", "u64"):
        x = x.astype("i8") << 36 | 12345 if kind != "prod" else x
    with np.errstate(all="ignore"):
        x = x.astype(NUMPY[dtype])
    at = apply("add", apply("mul", Axis(0), integer(extent_)), Axis(16))
    value = Reduce(kind, 16, extent_, loops.Load(0, at, dtype), dtype)
    kernel = LoopKernel("reduce", (rows,), (DTYPES[dtype],), DTYPES[dtype], value)
    got = run_loop(kernel, [x], np.zeros(rows, NUMPY[dtype]))
    np.testing.assert_array_equal(
        got,
        getattr(np, kind)(x, axis=1, dtype=x.dtype)
        if kind in ("sum", "prod")
        else getattr(np, kind)(x, axis=1),
    )


@pytest.mark.parametrize("dtype", ["f32", "f64", "i32", "u32", "i64", "u64", "bool"])
@pytest.mark.parametrize("kind", ["sum", "max", "min", "prod"])
def test_no_elements_give_the_neutral_one(kind: Any, dtype: Any) -> None:
    n = Dim("n", "host", 200)
    value = Reduce(kind, 16, n, loops.Load(0, Axis(16), dtype), dtype)
    kernel = LoopKernel("reduce", (1,), (DTYPES[dtype],), DTYPES[dtype], value)
    kind_ = NUMPY.get(dtype, "<f8")
    bench = Bench(dims=(DimSpec(n),))
    bench.value("x", np.ones(4, kind_), dtype)
    bench.value("y", np.full(1, 77).astype(kind_), dtype)
    (data,) = bench.run([wgsl.launch(kernel, ("x", "y"))], ["y"], {"n": 0})
    got = np.frombuffer(data, kind_)[0]
    if kind in ("sum", "prod"):
        assert got == (kind == "prod")
    elif dtype[0] == "f":
        assert got == (-np.inf if kind == "max" else np.inf)
    elif dtype == "bool":
        assert got == (kind == "min")
    else:
        limits = np.iinfo(kind_)
        assert got == (limits.min if kind == "max" else limits.max)


def test_a_grid_above_65535_folds() -> None:
    count = 65_535 * 64 + 777
    value = apply("add", Axis(0), integer(1))
    kernel = LoopKernel("iota", (count,), (), DTYPES["i32"], value)
    assert wgsl.launch(kernel, ("y",)).grid[1] == 2
    got = run_loop(kernel, [], np.zeros(count, "<i4"))
    np.testing.assert_array_equal(got, np.arange(1, count + 1))


def test_sizes_of_host_dims_at_run_time() -> None:
    n = Dim("rows of x", "host", 10)  # a name that WGSL does not have
    value = apply("mul", Axis(0), extent(n * 2 - 1))
    kernel = LoopKernel("sizes", (n,), (), DTYPES["i32"], value)
    bench = Bench(dims=(DimSpec(Dim("other", "host", 3)), DimSpec(n)))
    bench.value("y", np.full(10, 7, "<i4"), "i32")
    (data,) = bench.run([wgsl.launch(kernel, ("y",))], ["y"], {"rows of x": 4})
    assert np.frombuffer(data, "<i4").tolist() == [0, 7, 14, 21] + [7] * 6


# --- any graph


@pytest.mark.parametrize("block", range(4))
def test_random_graphs(block: int) -> None:
    for seed in range(block * 12, block * 12 + 12):
        try:
            check(random_graph(seed), {"T": 3, "pos": 2}, seed)
        except Exception as error:
            raise AssertionError(f"random_graph({seed})") from error


def lower_graph(
    bench: Bench, made: RandomGraph, dims: dict[str, int], seed: int
) -> tuple[Lowered, Values, Values, Values]:
    """``made`` lowered for WebGPU into ``bench``; the values of its weights, states and inputs."""
    weights, states = (
        random_values(made.weights, seed, {}),
        random_values(made.states, seed + 2, {}),
    )
    feeds = random_values(made.inputs, seed + 1, dims)
    bench.value("position", np.array([dims["pos"]], "<i4"), "i32")
    operands = {}
    table = {**made.weights, **made.states, **made.inputs}
    for name, array in {**weights, **states, **feeds}.items():
        dtype, shape = table[name]
        size = -(-maximum(product(shape)) * dtype.bytes // 4) * 4
        padded = np.frombuffer(array.tobytes().ljust(size, b"\xff"), np.uint8)
        held = bench.value(name, padded, dtype.name, shape)
        rows = shape[0] if shape else 1
        operands[name] = Operand(dtype, shape, (Part(0, rows, held.parts[0].buffers),))
    for name, node in made.graph.outputs.items():
        bench.empty(name, node.dtype.name, node.shape)

    def constant(node: Node) -> str:
        name = f"constant{len(bench.buffers)}"
        data = np.frombuffer(node.attrs["data"].ljust(4, b"\0"), np.uint8)
        bench.value(name, data, node.dtype.name)
        return name

    context = Context(frozenset(), bench.scratch)
    lowered = lower(made.graph, TARGET, operands, constant, context, "t")
    for name, room in lowered.temporaries.items():
        bench.buffers[name] = Buffer(name, "arena", -(-maximum(room) // 4) * 4)
    return lowered, weights, states, feeds


def check(made: RandomGraph, dims: dict[str, int], seed: int) -> None:
    """Lowered for WebGPU and interpreted, ``made`` gives the same outputs and states."""
    bench = Bench(dims=(DimSpec(T), DimSpec(POS, "position", 0)))
    lowered, weights, states, feeds = lower_graph(bench, made, dims, seed)
    names = [*made.graph.outputs, *made.graph.updates]
    got = dict(zip(names, bench.run(lowered.launches, names, {"T": dims["T"]}), strict=True))
    reference = Interpreter(weights, dict(states))
    with np.errstate(all="ignore"):
        wanted = reference.run(made.graph, feeds, dims)
    for name in names:
        node = made.graph.outputs.get(name) or made.graph.updates[name]
        value = wanted[name] if name in wanted else reference.states[name]
        sizes = [evaluate(s, dims) for s in node.shape]
        mine = np.frombuffer(got[name], NUMPY[node.dtype.name])[: math.prod(sizes)].reshape(sizes)
        scale = 2e-3 if node.dtype.name == "f16" else 2e-5
        if node.dtype.kind == "float":
            np.testing.assert_allclose(mine, value, rtol=scale, atol=scale, err_msg=name)
        else:
            np.testing.assert_array_equal(mine, value, err_msg=name)
