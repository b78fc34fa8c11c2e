"""The executor on wasmtime: the torture plan, weights in chunks, errors, a live loop."""

from __future__ import annotations

import asyncio
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from fanlight.codegen.wasm import link
from fanlight.codegen.wasm.encoder import Function
from fanlight.codegen.wasm.values import Writer, f32x4, op
from fanlight.errors import (
    AbortedError,
    DeviceError,
    MissingDependencyError,
    PlanError,
    TruncatedError,
)
from fanlight.kernels.launch import WasmKernel
from fanlight.plan import Buffer, DimSpec, Dispatch, FileSource, Kernel, Loop, Plan, Weight
from fanlight.runtime import wasm
from fanlight.runtime.session import Progress
from fanlight.shapes import Dim, Size
from tests import torture, torture_wasm

STEPS = Dim("steps", "host", 1_000_000_000)
COUNTS = (Loop(STEPS, (Dispatch(0, ("n",)),)),)


class Bytes:
    """A file in memory; ``cut``: bytes after which the stream ends early."""

    def __init__(self, data: bytes, piece: int = 7, cut: int | None = None) -> None:
        self.data, self.piece, self.cut = data, piece, cut

    @property
    def size(self) -> int:
        return len(self.data)

    async def stream(self, offset: int, length: int) -> AsyncIterator[bytes]:
        end = min(offset + length, self.cut or len(self.data))
        for at in range(offset, end, self.piece):
            yield self.data[at : min(at + self.piece, end)]


def _count(function: Function) -> None:
    w = Writer(function)
    n = w.params[0]
    w.do("i32.store", n, op("i32.load", n) + 1)


def _trap(function: Function) -> None:
    function.op("unreachable")


def _relaxed(function: Function) -> None:
    """n = 2 * 3 + 4, in one instruction."""
    w = Writer(function)
    value = op("f32x4.relaxed_madd", f32x4(2), f32x4(3), f32x4(4))
    w.do("f32.store", w.params[0], op("f32x4.extract_lane", value, lane=0))


def counter(
    emit: Callable[[Function], None] = _count,
    steps: Sequence[Any] = COUNTS,
    size: Size = 16,
    weights: tuple[Weight, ...] = (),
) -> Plan:
    plan = Plan(
        "wasm",
        (DimSpec(STEPS),),
        (Buffer("n", "state", 4, "u32", (1,)), Buffer("w", "weight", size)),
        weights,
        (Kernel("count"),),
        {"main": tuple(steps)},
    )
    return link.link(plan, [WasmKernel("count", 1, 0, emit)], frozenset())


def use(plan: Plan, work: Callable[[wasm.WasmSession], Awaitable[None]]) -> None:
    """Loads, works, disposes."""

    async def run() -> None:
        session = await wasm.load(plan, {})
        try:
            await work(session)
        finally:
            await session.dispose()

    asyncio.run(run())


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_torture(piece: int) -> None:
    case = torture.build("wasm")
    progress: list[Progress] = []

    async def run() -> None:
        files = {name: Bytes(data, piece) for name, data in case.files.items()}
        session = await wasm.load(case.plan, files, progress=progress.append)
        for number, (step, expected) in enumerate(zip(case.runs, case.expected, strict=True)):
            await session.run(step.program, step.feeds, step.dims)
            for name in torture.READS:
                assert await session.read(name) == expected[name], f"run {number}, {name}"
        await session.dispose()

    asyncio.run(run())
    loaded = [p.done for p in progress if p.stage == "load"]
    assert loaded == sorted(loaded) and loaded[-1] == progress[-1].total == 6 * torture.TABLE + 64


def test_repeat_reads_after_each_run() -> None:
    async def work(session: wasm.WasmSession) -> None:
        got = [
            struct.unpack("<I", x)[0] async for x in session.repeat("main", 5, "n", {"steps": 3})
        ]
        assert got == [3, 6, 9, 12, 15]

    use(counter(), work)


def test_relaxed_simd_runs() -> None:
    async def work(session: wasm.WasmSession) -> None:
        await session.run("main", dims={"steps": 1})
        assert struct.unpack("<f", await session.read("n")) == (10,)

    use(counter(_relaxed), work)


def test_the_loop_goes_on_while_the_module_runs() -> None:
    """Other tasks get their turns during a long run; calls wait for theirs."""

    async def work(session: wasm.WasmSession) -> None:
        started = time.perf_counter()
        await session.run("main", dims={"steps": 1_000_000})
        each = (time.perf_counter() - started) / 1_000_000
        steps = int(0.5 / each)
        run = asyncio.create_task(session.run("main", dims={"steps": steps}))
        turns = 0
        while not run.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert turns > 5
        assert struct.unpack("<I", await session.read("n")) == (1_000_000 + steps,)

    use(counter(), work)


def test_wrong_arguments() -> None:
    async def work(session: wasm.WasmSession) -> None:
        for program, feeds, dims in (
            ("other", {}, {}),
            ("main", {"unknown": b""}, {}),
            ("main", {"w": b"1234"}, {}),
            ("main", {"n": bytes(8)}, {}),
            ("main", {}, {"unknown": 1}),
            ("main", {}, {"steps": -1}),
            ("main", {}, {"steps": STEPS.max + 1}),
        ):
            with pytest.raises(PlanError):
                await session.run(program, feeds, dims)
        for place in ((0, 8), (2, None), (-4, 4)):
            with pytest.raises(PlanError):
                await session.read("n", *place)
        with pytest.raises(PlanError):
            await session.read("unknown")

    use(counter(), work)


def test_a_trap_is_a_device_error() -> None:
    async def work(session: wasm.WasmSession) -> None:
        with pytest.raises(DeviceError, match="program main"):
            await session.run("main", dims={"steps": 1})

    use(counter(_trap), work)


def test_more_than_4_gib_says_how_much() -> None:
    async def run() -> None:
        with pytest.raises(DeviceError, match=r"5\d{9} bytes"):
            await wasm.load(counter(size=5_000_000_000), {})

    asyncio.run(run())


def test_a_module_that_does_not_validate() -> None:
    plan = replace(counter(), segments=(b"\0asm\x01\0\0\0\x0a",))

    async def run() -> None:
        with pytest.raises(DeviceError):
            await wasm.load(plan, {})

    asyncio.run(run())


def test_plans_that_are_not_for_it() -> None:
    async def run() -> None:
        with pytest.raises(PlanError, match="threads"):
            await wasm.load(torture_wasm.with_threads(torture.build("wasm").plan), {})
        with pytest.raises(PlanError, match="not a plan for wasm"):
            await wasm.load(torture.build("webgpu").plan, {})

    asyncio.run(run())


def test_files_that_are_missing_or_end_early() -> None:
    weight = Weight("w", FileSource("model", 0, 16), 4, "w")
    plan = counter(weights=(weight,))

    async def run() -> None:
        with pytest.raises(PlanError, match="model"):
            await wasm.load(plan, {})
        with pytest.raises(PlanError, match="outside its file"):
            await wasm.load(plan, {"model": Bytes(bytes(15))})
        with pytest.raises(TruncatedError):
            await wasm.load(plan, {"model": Bytes(bytes(16), cut=9)})
        session = await wasm.load(plan, {"model": Bytes(bytes(range(16)), piece=5)})
        assert await session.read("w") == bytes(range(16))
        assert await session.read("w", 4, 8) == bytes(range(4, 12))
        await session.dispose()

    asyncio.run(run())


def test_a_disposed_session_refuses() -> None:
    async def run() -> None:
        session = await wasm.load(counter(), {})
        await session.dispose()
        await session.dispose()
        for call in (session.run("main"), session.read("n")):
            with pytest.raises(AbortedError):
                await call

    asyncio.run(run())


def test_without_wasmtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wasmtime", None)

    async def run() -> None:
        with pytest.raises(MissingDependencyError, match="pip install"):
            await wasm.load(counter(), {})

    asyncio.run(run())
