"""Runs launches of the wasm target's rules: a plan with one program, linked, on wasmtime."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
import wasmtime
from numpy.typing import NDArray

from fanlight import plan as plans
from fanlight import shapes
from fanlight.codegen.wasm.encoder import MemoryImport, Module, ValueType
from fanlight.codegen.wasm.link import link
from fanlight.codegen.wasm.table import TARGET
from fanlight.dtypes import DTYPES
from fanlight.kernels.launch import Launch, WasmKernel, WasmLaunch
from fanlight.kernels.target import Context, Operand, Part
from fanlight.plan import Buffer, DimSpec, Dispatch, Kernel, Plan
from fanlight.runtime import wasm
from fanlight.shapes import Dim, Size, ceildiv, product

Array = NDArray[Any]
THREADS = Dim(plans.THREADS, "host", 16)
RELAXED = frozenset({"relaxed-simd"})
_PAGE = 65536
_GUARD = 0xA5  # between buffers, and in fresh scratch memory


@dataclass
class Bench:
    """Collects buffers and launches, then runs them: as one program, or kernel by kernel."""

    dims: Sequence[DimSpec] = ()
    features: frozenset[str] = frozenset()
    buffers: dict[str, Buffer] = field(default_factory=dict)
    feeds: dict[str, bytes] = field(default_factory=dict)

    def value(
        self, name: str, array: Array, dtype: str, shape: Sequence[Size] | None = None
    ) -> Operand:
        """An operand that holds ``array``: raw bytes for stored dtypes, then with a shape."""
        data = np.ascontiguousarray(array).tobytes()
        data += b"\0" * (-len(data) % 4)
        self.buffers[name] = Buffer(name, "state", len(data), dtype)
        self.feeds[name] = data
        return self._operand(name, dtype, array.shape if shape is None else shape)

    def empty(self, name: str, dtype: str, shape: Sequence[Size]) -> Operand:
        """An operand for a result, or for what the caller fills."""
        size = product(tuple(shape)) // DTYPES[dtype].block * DTYPES[dtype].bytes
        rounded = ceildiv(size, 4) * 4
        self.buffers[name] = Buffer(name, "state", rounded, dtype, tuple(shape))
        return self._operand(name, dtype, shape)

    def _operand(self, name: str, dtype: str, shape: Sequence[Size]) -> Operand:
        rows = shape[0] if shape else 1
        return Operand(DTYPES[dtype], tuple(shape), (Part(0, rows, (name,)),))

    def scratch(self, size: Size) -> str:
        name = f"scratch{len(self.buffers)}"
        self.buffers[name] = Buffer(name, "arena", size)
        return name

    def op(self, op: str, inputs: list[Operand], output: Operand, **attrs: Any) -> list[Launch]:
        """What the target's rule makes of one op."""
        rule = TARGET.rules[op]
        assert callable(rule)
        return rule(inputs, output, attrs, Context(self.features, self.scratch))

    def plan(self, launches: Sequence[Launch]) -> Plan:
        """One program, ``main``, through the linker and the plan's file form."""
        kernels: dict[str, WasmKernel] = {}
        steps = []
        for launch in launches:
            assert isinstance(launch, WasmLaunch)
            kernels.setdefault(launch.kernel.name, launch.kernel)
            number = list(kernels).index(launch.kernel.name)
            steps.append(Dispatch(number, launch.buffers, args=launch.args))
        built = Plan(
            "wasm",
            (DimSpec(THREADS), *self.dims),
            tuple(self.buffers.values()),
            (),
            tuple(Kernel(name) for name in kernels),
            {"main": tuple(steps)},
            features=tuple(sorted(self.features)),
        )
        linked = link(built, list(kernels.values()), self.features)
        plans.verify(linked)
        return plans.decode(plans.encode(linked))

    def run(
        self,
        launches: Sequence[Launch],
        reads: Sequence[str],
        dims: Mapping[str, int] | None = None,
    ) -> list[bytes]:
        """The bytes of the buffers ``reads`` after one run of the executor."""
        return self.run_plan(self.plan(launches), self.feeds, reads, dims)

    @staticmethod
    def run_plan(
        plan: Plan,
        feeds: Mapping[str, bytes],
        reads: Sequence[str],
        dims: Mapping[str, int] | None = None,
    ) -> list[bytes]:
        """The same of a plan that may run more than once."""
        return asyncio.run(_run(plan, feeds, reads, dims))

    def share(
        self,
        launches: Sequence[Launch],
        read: str,
        threads: int,
        dims: Mapping[str, int] | None = None,
    ) -> bytes:
        """The bytes of ``read`` when each launch is done by ``threads`` threads, one after another,
        the last first. Nothing but states and scratch may have been written."""
        values = {plans.THREADS: threads, **(dims or {})}
        at, end = {}, _PAGE
        for name, buffer in self.buffers.items():
            at[name] = end
            end = -(-(end + shapes.evaluate(buffer.bytes, values) + 64) // 64) * 64
        pages = -(-end // _PAGE)
        module = Module(MemoryImport(pages, pages, False))
        for number, launch in enumerate(launches):
            assert isinstance(launch, WasmLaunch)
            count = launch.kernel.buffers + launch.kernel.args + 2
            params: list[ValueType] = ["i32"] * count
            launch.kernel.emit(module.function(params, export=str(number)))
        config = wasmtime.Config()
        config.wasm_relaxed_simd = True
        store = wasmtime.Store(wasmtime.Engine(config))
        memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(pages, pages)))
        code = wasmtime.Module(store.engine, module.encode())
        exports = wasmtime.Instance(store, code, [memory]).exports(store)
        before = bytearray([_GUARD]) * (pages * _PAGE)
        for name, data in self.feeds.items():
            before[at[name] : at[name] + len(data)] = data
        memory.write(store, before)
        for number, launch in enumerate(launches):
            entry = exports[str(number)]
            assert isinstance(launch, WasmLaunch) and isinstance(entry, wasmtime.Func)
            places = [at[name] for name in launch.buffers]
            args = [shapes.evaluate(size, values) for size in launch.args]
            for tid in reversed(range(threads)):
                entry(store, *places, *args, tid, threads)
        after = memory.read(store, 0, pages * _PAGE)
        for name, buffer in self.buffers.items():  # what no launch may touch
            size = shapes.evaluate(buffer.bytes, values)
            if buffer.kind == "arena" or name == read:
                before[at[name] : at[name] + size] = after[at[name] : at[name] + size]
        assert before == after, "a kernel wrote outside its output and its scratch"
        size = shapes.evaluate(self.buffers[read].bytes, values)
        return bytes(after[at[read] : at[read] + size])


async def _run(
    plan: Plan, feeds: Mapping[str, bytes], reads: Sequence[str], dims: Mapping[str, int] | None
) -> list[bytes]:
    session = await wasm.load(plan, {})
    try:
        await session.run("main", feeds, dims)
        return [await session.read(name) for name in reads]
    finally:
        await session.dispose()


def f32(data: bytes, shape: Sequence[int]) -> Array:
    """The first elements of ``data`` as f32 in ``shape``."""
    return np.frombuffer(data, "<f4", int(np.prod(shape))).reshape(shape)


def nmse(got: Array, wanted: Array) -> float:
    """Mean squared error over the mean square of ``wanted``, in f64."""
    a, b = np.asarray(got, "f8"), np.asarray(wanted, "f8")
    return float(((a - b) ** 2).mean() / max((b**2).mean(), 1e-300))


#: where the f16 scales of a block lie, so that random bytes have finite ones
SCALES = {"q8_0": [0], "q4_0": [0], "q4_1": [0, 2], "q4_k": [0, 2], "q6_k": [208]}


def stored(dtype: str, n: int, k: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Random weights: bytes as a file has them, [n, bytes], and the ``gguf`` package's values of
    them, f32 [n, k]."""
    if dtype in ("f32", "f16", "bf16"):
        values = rng.standard_normal((n, k)).astype("f4")
        if dtype == "bf16":
            return (values.view("u4") >> 16).astype("u2").view("u1"), (
                values.view("u4") & 0xFFFF0000
            ).view("f4")
        values = values.astype("f2" if dtype == "f16" else "f4")
        return values.view("u1"), values.astype("f4")
    kind = DTYPES[dtype]
    raw = rng.integers(0, 256, (n * k // kind.block, kind.bytes), dtype="u1")
    for offset in SCALES[dtype]:
        scale = rng.standard_normal(len(raw)).astype("f2") / np.float16(8)
        raw[:, offset : offset + 2] = scale.reshape(-1, 1).view("u1")
    return raw.reshape(n, -1), values_of(dtype, raw).reshape(n, k)


def values_of(dtype: str, raw: Array) -> Array:
    """What the ``gguf`` package makes of blocks."""
    with np.errstate(all="ignore"):
        values: Array = gguf.dequantize(raw, gguf.GGMLQuantizationType[dtype.upper()])
    return values.reshape(-1)
