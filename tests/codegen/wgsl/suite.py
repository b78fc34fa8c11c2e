"""One kernel of every kind that the target can make, to be compiled elsewhere (Tint), not run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fanlight.codegen.wgsl import blocks
from fanlight.codegen.wgsl import loops as wgsl
from fanlight.dtypes import DTYPES
from fanlight.ir.ops import FLOAT_ONLY, INTEGER_ONLY, LOGICAL
from fanlight.kernels import loops
from fanlight.kernels.launch import Launch
from fanlight.kernels.loops import FUNCTIONS, Axis, LoopKernel, Reduce, apply
from fanlight.plan import DimSpec, Kernel
from fanlight.shapes import Dim
from tests.codegen.wgsl.harness import Bench
from tests.codegen.wgsl.test_loops import lower_graph
from tests.graphs import POS, T, random_graph

ROWS = Dim("rows", "host", 130)
PLACE = Dim("place", "device", 2048)


def kernels() -> list[Kernel]:
    """Linked kernels, each name once."""
    dims = (DimSpec(ROWS), DimSpec(PLACE, "control", 4))
    bench = Bench(dims=dims)
    bench.empty("control", "i32", (4,))
    launches = [
        *_products(bench),
        *_blocks(bench),
        *_fused(bench, ("q4_0", "q4_k", "f16")),
        *_loops(bench),
        *_dots(bench),
    ]
    bench.plan(launches)
    found = dict(bench.kernels)
    for feature in ("subgroups", "cpu"):
        other = Bench(dims=dims, features=frozenset({feature}))
        other.empty("control", "i32", (4,))
        other.plan([*_fused(other, ("q4_1", "q6_k")), *_dots(other)])
        found |= other.kernels
    for seed in range(8):
        graph = Bench(dims=(DimSpec(T), DimSpec(POS, "position", 0)))
        lowered, *_ = lower_graph(graph, random_graph(seed), {"T": 3, "pos": 2}, seed)
        graph.plan(lowered.launches)
        found |= graph.kernels
    return list(found.values())


def _products(bench: Bench) -> list[Launch]:
    launches: list[Launch] = []
    ids = bench.value("ids", np.zeros(3, "<i4"), "i32")
    for dtype in blocks.ROWS:
        kind = DTYPES[dtype]
        raw = bytes(kind.nbytes(70_000 * 256)) if dtype == "q8_0" else bytes(kind.nbytes(8 * 256))
        n = len(raw) // kind.nbytes(256)
        w = bench.weight(f"w.{dtype}", raw, dtype, (n, 256), cuts=(0, 3))
        y = bench.empty(f"y.{dtype}", "f32", (ROWS, n))
        for rows in (1, ROWS):
            x = bench.empty(f"x.{rows}.{dtype}", "f32", (rows, 256))
            launches += bench.op("matmul", [x, w], y)
        launches += bench.op("gather", [w, ids], y)
    return launches


def _blocks(bench: Bench) -> list[Launch]:
    launches: list[Launch] = []
    for cache in ("f32", "f16", "bf16"):
        k = bench.empty(f"k.{cache}", cache, (2048, 3, 64))
        v = bench.empty(f"v.{cache}", cache, (2048, 3, 64))
        for rows in (1, ROWS):
            q = bench.empty(f"q.{rows}", "f32", (rows, 9, 64))
            out = bench.empty(f"o.{rows}", "f32", (rows, 576))
            launches += bench.op("attention", [q, k, v], out, start=PLACE, scale=0.125)
    for width in (3, 576, 2048, 49_152):
        x = bench.empty(f"x.{width}", "f32", (ROWS, width))
        w = bench.empty(f"weight.{width}", "f32", (width,))
        y = bench.empty(f"y.{width}", "f32", (ROWS, width))
        launches += bench.op("rms_norm", [x, w], y, eps=1e-6)
        launches += bench.op("argmax", [x], bench.empty(f"best.{width}", "i32", (ROWS,)))
    return launches


def _fused(bench: Bench, stored: tuple[str, ...]) -> list[Launch]:
    launches: list[Launch] = []
    gain = bench.empty("gain", "f32", (256,))
    for dtype in stored:
        raw = bytes(DTYPES[dtype].nbytes(64 * 256))
        weights = [bench.weight(f"f{i}.{dtype}", raw, dtype, (64, 256)) for i in range(2)]
        for rows in (1, ROWS):
            x = bench.empty(f"fused.x.{rows}", "f32", (rows, 256))
            out = bench.empty(f"fused.y.{rows}", "f32", (rows, 128))
            half = bench.empty(f"fused.z.{rows}", "f32", (rows, 64))
            launches += bench.op("project", [x, gain, *weights], out, eps=1e-6)
            launches += bench.op("swiglu", [x, gain, *weights], half, eps=1e-6)
            launches += bench.op("matmul_add", [x, weights[0], half], out)
    tables = [bench.empty(name, "f32", (2048, 32)) for name in ("cos", "sin")]
    norms = [bench.empty(name, "f32", (64,)) for name in ("qn", "kn")]
    for cache, turned in (("f32", True), ("f16", False), ("bf16", True)):
        k, v = (bench.empty(f"{name}.{cache}", cache, (2048, 3, 64)) for name in ("fk", "fv"))
        for rows in (1, ROWS):
            a = bench.empty(f"a.{rows}", "f32", (rows, 15 * 64))
            out = bench.empty(f"attended.{rows}", "f32", (rows, 576))
            attrs = {"start": PLACE, "scale": 0.125, "interleaved": turned, "eps": 1e-6}
            launches += bench.op("attend", [a, k, v, *tables], out, **attrs)
            launches += bench.op("attend", [a, k, v, *tables, *norms], out, **attrs)
    return launches


def _dots(bench: Bench) -> list[Launch]:
    launches: list[Launch] = []
    one = bench.empty("dot.one", "f32", (48, 70))
    for a, b in (((3, ROWS, 48), (48, 70)), ((2, 1, ROWS, 48), (3, 48, 70))):
        left, right = bench.empty(f"dot.{len(a)}", "f32", a), bench.empty("dot.b", "f32", b)
        out = bench.empty(f"dot.y.{len(a)}", "f32", (6, ROWS, 70))
        shape = (3, ROWS, 70) if len(a) == 3 else (2, 3, ROWS, 70)
        held = replace(out, shape=shape)
        launches += bench.op("dot", [left, one if len(b) == 2 else right], held)
    for signs, width in ((("u8", "i8"), 64), (("i8", "u8"), 7)):
        a_ = bench.empty(f"bytes.a.{width}", signs[0], (ROWS, width))
        b_ = bench.empty(f"bytes.b.{width}", signs[1], (width, width))
        zeros = [bench.empty(f"zero.{n}.{width}", "i32", (n,)) for n in (1, width)]
        out = bench.empty(f"bytes.y.{width}", "i32", (ROWS, width))
        launches += bench.op("dot_integer", [a_, b_, *zeros], out)
    shifts = {"taps": 6, "across": 3, "down": ROWS, "right": 2, "count": ROWS}
    w, x = bench.empty("shifted.w", "i8", (5, 24)), bench.empty("shifted.x", "u8", (4, 4096))
    zeros = [bench.empty(f"zero.{name}", "i32", (1,)) for name in "ab"]
    out = bench.empty("shifted.y", "i32", (5, ROWS))
    launches += bench.op("dot_shifted", [w, x, *zeros], out, **shifts)
    return launches


def _loops(bench: Bench) -> list[Launch]:
    launches: list[Launch] = []

    def add(kernel: LoopKernel) -> None:
        names = [f"{kernel.name}.{i}" for i in range(len(kernel.inputs) + 1)]
        for name, dtype in zip(names, [*kernel.inputs, kernel.output], strict=True):
            bench.empty(name, dtype.name, (4096,))
        launches.append(wgsl.launch(kernel, tuple(names)))

    for name, count in FUNCTIONS.items():
        for kind in _scalars(name):
            args = [loops.Load(i, Axis(0), kind) for i in range(count)]
            types = [DTYPES[kind]] * count
            if name == "where":
                args[0], types[0] = loops.Load(0, Axis(0), "bool"), DTYPES["bool"]
            value = apply(name, *args)
            out = DTYPES["bool" if value.type == "bool" else kind]
            add(LoopKernel(f"{name} {kind}", (ROWS, 7), tuple(types), out, value))
    for a in loops.SCALAR:
        for b in loops.SCALAR:
            load = loops.Load(0, Axis(0), loops.SCALAR[a])
            cast = load if load.type == loops.SCALAR[b] else loops.Cast(load, loops.SCALAR[b])
            add(LoopKernel(f"{a} to {b}", (ROWS,), (DTYPES[a],), DTYPES[b], cast))
    for how in ("sum", "prod", "max", "min"):
        for kind in ("f32", "f64", "i32", "u32", "i64", "u64", "bool"):
            for size in (5, 500):
                body = loops.Load(0, Axis(8), kind)
                total = Reduce(how, 8, size, body, kind)
                name, dtype = f"{how} {kind} {size}", DTYPES[kind]
                add(LoopKernel(name, (ROWS,), (dtype,), dtype, total))
    return launches


def _scalars(name: str) -> tuple[loops.Scalar, ...]:
    """The scalars that a function is computed in."""
    if name in LOGICAL:
        return ("bool",)
    if name in FLOAT_ONLY:
        return ("f32", "f64")
    if name in INTEGER_ONLY:
        return ("i32", "u32", "i64", "u64")
    return ("f32", "f64", "i32", "u32", "i64", "u64")
