"""``InferenceSession`` on both executors of CPython: dims from feeds, errors, memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

import fanlight
from fanlight.errors import AbortedError, InputError, PlanError
from fanlight.inference.session import InferenceSession, check_options
from fanlight.runtime.gpu_parts import GpuParts
from tests.inference import models

PROVIDERS = pytest.mark.parametrize("provider", ["webgpu", "wasm"])
SIZES = ((1, 3), (4, 17), (2, 1), (4, 17), (3, 300), (1, 3), (2, 0))


def use(provider: str, work: Callable[[InferenceSession], Awaitable[None]]) -> None:
    """A session for the small model, used and disposed of."""

    async def run() -> None:
        options = check_options([provider])
        async with await InferenceSession.from_module(models.module(), {}, options) as session:
            await work(session)

    asyncio.run(run())


def same(got: dict[str, fanlight.Tensor], wanted: dict[str, models.Array]) -> None:
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        array = np.asarray(got[name])
        assert array.shape == value.shape and array.dtype == value.dtype, name
        np.testing.assert_allclose(array, value, rtol=1e-5, atol=1e-5, err_msg=name)


@PROVIDERS
def test_changing_dims(provider: str) -> None:
    async def work(session: InferenceSession) -> None:
        for batch, seq in SIZES:
            given = models.feeds(batch, seq)
            same(await session.run(given), models.expected(given))
        assert session.info.growths <= 3  # (1, 3), (4, 17), (3, 300)

    use(provider, work)


@PROVIDERS
def test_the_model_describes_itself(provider: str) -> None:
    async def work(session: InferenceSession) -> None:
        assert [str(i) for i in session.inputs] == [
            "float32[batch, 1, 6]",
            "float32[batch, seq, 8]",
            "int64[seq]",
        ]
        assert [i.name for i in session.inputs] == ["bias", "x", "unused"]
        shapes = {o.name: o.shape for o in session.outputs}
        assert shapes["flat"] == ("(batch * seq)", 6) and shapes["best"] == ("batch", "seq")
        assert session.metadata == {"producer": "a test"}
        assert session.info.backend == provider

    use(provider, work)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"x": None}, "input x: an input is missing .*float32.batch, seq, 8."),
    ({"other": np.zeros(1, "f4")}, "no such input .got other, wanted bias, unused, x"),
    ({"x": np.zeros((2, 5, 8))}, "input x: wrong element type .got Tensor.float64.2, 5, 8"),
    ({"x": np.zeros((5, 8), "f4")}, "input x: wrong number of axes .got .5, 8., wanted float32"),
    ({"x": np.zeros((2, 5, 7), "f4")}, "input x, axis 2: wrong size .*wanted 8"),
    ({"x": np.zeros((3, 5, 8), "f4")}, "input x, axis 0: .*got 3, wanted 2, as batch is in bias"),
    ({"unused": np.zeros(6, "i8")}, "input unused, axis 0: .*got 6, wanted 5, as seq is in x"),
    ({"x": "text"}, "input x: neither a buffer nor an array"),
    ({"x": np.array(["a"])}, "input x: elements of a type that no model takes"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_wrong_feeds_are_named(number: int) -> None:
    change, message = WRONG[number]

    async def work(session: InferenceSession) -> None:
        given = {**models.feeds(2, 5), **change}
        with pytest.raises(InputError, match=message):
            await session.run({name: v for name, v in given.items() if v is not None})

    use("wasm", work)


@PROVIDERS
def test_fetches(provider: str) -> None:
    """Some outputs, in the caller's order, and into the caller's memory."""

    async def work(session: InferenceSession) -> None:
        given = models.feeds(2, 5)
        wanted = models.expected(given)
        got = await session.run(given, ["sums", "best"])
        same(got, {name: wanted[name] for name in ("sums", "best")})
        target = np.empty((2, 6), "f4")
        got = await session.run(given, {"sums": target, "best": None})
        np.testing.assert_allclose(target, wanted["sums"], rtol=1e-5)
        assert np.shares_memory(target, np.asarray(got["sums"]))
        with pytest.raises(InputError, match=r"output sums: memory of another size .got 4 bytes"):
            await session.run(given, {"sums": np.empty(1, "f4")})
        with pytest.raises(InputError, match="output sums: memory that can't be written"):
            await session.run(given, {"sums": bytes(48)})
        with pytest.raises(InputError, match=r"no such output .got z"):
            await session.run(given, ["z"])

    use(provider, work)


@PROVIDERS
def test_tensors_that_stay_on_the_device(provider: str) -> None:
    """An output of one run is an input of the next, and of later ones."""

    async def work(session: InferenceSession) -> None:
        given = models.feeds(2, 5)
        wanted = models.expected(given)
        got = await session.run(given, {"sums": "device", "best": None})
        stays = got["sums"]
        assert str(stays) == "DeviceTensor(float32[2, 6])"
        next_ = {**models.feeds(2, 300), "bias": wanted["sums"].reshape(2, 1, 6)}
        with pytest.raises(InputError, match="input bias: wrong number of axes"):
            await session.run({**next_, "bias": stays})
        first = await session.run(models.feeds(2, 1), {"y": "device"})
        bias = np.asarray(await first["y"].read())
        for seq in (300, 2):
            given = {**models.feeds(2, seq), "bias": bias}
            same(await session.run({**given, "bias": first["y"]}), models.expected(given))
        np.testing.assert_allclose(np.asarray(await stays.read()), wanted["sums"], rtol=1e-5)
        await stays.dispose()
        await stays.dispose()
        with pytest.raises(PlanError, match="no such buffer"):
            await stays.read()
        await first["y"].dispose()
        with pytest.raises(PlanError, match="held buffer was released"):
            await session.run({**given, "bias": first["y"]})
        with pytest.raises(InputError, match="output sums: no place"):
            await session.run(given, {"sums": "elsewhere"})
        other = await InferenceSession.from_module(models.module(), {}, check_options([provider]))
        async with other:
            with pytest.raises(InputError, match="input bias: a tensor of another session"):
                await other.run({**given, "bias": first["y"]})

    use(provider, work)


@PROVIDERS
def test_sessions_and_runs_at_the_same_time(provider: str) -> None:
    async def work(session: InferenceSession) -> None:
        async def one(batch: int, runner: InferenceSession) -> None:
            given = models.feeds(batch, 4)
            same(await runner.run(given), models.expected(given))

        options = check_options([provider])
        other = await InferenceSession.from_module(models.module(), {}, options)
        async with other:
            await asyncio.gather(*(one(b, s) for b in (1, 7, 2, 5) for s in (session, other)))

    use(provider, work)


@PROVIDERS
def test_a_cancelled_run_leaves_the_session_usable(provider: str) -> None:
    async def work(session: InferenceSession) -> None:
        given = models.feeds(3, 700)
        runs = [asyncio.create_task(session.run(given)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in runs:
            task.cancel()
        for task in runs:
            with pytest.raises(asyncio.CancelledError):
                await task
        same(await session.run(given), models.expected(given))

    use(provider, work)


def test_dispose_gives_every_buffer_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers made and destroyed on wgpu are the same, growth included."""
    made: list[Any] = []
    gone: list[Any] = []
    allocate = GpuParts.allocate

    def watch(parts: GpuParts) -> None:
        device = parts._device
        create = device.create_buffer

        def create_buffer(**options: Any) -> Any:
            buffer = create(**options)
            made.append(buffer)
            destroy = buffer.destroy

            def give_back() -> None:
                gone.append(buffer)
                destroy()

            buffer.destroy = give_back
            return buffer

        device.create_buffer = create_buffer
        allocate(parts)

    monkeypatch.setattr(GpuParts, "allocate", watch)

    async def work(session: InferenceSession) -> None:
        for batch, seq in SIZES:
            await session.run(models.feeds(batch, seq), {"best": "device", "sums": None})

    use("webgpu", work)
    assert len(made) > 10
    assert {id(b) for b in made} == {id(b) for b in gone}


def test_a_session_that_is_gone_says_so() -> None:
    async def work(session: InferenceSession) -> None:
        await session.dispose()
        await session.dispose()
        with pytest.raises(AbortedError, match="disposed"):
            await session.run(models.feeds(1, 1))

    use("wasm", work)


def test_options() -> None:
    assert check_options().providers == ("auto", "wasm")
    assert check_options(["wasm", "webgpu"]).providers == ("wasm",)
    assert check_options(["webgpu"]).providers == ("webgpu",)
    for wrong in ([], ["cuda"], "wasm"):
        with pytest.raises(InputError, match="execution providers"):
            check_options(wrong)
    with pytest.raises(InputError, match="free dimension batch"):
        check_options(free_dimension_overrides={"batch": -1})
    with pytest.raises(InputError, match="not a model"):
        asyncio.run(InferenceSession.create(7))  # type: ignore[arg-type]


@PROVIDERS
def test_profile(provider: str) -> None:
    """Every kernel of a run is timed, by name; a session that wasn't made for it says so."""

    async def run() -> None:
        options = check_options([provider], profile=True)
        given = models.feeds(4, 17)
        async with await InferenceSession.from_module(models.module(), {}, options) as session:
            times = await session.profile(given, runs=3)
            assert len(times) > 2 and all(row.dispatches >= 1 for row in times)
            assert [row.ms for row in times] == sorted((row.ms for row in times), reverse=True)
            assert all(0 < row.ms < 1000 for row in times), times
            same(await session.run(given), models.expected(given))
            with pytest.raises(InputError, match="not a number of runs"):
                await session.profile(given, runs=0)

    async def unprepared(session: InferenceSession) -> None:
        with pytest.raises(InputError, match=r"not made for profiling.*profile=True"):
            await session.profile(models.feeds(2, 5))
        given = models.feeds(2, 5)
        same(await session.run(given), models.expected(given))

    asyncio.run(run())
    use(provider, unprepared)
