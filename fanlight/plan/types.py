"""What a plan is made of; the meaning of each part is told in ``fanlight/plan/__init__.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, Union

from fanlight import shapes
from fanlight.shapes import Dim, Size

MAGIC = b"FANPLAN1"
VERSION = 1
STAGING = "staging"
LOAD_DIMS = ("unit_first", "unit_count")
THREADS = "threads"
TIMESTAMPS = "timestamp-query"  # a feature of WebGPU

Target = Literal["webgpu", "wasm"]
BufferKind = Literal["weight", "state", "input", "output", "arena", "staging"]
Access = Literal["read", "read_write"]
Comparison = Literal["==", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True)
class DimSpec:
    """A dim as the plan declares it; ``buffer`` and ``offset`` (bytes) for device dims, ``free``
    and ``bound`` for host dims."""

    dim: Dim
    buffer: str = ""
    offset: int = 0
    free: bool = False
    bound: Size | None = None


@dataclass(frozen=True, slots=True)
class Buffer:
    """``dtype`` and ``shape`` describe inputs, outputs and states to callers; bytes are what
    counts."""

    name: str
    kind: BufferKind
    bytes: Size
    dtype: str = "u8"
    shape: tuple[Size, ...] = ()


@dataclass(frozen=True, slots=True)
class FileSource:
    """Bytes of a model file; ``file`` is a key of the files that are given at load."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class InlineSource:
    """Bytes of one of the plan's own segments."""

    segment: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Dispatch:
    kernel: int
    buffers: tuple[str, ...]
    grid: tuple[Size, Size, Size] = (1, 1, 1)
    args: tuple[Size, ...] = ()


@dataclass(frozen=True, slots=True)
class Copy:
    source: str
    target: str
    bytes: Size
    source_offset: Size = 0
    target_offset: Size = 0


@dataclass(frozen=True, slots=True)
class Read:
    dim: str
    buffer: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Branch:
    a: Size
    compare: Comparison
    b: Size
    then: tuple[Step, ...]
    otherwise: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Loop:
    count: Size
    body: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Call:
    program: str


Step: TypeAlias = Union[Dispatch, Copy, Read, Branch, Loop, Call]


@dataclass(frozen=True, slots=True)
class Weight:
    """``buffer`` receives the bytes as they are where ``steps`` is empty."""

    name: str
    source: FileSource | InlineSource
    unit: int
    buffer: str = ""
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Kernel:
    """``code``: the WGSL text (webgpu), empty for wasm. ``features``: e.g. ``subgroups``."""

    name: str
    code: str = ""
    access: tuple[Access, ...] = ()
    dims: bool = False
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WasmModule:
    """The module and where it expects the executor to write.

    Imports: ``env.memory``, and where ``timed`` ``env.mark(kernel: i32)``: thread 0 calls it
    behind each step, with the kernel's number, or -1 behind a copy. Exports: ``run(program: i32,
    tid: i32, threads: i32)``, the body of program number ``programs.index(name)`` in ``entries``
    for one thread; with threads also
    ``start(program, threads)`` (thread 0: wakes the others, runs its share, returns when all are
    done) and ``worker(tid, threads)`` (never returns: waits for work until ``quit()``).
    ``dims_at + 4 * i`` holds host dim i, ``buffers_at + 4 * i`` the address of buffer i (i32, both
    in the plan's order); bytes below ``reserved`` belong to the module; buffers are aligned to 64.
    """

    segment: int
    threads: bool
    reserved: int
    dims_at: int
    buffers_at: int
    entries: tuple[str, ...]
    timed: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """See the module's text. ``metadata`` is the caller's own; executors don't read it."""

    target: Target
    dims: tuple[DimSpec, ...]
    buffers: tuple[Buffer, ...]
    weights: tuple[Weight, ...]
    kernels: tuple[Kernel, ...]
    programs: Mapping[str, tuple[Step, ...]]
    segments: tuple[bytes, ...] = ()
    features: tuple[str, ...] = ()
    wasm: WasmModule | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def timed(self) -> bool:
        """Whether its kernels can be timed."""
        return TIMESTAMPS in self.features or (self.wasm is not None and self.wasm.timed)

    def resident_bytes(self, dims: Mapping[str, int] | None = None) -> int:
        """Bytes of all buffers at the dims' maxima; ``dims`` overrides maxima (e.g. threads). A
        free dim that it lacks counts as 0."""
        values = self.memory_values(dims or {})
        return sum(shapes.evaluate(b.bytes, values) for b in self.buffers)

    def memory_values(self, dims: Mapping[str, int]) -> dict[str, int]:
        """``dims`` as memory is measured with them: free dims that they lack are 0, and one with
        a bound has the bound's value."""
        values = dict(dims)
        for spec in self.dims:
            name = spec.dim.name
            if spec.bound is not None:
                values[name] = min(max(shapes.evaluate(spec.bound, values), 0), spec.dim.max)
            elif spec.free:
                values.setdefault(name, 0)
        return values

    def free_buffers(self) -> tuple[Buffer, ...]:
        """Those whose size a free dim decides, in the order of the last such dim of each."""
        place = {spec.dim.name: i for i, spec in enumerate(self.dims) if spec.free}
        last = {
            b.name: max((place.get(d.name, -1) for d in shapes.dims_of(b.bytes)), default=-1)
            for b in self.buffers
        }
        found = [b for b in self.buffers if last[b.name] >= 0]
        return tuple(sorted(found, key=lambda b: last[b.name]))


def steps_of(steps: tuple[Step, ...]) -> Iterator[Step]:
    """All steps, nested ones included, in the order of the text."""
    for step in steps:
        yield step
        if isinstance(step, Branch):
            yield from steps_of(step.then)
            yield from steps_of(step.otherwise)
        elif isinstance(step, Loop):
            yield from steps_of(step.body)
