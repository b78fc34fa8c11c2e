"""Long reductions and deep products of few results are split; their numbers stay."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from fanlight import dtypes
from fanlight.compiler import CompileOptions, compile_module
from fanlight.ir.graph import Graph, Module, Node
from fanlight.ir.interpreter import Interpreter
from fanlight.ir.ops import apply, input_
from fanlight.passes import split
from fanlight.runtime.backend import check_device, choose
from fanlight.shapes import Dim, Size, evaluate

T = Dim("T", "host", 5000)
RNG = np.random.default_rng(3)


def _reduced(kind: str, shape: tuple[Size, ...], axes: tuple[int, ...], keep: bool) -> Node:
    x = input_("x", dtypes.f32, shape)
    return apply(f"reduce_{kind}", x, axes=axes, keep=keep)


def _shifted() -> Node:
    """A convolution: 3 x 3 taps over 64 channels of lines of 12."""
    a = input_("a", dtypes.f32, (8, 64 * 9))
    b = input_("x", dtypes.f32, (64, 12 * 10))
    shifts = {"taps": 9, "across": 3, "down": 12, "right": 1, "count": 12 * 7}
    return apply("dot_shifted", a, b, **shifts)


CASES: dict[str, Node] = {
    "max of all": _reduced("max", (1, 6, 40, 50), (0, 1, 2, 3), False),
    "min of a free size": _reduced("min", (3, T), (0, 1), True),
    "one axis": _reduced("sum", (2, 6000), (1,), False),
    "an axis in front": _reduced("sum", (6000, 3), (0,), True),
    "axes in the middle": _reduced("max", (2, 90, 70, 3), (1, 2), True),
    "a product": apply(
        "dot", input_("a", dtypes.f32, (20, 1536)), input_("x", dtypes.f32, (1536, 70))
    ),
    "with leading axes of one": apply(
        "dot", input_("a", dtypes.f32, (20, 1536)), input_("x", dtypes.f32, (1, 1536, 70))
    ),
    "a convolution": _shifted(),
}


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_stay(name: str) -> None:
    node = CASES[name]
    graph = Graph("main", {"y": node})
    cut = split.run(graph)
    assert len(cut.nodes()) > len(graph.nodes()), "nothing was split"
    dims = {"T": 4321}
    sizes = {x.name: x.shape for x in graph.nodes() if x.op == "input"}
    feeds = {
        key: RNG.standard_normal([evaluate(s, dims) for s in shape]).astype("f4")
        for key, shape in sizes.items()
    }
    module = Module({"main": graph}, dims=[T])
    wanted = Interpreter({}, {}).run(graph, feeds, dims)["y"]

    async def on_a_gpu() -> bytes:
        backend = await choose(check_device("webgpu"))
        session = await backend.load(compile_module(module, CompileOptions("webgpu")), {})
        try:
            fed = {key: value.tobytes() for key, value in feeds.items()}
            await session.run("main", fed, dims)
            return await session.read("y")
        finally:
            await session.dispose()

    got = np.frombuffer(asyncio.run(on_a_gpu()), "f4")[: wanted.size].reshape(wanted.shape)
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_left_alone() -> None:
    short = _reduced("max", (6, 600), (0, 1), False)
    many = _reduced("sum", (5000, 4, 2000), (1, 2), False)
    free = apply("dot", input_("a", dtypes.f32, (T, 1536)), input_("b", dtypes.f32, (1536, 70)))
    wide = apply("dot", input_("a", dtypes.f32, (640, 640)), input_("b", dtypes.f32, (640, 4000)))
    for node in (short, many, free, wide):
        graph = Graph("main", {"y": node})
        assert split.run(graph) is graph
