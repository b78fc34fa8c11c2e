"""Runs cases on a backend: ``interpreter``, ``wasm`` (wasmtime) or ``webgpu`` (wgpu)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np

from fanlight.errors import FanlightError, UnsupportedError
from fanlight.formats.onnx import parse
from fanlight.importers.onnx import Value, ValuesNeededError, import_model
from fanlight.inference.session import InferenceSession
from fanlight.ir.graph import Module
from fanlight.ir.interpreter import Interpreter, array_of
from fanlight.shapes import evaluate
from tests.conformance.cases import Array, Case, compare

BACKENDS = ("interpreter", "wasm", "webgpu")
RANDOM = ("test_bernoulli",)  # numbers that only their distribution is known of
#: what a case that is wrong may raise
ERRORS = (
    FanlightError,
    AssertionError,
    ArithmeticError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    RecursionError,
)


async def _module(case: Case, names: tuple[str, ...] = ()) -> Module:
    """``names``: inputs whose values are given while compiling, as sizes are made of them."""
    data = case.model.SerializeToString()
    values = {n: Value(x.shape, x.tobytes()) for n in names for x in (case.inputs[n],)}

    async def read(file: str, offset: int, length: int) -> bytes:
        return bytes(data[offset : offset + length])

    try:
        return await import_model(parse(data), read=read, values=values)
    except ValuesNeededError as needed:
        if set(needed.names) <= set(names):
            raise
        return await _module(case, (*names, *needed.names))


def outcome(case: Case, backend: str) -> tuple[str, str]:
    """``passed``, ``approximated``, ``failed`` or ``unsupported``, and why."""
    try:
        got = asyncio.run(_run(case, backend))
    except UnsupportedError as error:
        return "unsupported", str(error)
    except ERRORS as error:
        return "failed", f"{type(error).__name__}: {error}"
    return judged(case, got, narrow=backend == "webgpu")


def judged(case: Case, got: list[Array], *, narrow: bool) -> tuple[str, str]:
    """As :func:`outcome`, of the outputs. ``narrow``: 64-bit floats are computed in 32 bits."""
    wrong = compare(case, got)
    if wrong:
        return "failed", wrong
    return ("approximated" if case.double and narrow else "passed"), ""


async def _run(case: Case, backend: str) -> list[Array]:
    if backend == "interpreter":
        return _interpreted(await _module(case), case)
    session = await _session(case, backend)
    try:
        taken = {info.name for info in session.inputs}
        results = await session.run({n: x for n, x in case.inputs.items() if n in taken})
        names = [info.name for info in session.outputs]
        return [np.asarray(results[name]) for name in names]
    finally:
        await session.dispose()


async def _session(case: Case, backend: str, names: tuple[str, ...] = ()) -> InferenceSession:
    """As :func:`_module`."""
    try:
        return await InferenceSession.create(
            case.model.SerializeToString(),
            execution_providers=[backend],
            input_values={name: case.inputs[name] for name in names},
        )
    except ValuesNeededError as needed:
        if set(needed.names) <= set(names):
            raise
        return await _session(case, backend, (*names, *needed.names))


def _interpreted(module: Module, case: Case) -> list[Array]:
    dims: dict[str, int] = {}
    for described in module.metadata["inputs"]:
        value = case.inputs[described["name"]]
        for size, got in zip(described["shape"], value.shape, strict=True):
            dims |= {size: got} if isinstance(size, str) else {}
    weights = {}
    for name, source in module.weights.items():
        data = source.data
        if data is None:
            raw = case.model.SerializeToString()
            data = raw[source.offset : source.offset + source.length]
        weights[name] = array_of(data, source.dtype, source.shape)
    feeds: Mapping[str, Any] = {name: _plain(x) for name, x in case.inputs.items()}
    found: dict[str, Array] = {}
    interpreter = Interpreter(weights, {})

    def run(name: str) -> None:
        if name in module.graphs:
            turns = {d.dim.name: d for d in module.device_dims if d.state in interpreter.states}
            now = {n: int(interpreter.states[d.state][d.index]) for n, d in turns.items()}
            found.update(interpreter.run(module.graphs[name], feeds, {**dims, **now}))
        for step in module.programs.get(name, ()):
            for _ in range(evaluate(step.count, dims)):
                for inner in step.body:
                    run(inner.program)

    for stage in module.metadata.get("stages", [{"program": "main", "reads": {}}]):
        with np.errstate(all="ignore"):
            run(stage["program"])
        dims |= {dim: int(found[buffer][0]) for dim, buffer in stage["reads"].items()}
    nodes = {n: x for graph in module.graphs.values() for n, x in graph.outputs.items()}
    out = []
    for number, described in enumerate(module.metadata["outputs"]):
        name = described["name"]
        node, wanted = nodes[name], case.outputs[number].dtype
        value = found[name]
        same = node.dtype.name in _NAMES.get(str(wanted), (str(wanted),))
        out.append(value.astype(wanted) if same else value)
    return out


#: numpy's names → ours
_NAMES: dict[str, tuple[str, ...]] = {
    "float32": ("f32",), "float64": ("f64",), "float16": ("f16",), "bfloat16": ("bf16",),
    "int64": ("i64",), "int32": ("i32",), "int16": ("i16",), "int8": ("i8",), "int4": ("i4",),
    "int2": ("i2",), "uint64": ("u64",), "uint32": ("u32",), "uint16": ("u16",),
    "uint8": ("u8",), "uint4": ("u4",), "uint2": ("u2",), "bool": ("bool",),
    "float8_e4m3fn": ("f8e4m3fn",), "float8_e4m3fnuz": ("f8e4m3fnuz",),
    "float8_e5m2": ("f8e5m2",), "float8_e5m2fnuz": ("f8e5m2fnuz",),
    "float8_e8m0fnu": ("f8e8m0",), "float4_e2m1fn": ("f4e2m1",),
}  # fmt: skip


def _plain(x: Array) -> Array:
    """Numbers that numpy itself knows."""
    if x.dtype.kind in "fiub" and "float8" not in str(x.dtype):
        return x
    name = str(x.dtype)
    kind = "i1" if name.startswith("int") else "u1" if name.startswith("uint") else "f4"
    return x.astype(kind)
