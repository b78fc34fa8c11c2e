"""The torture plan: every kind of step, by hand, no model. All executors give the same bytes.

``build(target)`` gives the plan for one target, the file that it loads, the runs to make and what
the buffers hold after each, computed here in plain Python. The steps are the same for both targets;
a ``Builder`` brings the kernels: ``WebGpu`` below, ``tests/torture_wasm.py`` for WebAssembly.

Kernels, over 32-bit words unless said (``n``, ``seen``: host dims; ``at``: the device dim)
    unpack   staging, table: table[unit_first + u] = the last 4 of the 6 bytes of unit u,
             u < unit_count
    scale    constant, scaled: scaled[i] = 3 * constant[i], i < 16
    add      x, scaled, table, y: y[i] = x[i] + scaled[i] + table[i], i < n
    record   log: log[at] = 3 * log[at] + at + 1
    advance  control: control[1] = (control[1] + 1) % 8; control[2] += 1
    pack     x, bytes: byte i = (x[i] * seen + i) % 256, i < n; the other bytes stay
Programs
    load     scale
    main     add; loop count times (record, advance); read seen from control[2];
             if seen > 12: (if n < 5: call pack) else: copy n words of y to kept;
             loop count // 4 times (read seen from control[1]; if seen == 2: record)
    pack     pack; then loop 0 times (advance)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from fanlight.plan import (
    Branch,
    Buffer,
    Call,
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
    Weight,
    decode,
    encode,
)
from fanlight.shapes import Dim, Size, ceildiv

N = Dim("n", "host", 10)
TIMES = Dim("count", "host", 40)
SEEN = Dim("seen", "host", 1000)
FIRST, UNITS = Dim("unit_first", "host", 1 << 20), Dim("unit_count", "host", 1 << 20)
AT = Dim("at", "device", 8)
HOST = (N, TIMES, SEEN, FIRST, UNITS)
FILE, TABLE, STAGING_BYTES = "weights.bin", 23, 32  # 5 units in a chunk
READS = ("y", "log", "control", "bytes", "kept")


@dataclass(frozen=True, slots=True)
class Run:
    """One call of ``session.run``."""

    program: str
    feeds: Mapping[str, bytes]
    dims: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Torture:
    """``expected[i]``: the content of the buffers ``READS`` after ``runs[i]``."""

    plan: Plan
    files: Mapping[str, bytes]
    runs: tuple[Run, ...]
    expected: tuple[Mapping[str, bytes], ...]


class Builder(Protocol):
    """Brings the kernels of a target."""

    def kernels(self) -> tuple[Kernel, ...]: ...

    def dispatch(self, name: str, buffers: tuple[str, ...], items: Size) -> Dispatch:
        """Kernel ``name`` on ``buffers``, in the order of the table above, over ``items``."""
        ...

    def finish(self, plan: Plan) -> Plan:
        """``plan`` with what the target adds."""
        ...


def build(target: Literal["webgpu", "wasm"]) -> Torture:
    """The plan, through its file form; the file; the runs; what must come out."""
    builder: Builder
    if target == "webgpu":
        builder = WebGpu()
    else:
        from tests import torture_wasm

        builder = torture_wasm.BUILDER
    data = b"head" + b"".join(struct.pack("<HI", 0xAAAA, v) for v in _table())
    plan = Plan(
        target,
        (*map(DimSpec, HOST), DimSpec(AT, "control", 4)),
        BUFFERS,
        _weights(builder),
        builder.kernels(),
        _programs(builder),
        (struct.pack("<3I16I", 1, 2, 3, *_constant()),),
    )
    runs = tuple(_runs())
    machine = _Machine()
    expected = tuple(machine.run(run) for run in runs)
    return Torture(decode(encode(builder.finish(plan))), {FILE: data}, runs, expected)


BUFFERS = (
    Buffer("staging", "staging", STAGING_BYTES),
    Buffer("table", "weight", 4 * TABLE, "u32", (TABLE,)),
    Buffer("constant", "weight", 64, "u32", (16,)),
    Buffer("scaled", "state", 64, "u32", (16,)),
    Buffer("x", "input", N * 4, "u32", (N,)),
    Buffer("y", "output", N * 4, "u32", (N,)),
    Buffer("kept", "state", N * 4, "u32", (N,)),
    Buffer("log", "state", 32, "u32", (8,)),
    Buffer("control", "state", 16, "i32", (4,)),
    Buffer("bytes", "state", ceildiv(N, 4) * 4, "u8", (N,)),
)


def _weights(builder: Builder) -> tuple[Weight, ...]:
    unpack = builder.dispatch("unpack", ("staging", "table"), UNITS)
    return (
        Weight("table", FileSource(FILE, 4, 6 * TABLE), 6, "", (unpack,)),
        Weight("constant", InlineSource(0, 12, 64), 4, "constant"),
    )


def _programs(builder: Builder) -> dict[str, tuple[Step, ...]]:
    record = builder.dispatch("record", ("log",), 1)
    advance = builder.dispatch("advance", ("control",), 1)
    small = Branch(N, "<", 5, (Call("pack"),))
    keep = Copy("y", "kept", N * 4)
    return {
        "load": (builder.dispatch("scale", ("constant", "scaled"), 16),),
        "main": (
            builder.dispatch("add", ("x", "scaled", "table", "y"), N),
            Loop(TIMES, (record, advance)),
            Read("seen", "control", 8),
            Branch(SEEN, ">", 12, (small,), (keep,)),
            Loop(TIMES // 4, (Read("seen", "control", 4), Branch(SEEN, "==", 2, (record,)))),
        ),
        "pack": (builder.dispatch("pack", ("x", "bytes"), N), Loop(N - N, (advance,))),
    }


# --- what must come out


def _table() -> list[int]:
    return [(i * 2654435761) % (1 << 32) for i in range(TABLE)]


def _constant() -> list[int]:
    return [i * i + 7 for i in range(16)]


def _runs() -> list[Run]:
    def feed(seed: int) -> dict[str, bytes]:
        return {"x": struct.pack("<10I", *((seed * (i + 1)) % 1000 for i in range(10)))}

    return [
        Run("main", feed(37), {"n": 10, "count": 5}),
        Run("main", {}, {"n": 3, "count": 9}),
        Run("main", feed(91), {"n": 10, "count": 0}),
        Run("main", feed(11), {"n": 4, "count": 4}),
        Run("main", {}, {}),
        Run("pack", {}, {"n": 7}),
    ]


class _Machine:
    """The runs' meaning, in plain Python."""

    def __init__(self) -> None:
        self.x, self.y, self.kept = [0] * 10, [0] * 10, [0] * 10
        self.log, self.control, self.bytes = [0] * 8, [0] * 4, bytearray(12)
        self.n, self.count, self.seen = N.max, TIMES.max, SEEN.max

    def run(self, run: Run) -> dict[str, bytes]:
        self.n, self.count = run.dims.get("n", self.n), run.dims.get("count", self.count)
        if "x" in run.feeds:
            self.x = list(struct.unpack("<10I", run.feeds["x"]))
        if run.program == "main":
            self.main()
        else:
            self.pack()
        words = {"y": self.y, "log": self.log, "control": self.control, "kept": self.kept}
        held = {name: struct.pack(f"<{len(v)}I", *v) for name, v in words.items()}
        return {**held, "bytes": bytes(self.bytes)}

    def main(self) -> None:
        for i in range(self.n):
            self.y[i] = (self.x[i] + 3 * _constant()[i] + _table()[i]) % (1 << 32)
        for _ in range(self.count):
            self.record()
            self.control[1] = (self.control[1] + 1) % 8
            self.control[2] += 1
        self.seen = self.control[2]
        if self.seen > 12:
            if self.n < 5:
                self.pack()
        else:
            self.kept[: self.n] = self.y[: self.n]
        for _ in range(self.count // 4):
            self.seen = self.control[1]
            if self.seen == 2:
                self.record()

    def record(self) -> None:
        at = self.control[1]
        self.log[at] = (3 * self.log[at] + at + 1) % (1 << 32)

    def pack(self) -> None:
        for i in range(self.n):
            self.bytes[i] = (self.x[i] * self.seen + i) % 256


# --- WebGPU


_DIMS = "var<uniform> dims: array<vec4<u32>, 2>; // n, count, seen, unit_first; unit_count\n"
_KERNELS: dict[str, tuple[tuple[Literal["read", "read_write"], ...], bool, str]] = {
    "unpack": (
        ("read", "read_write"),
        True,
        """fn byte(i: u32) -> u32 { return (b0[i / 4u] >> (8u * (i % 4u))) & 0xffu; }
@compute @workgroup_size(8) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x >= dims[1].x) { return; }
  let at = id.x * 6u + 2u;
  let low = byte(at) | (byte(at + 1u) << 8u);
  b1[dims[0].w + id.x] = low | (byte(at + 2u) << 16u) | (byte(at + 3u) << 24u);
}""",
    ),
    "scale": (
        ("read", "read_write"),
        False,
        """@compute @workgroup_size(8) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x < 16u) { b1[id.x] = 3u * b0[id.x]; }
}""",
    ),
    "add": (
        ("read", "read", "read", "read_write"),
        True,
        """@compute @workgroup_size(8) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x < dims[0].x) { b3[id.x] = b0[id.x] + b1[id.x] + b2[id.x]; }
}""",
    ),
    "record": (
        ("read_write", "read"),  # log, and the buffer of the device dim
        False,
        """@compute @workgroup_size(1) fn main() {
  let at = b1[1];
  b0[at] = 3u * b0[at] + at + 1u;
}""",
    ),
    "advance": (
        ("read_write",),
        False,
        """@compute @workgroup_size(1) fn main() {
  b0[1] = (b0[1] + 1u) % 8u;
  b0[2] += 1u;
}""",
    ),
    "pack": (
        ("read", "read_write"),
        True,
        """@compute @workgroup_size(8) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x * 4u >= dims[0].x) { return; }
  var word = b1[id.x];
  for (var i = id.x * 4u; i < min(id.x * 4u + 4u, dims[0].x); i++) {
    let shift = 8u * (i % 4u);
    word = (word & ~(0xffu << shift)) | (((b0[i] * dims[0].z + i) & 0xffu) << shift);
  }
  b1[id.x] = word; // one writer for each word
}""",
    ),
}


class WebGpu:
    """The kernels in WGSL, bindings and all."""

    def kernels(self) -> tuple[Kernel, ...]:
        out = []
        for name, (access, uses_dims, text) in _KERNELS.items():
            lines = [
                f"@group(0) @binding({i}) var<storage, {a}> b{i}: array<u32>;\n"
                for i, a in enumerate(access)
            ]
            if uses_dims:
                lines.append(f"@group(0) @binding({len(access)}) {_DIMS}")
            out.append(Kernel(name, "".join(lines) + text, access, uses_dims))
        return tuple(out)

    def dispatch(self, name: str, buffers: tuple[str, ...], items: Size) -> Dispatch:
        extra = ("control",) if name == "record" else ()
        grid = (ceildiv(items, 8), 1, 1)
        return Dispatch(list(_KERNELS).index(name), (*buffers, *extra), grid)

    def finish(self, plan: Plan) -> Plan:
        return plan
