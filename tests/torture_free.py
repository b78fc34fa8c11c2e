"""The torture plan of free dims, by hand: memory that comes, moves and grows between runs.

``build(target)`` as in ``tests/torture.py``. ``m`` is free, its maximum absurd; ``found`` is read
back and bounded by m; ``k`` has a usual maximum.

Kernels, over 32-bit words
    square   u, table, squares: squares[i] = u[i] * u[i] + table[i % 4], i < m
    reverse  squares, v: v[i] = squares[m - 1 - i], i < m
    odd      u, hits, control: hits = the odd words of u, in order; control[0] = their number;
             control[1] += 1
    next     hits, after: after[i] = hits[i] + k, i < found
Program
    main     square; reverse; odd; read found from control[0]; next; if found > 2: copy the last
             2 of ``after`` to kept
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from fanlight.codegen.wasm import link
from fanlight.codegen.wasm.encoder import Function
from fanlight.codegen.wasm.values import Local, Value, Writer, i32, op
from fanlight.codegen.wgsl.text import GROUP, fold_grid
from fanlight.kernels.launch import WasmKernel
from fanlight.plan import (
    Branch,
    Buffer,
    Copy,
    DimSpec,
    Dispatch,
    InlineSource,
    Kernel,
    Plan,
    Read,
    Step,
    Weight,
    decode,
    encode,
)
from fanlight.shapes import Dim, Size
from tests.torture import Run

M = Dim("m", "host", 1 << 40)
FOUND = Dim("found", "host", 1 << 40)
K = Dim("k", "host", 9)
TABLE = (5, 70, 900, 11)
WORD = 1 << 32
BUFFERS = (
    Buffer("u", "input", M * 4, "u32", (M,)),
    Buffer("table", "weight", 16, "u32", (4,)),
    Buffer("squares", "arena", M * 4 + 64),
    Buffer("control", "state", 16, "i32", (4,)),
    Buffer("v", "output", M * 4, "u32", (M,)),
    Buffer("hits", "arena", FOUND * 4),
    Buffer("after", "output", FOUND * 4, "u32", (FOUND,)),
    Buffer("kept", "state", 8, "u32", (2,)),
)
_STEPS: tuple[tuple[str, tuple[str, ...], Size], ...] = (
    ("square", ("u", "table", "squares"), M),
    ("reverse", ("squares", "v"), M),
    ("odd", ("u", "hits", "control"), 1),
    ("next", ("hits", "after"), FOUND),
)


@dataclass(frozen=True, slots=True)
class Free:
    """``expected[i]``: the first bytes of buffers after ``runs[i]``, and ``found`` then;
    ``growths[i]``: whether that run needs more memory than those before."""

    plan: Plan
    runs: tuple[Run, ...]
    expected: tuple[Mapping[str, bytes], ...]
    found: tuple[int, ...]
    growths: tuple[bool, ...]


def build(target: Literal["webgpu", "wasm"], threads: bool = False) -> Free:
    """The plan, through its file form; the runs; what must come out."""
    kernels = WGSL if target == "webgpu" else tuple(Kernel(name) for name in _WASM)
    plan = Plan(
        target,
        (DimSpec(K), DimSpec(M, free=True), DimSpec(FOUND, free=True, bound=M)),
        BUFFERS,
        (Weight("table", InlineSource(0, 0, 16), 4, "table"),),
        kernels,
        {"load": (), "main": _program(target)},
        (struct.pack("<4I", *TABLE),),
    )
    if target == "wasm":
        linked = [WasmKernel(n, b, len(a), emit) for n, (b, a, emit) in _WASM.items()]
        plan = link.link(plan, linked, frozenset({"threads"} if threads else ()))
    runs, expected, found = [], [], []
    kept = [0, 0]
    k = K.max
    for number, (m, dims) in enumerate(_RUNS):
        u = [(i * 2654435761 + m) % WORD >> (i % 7) for i in range(m)]
        squares = [(x * x + TABLE[i % 4]) % WORD for i, x in enumerate(u)]
        k = dims.get("k", k)
        after = [(x + k) % WORD for x in u if x % 2]
        kept = after[-2:] if len(after) > 2 else kept
        runs.append(Run("main", {"u": _words(u)}, {"m": m, **dims}))
        control = _words([len(after), number + 1, 0, 0])
        values = {"v": _words(squares[::-1]), "after": _words(after), "kept": _words(kept)}
        expected.append({**values, "control": control})
        found.append(len(after))
    return Free(decode(encode(plan)), tuple(runs), tuple(expected), tuple(found), _GROWTHS)


#: m, and other dims
_RUNS: tuple[tuple[int, dict[str, int]], ...] = (
    (5, {"k": 3}),
    (70_000, {}),  # more workgroups than one axis has
    (4, {"k": 7}),
    (70_000, {"k": 1}),
    (0, {}),
    (131_073, {}),
    (140_000, {}),  # by a quarter at least
    (150_000, {}),
    (6, {}),
)
_GROWTHS = (True, True, False, False, False, True, True, False, False)


def _words(values: list[int]) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def _program(target: str) -> tuple[Step, ...]:
    def dispatch(number: int) -> Dispatch:
        name, buffers, items = _STEPS[number]
        if target == "webgpu":
            return Dispatch(number, buffers, fold_grid(items))
        return Dispatch(number, buffers, args=_WASM[name][1])

    square, reverse, odd, after = map(dispatch, range(4))
    last = Copy("after", "kept", 8, FOUND * 4 - 8)
    many = Branch(FOUND, ">", 2, (last,))
    return (square, reverse, odd, Read("found", "control"), after, many)


# --- WebGPU


_DIMS = "var<uniform> dims: array<vec4<u32>, 1>; // k, m, found\n"
_WGSL = {
    "square": ("read", "read", "read_write", "if (i < m) { b2[i] = b0[i] * b0[i] + b1[i % 4u]; }"),
    "reverse": ("read", "read_write", "if (i < m) { b1[i] = b0[m - 1u - i]; }"),
    "odd": (
        "read",
        "read_write",
        "read_write",
        "var count = 0u;\n  for (var j = 0u; j < m; j += 4u) {\n"
        + "".join(
            f"    if (j + {n}u < m && b0[j + {n}u] % 2u == 1u)"
            f" {{ b1[count] = b0[j + {n}u]; count++; }}\n"
            for n in range(4)  # lavapipe ends loops after 65,535 turns
        )
        + "  }\n  b2[0] = count;\n  b2[1] += 1u;",
    ),
    "next": ("read", "read_write", "if (i < dims[0].z) { b1[i] = b0[i] + dims[0].x; }"),
}


def _wgsl() -> tuple[Kernel, ...]:
    out = []
    for name, (*kinds, body) in _WGSL.items():
        access: list[Literal["read", "read_write"]] = [
            "read" if kind == "read" else "read_write" for kind in kinds
        ]
        lines = [
            f"@group(0) @binding({i}) var<storage, {a}> b{i}: array<u32>;\n"
            for i, a in enumerate(access)
        ]
        lines.append(f"@group(0) @binding({len(access)}) {_DIMS}")
        lines.append(f"""@compute @workgroup_size(1) fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
) {{
  let i = {GROUP};
  let m = dims[0].y;
  {body}
}}""")
        out.append(Kernel(name, "".join(lines), tuple(access), True))
    return tuple(out)


WGSL = _wgsl()


# --- WebAssembly


def _each(w: Writer, count: Value, body: Callable[[Local], None]) -> None:
    tid, threads = w.params[-2:]
    i = w.let(tid)
    with w.while_(i < count):
        body(i)
        w.set(i, i + threads)


def _square(function: Function) -> None:
    w = Writer(function)
    u, table, squares, m = w.params[:4]

    def element(i: Local) -> None:
        x = w.let(op("i32.load", u + (i << 2)))
        more = op("i32.load", table + ((i & 3) << 2))
        w.do("i32.store", squares + (i << 2), x * x + more)

    _each(w, m, element)


def _reverse(function: Function) -> None:
    w = Writer(function)
    squares, v, m = w.params[:3]

    def element(i: Local) -> None:
        w.do("i32.store", v + (i << 2), op("i32.load", squares + ((m - 1 - i) << 2)))

    _each(w, m, element)


def _odd(function: Function) -> None:
    """By thread 0 alone."""
    w = Writer(function)
    u, hits, control, m, tid = w.params[:5]
    with w.if_(op("i32.eqz", tid)):
        count, i = w.let(i32(0)), w.let(i32(0))
        with w.while_(i < m):
            x = w.let(op("i32.load", u + (i << 2)))
            with w.if_(x & 1):
                w.do("i32.store", hits + (count << 2), x)
                w.set(count, count + 1)
            w.set(i, i + 1)
        w.do("i32.store", control, count)
        w.do("i32.store", control, op("i32.load", control, offset=4) + 1, offset=4)


def _next(function: Function) -> None:
    w = Writer(function)
    hits, after, found, k = w.params[:4]

    def element(i: Local) -> None:
        w.do("i32.store", after + (i << 2), op("i32.load", hits + (i << 2)) + k)

    _each(w, found, element)


#: name → (buffers, args, code)
_WASM: dict[str, tuple[int, tuple[Size, ...], Callable[[Function], None]]] = {
    "square": (3, (M,), _square),
    "reverse": (2, (M,), _reverse),
    "odd": (3, (M,), _odd),
    "next": (2, (FOUND, K), _next),
}
