"""Runs loop kernels on wasmtime and holds them against the reference in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import wasmtime
from numpy.typing import NDArray

from fanlight.codegen.wasm import loops as wasm
from fanlight.codegen.wasm.encoder import MemoryImport, Module, ValueType
from fanlight.ir.interpreter import array_of
from fanlight.kernels import loops
from fanlight.kernels.loops import (
    Expr,
    Load,
    LoopKernel,
    apply,
    integer,
)
from fanlight.shapes import evaluate
from tests.loop_reference import Memory, run_loop

Array = NDArray[Any]


def run(
    kernel: LoopKernel,
    inputs: list[Array],
    old: Array,
    dims: Mapping[str, int] | None = None,
    threads: int = 1,
) -> Array:
    """The output buffer, which held ``old``; the threads' shares are run one after another."""
    launch = wasm.launch(kernel, ())
    starts, end = [], 64
    for array in (*inputs, old):
        starts.append(end)
        end = -(-(end + array.nbytes + 64) // 64) * 64
    pages = end // 65536 + 1
    module = Module(MemoryImport(pages, pages, False))
    params: list[ValueType] = ["i32"] * (launch.kernel.buffers + launch.kernel.args + 2)
    launch.kernel.emit(module.function(params, export="f"))
    store = wasmtime.Store()
    memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(pages, pages)))
    instance = wasmtime.Instance(store, wasmtime.Module(store.engine, module.encode()), [memory])
    for start, array in zip(starts, (*inputs, old), strict=True):
        memory.write(store, array.tobytes(), start)
    entry = instance.exports(store)["f"]
    assert isinstance(entry, wasmtime.Func)
    args = [evaluate(a, dims or {}) for a in launch.args]
    for tid in range(threads):
        entry(store, *starts, *args, tid, threads)
    data = memory.read(store, starts[-1], starts[-1] + old.nbytes)
    return np.frombuffer(bytes(data), old.dtype)


def check(
    kernel: LoopKernel,
    inputs: list[Array],
    dims: Mapping[str, int] | None = None,
    elements: int | None = None,
) -> None:
    """Right, the same bits at 1, 2, 3 and 5 threads, and nothing written beside. Inputs hold the
    bytes that the kernel reads."""
    values, dtype = dims or {}, kernel.output
    count = evaluate(kernel.elements, values) if elements is None else elements
    size = -(-count // dtype.block) * dtype.bytes
    old = np.zeros(-(-size // 4) * 4 + 64, "u1")
    names = tuple(f"b{n}" for n in range(len(inputs) + 1))
    buffers = [np.frombuffer(a.tobytes(), "u1").copy() for a in (*inputs, old)]
    memory = Memory(dict(zip(names, buffers, strict=True)), values)
    with np.errstate(all="ignore"):
        run_loop(kernel, memory, names)
    wanted = memory.values(names[-1], dtype)[:count]
    got = run(kernel, inputs, old, values)
    same(array_of(got[:size].tobytes(), dtype, [count]), wanted, kernel)
    np.testing.assert_array_equal(got[size:], old[size:])
    for threads in (2, 3, 5):
        again = run(kernel, inputs, old, values, threads)
        assert again.tobytes() == got.tobytes(), f"{kernel.name} at {threads} threads"


#: relative; of narrow floats the distance to their neighbours
TOLERANCE = {"f64": 1e-13, "f16": 2e-3, "bf16": 1e-2, "f8e4m3fn": 0.13, "f8e4m3fnuz": 0.13}
TOLERANCE |= {"f8e5m2": 0.26, "f8e5m2fnuz": 0.26, "f8e8m0": 1, "f4e2m1": 0.5}


def same(got: Array, wanted: Array, kernel: LoopKernel) -> None:
    if kernel.output.kind == "float":
        rtol = TOLERANCE.get(kernel.output.name, 3e-6)
        size = np.abs(wanted[np.isfinite(wanted)]).max(initial=1e-3)
        np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol * size, err_msg=kernel.name)
    else:
        np.testing.assert_array_equal(got, wanted, err_msg=kernel.name)


def load(param: int, index: Expr, dtype: str = "f32") -> Load:
    return Load(param, index, loops.SCALAR[dtype])


def at(*parts: Expr) -> Expr:
    total: Expr = integer(0)
    for part in parts:
        total = apply("add", total, part)
    return total
