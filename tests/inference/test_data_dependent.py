"""A module of two graphs whose second one's size is read back from the first: memory comes from the
dim's bound, values cross in a state of free size."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from fanlight import dtypes
from fanlight.inference.session import InferenceSession, check_options
from fanlight.ir import ops
from fanlight.ir.graph import Graph, Module, StateSpec, WeightSource
from fanlight.plan import Call, Read
from fanlight.shapes import Dim

N = Dim("n", "host", 1 << 20)
FOUND = Dim("found", "host", 1 << 20)


def module() -> Module:
    """first: count = how many of x are above the limit; kept = x + x. main: y = kept[:count]."""
    x = ops.input_("x", dtypes.f32, (N,))
    limit = ops.weight("limit", dtypes.f32, (1,))
    above = ops.apply("lt", ops.apply("expand", limit, shape=(N,)), x)
    count = ops.apply("reduce_sum", ops.apply("cast", above, to=dtypes.i32), axes=(0,), keep=True)
    first = Graph("first", {}, {"count": count, "kept": ops.apply("add", x, x)})
    kept = ops.state("kept", dtypes.f32, (N,))
    y = ops.apply("take", kept, ops.apply("iota", size=FOUND))
    return Module(
        graphs={"first": first, "second": Graph("second", {"y": y})},
        weights={"limit": WeightSource(dtypes.f32, (1,), data=np.array([0.5], "<f4").tobytes())},
        states={"count": StateSpec(dtypes.i32, (1,)), "kept": StateSpec(dtypes.f32, (N,))},
        dims=[N, FOUND],
        free={"n": None, "found": N},
        programs={"main": (Call("first"), Read("found", "count"), Call("second"))},
        metadata={
            "inputs": [{"name": "x", "dtype": "f32", "shape": ["n"]}],
            "outputs": [{"name": "y", "dtype": "f32", "shape": ["found"]}],
        },
    )


@pytest.mark.parametrize("provider", ["webgpu", "wasm"])
def test_a_size_that_is_read_back(provider: str) -> None:
    async def run() -> None:
        options = check_options([provider])
        async with await InferenceSession.from_module(module(), {}, options) as session:
            assert session.outputs[0].shape == ("found",)
            for n in (5, 3000, 1, 300, 0):
                x = np.random.default_rng(n).random(n, "f4")
                y = np.asarray((await session.run({"x": x}))["y"])
                assert y.tolist() == (x + x)[: (x > 0.5).sum()].tolist()
            assert session.info.growths <= 2

    asyncio.run(run())
