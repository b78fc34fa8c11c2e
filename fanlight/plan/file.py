"""A plan's file form: ``encode`` and ``decode``, inverse to each other.
``fanlight/plan/__init__.py`` tells the layout.

The reader trusts nothing: a value of the wrong type is a PlanError that names its place, as in its
JavaScript twin (``web/plan.js``, ``web/plan_checks.js``).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, TypeVar, cast, get_args

from fanlight import shapes
from fanlight.errors import PlanError
from fanlight.plan.rules import verify
from fanlight.plan.types import (
    MAGIC,
    VERSION,
    Access,
    Branch,
    Buffer,
    BufferKind,
    Call,
    Comparison,
    Copy,
    DimSpec,
    Dispatch,
    FileSource,
    InlineSource,
    Kernel,
    Loop,
    Plan,
    Read,
    Step,
    Target,
    WasmModule,
    Weight,
)
from fanlight.shapes import Dim, DimKind, Size

T = TypeVar("T")


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
            "timed": w.timed,
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
    got = header.get("version") if isinstance(header, dict) else type(header).__name__
    if got is True or got != VERSION:
        raise PlanError(
            "unknown plan version", got=got, wanted=VERSION, hint="Compile the model again."
        )
    plan = _Reader(header, data, base).plan()
    verify(plan)
    return plan


def _dim_json(spec: DimSpec) -> dict[str, Any]:
    out: dict[str, Any] = {"name": spec.dim.name, "kind": spec.dim.kind, "max": spec.dim.max}
    if spec.dim.kind == "device":
        out |= {"buffer": spec.buffer, "offset": spec.offset}
    if spec.free:
        out["free"] = True
    if spec.bound is not None:
        out["bound"] = shapes.to_json(spec.bound)
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


class _Reader:
    """Reads a header whose segments begin at ``base`` of ``data``."""

    def __init__(self, header: dict[str, Any], data: bytes, base: int) -> None:
        self.header, self.data, self.base = header, data, base
        self.dims: dict[str, Dim] = {}

    def plan(self) -> Plan:
        h, where = self.header, "header"
        segments = [self._segment(s) for s in _list(h, "segments", where)]
        specs = tuple(self._dim(d) for d in _list(h, "dims", where))
        code = b""
        if "code_segment" in h:
            number = _natural(h, "code_segment", where)
            if number != len(segments) - 1:
                raise PlanError("the code is not in the last segment", where=where, got=number)
            code = segments.pop()
        return Plan(
            _one_of(h, "target", get_args(Target), where),
            specs,
            tuple(self._buffer(b) for b in _list(h, "buffers", where)),
            tuple(self._weight(w) for w in _list(h, "weights", where)),
            tuple(self._kernel(k, code) for k in _list(h, "kernels", where)),
            {
                name: self._steps(steps, f"program {name}")
                for name, steps in _object(h, "programs", where).items()
            },
            tuple(segments),
            tuple(_texts(h, "features", where)),
            self._wasm(_object(h, "wasm", where)) if "wasm" in h else None,
            _object(h, "metadata", where),
        )

    def _segment(self, span: Any) -> bytes:
        offset, length = _span(span, "segments")
        if self.base + offset + length > len(self.data):
            raise PlanError("segment outside the file", where=f"segment at {offset}")
        return bytes(self.data[self.base + offset : self.base + offset + length])

    def _dim(self, value: Any) -> DimSpec:
        d = _as(dict, value, "dims")
        name = _text(d, "name", "dims")
        where = f"dim {name}"
        kind = _one_of(d, "kind", get_args(DimKind), where)
        free = _get(d, "free", where, bool) if "free" in d else False
        bound = self._size(d, "bound", where) if "bound" in d else None
        dim = self.dims[name] = Dim(name, kind, _natural(d, "max", where))
        if kind == "host":
            return DimSpec(dim, free=free, bound=bound)
        return DimSpec(
            dim, _text(d, "buffer", where), _natural(d, "offset", where), free=free, bound=bound
        )

    def _buffer(self, value: Any) -> Buffer:
        b = _as(dict, value, "buffers")
        name = _text(b, "name", "buffers")
        where = f"buffer {name}"
        return Buffer(
            name,
            _one_of(b, "kind", get_args(BufferKind), where),
            self._size(b, "bytes", where),
            _text(b, "dtype", where),
            tuple(shapes.from_json(s, self.dims) for s in _list(b, "shape", where)),
        )

    def _weight(self, value: Any) -> Weight:
        w = _as(dict, value, "weights")
        name = _text(w, "name", "weights")
        where = f"weight {name}"
        s = _object(w, "source", where)
        span = _natural(s, "offset", where), _natural(s, "length", where)
        source: FileSource | InlineSource = (
            FileSource(_text(s, "file", where), *span)
            if "file" in s
            else InlineSource(_natural(s, "segment", where), *span)
        )
        buffer = _text(w, "buffer", where) if "buffer" in w else ""
        steps = self._steps(w.get("steps", []), where)
        return Weight(name, source, _natural(w, "unit", where), buffer, steps)

    def _kernel(self, value: Any, code: bytes) -> Kernel:
        k = _as(dict, value, "kernels")
        name = _text(k, "name", "kernels")
        where = f"kernel {name}"
        if "code" not in k and self.header["target"] == "webgpu":
            raise PlanError("a webgpu kernel has code", where=where)
        at, size = _span(k.get("code", [0, 0]), where)
        if at + size > len(code):
            raise PlanError("code outside its segment", where=where, got=at + size)
        given = _list(k, "access", where) if "access" in k else []
        access = [_checked(a, get_args(Access), where) for a in given]
        features = _texts(k, "features", where) if "features" in k else []
        try:
            text = code[at : at + size].decode()
        except UnicodeDecodeError as error:
            raise PlanError("the code is not UTF-8", where=where) from error
        dims = _get(k, "dims", where, bool) if "dims" in k else False
        return Kernel(name, text, tuple(access), dims, tuple(features))

    def _wasm(self, m: dict[str, Any]) -> WasmModule:
        numbers = [_natural(m, key, "wasm") for key in ("reserved", "dims_at", "buffers_at")]
        entries = tuple(_texts(m, "entries", "wasm"))
        threads = _get(m, "threads", "wasm", bool)
        reserved, dims_at, buffers_at = numbers
        segment = _natural(m, "segment", "wasm")
        timed = _get(m, "timed", "wasm", bool)
        return WasmModule(segment, threads, reserved, dims_at, buffers_at, entries, timed)

    def _size(self, container: dict[str, Any], key: str, where: str) -> Size:
        return shapes.from_json(_get(container, key, where), self.dims)

    def _steps(self, value: Any, where: str) -> tuple[Step, ...]:
        return tuple(self._step(_as(dict, s, where), where) for s in _as(list, value, where))

    def _step(self, s: dict[str, Any], where: str) -> Step:
        match _text(s, "op", where):
            case "dispatch":
                kernel, buffers = _natural(s, "kernel", where), tuple(_texts(s, "buffers", where))
                args = _list(s, "args", where) if "args" in s else []
                grid = _list(s, "grid", where) if "grid" in s else [1, 1, 1]
                if len(grid) != 3:
                    raise PlanError("a grid has three sizes", where=where, got=len(grid))
                x, y, z = (shapes.from_json(g, self.dims) for g in grid)
                sizes = tuple(shapes.from_json(a, self.dims) for a in args)
                return Dispatch(kernel, buffers, (x, y, z), sizes)
            case "copy":
                return Copy(
                    _text(s, "source", where),
                    _text(s, "target", where),
                    self._size(s, "bytes", where),
                    self._size(s, "source_offset", where),
                    self._size(s, "target_offset", where),
                )
            case "read":
                place = _text(s, "buffer", where), _natural(s, "offset", where)
                return Read(_text(s, "dim", where), *place)
            case "branch":
                return Branch(
                    self._size(s, "a", where),
                    _one_of(s, "compare", get_args(Comparison), where),
                    self._size(s, "b", where),
                    self._steps(_get(s, "then", where), where),
                    self._steps(_get(s, "else", where), where),
                )
            case "loop":
                body = self._steps(_get(s, "body", where), where)
                return Loop(self._size(s, "count", where), body)
            case "call":
                return Call(_text(s, "program", where))
            case unknown:
                raise PlanError("unknown step", where=where, got=unknown)


# --- checks of the header's values


def _as(kind: type[T], value: Any, where: str) -> T:
    if type(value) is not kind:
        raise PlanError("malformed header", where=where, got=repr(value), wanted=kind.__name__)
    return value


def _get(container: dict[str, Any], key: str, where: str, kind: type[T] | None = None) -> T:
    if key not in container:
        raise PlanError("a value is missing", where=where, wanted=key)
    value = container[key]
    return cast(T, value) if kind is None else _as(kind, value, f"{where}, {key}")


def _object(container: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    return _get(container, key, where, dict)


def _list(container: dict[str, Any], key: str, where: str) -> list[Any]:
    return _get(container, key, where, list)


def _text(container: dict[str, Any], key: str, where: str) -> str:
    return _get(container, key, where, str)


def _texts(container: dict[str, Any], key: str, where: str) -> list[str]:
    return [_as(str, v, f"{where}, {key}") for v in _list(container, key, where)]


def _natural(container: dict[str, Any], key: str, where: str) -> int:
    value = _get(container, key, where, int)
    if value < 0:
        raise PlanError("a number is negative", where=f"{where}, {key}", got=value)
    return value


def _span(value: Any, where: str) -> tuple[int, int]:
    """[offset, length]"""
    pair = _as(list, value, where)
    if len(pair) != 2 or any(type(v) is not int or v < 0 for v in pair):
        raise PlanError("not a pair of offset and length", where=where, got=repr(value))
    return pair[0], pair[1]


def _checked(value: Any, options: Sequence[T], where: str) -> T:
    if not isinstance(value, str) or value not in options:
        wanted = ", ".join(str(o) for o in options)
        raise PlanError("unknown value", where=where, got=repr(value), wanted=wanted)
    return cast(T, value)


def _one_of(container: dict[str, Any], key: str, options: Sequence[T], where: str) -> T:
    return _checked(_get(container, key, where), options, f"{where}, {key}")
