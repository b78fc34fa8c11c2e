"""The known-answer test of a GPU passes on a right one, and finds kernels that are wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest

from fanlight.plan import Plan
from fanlight.runtime import backend, known_answers
from fanlight.runtime.backend import Backend, BackendInfo, choose
from fanlight.runtime.session import File, ProgressCallback, Session

pytestmark = pytest.mark.usefixtures("fresh_verdicts")


@pytest.fixture
def fresh_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_verdicts", {})


class Spoilt:
    """A backend on which one kernel's results are 1 % too large."""

    def __init__(self, inner: Backend, name: str) -> None:
        self.inner, self.name, self.info = inner, name, inner.info

    async def load(
        self, plan: Plan, files: Mapping[str, File], progress: ProgressCallback | None = None
    ) -> Session:
        kernels = []
        for kernel in plan.kernels:
            code = kernel.code
            if kernel.name.startswith(self.name):
                code, count = re.subn(r"(\bb\d+\[[^;]*\]) = ([^;]+);", r"\1 = 1.01 * (\2);", code)
                assert count
            kernels.append(replace(kernel, code=code))
        return await self.inner.load(replace(plan, kernels=tuple(kernels)), files, progress)


async def test_a_right_gpu_passes() -> None:
    error = await known_answers.error_of(await choose("webgpu"), await choose("wasm"))
    assert 0 < error <= known_answers.BOUND


@pytest.mark.parametrize("name", ["attention", "matmul_q4_k"])
async def test_a_wrong_kernel_is_found(name: str) -> None:
    spoilt = Spoilt(await choose("webgpu"), name)
    error = await known_answers.error_of(spoilt, await choose("wasm"))
    assert known_answers.BOUND < error < math.inf


@pytest.mark.parametrize("error", [0.0, 1.0, math.inf])
async def test_auto_takes_the_gpu_that_passes(
    error: float, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    info = BackendInfo("webgpu", frozenset(), 1 << 27, "a GPU")
    both = [backend._Gpu(info), backend._Wasm(relaxed_simd=False)]
    tested = []

    async def error_of(gpu: Backend, cpu: Backend) -> float:
        tested.append((gpu, cpu))
        return error

    monkeypatch.setattr(backend, "_backends", lambda wanted, relaxed_simd: both)
    monkeypatch.setattr(known_answers, "error_of", error_of)
    chosen = [await choose("auto") for _ in range(2)]
    assert chosen == [both[0 if error == 0 else 1]] * 2
    assert len(tested) == 1
    assert [str(w.message).startswith("a GPU gives wrong numbers") for w in recwarn] == (
        [True] if error else []
    )
