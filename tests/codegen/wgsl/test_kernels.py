"""Attention, norms, argmax and the linker against numpy, at SmolLM2's shapes and odd ones."""

from __future__ import annotations

import numpy as np
import pytest

from fanlight.codegen.wgsl import attention, text
from fanlight.codegen.wgsl.link import link
from fanlight.codegen.wgsl.table import TARGET
from fanlight.errors import PlanError
from fanlight.ir.interpreter import MEANINGS
from fanlight.ir.ops import OPS
from fanlight.kernels.launch import Binding, WgslLaunch
from fanlight.kernels.target import LOOP, NotYet
from fanlight.plan import DimSpec
from fanlight.shapes import Dim, Size, evaluate, maximum
from tests.codegen.wgsl.harness import Array, Bench, f32, nmse

POS = Dim("pos", "device", 2048)
T = Dim("T", "host", 130)


def test_rules_are_total_over_the_op_list() -> None:
    leaves = {"input", "weight", "state", "constant"}
    assert set(TARGET.rules) == set(OPS) - leaves
    assert all(callable(e) or e is LOOP or isinstance(e, NotYet) for e in TARGET.rules.values())


# --- attention


def attend(
    rows: int, start: int, heads: int, groups: int, depth: int, context: int, cache: str
) -> tuple[Array, Array]:
    """What the kernel gives and what the definition gives; the position comes from a state."""
    rng = np.random.default_rng(start + rows)
    kind = {"f32": "f4", "f16": "f2"}[cache]
    q = rng.standard_normal((rows, heads, depth), dtype=np.float32) * 2
    k, v = (rng.standard_normal((context, groups, depth)).astype(kind) for _ in range(2))
    k[start + rows :] = v[start + rows :] = np.nan  # beyond what may be seen
    bench = Bench(dims=(DimSpec(T), DimSpec(POS, "control", 4)))
    bench.value("control", np.array([9, start, 9], "<i4"), "i32")
    count: Size = 1 if rows == 1 else T
    inputs = [
        bench.value("q", q, "f32", (count, heads, depth)),
        bench.value("k", k, cache),
        bench.value("v", v, cache),
    ]
    out = bench.empty("y", "f32", (rows, heads * depth))
    launches = bench.op("attention", inputs, out, start=POS, scale=depth**-0.5)
    (data,) = bench.run(launches, ["y"], {"T": rows})
    wanted = MEANINGS["attention"](np, [q, k, v], {"start": start, "scale": depth**-0.5})
    return f32(data, (rows, heads * depth)), wanted


@pytest.mark.parametrize("cache", ["f32", "f16"])
@pytest.mark.parametrize(
    ("rows", "start"),
    [(1, 0), (1, 1), (1, 63), (1, 255), (1, 256), (1, 2000), (7, 0), (37, 300), (128, 64)],
)
def test_attention_at_the_shape_of_smollm2(rows: int, start: int, cache: str) -> None:
    got, wanted = attend(rows, start, 9, 3, 64, 2048, cache)
    assert nmse(got, wanted) < 1e-12


@pytest.mark.parametrize(
    ("heads", "groups", "depth"), [(4, 4, 4), (6, 1, 20), (2, 1, 128), (1, 1, 256)]
)
@pytest.mark.parametrize("rows", [1, 5])
def test_attention_of_other_heads(heads: int, groups: int, depth: int, rows: int) -> None:
    got, wanted = attend(rows, 70, heads, groups, depth, 100, "f32")
    assert nmse(got, wanted) < 1e-12


def test_a_position_off_by_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tolerance tells a wrong kernel from a right one."""
    made = attention._text
    monkeypatch.setattr(attention, "_text", lambda *a: made(*a).replace("+ t + 1u;", "+ t;"))
    got, wanted = attend(1, 2000, 9, 3, 64, 2048, "f32")
    assert nmse(got, wanted) > 1e-8


def test_attention_with_great_scores_is_stable() -> None:
    bench = Bench()
    q = np.full((1, 1, 4), 200, "f4")
    k = np.array([[[200.0] * 4], [[-200.0] * 4], [[200.0] * 4]], "f4")
    v = np.array([[[1.0] * 4], [[5.0] * 4], [[3.0] * 4]], "f4")
    inputs = [bench.value("q", q, "f32"), bench.value("k", k, "f32"), bench.value("v", v, "f32")]
    out = bench.empty("y", "f32", (1, 4))
    (data,) = bench.run(bench.op("attention", inputs, out, start=2, scale=1.0), ["y"])
    np.testing.assert_allclose(f32(data, (1, 4)), 2.0, rtol=1e-6)


# --- norms


@pytest.mark.parametrize("width", [1, 3, 64, 100, 576, 2048])
@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("hint", ["", "cpu"])
def test_rms_norm(rows: int, width: int, hint: str) -> None:
    rng = np.random.default_rng(width)
    x = rng.standard_normal((rows, width), dtype=np.float32) * 3
    w = rng.standard_normal(width, dtype=np.float32)
    bench = Bench(features=frozenset({hint}))
    inputs = [bench.value("x", x, "f32"), bench.value("w", w, "f32")]
    out = bench.empty("y", "f32", (rows, width))
    (data,) = bench.run(bench.op("rms_norm", inputs, out, eps=1e-5), ["y"])
    wanted = MEANINGS["rms_norm"](np, [x, w], {"eps": 1e-5})
    np.testing.assert_allclose(f32(data, (rows, width)), wanted, rtol=1e-6, atol=1e-7)


# --- argmax


@pytest.mark.parametrize("width", [1, 63, 257, 49_152, 262_144])
@pytest.mark.parametrize("hint", ["", "cpu"])
def test_argmax_takes_the_lowest_of_equals(width: int, hint: str) -> None:
    rng = np.random.default_rng(width)
    x = rng.standard_normal((4, width), dtype=np.float32)
    x[1] = -np.inf
    x[2, :] = -5
    x[3, [width // 2, width - 1]] = 100
    bench = Bench(features=frozenset({hint}))
    out = bench.empty("y", "i32", (4,))
    (data,) = bench.run(bench.op("argmax", [bench.value("x", x, "f32")], out), ["y"])
    np.testing.assert_array_equal(np.frombuffer(data, "<i4"), x.argmax(-1))


# --- linking


def test_link_writes_bindings_and_dims() -> None:
    a, b, c = Dim("a", "host", 1), Dim("b", "host", 2), Dim("c", "device", 3)
    kernel = text.kernel("k", "// text", (Binding("array<f32>", "read_write"),), (c, b + 1))
    specs = [DimSpec(a), DimSpec(c, "state", 8), DimSpec(b)]
    linked, extra = link(WgslLaunch(kernel, ("x",), (1, 1, 1)), specs)
    assert extra == ("state",)
    assert linked.dims
    assert linked.access == ("read_write", "read")
    assert "fn dim_c() -> u32 { return u32(b1[2]); }" in linked.code
    assert "fn dim_b() -> u32 { return dims[0][1]; }" in linked.code
    assert "@binding(2) var<uniform> dims: array<vec4<u32>, 1>" in linked.code


def test_link_refuses_unknown_dims_and_too_many_buffers() -> None:
    kernel = text.kernel("k", "", (), (Dim("a", "host", 1),))
    with pytest.raises(PlanError, match="a dim is not in the plan"):
        link(WgslLaunch(kernel, (), (1, 1, 1)), [])
    kernel = text.kernel("k", "", (Binding("array<f32>", "read"),) * 9)
    with pytest.raises(PlanError, match="too many storage buffers"):
        link(WgslLaunch(kernel, ("x",) * 9, (1, 1, 1)), [])


def test_fold_grid_covers_all_workgroups() -> None:
    n = Dim("n", "host", 1 << 24)
    for size, values in (
        (5, [5]),
        (65_535, [65_535]),
        (65_536, [65_536]),
        (n, [0, 1, 70_000, 1 << 24]),
    ):
        x, y, _ = text.fold_grid(size)
        assert maximum(x) <= 65_535
        assert maximum(y) <= 65_535
        for value in values:
            assert evaluate(x, {"n": value}) * evaluate(y, {"n": value}) >= value
