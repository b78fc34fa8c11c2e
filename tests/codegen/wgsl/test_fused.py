"""Fused ops against their definitions, run by the interpreter in f64, with random weights.

Tolerance: NMSE 1e-12 (f32 sums, another order); 1e-6 where a cache is f16: a key that rounds the
other way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fanlight.codegen.wgsl import attend as kernels
from fanlight.codegen.wgsl import matvec, rope, tiles
from fanlight.dtypes import DTYPES
from fanlight.ir.graph import Graph, Node
from fanlight.ir.interpreter import Interpreter
from fanlight.ir.ops import apply
from fanlight.kernels.target import Operand
from fanlight.plan import DimSpec
from fanlight.shapes import Dim, Size
from tests.codegen.wgsl.harness import Array, Bench, f32, nmse
from tests.codegen.wgsl.test_blocks import stored

TOLERANCE = 1e-12
T, POS = Dim("T", "host", 40), Dim("pos", "device", 4096)


def meaning(
    op: str,
    values: Mapping[str, Array],
    attrs: Mapping[str, Any],
    dims: Mapping[str, int],
    states: Mapping[str, str] = {},
) -> tuple[Array, dict[str, Array]]:
    """The op's value and the states (name → dtype) after it; inputs in the order of ``values``."""

    def leaf(name: str) -> Node:
        kind = "state" if name in states else "input"
        return apply(
            kind, name=name, dtype=DTYPES[states.get(name, "f32")], shape=values[name].shape
        )

    node = apply(op, *(leaf(name) for name in values), **attrs)
    graph = Graph("g", {"y": node})
    for name in states:
        number = list(values).index(name)
        graph.updates[name] = apply("after", node, input=number)
    interpreter = Interpreter({}, {s: values[s].astype("f8") for s in states}, precise=True)
    out = interpreter.run(graph, {k: v.astype("f8") for k, v in values.items()}, dims)["y"]
    return out, interpreter.states


def held(
    op: str, rows: int, k: int, sizes: list[int], kinds: list[str], hint: str, cuts: Any = (0,)
) -> float:
    """NMSE of an op over random x, gain and stored weights of ``sizes`` rows."""
    rng = np.random.default_rng(rows + k)
    x = rng.standard_normal((rows, k), dtype=np.float32) * 3
    bench = Bench(features=frozenset({hint}))
    values, inputs = {"x": x}, [bench.value("x", x, "f32")]
    if op != "matmul_add":
        values["g"] = rng.standard_normal(k, dtype=np.float32) * 0.01  # exp must not overflow
        inputs.append(bench.value("g", values["g"], "f32"))
    for i, (n, kind) in enumerate(zip(sizes, kinds, strict=True)):
        raw, values[f"w{i}"] = stored(kind, n, k, seed=i)
        inputs.append(bench.weight(f"w{i}", raw, kind, (n, k), cuts))
    attrs = {} if op == "matmul_add" else {"eps": 1e-5}
    if op == "matmul_add":
        values["r"] = rng.standard_normal((rows, sizes[0]), dtype=np.float32) * 10
        inputs.append(bench.value("r", values["r"], "f32"))
    wanted, _ = meaning(op, values, attrs, {})
    out = bench.empty("y", "f32", wanted.shape)
    (data,) = bench.run(bench.op(op, inputs, out, **attrs), ["y"])
    return nmse(f32(data, wanted.shape), wanted)


KINDS = ["q4_0", "q4_1", "q8_0", "q4_k", "q6_k", "f16", "f32"]
CASES = [
    *((kind, 1, hint) for kind in KINDS for hint in ("", "subgroups")),
    *((kind, rows, hint) for kind in ("q4_0", "q6_k") for rows, hint in ((5, ""), (1, "cpu"))),
]


@pytest.mark.parametrize(("kind", "rows", "hint"), CASES)
def test_products_of_a_norm(kind: str, rows: int, hint: str) -> None:
    assert held("project", rows, 768, [192, 64, 66], [kind] * 3, hint) < TOLERANCE
    assert held("swiglu", rows, 512, [130, 130], [kind] * 2, hint) < TOLERANCE
    assert held("matmul_add", rows, 1536, [197], [kind], hint) < TOLERANCE


@pytest.mark.parametrize(("rows", "hint"), [(1, ""), (1, "subgroups"), (3, ""), (3, "cpu")])
def test_weights_of_several_dtypes_and_parts(rows: int, hint: str) -> None:
    assert held("project", rows, 512, [96, 32, 32], ["q4_k", "q4_k", "q6_k"], hint) < TOLERANCE
    assert held("project", rows, 512, [300], ["q4_0"], hint, (0, 65, 230)) < TOLERANCE
    assert held("swiglu", rows, 256, [64, 64], ["q4_0", "q6_k"], hint) < TOLERANCE
    assert held("swiglu", rows, 256, [64, 64], ["q4_0", "q4_0"], hint, (0, 33)) < TOLERANCE
    assert held("matmul_add", rows, 4, [3], ["f32"], hint) < TOLERANCE


@pytest.mark.parametrize("hint", ["", "subgroups"])
@pytest.mark.parametrize(("n", "k"), [(2048, 2048), (256, 8192), (576, 1536), (1536, 576)])
def test_one_row_at_real_sizes(n: int, k: int, hint: str) -> None:
    for op, count in (("project", 1), ("swiglu", 2), ("matmul_add", 1)):
        assert held(op, 1, k, [n] * count, ["q4_0"] * count, hint) < TOLERANCE, op


@pytest.mark.parametrize(("wide", "bits"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("rows", [1, 8])
def test_every_tile_gives_the_same(
    wide: bool, bits: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for unroll, steps in ((1, 1), (2, 8)):
        tile = tiles.Vector(rows, 1, 32, 128, steps, unroll, wide, bits)
        monkeypatch.setattr(tiles, "PRODUCT", tile)
        monkeypatch.setattr(tiles, "GATED", tile)
        assert held("project", 1, 2048, [70], ["q4_0"], "subgroups") < TOLERANCE
        assert held("swiglu", 1, 1024, [70, 70], ["q8_0"] * 2, "") < TOLERANCE


# --- attention with its caches


def attend(
    rows: int,
    start: int,
    sizes: tuple[int, int, int, int],
    cache: str = "f32",
    hint: str = "",
    interleaved: bool = True,
    normed: bool = False,
    half: int | None = None,
    add: str = "",
) -> tuple[float, float]:
    """NMSE of the values and of the caches. ``sizes``: heads, groups, depth, context. ``add``: a
    product and a residual follow, its weight of this dtype."""
    heads, groups, depth, context = sizes
    rng = np.random.default_rng(start + rows)
    half = depth // 2 if half is None else half
    angles = np.arange(context)[:, None] * 0.7 ** np.arange(half)
    kind = {"f32": "f4", "f16": "f2", "bf16": "f4"}[cache]
    past = rng.standard_normal((2, context, groups, depth)).astype(kind)
    if cache == "bf16":
        past = (past.view("u4") & 0xFFFF0000).view("f4")
    values: dict[str, Array] = {
        "a": rng.standard_normal((rows, (heads + 2 * groups) * depth), dtype=np.float32) * 2,
        "k": past[0],
        "v": past[1],
        "cos": np.cos(angles).astype("f4"),
        "sin": np.sin(angles).astype("f4"),
    }
    if normed:
        values |= {n: rng.standard_normal(depth, dtype=np.float32) for n in ("qn", "kn")}
    if add:
        raw, values["w"] = stored(add, 130, heads * depth, seed=rows)
        values["r"] = rng.standard_normal((rows, 130), dtype=np.float32)
    op = "attend_add" if add else "attend"
    attrs = {"scale": depth**-0.5, "interleaved": interleaved, "eps": 1e-6 if normed else 0.0}
    states = {"k": cache, "v": cache}
    wanted, after = meaning(op, values, {**attrs, "start": start}, {}, states)

    bench = Bench(dims=(DimSpec(T), DimSpec(POS, "control", 4)), features=frozenset({hint}))
    bench.value("control", np.array([9, start, 9], "<i4"), "i32")
    count: Size = 1 if rows == 1 else T
    inputs: list[Operand] = []
    for name, value in values.items():
        stored_as = states.get(name, "f32")
        data = (value.view("u4") >> 16).astype("u2") if stored_as == "bf16" else value
        shape = (count, *value.shape[1:]) if name == "a" else value.shape
        if name == "w":
            inputs.append(bench.weight("w", raw, add, (130, heads * depth)))
        else:
            inputs.append(bench.value(name, data, stored_as, shape))
    out = bench.empty("y", "f32", wanted.shape)
    launches = bench.op(op, inputs, out, start=POS, **attrs)
    got = bench.run(launches, ["y", "k", "v"], {"T": rows})
    errors = []
    for name, raw in zip("kv", got[1:], strict=True):
        if cache == "bf16":
            full = (np.frombuffer(raw, "<u2").astype("u4") << 16).view("f4")
        else:
            full = np.frombuffer(raw, "<" + kind)
        errors.append(nmse(full[: after[name].size], after[name].reshape(-1)))
    return nmse(f32(got[0], wanted.shape), wanted), max(errors)


@pytest.mark.parametrize("hint", ["", "cpu"])
@pytest.mark.parametrize("cache", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("rows", "start"), [(1, 0), (1, 64), (1, 700), (37, 90)])
def test_attend_at_the_shape_of_smollm2(rows: int, start: int, cache: str, hint: str) -> None:
    error, caches = attend(rows, start, (9, 3, 64, 768), cache, hint)
    bound = TOLERANCE if cache == "f32" else 1e-5 if cache == "bf16" else 1e-7
    assert error < bound
    assert caches < bound


@pytest.mark.parametrize("hint", ["", "cpu"])
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("interleaved", [False, True])
def test_attend_with_head_norms(interleaved: bool, rows: int, hint: str) -> None:
    for sizes in ((4, 2, 128, 256), (6, 2, 32, 256)):
        error, caches = attend(rows, 150, sizes, hint=hint, interleaved=interleaved, normed=True)
        assert max(error, caches) < TOLERANCE


@pytest.mark.parametrize("hint", ["", "cpu"])
@pytest.mark.parametrize(
    "sizes", [(4, 4, 4, 64), (6, 1, 20, 64), (8, 1, 256, 64), (14, 2, 64, 64), (5, 1, 128, 64)]
)
def test_attend_of_other_heads(sizes: tuple[int, int, int, int], hint: str) -> None:
    for interleaved in (False, True):
        for rows, half in ((1, None), (1, sizes[2] // 4), (5, sizes[2] // 4)):
            errors = attend(rows, 40, sizes, hint=hint, interleaved=interleaved, half=half)
            assert max(errors) < TOLERANCE


@pytest.mark.parametrize("start", [1023, 2000, 2047, 4095])
def test_attend_far_on(start: int) -> None:
    """Splits of more positions than threads, and the last position of the context."""
    assert max(attend(1, start, (4, 1, 16, 4096))) < TOLERANCE


@pytest.mark.parametrize("hint", ["", "subgroups", "cpu"])
@pytest.mark.parametrize("fold", [True, False])
def test_attention_and_its_product(fold: bool, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "DECODE", tiles.Decode(8, 64, 128, 4, 8, fold))
    for rows, start, normed in ((1, 0, False), (1, 700, False), (1, 130, True), (5, 90, False)):
        for kind in ("q4_0", "q8_0"):
            sizes = (8, 2, 64, 768)
            errors = attend(rows, start, sizes, hint=hint, normed=normed, add=kind)
            assert max(errors) < TOLERANCE


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "q4_k", "q6_k", "f16"])
def test_a_product_combines_small_heads(kind: str) -> None:
    """A pair of quads that belong to two heads, and to one."""
    for depth in (16, 32):
        errors = attend(1, 700, (512 // depth, 4, depth, 768), hint="subgroups", add=kind)
        assert max(errors) < TOLERANCE


@pytest.mark.parametrize(
    "tile",
    [
        tiles.Decode(3, 32, 128, 4, 8, fold=True),
        tiles.Decode(16, 16, 64, 2, 4, fold=True),
        tiles.Decode(7, 128, 128, 1, 16, fold=True),
    ],
)
def test_every_tile_of_attention_gives_the_same(
    tile: tiles.Decode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "DECODE", tile)
    for start in (0, 130, 700):
        for sizes in ((8, 2, 64, 768), (6, 1, 20, 768), (3, 3, 256, 768)):
            assert max(attend(1, start, sizes)) < TOLERANCE
        assert max(attend(1, start, (8, 2, 64, 768), add="q4_0")) < TOLERANCE


def test_a_split_that_is_left_out_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tolerance tells a wrong kernel from a right one."""
    monkeypatch.setattr(tiles, "DECODE", tiles.Decode(8, 64, 128, 4, 8, False))
    assert attend(1, 700, (9, 3, 64, 768))[0] < TOLERANCE
    made = kernels._made

    def wrong(heads: rope.Heads) -> matvec.Made:
        right = made(heads)
        return replace(right, code=right.code.replace("u < splits", "u < splits - 1u"))

    monkeypatch.setattr(kernels, "_made", wrong)
    assert attend(1, 700, (9, 3, 64, 768))[0] > 1e-6
