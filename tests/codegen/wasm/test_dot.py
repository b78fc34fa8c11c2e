"""Products of f32 matrices against numpy in f64; the same bits at any number of threads."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fanlight import dtypes
from fanlight.codegen.wasm import dot
from fanlight.compiler import CompileOptions, compile_module
from fanlight.ir.graph import Graph, Module
from fanlight.ir.ops import apply, input_
from fanlight.plan import DimSpec
from fanlight.runtime import wasm
from fanlight.shapes import Dim, Size
from tests.codegen.wasm.harness import RELAXED, Bench, f32, nmse

Array = NDArray[Any]
M, K, N, H = (Dim(name, "host", 4 if name == "h" else 300) for name in "mknh")


_DTYPES = {"f4": "f32", "f2": "f16", "i1": "i8", "u1": "u8"}


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def check(
    a: Array,
    b: Array,
    a_shape: tuple[Size, ...] | None = None,
    b_shape: tuple[Size, ...] | None = None,
    features: frozenset[str] = frozenset(),
    turned: bool | None = None,
    zero: int = 0,
    **dims: int,
) -> None:
    """Right, nothing written beside, and the same bits at 1, 2, 3 and 7 threads. ``turned``: b is
    given so; where it isn't None, the op is dot_stored."""
    a_sizes: tuple[Size, ...] = a.shape if a_shape is None else a_shape
    b_sizes: tuple[Size, ...] = b.shape if b_shape is None else b_shape
    bench = Bench([DimSpec(d) for d in (M, K, N, H) if d.name in dims], features)
    kind = _DTYPES[b.dtype.str[1:]]
    inputs = [bench.value("a", a, "f32", a_sizes), bench.value("b", b, kind, b_sizes)]
    leaves = input_("a", dtypes.f32, a_sizes), input_("b", dtypes.DTYPES[kind], b_sizes)
    attrs = {} if turned is None else {"turned": turned, "zero": zero}
    node = apply("dot" if turned is None else "dot_stored", *leaves, **attrs)
    launches = bench.op(node.op, inputs, bench.empty("c", "f32", node.shape), **attrs)
    b = (b.swapaxes(-1, -2) if turned else b).astype("f8") - zero
    wanted = np.matmul(a.astype("f8"), b)
    given = {d.name: 1 for d in (M, K, N, H)} | dims
    (data,) = bench.run(launches, ["c"], dims)
    got = f32(data, wanted.shape)
    if wanted.size:
        assert wanted.size < 40 or nmse(got, wanted) < 1e-12
        scale = np.abs(a).sum(-1).max(initial=1) * np.abs(b).max(initial=1)
        np.testing.assert_allclose(got, wanted, atol=3e-7 * scale)
    for threads in (1, 2, 3, 7):
        shared = bench.share(launches, "c", threads, given)
        assert shared[: got.nbytes] == got.tobytes(), threads


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7, 130])
@pytest.mark.parametrize("k", [1, 3, 4, 65, 259])
@pytest.mark.parametrize("n", [1, 4, 5, 11, 16, 23, 48])
def test_all_sizes(m: int, k: int, n: int) -> None:
    check(normal(m, k), normal(k, n, seed=1))


@pytest.mark.parametrize("features", [frozenset(), RELAXED], ids=["plain", "relaxed"])
def test_sizes_of_models(features: frozenset[str]) -> None:
    check(normal(5, 384), normal(384, 1536, seed=1), features=features)
    check(normal(128, 520), normal(520, 100, seed=1), features=features)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3, 5, 7), (7, 9)),
        ((2, 3, 5, 7), (1, 1, 7, 9)),
        ((2, 3, 5, 7), (2, 3, 7, 9)),
        ((2, 3, 5, 7), (3, 7, 9)),
        ((2, 1, 5, 7), (1, 3, 7, 9)),
        ((5, 7), (4, 7, 9)),
        ((2, 1, 1, 7), (2, 4, 7, 8)),
        ((2, 3, 4, 1, 6), (3, 1, 6, 4)),
    ],
)
def test_leading_axes_broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check(normal(*a), normal(*b, seed=1))


def test_sizes_known_at_run_time_alone() -> None:
    for h, m, k, n in ((2, 5, 7, 9), (3, 1, 300, 33), (1, 131, 2, 1)):
        check(normal(m, k), normal(k, n, seed=1), (M, K), (K, N), m=m, k=k, n=n)
        left, right = normal(h, 2, m, k), normal(h, 1, k, n, seed=1)
        check(left, right, (H, 2, M, K), (H, 1, K, N), h=h, m=m, k=k, n=n)


def test_sums_of_nothing_are_0() -> None:
    check(normal(6, 0), normal(0, 9), (6, K), (K, 9), k=0)
    check(normal(1, 0), normal(0, 16), (1, K), (K, 16), k=0)
    check(normal(0, 5), normal(5, 9), (M, 5), (5, 9), m=0)


def test_one_kernel_serves_all_shapes() -> None:
    bench = Bench()
    names = set()
    for m, k, n in ((5, 7, 90), (6, 8, 91), (1, 3, 500)):
        inputs = [bench.empty("a", "f32", (m, k)), bench.empty("b", "f32", (k, n))]
        (launch,) = bench.op("dot", inputs, bench.empty("c", "f32", (m, n)))
        names.add(launch.kernel.name)
    assert len(names) == 1


@pytest.mark.parametrize("dtype", ["f32", "f64", "i32", "i64", "u8"])
def test_other_dtypes_take_the_definition(dtype: str) -> None:
    kind = dtypes.DTYPES[dtype]
    numpy = {"f32": "f4", "f64": "f8", "i32": "i4", "i64": "i8", "u8": "u1"}[dtype]
    graph = Graph("main")
    a, b = input_("a", kind, (2, 3, 5)), input_("b", kind, (5, 4))
    graph.outputs["c"] = apply("dot", a, b)
    assert dot.fits(graph.outputs["c"]) == (dtype == "f32")
    rng = np.random.default_rng(3)
    x, y = (rng.integers(0, 90, shape).astype(numpy) for shape in ((2, 3, 5), (5, 4)))
    if dtype[0] == "i":
        x, y = x - 45, y * -(1 << 8 * x.itemsize - 12)
    wanted = np.matmul(x, y)

    async def run() -> bytes:
        plan = compile_module(Module(graphs={"main": graph}), CompileOptions("wasm"))
        assert ("dot" in plan.kernels[0].name) == (dtype == "f32")
        session = await wasm.load(plan, {})
        await session.run("main", {"a": _words(x), "b": _words(y)}, {})
        return await session.read("c")

    data = asyncio.run(run())
    np.testing.assert_array_equal(
        np.frombuffer(data, numpy)[: wanted.size].reshape(wanted.shape), wanted
    )


def _words(array: Array) -> bytes:
    data = array.tobytes()
    return data + bytes(-len(data) % 4)


@pytest.mark.parametrize("dtype", ["f4", "f2", "i1", "u1"])
@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize("n", [1, 5, 16, 39])
def test_right_sides_as_they_are_stored(dtype: str, turned: bool, n: int) -> None:
    for m, k in ((1, 5), (1, 264), (3, 4), (6, 259), (130, 33)):
        check(normal(m, k), _stored(dtype, (n, k) if turned else (k, n)), turned=turned)


@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
def test_zero_points(turned: bool) -> None:
    for m in (1, 6):
        check(normal(m, 70), _stored("u1", (70, 70)), turned=turned, zero=128)
        check(normal(m, 70), _stored("i1", (70, 70)), turned=turned, zero=-7)


def test_stored_sides_of_any_size_and_leading_axes() -> None:
    for h, m, k, n in ((2, 5, 7, 9), (3, 1, 300, 33), (1, 131, 2, 1)):
        right = _stored("i1", (h, 1, n, k))
        left, sizes = normal(h, 2, m, k), ((H, 2, M, K), (H, 1, N, K))
        check(left, right, *sizes, turned=True, h=h, m=m, k=k, n=n)
        check(left[0, 0], right[0, 0], (M, K), (N, K), turned=True, m=m, k=k, n=n)


def _stored(dtype: str, shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(5)
    if dtype[0] == "f":
        return rng.standard_normal(shape).astype(dtype)
    low = -128 if dtype == "i1" else 0
    return rng.integers(low, low + 256, shape).astype(dtype)
