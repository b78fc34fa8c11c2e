"""Plans, good and bad, for both readers: bytes, and whether a reader must take them.

The bad ones are mutations of a good one's header. ``python -m tests.plan_cases`` prints the names.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fanlight.plan import (
    MAGIC,
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
    WasmModule,
    Weight,
    encode,
)
from fanlight.shapes import Dim, ceildiv

Header = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """``good``: whether a reader accepts ``data``."""

    name: str
    data: bytes
    good: bool


def webgpu_plan() -> Plan:
    """Every kind of buffer, weight and step."""
    n, count, at = Dim("n", "host", 64), Dim("count", "host", 9), Dim("at", "device", 5)
    batch, found = Dim("batch", "host", 1 << 40), Dim("found", "host", 1 << 40)
    return Plan(
        target="webgpu",
        dims=(
            DimSpec(n),
            DimSpec(count),
            DimSpec(at, "state", 4),
            DimSpec(batch, free=True),
            DimSpec(found, free=True, bound=batch * n),
        ),
        buffers=(
            Buffer("staging", "staging", 1024),
            Buffer("w", "weight", 64),
            Buffer("state", "state", n * 4 + 8, "i32", (n, 4)),
            Buffer("out", "output", 64),
            Buffer("many", "output", found * 4),
        ),
        weights=(
            Weight("inline", InlineSource(0, 8, 16), 4, "w"),
            Weight("blocks", FileSource("model", 3, 36), 18, "", (Dispatch(1, ("staging", "w")),)),
        ),
        kernels=(
            Kernel("one", "fn main() {}", ("read", "read_write"), True, ("subgroups",)),
            Kernel("two", "fn main() {} // ä", ("read", "read_write")),
        ),
        programs={
            "load": (),
            "main": (
                Dispatch(0, ("w", "out"), (ceildiv(n, 8), at + 1, 1)),
                Read("count", "state", 4),
                Branch(count, "<", 3, (Copy("out", "state", 16, 4, 8),), (Call("load"),)),
                Loop(count - 1, (Call("other"),)),
            ),
            "other": (Read("found", "state", 4), Copy("out", "many", 16)),
        },
        segments=(bytes(range(32)),),
        features=("subgroups",),
        metadata={"name": "x"},
    )


def wasm_plan() -> Plan:
    """A plan with a module (not a real one)."""
    n = Dim("n", "host", 64)
    return Plan(
        target="wasm",
        dims=(DimSpec(n),),
        buffers=(Buffer("a", "input", n * 4), Buffer("b", "output", 64)),
        weights=(Weight("odd", FileSource("model", 1, 9), 3, "b"),),
        kernels=(Kernel("one"),),
        programs={"main": (Dispatch(0, ("a", "b"), args=(n, 3)), Copy("a", "a", 4, 0, 4))},
        segments=(b"\0asm",),
        wasm=WasmModule(0, True, 256, 64, 128, ("main",)),
    )


def split(data: bytes) -> tuple[Header, bytes]:
    """The header of a plan and what follows it."""
    (length,) = struct.unpack_from("<I", data, 8)
    return json.loads(data[16 : 16 + length]), data[16 + length :]


def join(header: Any, rest: bytes) -> bytes:
    """Inverse of :func:`split`."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return MAGIC + struct.pack("<II", len(text), 0) + text + rest


def put(*path: str | int, value: Any) -> Callable[[Header], None]:
    """A mutation: ``value`` at ``path``."""

    def change(header: Header) -> None:
        at: Any = header
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return change


def drop(*path: str | int) -> Callable[[Header], None]:
    """A mutation: nothing at ``path``."""

    def change(header: Header) -> None:
        at: Any = header
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]

    return change


STEP = ("programs", "main", 0)
WEBGPU: dict[str, tuple[bool, Callable[[Header], None]]] = {
    "version 2": (False, put("version", value=2)),
    "no version": (False, drop("version")),
    "unknown target": (False, put("target", value="cuda")),
    "no dims": (False, drop("dims")),
    "no metadata": (False, drop("metadata")),
    "no features": (False, drop("features")),
    "unknown header key": (True, put("comment", value="hello")),
    "dim of a new kind": (False, put("dims", 0, "kind", value="ghost")),
    "dim below zero": (False, put("dims", 0, "max", value=-1)),
    "dim of zero": (True, put("dims", 0, "max", value=0)),
    "device dim without buffer": (False, drop("dims", 2, "buffer")),
    "device dim, no such buffer": (False, put("dims", 2, "buffer", value="nowhere")),
    "free device dim": (False, put("dims", 2, "free", value=True)),
    "free dim of the executor": (False, put("dims", 3, "name", value="unit_first")),
    "free as a number": (False, put("dims", 3, "free", value=1)),
    "a dim that is not free with a bound": (False, put("dims", 0, "bound", value=5)),
    "bound over itself": (False, put("dims", 4, "bound", value=["+", "found", 1])),
    "bound over a later dim": (False, put("dims", 3, "bound", value="found")),
    "bound over a device dim": (False, put("dims", 4, "bound", value="at")),
    "bound of an earlier bound": (True, put("dims", 3, "bound", value=["//", "count", 2])),
    "read into a free dim without a bound": (False, drop("dims", 4, "bound")),
    "weight of free size": (False, put("buffers", 1, "bytes", value="batch")),
    "staging of free size": (False, put("buffers", 0, "bytes", value=["+", "found", 64])),
    "device dim in a buffer of free size": (False, put("buffers", 2, "bytes", value="batch")),
    "weight's steps on a buffer of free size": (
        False,
        put("weights", 1, "steps", 0, "buffers", value=["staging", "many"]),
    ),
    "twin buffers": (False, put("buffers", 1, "name", value="out")),
    "buffer size of an unknown dim": (False, put("buffers", 0, "bytes", value="m")),
    "buffer size of an unknown op": (False, put("buffers", 0, "bytes", value=["^", "n", 2])),
    "buffer size of two": (False, put("buffers", 0, "bytes", value=["+", 1])),
    "buffer size half": (False, put("buffers", 0, "bytes", value=1.5)),
    "buffer size null": (False, put("buffers", 0, "bytes", value=None)),
    "buffer size true": (False, put("buffers", 0, "bytes", value=True)),
    "buffer size of an op": (True, put("buffers", 0, "bytes", value=["max", ["%", "n", 7], 1024])),
    "buffer without shape": (False, drop("buffers", 0, "shape")),
    "weight unit 0": (False, put("weights", 0, "unit", value=0)),
    "weight not of whole units": (False, put("weights", 1, "unit", value=7)),
    "weight with a negative offset": (False, put("weights", 1, "source", "offset", value=-1)),
    "weight of nothing": (True, put("weights", 1, "source", "length", value=0)),
    "weight without place": (False, drop("weights", 0, "buffer")),
    "weight of a missing segment": (False, put("weights", 0, "source", "segment", value=7)),
    "weight of the code": (False, put("weights", 0, "source", "segment", value=1)),
    "weight past its segment": (False, put("weights", 0, "source", "length", value=64)),
    "direct weight of odd units": (False, put("weights", 0, "unit", value=2)),
    "segment outside": (False, put("segments", 0, value=[0, 10**6])),
    "segment before": (False, put("segments", 0, value=[-8, 8])),
    "segments absent": (False, drop("segments")),
    "code segment outside": (False, put("code_segment", value=9)),
    "kernel without name": (False, drop("kernels", 0, "name")),
    "unknown step": (False, put(*STEP, "op", value="jump")),
    "step without op": (False, drop(*STEP, "op")),
    "no such kernel": (False, put(*STEP, "kernel", value=2)),
    "kernel -1": (False, put(*STEP, "kernel", value=-1)),
    "too few buffers": (False, put(*STEP, "buffers", value=["w"])),
    "written buffer twice": (False, put(*STEP, "buffers", value=["out", "out"])),
    "dispatch on no buffer": (False, put(*STEP, "buffers", value=["w", "nowhere"])),
    "grid of two": (False, put(*STEP, "grid", value=[1, 1])),
    "grid of an unknown dim": (False, put(*STEP, "grid", value=["m", 1, 1])),
    "read into a device dim": (False, put("programs", "main", 1, "dim", value="at")),
    "read into no dim": (False, put("programs", "main", 1, "dim", value="m")),
    "read of no buffer": (False, put("programs", "main", 1, "buffer", value="nowhere")),
    "branch on a device dim": (False, put("programs", "main", 2, "a", value=["+", "at", 1])),
    "branch with a new comparison": (False, put("programs", "main", 2, "compare", value="<>")),
    "branch without else": (False, drop("programs", "main", 2, "else")),
    "copy inside one buffer": (
        False,
        put("programs", "main", 2, "then", 0, "target", value="out"),
    ),
    "copy without bytes": (False, drop("programs", "main", 2, "then", 0, "bytes")),
    "loop on a device dim": (False, put("programs", "main", 3, "count", value="at")),
    "call of nothing": (False, put("programs", "main", 3, "body", 0, "program", value="no")),
    "call of itself": (False, put("programs", "other", value=[{"op": "call", "program": "other"}])),
    "calls in a ring": (False, put("programs", "other", value=[{"op": "call", "program": "main"}])),
    "steps of text": (False, put("programs", "main", value="dispatch")),
    "programs of text": (False, put("programs", value="main")),
    "wasm plan without module": (False, put("target", value="wasm")),
    "dim maximum as text": (False, put("dims", 0, "max", value="64")),
    "buffer of a new kind": (False, put("buffers", 1, "kind", value="magic")),
    "buffer name as a number": (False, put("buffers", 3, "name", value=7)),
    "kernel access to write": (False, put("kernels", 0, "access", value=["read", "write"])),
    "code past its segment": (False, put("kernels", 0, "code", value=[0, 10**6])),
    "weight unit as text": (False, put("weights", 0, "unit", value="4")),
    "buffer size divided by 0": (False, put("buffers", 0, "bytes", value=["//", "n", 0])),
    "read at a negative offset": (False, put("programs", "main", 1, "offset", value=-4)),
    "metadata of text": (False, put("metadata", value="x")),
}
WASM: dict[str, tuple[bool, Callable[[Header], None]]] = {
    "no module": (False, drop("wasm")),
    "module outside the segments": (False, put("wasm", "segment", value=3)),
    "module without entries": (False, drop("wasm", "entries")),
    "dispatch args of an unknown dim": (False, put(*STEP, "args", value=["m"])),
    "no such kernel": (False, put(*STEP, "kernel", value=5)),
    "copy of no buffer": (False, put("programs", "main", 1, "source", value="nowhere")),
}


def cases() -> Iterator[Case]:
    """Good plans, then bad ones that both readers must refuse."""
    not_objects: list[Any] = [[], "plan", 1, None]
    for plan, mutations in ((webgpu_plan(), WEBGPU), (wasm_plan(), WASM)):
        data = encode(plan)
        yield Case(f"{plan.target}: as it is", data, True)
        yield Case(f"{plan.target}: cut in the magic", data[:5], False)
        yield Case(f"{plan.target}: cut after the magic", data[:10], False)
        yield Case(f"{plan.target}: cut in the header", data[:100], False)
        yield Case(f"{plan.target}: cut in the segments", data[:-16], False)
        yield Case(f"{plan.target}: other magic", b"FANPLAN2" + data[8:], False)
        for header in not_objects:
            yield Case(f"{plan.target}: header {header!r}", join(header, b""), False)
        broken = data[:16] + b"!" + data[17:]
        yield Case(f"{plan.target}: header not JSON", broken, False)
        for name, (good, change) in mutations.items():
            yield Case(f"{plan.target}: {name}", mutate(data, change), good)


def mutate(data: bytes, change: Callable[[Header], None]) -> bytes:
    """``data`` with its header changed."""
    header, rest = split(data)
    changed = copy.deepcopy(header)
    change(changed)
    return join(changed, rest)


def random_cases(seed: int, count: int) -> Iterator[bytes]:
    """Plans with one value of the header dropped, or replaced by one from elsewhere."""
    rng = random.Random(seed)
    data = [encode(webgpu_plan()), encode(wasm_plan())]
    pool: list[Any] = [-1, 0, 1, 2**31, "", "n", "nowhere", [], {}, None, True, 0.5]
    pool += [value for d in data for _, value in _places(split(d)[0])]
    for _ in range(count):
        header, rest = split(rng.choice(data))
        path, _ = rng.choice(list(_places(header)))
        at: Any = header
        for key in path[:-1]:
            at = at[key]
        if rng.random() < 0.2:
            del at[path[-1]]
        else:
            at[path[-1]] = copy.deepcopy(rng.choice(pool))
        yield join(header, rest)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every place inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield (*path, key), inner
        if isinstance(inner, (dict, list)):
            yield from _places(inner, (*path, key))


if __name__ == "__main__":
    for case in cases():
        print("good" if case.good else "bad ", case.name)
