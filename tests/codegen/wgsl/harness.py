"""Runs launches on the GPU that wgpu finds: a hand-written plan, through its file form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fanlight import plan as plans
from fanlight.codegen.wgsl.link import link
from fanlight.codegen.wgsl.table import TARGET
from fanlight.dtypes import DTYPES
from fanlight.kernels.launch import Launch, WgslLaunch
from fanlight.kernels.target import Context, Operand, Part, Storage
from fanlight.plan import Buffer, DimSpec, Dispatch, FileSource, InlineSource, Plan, Weight
from fanlight.runtime import gpu
from fanlight.shapes import Dim, Size, ceildiv, product

Array = NDArray[Any]
FIRST, COUNT = Dim("unit_first", "host", 1 << 30), Dim("unit_count", "host", 1 << 30)


class BytesFile:
    """A file in memory, streamed in pieces of ``piece`` bytes."""

    def __init__(self, data: bytes, piece: int = 1 << 20) -> None:
        self.data, self.piece = data, piece

    @property
    def size(self) -> int:
        return len(self.data)

    async def stream(self, offset: int, length: int) -> AsyncIterator[bytes]:
        for at in range(offset, offset + length, self.piece):
            yield self.data[at : min(at + self.piece, offset + length)]


@dataclass
class Bench:
    """Collects buffers, weights and launches, then runs them as one program."""

    dims: Sequence[DimSpec] = ()
    features: frozenset[str] = frozenset()
    staging: int = 1 << 20
    piece: int = 1 << 20
    buffers: dict[str, Buffer] = field(default_factory=dict)
    feeds: dict[str, bytes] = field(default_factory=dict)
    weights: list[Weight] = field(default_factory=list)
    kernels: dict[str, plans.Kernel] = field(default_factory=dict)
    data: bytes = b""
    segment: bytes = b""

    def specs(self) -> list[DimSpec]:
        return [DimSpec(FIRST), DimSpec(COUNT), *self.dims]

    def value(
        self, name: str, array: Array, dtype: str, shape: Sequence[Size] | None = None
    ) -> Operand:
        """A state that holds ``array``."""
        data = np.ascontiguousarray(array).tobytes()
        data += b"\0" * (-len(data) % 4)
        self.buffers[name] = Buffer(name, "state", len(data), dtype)
        self.feeds[name] = data
        return self._operand(name, dtype, array.shape if shape is None else shape)

    def empty(self, name: str, dtype: str, shape: Sequence[Size]) -> Operand:
        """A state for a result."""
        size = product(tuple(shape)) * DTYPES[dtype].bytes
        rounded = ceildiv(size, 4) * 4
        self.buffers[name] = Buffer(name, "state", rounded, dtype, tuple(shape))
        return self._operand(name, dtype, shape)

    def _operand(self, name: str, dtype: str, shape: Sequence[Size]) -> Operand:
        rows = shape[0] if shape else 1
        return Operand(DTYPES[dtype], tuple(shape), (Part(0, rows, (name,)),))

    def weight(
        self, name: str, raw: bytes, dtype: str, shape: tuple[int, int], cuts: Sequence[int] = (0,)
    ) -> Operand:
        """A stored weight from a file's bytes, its rows split at ``cuts``."""
        kind, storage = DTYPES[dtype], TARGET.storage(self.features)[dtype]
        assert isinstance(storage, Storage)
        rows, width = shape
        units = width // kind.block
        assert len(raw) == rows * units * kind.bytes
        parts = []
        for first, end in zip(cuts, [*cuts[1:], rows], strict=True):
            names = tuple(f"{name}.{first}{p.suffix}" for p in storage.planes)
            for label, plane in zip(names, storage.planes, strict=True):
                size = -(-(end - first) * units * plane.unit_bytes // 4) * 4
                self.buffers[label] = Buffer(label, "weight", size, dtype)
            start, length = first * units * kind.bytes, (end - first) * units * kind.bytes
            source = FileSource("model", len(self.data) + start, length)
            unit = 4 if storage.direct and kind.block == 1 else kind.bytes
            if storage.direct:
                self.weights.append(Weight(f"{name}.{first}", source, unit, names[0]))
            else:
                self.buffers[plans.STAGING] = Buffer(plans.STAGING, "staging", self.staging)
                launches = TARGET.repack(kind, plans.STAGING, names, FIRST, COUNT)
                steps = tuple(self._dispatch(x) for x in launches)
                self.weights.append(Weight(f"{name}.{first}", source, unit, "", steps))
            parts.append(Part(first, end - first, names))
        self.data += raw + b"\0" * (-len(raw) % 4)
        return Operand(kind, shape, tuple(parts))

    def scratch(self, size: Size) -> str:
        name = f"scratch{len(self.buffers)}"
        self.buffers[name] = Buffer(name, "arena", size)
        return name

    def op(self, op: str, inputs: list[Operand], output: Operand, **attrs: Any) -> list[Launch]:
        rule = TARGET.rules[op]
        assert callable(rule)
        return rule(inputs, output, attrs, Context(self.features, self.scratch))

    def plan(self, launches: Sequence[Launch]) -> Plan:
        steps = tuple(self._dispatch(x) for x in launches)
        built = Plan(
            "webgpu",
            tuple(self.specs()),
            tuple(self.buffers.values()),
            tuple(self.weights),
            tuple(self.kernels.values()),
            {"main": steps},
            (self.segment,) if self.segment else (),
        )
        return plans.decode(plans.encode(built))

    def _dispatch(self, launch: Launch) -> Dispatch:
        assert isinstance(launch, WgslLaunch)
        kernel, extra = link(launch, self.specs())
        if launch.parameters:
            extra = (self._parameters(launch.parameters), *extra)
        self.kernels.setdefault(kernel.name, kernel)
        number = list(self.kernels).index(kernel.name)
        return Dispatch(number, (*launch.buffers, *extra), launch.grid)

    def _parameters(self, values: tuple[int, ...]) -> str:
        name = f"parameters{len(self.buffers)}"
        data = np.array(values, "<u4").tobytes()
        self.buffers[name] = Buffer(name, "weight", len(data), "u32")
        source = InlineSource(0, len(self.segment), len(data))
        self.weights.append(Weight(name, source, 4, name))
        self.segment += data + b"\0" * (-len(data) % 8)
        return name

    def run(
        self,
        launches: Sequence[Launch],
        reads: Sequence[str],
        dims: Mapping[str, int] | None = None,
    ) -> list[bytes]:
        """The bytes of the buffers ``reads`` after one run."""
        return asyncio.run(self._run(self.plan(launches), reads, dims))

    async def _run(
        self, plan: Plan, reads: Sequence[str], dims: Mapping[str, int] | None
    ) -> list[bytes]:
        session = await gpu.load(plan, {"model": BytesFile(self.data, self.piece)})
        try:
            await session.run("main", self.feeds, dims)
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
