"""Random graphs, compiled and run by each executor of CPython: the interpreter's own numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fanlight import dtypes
from fanlight.compiler import CompileOptions, compile_module
from fanlight.dtypes import DTYPES, DType
from fanlight.ir.graph import DeviceDim, Graph, Module, StateSpec, WeightSource
from fanlight.ir.interpreter import Interpreter, array_of
from fanlight.ir.ops import apply, weight
from fanlight.ir.text import parse_graph, print_graph
from fanlight.kernels.loops import SCALAR
from fanlight.runtime.backend import Backend, check_device, choose
from fanlight.shapes import evaluate
from tests.graphs import ALL, POS, RandomGraph, T, random_graph, random_values
from tests.loop_reference import NUMPY

Array = NDArray[Any]
RUNS = ({"T": 3, "pos": 0}, {"T": 1, "pos": 3}, {"T": 6, "pos": 5})
SEEDS = range(24)
_POSITION = "position"


def module_of(made: RandomGraph, weights: Mapping[str, Array]) -> Module:
    """``made`` as a module whose weights are inline and whose device dim is a state's element."""
    return Module(
        graphs={"main": made.graph},
        weights={
            name: WeightSource(
                dtype, tuple(int(str(s)) for s in shape), data=weights[name].tobytes()
            )
            for name, (dtype, shape) in made.weights.items()
        },
        states={
            **{name: StateSpec(dtype, shape) for name, (dtype, shape) in made.states.items()},
            _POSITION: StateSpec(dtypes.i32, (1,)),
        },
        dims=[T],
        device_dims=[DeviceDim(POS, _POSITION, 0)],
    )


async def check(made: RandomGraph, backend: Backend, seed: int) -> None:
    """Compiled and interpreted, ``made`` gives the same outputs and states, run after run."""
    weights = random_values(made.weights, seed, {})
    info = backend.info
    options = CompileOptions(info.target, info.features, info.max_binding)
    session = await backend.load(compile_module(module_of(made, weights), options), {})
    zeros = {
        name: np.zeros([evaluate(s, {}) for s in shape], NUMPY[dtype.name])
        for name, (dtype, shape) in made.states.items()
    }
    reference = Interpreter(weights, zeros)
    used = {node.name for node in made.graph.nodes() if node.op == "input"}
    tables = {**{n: (x.dtype, x.shape) for n, x in made.graph.outputs.items()}, **made.states}
    try:
        for number, dims in enumerate(RUNS):
            feeds = random_values(made.inputs, seed + number + 1, dims)
            with np.errstate(all="ignore"):
                wanted = reference.run(made.graph, feeds, dims) | reference.states
            given = {name: _padded(feeds[name]) for name in used}
            given[_POSITION] = np.array([dims["pos"]], "<i4").tobytes()
            await session.run("main", given, {"T": dims["T"]})
            for name, (dtype, shape) in tables.items():
                sizes = [evaluate(s, dims) for s in shape]
                length = -(-int(np.prod(sizes)) * dtype.bytes // 4) * 4
                _same(
                    await session.read(name, 0, length),
                    wanted[name],
                    dtype,
                    sizes,
                    f"run {number}, {name}",
                )
    finally:
        await session.dispose()


def _padded(value: Array) -> bytes:
    data = value.tobytes()
    return data + bytes(-len(data) % 4)


def _same(data: bytes, wanted: Array, dtype: DType, shape: list[int], where: str) -> None:
    count = int(np.prod(shape))
    got = np.frombuffer(data, NUMPY[dtype.name])[:count].reshape(shape)
    if dtype.kind == "float":
        scale = {2: 2e-3, 4: 2e-5, 8: 1e-11}[dtype.bytes]
        np.testing.assert_allclose(got, wanted, scale, scale, err_msg=where)
    else:
        np.testing.assert_array_equal(got, wanted, where)


@pytest.fixture(scope="module", params=["wasm", "webgpu"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return asyncio.run(choose(check_device(request.param)))


@pytest.mark.parametrize("seed", SEEDS)
def test_random_graphs(backend: Backend, seed: int) -> None:
    made = random_graph(seed, lanes=4)
    try:
        asyncio.run(check(made, backend, seed))
    except Exception as error:
        raise AssertionError(f"random_graph({seed})\n{print_graph(made.graph)}") from error


@pytest.mark.parametrize("seed", range(100, 124))
def test_random_graphs_of_all_dtypes(seed: int) -> None:
    """64-bit and 16-bit numbers too, on WebAssembly."""
    made = random_graph(seed, lanes=4, kinds=ALL)
    try:
        asyncio.run(check(made, asyncio.run(choose(check_device("wasm"))), seed))
    except Exception as error:
        raise AssertionError(f"random_graph({seed})\n{print_graph(made.graph)}") from error


@pytest.mark.parametrize("name", SCALAR)
def test_weights_of_every_plain_dtype(name: str) -> None:
    """Fifteen elements, the bytes as they are in a file, on WebAssembly."""
    dtype, graph = DTYPES[name], Graph("main")
    data = np.random.default_rng(4).integers(0, 256, 15 * dtype.bytes, dtype="u1")
    data = data % 2 if name == "bool" else data[: -(-15 // dtype.block) * dtype.bytes]
    to = dtypes.i64 if dtype.kind == "int" else dtypes.u64 if dtype.kind == "uint" else dtypes.f64
    graph.outputs["out"] = apply("cast", weight("w", dtype, (3, 5)), to=to)
    module = Module({"main": graph}, {"w": WeightSource(dtype, (3, 5), data=data.tobytes())})

    async def run() -> bytes:
        info = (backend := await choose(check_device("wasm"))).info
        options = CompileOptions(info.target, info.features, info.max_binding)
        session = await backend.load(compile_module(module, options), {})
        await session.run("main", {}, {})
        return await session.read("out")

    got = np.frombuffer(asyncio.run(run()), NUMPY[to.name])[:15]
    np.testing.assert_array_equal(got, array_of(data.tobytes(), dtype, [15]))


def test_negation_of_a_negative_constant(backend: Backend) -> None:
    """``--4`` is no expression in WGSL."""
    graph = parse_graph(
        """graph g
        %0 = constant {"dtype": "i32", "shape": [], "data": "fcffffff"} : i32[]
        %1 = neg(%0) : i32[]
        %2 = constant {"dtype": "f32", "shape": [], "data": "000080c0"} : f32[]
        %3 = neg(%2) : f32[]
        return whole = %1
        return real = %3
        """
    )
    asyncio.run(check(RandomGraph(graph), backend, 0))
