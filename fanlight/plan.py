"""The plan, version 1: the only contract between the compiler and the executors.

File layout: ``FANPLAN1`` (8 bytes), header length (u32, little endian), 4 zero bytes, the header
(JSON, UTF-8, padded with spaces to a multiple of 8), then the segments, each at a multiple of 8.
``fanlight/web/plan.js`` is the JavaScript reader of the same form; ``plan.schema.json`` holds the
rules.

Meaning
-------
*dims*       ``host`` dims are given per run (missing ones keep their last value, at first their
             max); ``device`` dims are read from ``buffer`` at ``offset`` (one i32) while the
             program runs. The dims ``unit_first`` and ``unit_count`` are set by the loader alone,
             ``threads`` at load.
*buffers*    ``bytes`` is a size; memory comes from the maxima. ``state`` is zeroed at load and kept
             between runs; ``arena`` buffers are valid inside one run only.
*weights*    bytes ``[offset, offset + length)`` of a file or of a segment, in chunks cut at
             ``unit``. Without steps a chunk goes straight to ``buffer`` at ``unit_first * unit``;
             with steps it goes to the ``staging`` buffer (padded to 4 bytes) and the steps run with
             ``unit_first`` (index of the chunk's first unit) and ``unit_count`` (units in it).
*kernels*    webgpu: WGSL text without ``enable`` lines; entry point ``main``; storage bindings
             0..n-1 of group 0 as ``access`` says, then, if ``dims`` is true, binding n: the uniform
             of all host dims (one u32 each, in the plan's order, padded to 16 bytes).
             wasm: the code is in the module; the entry serves names in profiles.
*programs*   steps, in order. ``load`` (may be empty) runs once after all weights are resident.
             dispatch  webgpu: ``grid`` workgroups (host dims by value, device dims by maximum).
                       wasm: ``args`` are i32 arguments after the buffers' addresses.
             copy      bytes from buffer to buffer, offsets and sizes multiples of 4.
             read      an i32 of a buffer becomes the value of a host dim, for the steps that
                       follow.
             branch    on a comparison of two sizes over host dims.
             loop      ``count`` times (a size over host dims).
             call      another program.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, Union

from fanlight import shapes
from fanlight.errors import PlanError
from fanlight.shapes import Dim, Size

MAGIC = b"FANPLAN1"
VERSION = 1
STAGING = "staging"
LOAD_DIMS = ("unit_first", "unit_count")
THREADS = "threads"

Target = Literal["webgpu", "wasm"]
BufferKind = Literal["weight", "state", "input", "output", "arena", "staging"]
Access = Literal["read", "read_write"]
Comparison = Literal["==", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True)
class DimSpec:
    """A dim as the plan declares it; ``buffer`` and ``offset`` (bytes) for device dims."""

    dim: Dim
    buffer: str = ""
    offset: int = 0


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

    Imports: ``env.memory``. Exports: ``run(program: i32, tid: i32, threads: i32)``, the body of
    program number ``programs.index(name)`` in ``entries`` for one thread; with threads also
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

    def resident_bytes(self, dims: Mapping[str, int] | None = None) -> int:
        """Bytes of all buffers at the dims' maxima; ``dims`` overrides maxima (e.g. threads)."""
        return sum(shapes.evaluate(b.bytes, dims or {}) for b in self.buffers)


def steps_of(steps: tuple[Step, ...]) -> Iterator[Step]:
    """All steps, nested ones included, in the order of the text."""
    for step in steps:
        yield step
        if isinstance(step, Branch):
            yield from steps_of(step.then)
            yield from steps_of(step.otherwise)
        elif isinstance(step, Loop):
            yield from steps_of(step.body)


# --- to and from bytes


def encode(plan: Plan) -> bytes:
    """The plan's file form."""
    code = b""
    kernels = []
    for kernel in plan.kernels:
        text = kernel.code.encode()
        entry: dict[str, Any] = {"name": kernel.name}
        if plan.target == "webgpu":
            entry |= {"code": [len(code), len(text)], "access": list(kernel.access)}
            entry |= {"dims": kernel.dims, "features": list(kernel.features)}
        kernels.append(entry)
        code += text
    segments = (*plan.segments, code) if code else plan.segments
    spans, position = [], 0
    for segment in segments:
        spans.append([position, len(segment)])
        position += -(-len(segment) // 8) * 8
    header: dict[str, Any] = {
        "version": VERSION,
        "target": plan.target,
        "features": list(plan.features),
        "dims": [_dim_json(d) for d in plan.dims],
        "buffers": [_buffer_json(b) for b in plan.buffers],
        "weights": [_weight_json(w) for w in plan.weights],
        "kernels": kernels,
        "programs": {k: [_step_json(s) for s in v] for k, v in plan.programs.items()},
        "segments": spans,
        "metadata": plan.metadata,
    }
    if code:
        header["code_segment"] = len(segments) - 1
    if plan.wasm is not None:
        w = plan.wasm
        header["wasm"] = {
            "segment": w.segment,
            "threads": w.threads,
            "reserved": w.reserved,
            "dims_at": w.dims_at,
            "buffers_at": w.buffers_at,
            "entries": list(w.entries),
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    parts = [MAGIC, struct.pack("<II", len(text), 0), text]
    for segment in segments:
        parts += [segment, b"\0" * (-len(segment) % 8)]
    return b"".join(parts)


def decode(data: bytes) -> Plan:
    """Reads and checks a plan. Raises PlanError with the place and the rule."""
    if data[:8] != MAGIC:
        raise PlanError("not a plan", got=data[:8], wanted=MAGIC)
    if len(data) < 16:
        raise PlanError("the plan is cut off in its first 16 bytes", got=len(data))
    (length,) = struct.unpack_from("<I", data, 8)
    base = 16 + length
    if base > len(data):
        raise PlanError("the plan is cut off in its header", got=len(data), wanted=base)
    try:
        header = json.loads(data[16:base])
    except ValueError as error:
        raise PlanError("the plan's header is not JSON", where="header") from error
    if not isinstance(header, dict) or header.get("version") != VERSION:
        got = header.get("version") if isinstance(header, dict) else type(header).__name__
        raise PlanError(
            "unknown plan version", got=got, wanted=VERSION, hint="Compile the model again."
        )
    try:
        plan = _read_header(header, data, base)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise PlanError(f"malformed header: {error!r}", where="header") from error
    verify(plan)
    return plan


def _read_header(h: dict[str, Any], data: bytes, base: int) -> Plan:
    segments = []
    for offset, length in h["segments"]:
        start = base + offset
        if offset < 0 or length < 0 or start + length > len(data):
            raise PlanError("segment outside the file", where=f"segment at {offset}")
        segments.append(bytes(data[start : start + length]))
    dims = {d["name"]: Dim(d["name"], d["kind"], int(d["max"])) for d in h["dims"]}
    specs = tuple(
        DimSpec(dims[d["name"]], d.get("buffer", ""), d.get("offset", 0)) for d in h["dims"]
    )
    buffers = tuple(
        Buffer(
            b["name"],
            b["kind"],
            shapes.from_json(b["bytes"], dims),
            b["dtype"],
            tuple(shapes.from_json(s, dims) for s in b["shape"]),
        )
        for b in h["buffers"]
    )
    code = segments[h["code_segment"]] if "code_segment" in h else b""
    kernels = []
    for k in h["kernels"]:
        text = ""
        if "code" in k:
            at, size = k["code"]
            text = code[at : at + size].decode()
        kernels.append(
            Kernel(
                k["name"],
                text,
                tuple(k.get("access", ())),
                k.get("dims", False),
                tuple(k.get("features", ())),
            )
        )
    weights = []
    for w in h["weights"]:
        s = w["source"]
        source: FileSource | InlineSource = (
            FileSource(s["file"], s["offset"], s["length"])
            if "file" in s
            else InlineSource(s["segment"], s["offset"], s["length"])
        )
        steps = tuple(_read_step(step, dims) for step in w.get("steps", ()))
        weights.append(Weight(w["name"], source, w["unit"], w.get("buffer", ""), steps))
    wasm = None
    if "wasm" in h:
        m = h["wasm"]
        wasm = WasmModule(
            m["segment"],
            m["threads"],
            m["reserved"],
            m["dims_at"],
            m["buffers_at"],
            tuple(m["entries"]),
        )
    if "code_segment" in h:
        segments.pop(h["code_segment"])
    return Plan(
        h["target"],
        specs,
        buffers,
        tuple(weights),
        tuple(kernels),
        {k: tuple(_read_step(s, dims) for s in v) for k, v in h["programs"].items()},
        tuple(segments),
        tuple(h["features"]),
        wasm,
        h["metadata"],
    )


def _dim_json(spec: DimSpec) -> dict[str, Any]:
    out: dict[str, Any] = {"name": spec.dim.name, "kind": spec.dim.kind, "max": spec.dim.max}
    if spec.dim.kind == "device":
        out |= {"buffer": spec.buffer, "offset": spec.offset}
    return out


def _buffer_json(b: Buffer) -> dict[str, Any]:
    return {
        "name": b.name,
        "kind": b.kind,
        "bytes": shapes.to_json(b.bytes),
        "dtype": b.dtype,
        "shape": [shapes.to_json(s) for s in b.shape],
    }


def _weight_json(w: Weight) -> dict[str, Any]:
    s = w.source
    place: dict[str, Any] = (
        {"file": s.file} if isinstance(s, FileSource) else {"segment": s.segment}
    )
    out: dict[str, Any] = {
        "name": w.name,
        "source": place | {"offset": s.offset, "length": s.length},
        "unit": w.unit,
    }
    if w.buffer:
        out["buffer"] = w.buffer
    if w.steps:
        out["steps"] = [_step_json(step) for step in w.steps]
    return out


def _step_json(step: Step) -> dict[str, Any]:
    size = shapes.to_json
    match step:
        case Dispatch():
            out: dict[str, Any] = {
                "op": "dispatch",
                "kernel": step.kernel,
                "buffers": list(step.buffers),
            }
            if step.args:
                out["args"] = [size(a) for a in step.args]
            else:
                out["grid"] = [size(g) for g in step.grid]
            return out
        case Copy():
            return {
                "op": "copy",
                "source": step.source,
                "source_offset": size(step.source_offset),
                "target": step.target,
                "target_offset": size(step.target_offset),
                "bytes": size(step.bytes),
            }
        case Read():
            return {"op": "read", "dim": step.dim, "buffer": step.buffer, "offset": step.offset}
        case Branch():
            return {
                "op": "branch",
                "a": size(step.a),
                "compare": step.compare,
                "b": size(step.b),
                "then": [_step_json(s) for s in step.then],
                "else": [_step_json(s) for s in step.otherwise],
            }
        case Loop():
            return {
                "op": "loop",
                "count": size(step.count),
                "body": [_step_json(s) for s in step.body],
            }
        case Call():
            return {"op": "call", "program": step.program}


def _read_step(s: dict[str, Any], dims: Mapping[str, Dim]) -> Step:
    def size(value: Any) -> Size:
        return shapes.from_json(value, dims)

    match s["op"]:
        case "dispatch":
            grid = tuple(size(g) for g in s.get("grid", (1, 1, 1)))
            x, y, z = grid
            args = tuple(size(a) for a in s.get("args", ()))
            return Dispatch(s["kernel"], tuple(s["buffers"]), (x, y, z), args)
        case "copy":
            return Copy(
                s["source"],
                s["target"],
                size(s["bytes"]),
                size(s["source_offset"]),
                size(s["target_offset"]),
            )
        case "read":
            return Read(s["dim"], s["buffer"], s["offset"])
        case "branch":
            then = tuple(_read_step(t, dims) for t in s["then"])
            otherwise = tuple(_read_step(t, dims) for t in s["else"])
            return Branch(size(s["a"]), s["compare"], size(s["b"]), then, otherwise)
        case "loop":
            return Loop(size(s["count"]), tuple(_read_step(t, dims) for t in s["body"]))
        case "call":
            return Call(s["program"])
    raise PlanError("unknown step", got=s["op"])


# --- the rules


def verify(plan: Plan) -> None:
    """Raises PlanError, naming the place, where the plan breaks a rule."""
    if plan.target not in ("webgpu", "wasm"):
        raise PlanError("unknown target", got=plan.target, wanted="webgpu or wasm")
    names = [b.name for b in plan.buffers]
    if len(set(names)) != len(names):
        raise PlanError("two buffers of one name", where="buffers")
    buffers, dims = set(names), {d.dim.name: d for d in plan.dims}
    for spec in plan.dims:
        if spec.dim.max < 0 or spec.dim.kind not in ("host", "device"):
            raise PlanError("bad dim", where=f"dim {spec.dim.name}")
        if spec.dim.kind == "device" and spec.buffer not in buffers:
            raise PlanError(
                "device dim without its buffer", where=f"dim {spec.dim.name}", got=spec.buffer
            )
    for weight in plan.weights:
        where = f"weight {weight.name}"
        s = weight.source
        if weight.unit <= 0 or s.length < 0 or s.offset < 0 or s.length % weight.unit:
            raise PlanError("length is not a multiple of the unit", where=where, got=s.length)
        if isinstance(s, InlineSource):
            if s.segment >= len(plan.segments):
                raise PlanError("no such segment", where=where, got=s.segment)
            if s.offset + s.length > len(plan.segments[s.segment]):
                raise PlanError("source outside its segment", where=where)
        if not weight.steps and weight.buffer not in buffers:
            raise PlanError("neither steps nor a buffer", where=where, got=weight.buffer)
        if not weight.steps and plan.target == "webgpu" and weight.unit % 4:
            raise PlanError("unit of a direct write must be a multiple of 4", where=where)
        _verify_steps(plan, weight.steps, buffers, dims, where)
    module = plan.wasm
    if plan.target == "wasm" and (module is None or module.segment >= len(plan.segments)):
        raise PlanError("a wasm plan needs its module", where="wasm")
    for name, steps in plan.programs.items():
        _verify_steps(plan, steps, buffers, dims, f"program {name}")
    _verify_calls(plan)


def _verify_steps(
    plan: Plan,
    steps: tuple[Step, ...],
    buffers: set[str],
    dims: Mapping[str, DimSpec],
    where: str,
) -> None:
    for number, step in enumerate(steps_of(steps)):
        at = f"{where}, step {number}"
        used: tuple[str, ...] = ()
        host: tuple[Size, ...] = ()
        match step:
            case Dispatch():
                if not 0 <= step.kernel < len(plan.kernels):
                    raise PlanError("no such kernel", where=at, got=step.kernel)
                kernel, used = plan.kernels[step.kernel], step.buffers
                if plan.target == "webgpu":
                    if len(used) != len(kernel.access):
                        raise PlanError("wrong number of buffers", where=at, got=len(used))
                    written = [
                        b for b, a in zip(used, kernel.access, strict=True) if a == "read_write"
                    ]
                    if any(used.count(b) > 1 for b in written):
                        raise PlanError("a written buffer is bound twice", where=at, got=written)
            case Copy():
                used = (step.source, step.target)
                if step.source == step.target and plan.target == "webgpu":
                    raise PlanError("copy inside one buffer", where=at, got=step.source)
            case Read():
                used = (step.buffer,)
                if step.dim not in dims or dims[step.dim].dim.kind != "host":
                    raise PlanError("read into something not a host dim", where=at, got=step.dim)
            case Branch():
                if step.compare not in ("==", "!=", "<", "<=", ">", ">="):
                    raise PlanError("unknown comparison", where=at, got=step.compare)
                host = (step.a, step.b)
            case Loop():
                host = (step.count,)
            case Call():
                if step.program not in plan.programs:
                    raise PlanError("no such program", where=at, got=step.program)
        for name in used:
            if name not in buffers:
                raise PlanError("no such buffer", where=at, got=name)
        for size in host:
            if any(d.kind == "device" for d in shapes.dims_of(size)):
                raise PlanError(
                    "control flow on a device dim", where=at, hint="Read it back first."
                )


def _verify_calls(plan: Plan) -> None:
    """No program may call itself, not even through others."""
    calls = {
        name: [s.program for s in steps_of(steps) if isinstance(s, Call)]
        for name, steps in plan.programs.items()
    }
    state: dict[str, int] = {}

    def visit(name: str) -> None:
        if state.get(name) == 1:
            raise PlanError("a program calls itself", where=f"program {name}")
        if name not in state:
            state[name] = 1
            for target in calls[name]:
                visit(target)
            state[name] = 2

    for name in calls:
        visit(name)
