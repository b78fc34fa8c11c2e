"""The executor on wgpu: the torture plan, errors, reading behind."""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from fanlight.errors import (
    AbortedError,
    DeviceError,
    MissingDependencyError,
    PlanError,
    TruncatedError,
)
from fanlight.plan import Buffer, DimSpec, Dispatch, FileSource, Kernel, Loop, Plan, Weight
from fanlight.runtime import gpu
from fanlight.runtime.session import Progress
from fanlight.shapes import Dim
from tests import torture

COUNT = """@group(0) @binding(0) var<storage, read_write> b0: array<u32>;
@compute @workgroup_size(1) fn main() { b0[0] += 1u; }"""
STEPS = Dim("steps", "host", 100)


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


def counter() -> Plan:
    return Plan(
        "webgpu",
        (DimSpec(STEPS),),
        (Buffer("n", "state", 4, "u32", (1,)), Buffer("w", "weight", 16)),
        (),
        (Kernel("count", COUNT, ("read_write",)),),
        {"main": (Loop(STEPS, (Dispatch(0, ("n",)),)),)},
    )


def use(plan: Plan, work: Callable[[gpu.GpuSession], Awaitable[None]]) -> None:
    """Loads, works, disposes."""

    async def run() -> None:
        session = await gpu.load(plan, {})
        try:
            await work(session)
        finally:
            await session.dispose()

    asyncio.run(run())


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_torture(piece: int) -> None:
    case = torture.build("webgpu")
    progress: list[Progress] = []

    async def run() -> None:
        files = {name: Bytes(data, piece) for name, data in case.files.items()}
        session = await gpu.load(case.plan, files, progress=progress.append)
        for number, (one, expected) in enumerate(zip(case.runs, case.expected, strict=True)):
            await session.run(one.program, one.feeds, one.dims)
            for name in torture.READS:
                assert await session.read(name) == expected[name], f"run {number}, buffer {name}"
        await session.dispose()

    asyncio.run(run())
    assert progress[-1].stage == "load"
    assert progress[-1].done == progress[-1].total == 6 * torture.TABLE + 64


def test_repeat_reads_behind_in_order_and_stops() -> None:
    async def work(session: gpu.GpuSession) -> None:
        seen = [
            struct.unpack("<I", data)[0]
            async for data in session.repeat("main", 5, "n", {"steps": 3})
        ]
        assert seen == [3, 6, 9, 12, 15]
        iterator = session.repeat("main", 100, "n")
        async for data in iterator:
            if struct.unpack("<I", data)[0] == 21:
                break
            await session.run("main", {}, {"steps": 0})  # other calls may come between
            await session.run("main", {}, {"steps": 3})
        await iterator.aclose()
        assert struct.unpack("<I", await session.read("n"))[0] < 60

    use(counter(), work)


def test_names_and_ranges_are_checked() -> None:
    async def work(session: gpu.GpuSession) -> None:
        with pytest.raises(PlanError, match="no such program"):
            await session.run("other")
        with pytest.raises(PlanError, match="no such host dim"):
            await session.run("main", {}, {"other": 1})
        with pytest.raises(PlanError, match="outside its range"):
            await session.run("main", {}, {"steps": 101})
        with pytest.raises(PlanError, match="not an input or a state"):
            await session.run("main", {"w": b"1234"})
        with pytest.raises(PlanError, match="too many bytes"):
            await session.run("main", {"n": b"12345678"})
        with pytest.raises(PlanError, match="no such buffer"):
            await session.read("other")
        with pytest.raises(PlanError, match="multiple of 4"):
            await session.read("w", 2, 4)
        assert await session.read("w", 4, 0) == b""
        await session.run("main", {"n": struct.pack("<I", 40)}, {"steps": 2})
        assert await session.read("n") == struct.pack("<I", 42)

    use(counter(), work)


def test_calls_at_the_same_time_take_turns() -> None:
    async def work(session: gpu.GpuSession) -> None:
        await asyncio.gather(*(session.run("main", {}, {"steps": s}) for s in (1, 5, 9)))
        assert await session.read("n") == struct.pack("<I", 15)

    use(counter(), work)


def test_a_kernel_that_does_not_compile_is_named() -> None:
    plan = replace(counter(), kernels=(Kernel("broken", "fn main() {", ("read_write",)),))
    with pytest.raises(PlanError, match="kernel broken"):
        use(plan, lambda _: asyncio.sleep(0))


def test_missing_features_files_and_bytes() -> None:
    with pytest.raises(PlanError, match="lacks features"):
        asyncio.run(gpu.load(replace(counter(), features=("no-such-feature",)), {}))
    weight = Weight("w", FileSource("f", 0, 16), 4, "w")
    plan = replace(counter(), weights=(weight,))
    with pytest.raises(PlanError, match="not given"):
        asyncio.run(gpu.load(plan, {}))
    with pytest.raises(PlanError, match="outside its file"):
        asyncio.run(gpu.load(plan, {"f": Bytes(b"12345678")}))
    with pytest.raises(TruncatedError, match="ended early"):
        asyncio.run(gpu.load(plan, {"f": Bytes(b"1" * 16, cut=9)}))


def test_a_disposed_session_says_so() -> None:
    async def work(session: gpu.GpuSession) -> None:
        await session.dispose()
        with pytest.raises(AbortedError, match="disposed"):
            await session.run("main")

    use(counter(), work)


def test_validation_errors_are_device_errors() -> None:
    """A copy outside its buffer: wgpu's message comes through, and the session goes on."""

    async def work(session: gpu.GpuSession) -> None:
        session._sizes.bytes["n"] = 64
        with pytest.raises(DeviceError, match="refused"):
            await session.read("n", 32, 16)
        session._sizes.bytes["n"] = 4
        await session.run("main", {}, {"steps": 1})
        assert await session.read("n") == struct.pack("<I", 1)

    use(counter(), work)


def test_probe_and_unknown_adapter() -> None:
    found = gpu.probe()
    assert found.features <= {*gpu.FEATURES, "cpu"}
    assert found.fallback == ("cpu" in found.features)
    assert found.max_binding >= 128 << 20
    with pytest.raises(DeviceError, match="no such adapter"):
        gpu.probe("no such adapter")


def test_without_wgpu_the_message_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wgpu", None)
    with pytest.raises(MissingDependencyError, match=r"fanlight\[native\]"):
        gpu.probe()
