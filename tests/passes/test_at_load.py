"""What follows from weights alone moves to the program ``load``, and only what is worth it."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fanlight import dtypes
from fanlight.compiler import CompileOptions, compile_module
from fanlight.dtypes import DTYPES
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Graph, Module, Node, WeightSource
from fanlight.ir.ops import apply, input_, weight
from fanlight.passes import at_load
from fanlight.runtime.backend import check_device, choose

Array = NDArray[Any]
RNG = np.random.default_rng(4)
X = RNG.standard_normal((3, 64)).astype("f4")
W = RNG.integers(-128, 128, (64, 48)).astype("i1")


def _module(w: Array, right: Node) -> Module:
    kind = {"i1": "i8", "f4": "f32"}[w.dtype.str[1:]]
    graph = Graph("main", {"y": apply("dot", input_("x", dtypes.f32, X.shape), right)})
    source = WeightSource(DTYPES[kind], w.shape, data=w.tobytes())
    return Module({"main": graph}, {"w": source})


def _dequantised() -> Node:
    """By a scale along K, which no product can take behind itself."""
    scale = build.along(0, 2, 64)
    return do("mul", cast(weight("w", DTYPES["i8"], W.shape), dtypes.f32), cast(scale, dtypes.f32))


async def _run(module: Module, device: str) -> tuple[Array, set[str]]:
    """The product of a second run, and the programs with steps."""
    backend = await choose(check_device(device))
    plan = compile_module(
        module, CompileOptions(backend.info.target, backend.info.features, backend.info.max_binding)
    )
    session = await backend.load(plan, {})
    try:
        for feed in (2 * X, X):
            await session.run("main", {"x": feed.tobytes()})
        data = await session.read("y")
    finally:
        await session.dispose()
    return np.frombuffer(data, "f4").reshape(3, 48), {n for n, s in plan.programs.items() if s}


@pytest.mark.parametrize("device", ["wasm", "webgpu"])
def test_a_weight_is_dequantised_once(device: str) -> None:
    got, programs = asyncio.run(_run(_module(W, _dequantised()), device))
    assert programs == {"main", "load"}
    wanted = X @ (W.astype("f4") * np.arange(64)[:, None])
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_run_has_nothing_of_it_left() -> None:
    moved = at_load.run(_module(W, _dequantised()))
    assert "weight" not in {node.op for node in moved.graphs["main"].nodes()}
    assert [*moved.graphs["load"].updates] == [*moved.states] == ["load.0"]


def test_left_alone() -> None:
    plain = W.astype("f4")
    leaf = weight("w", dtypes.f32, W.shape)
    cases = {
        "a weight itself": _module(plain, leaf),
        "a view": _module(
            plain.reshape(32, 96), build.reshape(weight("w", dtypes.f32, (32, 96)), W.shape)
        ),
        "few bytes": _module(plain[:, :4], do("mul", weight("w", dtypes.f32, (64, 4)), 3.0)),
        "many times its sources": _module(
            plain[:1], build.expand(weight("w", dtypes.f32, (1, 48)), W.shape)
        ),
        "of the run": _module(plain, do("mul", leaf, input_("s", dtypes.f32, ()))),
    }
    for name, module in cases.items():
        assert at_load.run(module) is module, name
