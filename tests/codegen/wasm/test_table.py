"""The target's tables are total; everything that they promise compiles."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fanlight import dtypes
from fanlight.codegen.wasm.table import TARGET
from fanlight.dtypes import DTYPES
from fanlight.ir import composite
from fanlight.ir.graph import LEAVES
from fanlight.ir.ops import OPS
from fanlight.kernels.launch import WasmLaunch
from fanlight.kernels.loops import Axis, Load, LoopKernel, apply
from fanlight.kernels.target import LOOP, NotYet, Storage
from tests.codegen.wasm.harness import Bench, f32


def test_rules_are_total() -> None:
    assert TARGET.rules.keys() == OPS.keys() - LEAVES
    for name, entry in TARGET.rules.items():
        assert entry is LOOP or callable(entry) or (isinstance(entry, NotYet) and entry.reason), (
            name
        )


def test_nothing_is_missing_but_fused_ops() -> None:
    missing = [name for name, entry in TARGET.rules.items() if isinstance(entry, NotYet)]
    assert set(missing) == composite.DEFINITIONS.keys() - {
        "dot",
        "dot_stored",
        "dot_integer",
        "dot_shifted",
    }


def test_storage_is_total() -> None:
    assert TARGET.storage(frozenset()).keys() == DTYPES.keys()
    for name, entry in TARGET.storage(frozenset()).items():
        if isinstance(entry, NotYet):
            assert entry.reason
            continue
        assert entry.direct
        assert [plane.unit_bytes for plane in entry.planes] == [DTYPES[name].bytes]


@pytest.mark.parametrize("name", "f32 f16 bf16 q4_0 q4_1 q8_0 q4_k q6_k".split())
def test_the_formats_of_weights_are_stored(name: str) -> None:
    assert isinstance(TARGET.storage(frozenset())[name], Storage)


def test_loops() -> None:
    bench = Bench()
    x = np.arange(10, dtype="f4")
    bench.value("x", x, "f32")
    bench.empty("y", "f32", (10,))
    value = apply("neg", Load(0, Axis(0), "f32"))
    kernel = LoopKernel("negated", (10,), (dtypes.f32,), dtypes.f32, value)
    launch = TARGET.loop(kernel, ("x", "y"))
    np.testing.assert_array_equal(f32(bench.run([launch], ["y"])[0], (10,)), -x)


def test_nothing_is_repacked() -> None:
    with pytest.raises(AssertionError):
        TARGET.repack(dtypes.f32, "staging", ("w",), 0, 1)


def test_a_models_kernels_are_written_quickly() -> None:
    """All products of a model, in all forms: a fraction of a second, so that Pyodide's is short."""
    bench = Bench()
    launches = []
    for n, k in ((192, 576), (576, 576), (1536, 576), (576, 1536), (49152, 576)):
        for dtype in ("q4_0", "q4_1", "q8_0"):
            for rows in (1, 2):
                x, y = bench.empty("x", "f32", (rows, k)), bench.empty("y", "f32", (rows, n))
                launches += bench.op("matmul", [x, bench.empty("w", dtype, (n, k))], y)
    started = time.process_time()
    plan = bench.plan(launches)
    seconds = time.process_time() - started
    assert all(isinstance(launch, WasmLaunch) for launch in launches)
    assert len(plan.kernels) == 30
    print(f"{len(plan.kernels)} kernels, {len(plan.segments[0])} bytes, {seconds * 1e3:.0f} ms")
    assert seconds < 1
