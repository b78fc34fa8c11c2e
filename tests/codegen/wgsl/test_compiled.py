"""Modules compiled for WebGPU: weights of every plain dtype, and products with and without a
kernel of their own."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from fanlight.compiler import CompileOptions, compile_module
from fanlight.dtypes import DTYPES
from fanlight.ir.graph import Graph, Module, WeightSource
from fanlight.ir.interpreter import array_of
from fanlight.ir.ops import apply, weight
from fanlight.kernels.loops import SCALAR
from fanlight.runtime.backend import check_device, choose
from tests.codegen.wgsl.harness import Array


def _run(graph: Graph, weights: dict[str, tuple[str, Array, tuple[int, ...]]]) -> bytes:
    """The output ``out``; weights are given by dtype, bytes and shape."""
    sources = {
        name: WeightSource(DTYPES[dtype], shape, data=data.tobytes())
        for name, (dtype, data, shape) in weights.items()
    }

    async def run() -> bytes:
        backend = await choose(check_device("webgpu"))
        options = CompileOptions("webgpu", backend.info.features, backend.info.max_binding)
        plan = compile_module(Module({"main": graph}, sources), options)
        session = await backend.load(plan, {})
        await session.run("main", {}, {})
        return await session.read("out")

    return asyncio.run(run())


@pytest.mark.parametrize("name", SCALAR)
def test_weights_of_every_plain_dtype(name: str) -> None:
    """Fifteen elements, whose rows of five may end within a byte; f64 is read as f32."""
    dtype, graph = DTYPES[name], Graph("main")
    raw = np.random.default_rng(4).integers(0, 256, 15 * dtype.bytes, dtype="u1")
    data = raw % 2 if name == "bool" else raw[: -(-15 // dtype.block) * dtype.bytes]
    to = {"int": "i64", "uint": "u64"}.get(dtype.kind, "f64")
    graph.outputs["out"] = apply("cast", weight("w", dtype, (3, 5)), to=DTYPES[to])
    got = np.frombuffer(_run(graph, {"w": (name, data, (3, 5))}), f"<{to[0]}8")[:15]
    with np.errstate(all="ignore"):
        wanted: Array = array_of(data.tobytes(), dtype, [15])
        wanted = wanted.astype("f4") if to == "f64" else wanted
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", ["f32", "f64", "f16", "i32", "u32", "i64", "u64"])
def test_products_of_every_number(name: str) -> None:
    kinds: dict[str, Any] = {"f16": "f2"}
    kind = kinds.get(name, f"{name[0]}{int(name[1:]) // 8}")
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 1 << 20, (3, 4, 6)), rng.integers(-9, 9, (6, 5))
    if name[0] == "f":
        a, b = a % 9, b % 7
    x, y = a.astype(kind), b.astype(kind)
    graph = Graph("main")
    nodes = [weight(n, DTYPES[name], v.shape) for n, v in (("a", x), ("b", y))]
    graph.outputs["out"] = apply("dot", *nodes)
    data = _run(graph, {"a": (name, x, x.shape), "b": (name, y, y.shape)})
    got = np.frombuffer(data, f"<{kind}")[:60].reshape(3, 4, 5)
    np.testing.assert_array_equal(got, (x @ y).astype(kind))
