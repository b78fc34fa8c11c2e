"""Free dims on wgpu and wasmtime: memory comes when a run needs it, and grows only then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Literal

import pytest

from fanlight.errors import DeviceError, PlanError
from fanlight.plan import Dispatch, Plan
from fanlight.runtime import gpu, wasm
from fanlight.runtime.session import Session
from tests import torture_free

Target = Literal["webgpu", "wasm"]
TARGETS = pytest.mark.parametrize("target", ["webgpu", "wasm"])
HUGE = (1 << 31) - 1  # words: 8 GiB


def use(target: Target, plan: Plan, work: Callable[[Session], Awaitable[None]]) -> None:
    """Loads, works, disposes."""

    async def run() -> None:
        session: Session = await (gpu if target == "webgpu" else wasm).load(plan, {})
        try:
            await work(session)
        finally:
            await session.dispose()

    asyncio.run(run())


@TARGETS
def test_torture(target: Target) -> None:
    case = torture_free.build(target)

    async def work(session: Session) -> None:
        start = session.info.resident_bytes
        assert start < 1 << 18  # nothing comes from a free dim's maximum
        for number, run in enumerate(case.runs):
            before = session.info.growths, session.info.resident_bytes
            await session.run(run.program, run.feeds, run.dims)
            for name, data in case.expected[number].items():
                assert await session.read(name, 0, len(data)) == data, f"run {number}, {name}"
            dims = await session.dims()
            assert dims["found"] == case.found[number] and dims["m"] == run.dims["m"]
            grown = session.info.growths > before[0]
            if target == "webgpu" or number > 0:  # WebAssembly's last page has room for a few
                assert grown == case.growths[number], f"run {number}"
            assert grown == (session.info.resident_bytes > before[1])

    use(target, case.plan, work)


@TARGETS
def test_too_much_is_refused_and_the_session_goes_on(target: Target) -> None:
    case = torture_free.build(target)
    kind = {"webgpu": PlanError, "wasm": DeviceError}[target]
    first, second = case.runs[0], case.runs[1]

    async def work(session: Session) -> None:
        await session.run(first.program, first.feeds, first.dims)
        for _ in range(2):
            with pytest.raises(kind, match="smaller inputs"):
                await session.run("main", {}, {"m": HUGE})
        assert (await session.dims())["m"] == first.dims["m"]
        v = case.expected[0]["v"]
        assert await session.read("v") == v
        with pytest.raises(PlanError, match="too many bytes"):
            await session.run("main", {"u": bytes(24)}, {"m": 5})
        with pytest.raises(PlanError, match="only the program sets"):
            await session.run("main", {}, {"found": 3})
        await session.run(second.program, second.feeds, {**second.dims, "k": 3})
        assert await session.read("v") == case.expected[1]["v"]

    use(target, case.plan, work)


def test_memory_that_can_not_be_had_leaves_the_session_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """wgpu out of memory in the middle of growing."""
    case = torture_free.build("webgpu")
    small, large = case.runs[0], case.runs[1]

    async def work(session: Session) -> None:
        assert isinstance(session, gpu.GpuSession)
        await session.run(small.program, small.feeds, small.dims)
        made = session._parts.make_buffer

        def fail(name: str, size: int) -> object:
            if name == "v" and size > 100:
                raise RuntimeError("out of memory")
            return made(name, size)

        monkeypatch.setattr(session._parts, "make_buffer", fail)
        with pytest.raises(DeviceError, match="could not hold"):
            await session.run(large.program, large.feeds, large.dims)
        monkeypatch.undo()
        for number in (0, 1):
            run = case.runs[number]
            await session.run(run.program, run.feeds, run.dims)
            assert await session.read("v") == case.expected[number]["v"]

    use("webgpu", case.plan, work)


def test_a_grid_that_is_too_large_is_refused() -> None:
    """And the session goes on."""
    case = torture_free.build("webgpu")
    steps = tuple(
        replace(s, grid=(torture_free.M, 1, 1)) if isinstance(s, Dispatch) and s.kernel < 2 else s
        for s in case.plan.programs["main"]
    )
    plan = replace(case.plan, programs={"load": (), "main": steps})

    async def work(session: Session) -> None:
        small, large = case.runs[0], case.runs[1]
        with pytest.raises(PlanError, match=r"kernel square: more workgroups .*70000 × 1 × 1"):
            await session.run(large.program, large.feeds, large.dims)
        await session.run(small.program, small.feeds, small.dims)
        assert await session.read("v") == case.expected[0]["v"]

    use("webgpu", plan, work)


@TARGETS
def test_pipelines_are_made_once(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shader is compiled again for changed dims."""
    case = torture_free.build(target)

    async def work(session: Session) -> None:
        if isinstance(session, gpu.GpuSession):
            monkeypatch.setattr(session._device, "create_compute_pipeline", None)
            monkeypatch.setattr(session._device, "create_shader_module", None)
        else:
            assert isinstance(session, wasm.WasmSession)
            monkeypatch.setattr(session, "_instantiate", None)
        for run in case.runs[:3]:
            await session.run(run.program, run.feeds, run.dims)
        await session.read("control")  # all have ended

    use(target, case.plan, work)


def test_plans_without_free_dims_are_laid_out_as_before() -> None:
    case = torture_free.build("wasm")
    fixed = tuple(replace(d, free=False, bound=None) for d in case.plan.dims)
    plan = replace(case.plan, dims=fixed)
    assert plan.free_buffers() == ()
    assert plan.resident_bytes({"m": 10, "found": 10}) == 16 + 16 + 8 + 64 + 5 * 40
