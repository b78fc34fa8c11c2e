"""The compiler's driver: module → plan. It reads aloud in :func:`compile_module`.

In: a module (``archs``, ``importers``), a target's name and what the device offers. Out: a
``Plan``. Pure Python, the standard library only; tensors are never touched, only their places in
files.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from fanlight import plan as plans
from fanlight.errors import InputError, UnsupportedError
from fanlight.ir.graph import Graph, Module, Node, WeightSource
from fanlight.ir.text import print_graph
from fanlight.ir.verify import verify_module
from fanlight.kernels.launch import Launch, WasmKernel, WasmLaunch, WgslLaunch
from fanlight.kernels.lower import Lowered, buffer_bytes, lower
from fanlight.kernels.memory import assign
from fanlight.kernels.schedule import by_depth
from fanlight.kernels.target import CPU, Context, NotYet, Operand, Part, Target, runs
from fanlight.passes import pipeline
from fanlight.plan import (
    TIMESTAMPS,
    Buffer,
    DimSpec,
    Dispatch,
    FileSource,
    InlineSource,
    Kernel,
    Plan,
    Step,
    Weight,
)
from fanlight.shapes import Dim, Operation, Size, binary, ceildiv, product

TARGETS = ("webgpu", "wasm")
STAGING_BYTES = 1 << 20
_MAX_UNITS = 1 << 30
_REST = 4  # launches on WebAssembly before a slot is used anew: no barrier for its sake


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """``features``: of the device, e.g. ``subgroups``, ``shader-f16`` or ``relaxed-simd``,
    ``threads``.

    ``max_binding``: bytes that one storage binding may have; larger weights are split by rows.
    ``profile``: kernels can be timed (``Session.profile``). ``dump``: called with (stage, text) for
    each graph after each stage; ``verify``: check between stages.
    """

    target: Literal["webgpu", "wasm"]
    features: frozenset[str] = frozenset()
    max_binding: int = 128 << 20
    max_threads: int = 16
    verify: bool = True
    profile: bool = False
    dump: Callable[[str, str], None] | None = field(default=None, compare=False)


def compile_module(module: Module, options: CompileOptions) -> Plan:
    """The plan of ``module`` for the device that ``options`` describe.

    Raises GraphError for a malformed module and UnsupportedError, listing everything at once, for
    ops or dtypes that the target can't run.
    """
    return _Compilation(module, options).run()


class _Compilation:
    def __init__(self, module: Module, options: CompileOptions) -> None:
        self.module, self.options = module, options
        self.target = target_named(options.target)
        self.storage = self.target.storage(options.features)
        self.first = Dim("unit_first", "host", _MAX_UNITS)
        self.count = Dim("unit_count", "host", _MAX_UNITS)
        self.verified: list[Graph] = []  # those of the last stage; many stay as they are
        self.buffers: dict[str, Buffer] = {}
        self.operands: dict[str, Operand] = {}
        self.sources: list[tuple[str, WeightSource, Part, int]] = []
        self.segment = bytearray()  # bytes of inline weights and constants
        self.constants: dict[tuple[str, bytes], str] = {}
        self.kernels: dict[str, int] = {}
        self.kernel_rows: list[Kernel] = []
        self.wasm_kernels: dict[str, WasmKernel] = {}
        self.slots: list[Size] = []
        self.context = Context(
            options.features,
            _no_scratch,
            options.max_threads,
            {"max_binding": options.max_binding},
        )

    def run(self) -> Plan:
        self._check(self.module, "build")
        gpu = self.options.target == "webgpu" and CPU not in self.options.features
        self.module = pipeline.run(self.module, self._has, self._check, self._runs, parallel=gpu)
        self._declare_dims()
        self._declare_states()
        self._place_weights()
        programs = {name: self._lower(name) for name in self.module.graphs}
        steps = self._programs(programs)
        weights = self._weights()
        self._declare_arena()
        return self._link(steps, weights)

    # --- stages

    def _has(self, op: str) -> bool:
        return not isinstance(self.target.rules[op], NotYet)

    def _runs(self, node: Node) -> bool:
        return runs(self.target.rules, node)

    def _check(self, module: Module, stage: str) -> None:
        if self.options.verify:
            verify_module(module, stage, self.verified)
            self.verified = list(module.graphs.values())
        if self.options.dump is not None:
            for graph in module.graphs.values():
                self.options.dump(stage, print_graph(graph))

    def _declare_dims(self) -> None:
        host = [*self.module.dims, self.first, self.count]
        if self.options.target == "wasm":
            host.append(Dim(plans.THREADS, "host", self.options.max_threads))
        free = self.module.free
        self.dims = tuple(
            DimSpec(d, free=d.name in free, bound=free.get(d.name)) for d in host
        ) + tuple(DimSpec(d.dim, d.state, 4 * d.index) for d in self.module.device_dims)

    def _declare_states(self) -> None:
        for name, spec in self.module.states.items():
            self._buffer(
                name, "state", buffer_bytes(spec.dtype, spec.shape), spec.dtype.name, spec.shape
            )
        for graph in self.module.graphs.values():
            for node in graph.nodes():
                if node.op == "input" and node.name not in self.buffers:
                    self._value(node.name, "input", node)
            for name, node in graph.outputs.items():
                self._value(name, "output", node)

    def _place_weights(self) -> None:
        """Planes and parts of every weight that a graph uses, in the order of the file."""
        used = {
            node.name: node
            for graph in self.module.graphs.values()
            for node in graph.nodes()
            if node.op == "weight"
        }
        missing = {
            str(n.dtype): storage.reason
            for n in used.values()
            if isinstance(storage := self.storage[n.dtype.name], NotYet)
        }
        if missing:
            text = "; ".join(f"{d}: {why}" for d, why in sorted(missing.items()))
            raise UnsupportedError(f"the target {self.target.name} can't hold weights of {text}")
        ordered = sorted(
            used, key=lambda n: (self.module.weights[n].file, self.module.weights[n].offset)
        )
        groups = {name: group for group in self._together() for name in group}
        for name in ordered:
            group = groups.get(name, [name])
            if len(group) == 1:
                self._place_weight(name)
            elif name == group[0]:
                self._place_group(group)
        self.sources.sort(key=lambda s: (s[1].file, s[1].offset, s[2].first))

    def _together(self) -> list[list[str]]:
        """Weights that one ``project`` reads and that may lie side by side in the same buffers, so
        that it reads them as one: those that are repacked, of one dtype."""
        lists: list[list[Node]] = []
        for graph in self.module.graphs.values():
            lists += [list(n.inputs[2:]) for n in graph.nodes() if n.op == "project"]
        found: list[list[str]] = []
        taken: set[str] = set()
        for weights in sorted(lists, key=len, reverse=True):
            names = list(dict.fromkeys(w.name for w in weights))
            storage = self.storage[weights[0].dtype.name]
            assert not isinstance(storage, NotYet)
            alike = len({w.dtype for w in weights}) == 1 and not storage.direct
            if len(names) > 1 and alike and not taken & set(names):
                size = sum(self.module.weights[name].length for name in names)
                if size <= self.options.max_binding:
                    found.append(names)
                    taken |= set(names)
        return found

    def _place_group(self, names: list[str]) -> None:
        sources = [self.module.weights[name] for name in names]
        storage = self.storage[sources[0].dtype.name]
        assert not isinstance(storage, NotYet)
        row_units = sources[0].shape[1] // sources[0].dtype.block
        rows = sum(source.shape[0] for source in sources)
        buffers = []
        for plane in storage.planes:
            buffers.append("+".join(names) + plane.suffix)
            size = rows * row_units * plane.unit_bytes
            self._buffer(buffers[-1], "weight", size, sources[0].dtype.name)
        base = 0
        for name, source in zip(names, sources, strict=True):
            part = Part(0, source.shape[0], tuple(buffers), base)
            self.sources.append((name, source, part, row_units))
            self.operands[name] = Operand(source.dtype, source.shape, (part,))
            base += source.shape[0]

    def _place_weight(self, name: str) -> None:
        source = self.module.weights[name]
        storage = self.storage[source.dtype.name]
        assert not isinstance(storage, NotYet)
        rows = source.shape[0] if source.shape else 1
        row_units = max(1, int(str(product(source.shape[1:])))) // source.dtype.block
        if source.dtype.kind != "block" and source.dtype.block > 1:  # rows may end within a byte
            rows, row_units = 1, -(-math.prod(source.shape) // source.dtype.block)
        widest = max(plane.unit_bytes for plane in storage.planes) * row_units
        limit = max(1, self.options.max_binding // widest) if widest else rows
        if self.options.target == "wasm":
            limit = rows
        parts = []
        for number, first in enumerate(range(0, rows, limit)):
            count = min(limit, rows - first)
            tag = f".{number}" if limit < rows else ""
            names = []
            for plane in storage.planes:
                label = f"{name}{tag}{plane.suffix}"
                self._buffer(
                    label, "weight", count * row_units * plane.unit_bytes, source.dtype.name
                )
                names.append(label)
            part = Part(first, count, tuple(names))
            parts.append(part)
            self.sources.append((name + tag, source, part, row_units))
        self.operands[name] = Operand(source.dtype, source.shape, tuple(parts))

    def _lower(self, name: str) -> tuple[Step, ...]:
        graph = self.module.graphs[name]
        lowered = lower(graph, self.target, self.operands, self._constant, self.context, f"{name}.")
        return self._assign_slots(lowered)

    def _assign_slots(self, lowered: Lowered) -> tuple[Step, ...]:
        launches, rest = lowered.launches, 0
        if self.options.target == "wasm":
            dims = {d.dim.name: d.state for d in self.module.device_dims}
            launches = by_depth(launches, dims)
            rest = _REST
        touched = [launch.buffers for launch in launches]
        place, sizes = assign(touched, lowered.temporaries, rest)
        for number, size in enumerate(sizes):
            if number == len(self.slots):
                self.slots.append(0)
            held = self.slots[number]
            self.slots[number] = (
                size if held == 0 else held if held == size else binary("max", held, size)
            )
        names = {temporary: f"arena.{slot}" for temporary, slot in place.items()}
        return tuple(
            self._dispatch(launch, tuple(names.get(b, b) for b in launch.buffers))
            for launch in launches
        )

    def _programs(self, graphs: dict[str, tuple[Step, ...]]) -> dict[str, tuple[Step, ...]]:
        programs = dict(graphs)
        for name, steps in self.module.programs.items():
            if steps == (plans.Call(name),):
                continue  # a program that is one graph of the same name
            programs[name] = steps
        programs.setdefault("load", ())
        return programs

    def _weights(self) -> list[Weight]:
        out = []
        for name, source, part, row_units in self.sources:
            storage = self.storage[source.dtype.name]
            assert not isinstance(storage, NotYet) and isinstance(part.rows, int)
            unit = source.dtype.bytes
            start, length = part.first * row_units * unit, part.rows * row_units * unit
            place: FileSource | InlineSource
            if source.data is not None:
                data = source.data[start : start + length]
                if storage.direct:  # written in whole words
                    data += b"\0" * (-length % 4)
                    length = len(data)
                place = self._inline(data)
            else:
                place = FileSource(source.file, source.offset + start, length)
            if storage.direct:
                unit = 4 if length % 4 == 0 else unit
                out.append(Weight(name, place, unit, part.buffers[0]))
                continue
            self._staging()
            launches = self.target.repack(
                source.dtype,
                plans.STAGING,
                part.buffers,
                self.first,
                self.count,
                part.base * row_units,
            )
            out.append(
                Weight(name, place, unit, "", tuple(self._dispatch(x, x.buffers) for x in launches))
            )
        constants = [
            Weight(name, self._inline(data), 4, name) for (_, data), name in self.constants.items()
        ]
        return [*constants, *out]  # repacking may read constants

    def _declare_arena(self) -> None:
        for number, size in enumerate(self.slots):
            self._buffer(f"arena.{number}", "arena", size)

    def _link(self, programs: dict[str, tuple[Step, ...]], weights: list[Weight]) -> Plan:
        segments = (bytes(self.segment),) if self.segment else ()
        used = {f for k in self.kernel_rows for f in k.features}
        if self.options.profile and TIMESTAMPS in self.options.features:
            used.add(TIMESTAMPS)
        plan = Plan(
            self.options.target,
            self.dims,
            tuple(self.buffers.values()),
            tuple(weights),
            tuple(self.kernel_rows),
            programs,
            segments,
            tuple(sorted(used)),
            None,
            self.module.metadata,
        )
        if self.options.target == "wasm":
            from fanlight.codegen.wasm import link as wasm_link

            kernels = list(self.wasm_kernels.values())
            plan = wasm_link.link(plan, kernels, self.options.features, self.options.profile)
        if self.options.verify:
            plans.verify(plan)
        return plan

    # --- parts

    def _buffer(
        self,
        name: str,
        kind: plans.BufferKind,
        size: Size,
        dtype: str = "u8",
        shape: tuple[Size, ...] = (),
    ) -> None:
        rounded = ceildiv(size, 4) * 4 if not isinstance(size, int) else -(-size // 4) * 4
        if not isinstance(size, int) and _multiple_of_4(size):
            rounded = size
        self.buffers[name] = Buffer(name, kind, rounded, dtype, shape)

    def _value(self, name: str, kind: plans.BufferKind, node: Node) -> None:
        self._buffer(name, kind, buffer_bytes(node.dtype, node.shape), node.dtype.name, node.shape)

    def _staging(self) -> None:
        if plans.STAGING not in self.buffers:
            self._buffer(plans.STAGING, "staging", STAGING_BYTES)

    def _inline(self, data: bytes) -> InlineSource:
        self.segment += b"\0" * (-len(self.segment) % 8)
        at = len(self.segment)
        self.segment += data
        return InlineSource(0, at, len(data))

    def _constant(self, node: Node) -> str:
        return self._data(node.dtype.name, node.attrs["data"], node.shape)

    def _data(self, dtype: str, data: bytes, shape: tuple[Size, ...]) -> str:
        """The buffer that holds ``data``, equal ones once."""
        data = data + b"\0" * (-len(data) % 4) or b"\0" * 4  # of no elements: one word all the same
        key = (dtype, data)
        if key not in self.constants:
            self.constants[key] = f"constant.{len(self.constants)}"
            self._buffer(self.constants[key], "weight", len(data), dtype, shape)
        return self.constants[key]

    def _dispatch(self, launch: Launch, buffers: tuple[str, ...]) -> Dispatch:
        name = launch.kernel.name
        if isinstance(launch, WgslLaunch):
            from fanlight.codegen.wgsl import link as wgsl_link

            kernel, extra = wgsl_link.link(launch, self.dims)
            if launch.parameters:
                count = len(launch.parameters)
                data = struct.pack(f"<{count}I", *launch.parameters)
                buffers = (*buffers, self._data("u32", data, (count,)))
            if name not in self.kernels:
                self.kernels[name] = len(self.kernel_rows)
                self.kernel_rows.append(kernel)
            return Dispatch(self.kernels[name], (*buffers, *extra), launch.grid)
        assert isinstance(launch, WasmLaunch)
        if name not in self.kernels:
            self.kernels[name] = len(self.kernel_rows)
            self.kernel_rows.append(Kernel(name))
            self.wasm_kernels[name] = launch.kernel
        return Dispatch(self.kernels[name], buffers, args=launch.args)


def target_named(name: str) -> Target:
    """The target of that name; only its code generator is imported. Raises InputError."""
    if name == "webgpu":
        from fanlight.codegen.wgsl.table import TARGET as WEBGPU

        return WEBGPU
    if name == "wasm":
        from fanlight.codegen.wasm.table import TARGET as WASM

        return WASM
    raise InputError("unknown target", got=name, wanted=", ".join(TARGETS))


def _no_scratch(size: Size) -> str:
    raise AssertionError("scratch memory belongs to a node that is being lowered")


def _multiple_of_4(size: Size) -> bool:
    """Whether every value of ``size`` is one, as far as its form shows."""
    if isinstance(size, int):
        return size % 4 == 0
    if isinstance(size, Operation):
        if size.op == "*":
            return _multiple_of_4(size.a) or _multiple_of_4(size.b)
        if size.op in ("max", "min", "+"):
            return _multiple_of_4(size.a) and _multiple_of_4(size.b)
    return False
