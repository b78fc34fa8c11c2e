"""The meaning of loop kernels, in numpy, and a target that runs them: holds ``kernels/lower.py``.

In: what ``lower`` gives for :class:`NumpyTarget`. Out: the buffers after all launches. Temporaries
lie in arena slots full of garbage, and a narrow store clobbers the rest of its last word, as on a
GPU. Nothing here knows about graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from fanlight.dtypes import DTYPES, DType
from fanlight.ir.interpreter import MEANINGS, array_of
from fanlight.ir.ops import OPS
from fanlight.kernels import loops
from fanlight.kernels.launch import Launch
from fanlight.kernels.loops import Axis, Cast, Const, Expr, Extent, Load, LoopKernel, Reduce
from fanlight.kernels.memory import assign
from fanlight.kernels.target import LOOP, Context, Entry, NotYet, Operand, Plane, Storage
from fanlight.shapes import Size, evaluate, maximum

Array = NDArray[Any]
#: dtype → numpy's type of one element in memory; packed dtypes have no such
NUMPY: dict[str, Any] = {
    "f32": "<f4",
    "f64": "<f8",
    "f16": "<f2",
    "bf16": ml_dtypes.bfloat16,
    "f8e4m3fn": ml_dtypes.float8_e4m3fn,
    "f8e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "f8e5m2": ml_dtypes.float8_e5m2,
    "f8e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "f8e8m0": ml_dtypes.float8_e8m0fnu,
    "i64": "<i8",
    "i32": "<i4",
    "i16": "<i2",
    "i8": "<i1",
    "u64": "<u8",
    "u32": "<u4",
    "u16": "<u2",
    "u8": "<u1",
    "bool": "?",
}
_SCALARS = {
    "f32": "f4",
    "f64": "f8",
    "i32": "i4",
    "u32": "u4",
    "i64": "i8",
    "u64": "u8",
    "bool": "?",
}
_COMBINE = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}
MAX_BUFFERS = 8


def packed(values: Array, dtype: DType) -> Array:
    """The bytes of values, as u1; integers modulo what the dtype holds."""
    if dtype.block == 1:
        array = np.ascontiguousarray(values).astype(NUMPY[dtype.name])
        return np.frombuffer(array.tobytes(), "u1")
    bits = 8 // dtype.block
    if dtype.kind == "float":
        values = values.astype(ml_dtypes.float4_e2m1fn).view("u1")
    low = np.zeros((-(-values.size // dtype.block), dtype.block), "i8")
    low.reshape(-1)[: values.size] = values.reshape(-1).astype("i8") & ((1 << bits) - 1)
    data: Array = np.bitwise_or.reduce(low << np.arange(0, 8, bits), 1).astype("u1")
    return data


def neutral(kind: str, scalar: str) -> Any:
    """What a reduction of nothing gives."""
    if kind in ("sum", "prod"):
        return 0 if kind == "sum" else 1
    if scalar[0] == "f":
        return -np.inf if kind == "max" else np.inf
    if scalar == "?":
        return kind == "min"
    limits = np.iinfo(scalar)
    return limits.min if kind == "max" else limits.max


@dataclass(slots=True)
class Memory:
    """Named byte buffers and the values of the dims of one run."""

    buffers: dict[str, NDArray[np.uint8]]
    dims: Mapping[str, int]

    def view(self, name: str, dtype: DType) -> Array:
        return self.buffers[name].view(NUMPY[dtype.name])

    def values(self, name: str, dtype: DType) -> Array:
        """All elements of the buffer, small numbers as wider ones."""
        data = self.buffers[name]
        return array_of(data.tobytes(), dtype, [data.size // dtype.bytes * dtype.block])

    def value(self, size: Size) -> int:
        return evaluate(size, self.dims)


@dataclass(frozen=True, slots=True)
class NumpyLaunch:
    """``execute`` gets the memory and ``buffers``."""

    name: str
    buffers: tuple[str, ...]
    execute: Callable[[Memory, tuple[str, ...]], None]


def run_loop(kernel: LoopKernel, memory: Memory, names: tuple[str, ...]) -> None:
    """Runs ``kernel`` over ``names`` (inputs, then output); checks the rules of ``loops.py``."""
    assert len(names) == len(kernel.inputs) + 1
    assert len(set(names)) <= MAX_BUFFERS - 1, f"{kernel.name} reads {len(names) - 1} buffers"
    assert names[-1] not in names[:-1], f"{kernel.name} reads what it writes"
    shape = tuple(memory.value(s) for s in kernel.shape)
    values = [memory.values(n, d) for n, d in zip(names, kernel.inputs, strict=False)]
    axes: dict[int, Array] = {
        number: np.arange(size, dtype="i4").reshape(
            [-1 if i == number else 1 for i in range(len(shape))]
        )
        for number, size in enumerate(shape)
    }
    result = np.broadcast_to(_evaluate(kernel.value, axes, values, memory), shape).reshape(-1)
    offset = int(_evaluate(kernel.offset, {}, values, memory))
    out, dtype = memory.buffers[names[-1]], kernel.output
    data = packed(result, dtype)
    start = offset // dtype.block * dtype.bytes
    assert offset >= 0 and start + data.size <= out.size, f"{kernel.name} writes outside"
    out[start : start + data.size] = data
    if dtype.bytes < 4:
        assert offset % (4 * dtype.block // dtype.bytes) == 0, f"{kernel.name} starts inside a word"
        end = start + data.size
        out[end : -(-end // 4) * 4] = 0xAA


def _evaluate(expr: Expr, axes: Mapping[int, Array], values: list[Array], memory: Memory) -> Any:
    def child(e: Expr) -> Any:
        return _evaluate(e, axes, values, memory)

    kind = _SCALARS[expr.type]
    match expr:
        case Const():
            return np.asarray(expr.value, kind)
        case Axis():
            return axes[expr.number].astype(kind)
        case Extent():
            return np.asarray(memory.value(expr.size), kind)
        case Load():
            index = child(expr.index)
            assert expr.index.type == "i32"
            if index.size:
                assert index.min() >= 0 and index.max() < values[expr.param].size, "load outside"
            return values[expr.param][index].astype(kind)
        case loops.Apply():
            args = [child(a) for a in expr.args]
            types = {a.type for a in expr.args[expr.function == "where" :]}
            assert len(types) == 1, f"{expr.function} of {types}"
            with np.errstate(all="ignore"):
                return np.asarray(MEANINGS[expr.function](np, args, {})).astype(kind)
        case Cast():
            value = child(expr.value)
            whole = value.dtype.kind == "f" and kind[0] in "iu"
            return (np.trunc(value) if whole else value).astype(kind)
        case Reduce():
            total: Any = np.asarray(neutral(expr.kind, kind), kind)
            for i in range(memory.value(expr.extent)):
                inner = {**axes, expr.axis: np.asarray(i, "i4")}
                here = _evaluate(expr.body, inner, values, memory)
                total = _COMBINE[expr.kind](total, here).astype(kind)
            return total


class NumpyTarget:
    """Loops by :func:`run_loop`; the ops of the family ``block`` by the interpreter's meaning."""

    name = "numpy"
    short_reduction = 0

    def __init__(self) -> None:
        self.rules: Mapping[str, Entry] = {
            op.name: _block(op.name) if op.family == "block" else LOOP for op in OPS.values()
        }

    def storage(self, features: frozenset[str]) -> Mapping[str, Storage | NotYet]:
        return {name: Storage((Plane("", d.bytes),), True) for name, d in DTYPES.items()}

    def loop(
        self, kernel: LoopKernel, buffers: tuple[str, ...], features: frozenset[str] = frozenset()
    ) -> Launch:
        launch = NumpyLaunch(kernel.name, buffers, lambda m, names: run_loop(kernel, m, names))
        return cast(Launch, launch)

    def repack(
        self,
        dtype: DType,
        staging: str,
        target: tuple[str, ...],
        first: Size,
        count: Size,
        base: int = 0,
    ) -> list[Launch]:
        raise AssertionError("all weights are direct")


def _block(op: str) -> Any:
    def rule(
        inputs: list[Operand], out: Operand, attrs: Mapping[str, Any], context: Context
    ) -> list[Launch]:
        def execute(memory: Memory, names: tuple[str, ...]) -> None:
            assert names[-1] not in names[:-1], f"{op} reads what it writes"
            args = [_plain(x, name, memory) for x, name in zip(inputs, names, strict=False)]
            sizes = {k: v if isinstance(v, float) else memory.value(v) for k, v in attrs.items()}
            result = np.asarray(MEANINGS[op](np, args, sizes)).reshape(-1)
            view = memory.view(names[-1], out.dtype)
            view[: result.size] = result

        buffers = (*(x.buffer for x in inputs), out.buffer)
        return [cast(Launch, NumpyLaunch(op, buffers, execute))]

    return rule


def _plain(operand: Operand, name: str, memory: Memory) -> Array:
    shape = [memory.value(s) for s in operand.shape]
    flat = memory.view(name, operand.dtype)[: int(np.prod(shape))]
    wide = flat.astype("f4") if operand.dtype.kind == "float" else flat
    return wide.reshape(shape)


def run_launches(
    launches: Sequence[Launch],
    temporaries: Mapping[str, Size],
    buffers: dict[str, NDArray[np.uint8]],
    dims: Mapping[str, int],
) -> None:
    """Runs all launches over ``buffers``; temporaries get arena slots as the compiler does it."""
    place, sizes = assign([launch.buffers for launch in launches], temporaries)
    slots = [np.full(-(-maximum(s) // 4) * 4, 0xFF, np.uint8) for s in sizes]
    memory = Memory({**buffers, **{name: slots[slot] for name, slot in place.items()}}, dims)
    for launch in launches:
        numpy_launch = cast(NumpyLaunch, launch)
        slots_used = [place[n] for n in set(launch.buffers) if n in place]
        assert len(set(slots_used)) == len(slots_used), "two live values share a slot"
        numpy_launch.execute(memory, numpy_launch.buffers)
