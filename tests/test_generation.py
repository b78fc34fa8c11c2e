"""The real model, compiled and run by each executor of CPython, against the reference's answers.

``scores`` are logits of every position over the reference's own tokens (teacher-forced);
``decode`` is the program that users run, free, from the prompt on.
"""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fanlight.archs import llama
from fanlight.compiler import CompileOptions, compile_module
from fanlight.hub.files import LocalFile
from fanlight.kernels.target import CPU, SUBGROUPS
from fanlight.runtime import chromium
from fanlight.runtime.backend import check_device, choose
from fanlight.runtime.session import Session
from tests import modules
from tests.prompts import PROMPTS, SHORT
from tests.reference import answers

Array = NDArray[Any]
BOUND = 1e-9
#: of decode steps where products of one row round x to int16; the worst that was seen is 6e-8
BOUND_INT16 = 1e-6
CLEAR = 1e-3  # a smaller lead of the reference's first over its second decides nothing
EXCUSED = 0.005
OPTIONS = llama.Options(context=2112, chunk=128, max_steps=16, scores=True)
QUICK = range(len(SHORT))


@dataclass(slots=True)
class Engine:
    """The loaded model. ``run`` runs a coroutine on the loop that the session lives on."""

    session: Session
    runner: asyncio.Runner
    vocab: int

    def scores(self, tokens: Sequence[int]) -> Iterator[tuple[int, Array]]:
        """(first position, logits [T, vocab]) of each chunk."""
        for at, part in modules.chunks(tokens, OPTIONS.chunk):
            yield at, self.runner.run(self._chunk("score", at, part))

    async def _chunk(self, program: str, at: int, part: Sequence[int]) -> Array:
        feeds = {"tokens": _i32(part), "control": modules.control(at).tobytes()}
        await self.session.run(program, feeds, {"T": len(part)})
        size = 4 * len(part) * self.vocab if program == "score" else 4
        data = await self.session.read("scores" if program == "score" else "control", 0, size)
        return np.frombuffer(data, "<f4").reshape(-1, self.vocab if program == "score" else 1)

    def steps(self, tokens: Sequence[int]) -> Array:
        """Logits [T, vocab] of decode steps alone: the cache, too, is theirs."""
        return np.stack([self.runner.run(self._step(at, t)) for at, t in enumerate(tokens)])

    async def _step(self, at: int, token: int) -> Array:
        feeds = {"control": modules.control(at, token).tobytes()}
        await self.session.run("begin", feeds | {"stops": modules.no_stops().tobytes()})
        await self.session.run("decode", {}, {"steps": 1})
        return np.frombuffer(await self.session.read("logits"), "<f4")

    def continuation(self, prompt: Sequence[int], count: int) -> list[int]:
        """``count`` greedy tokens, from the prompt's prefill on."""
        return self.runner.run(self._continuation(prompt, count))

    async def _continuation(self, prompt: Sequence[int], count: int) -> list[int]:
        for at, part in modules.chunks(prompt[:-1], OPTIONS.chunk):
            await self._chunk("prefill", at, part)
        start = modules.control(len(prompt) - 1, prompt[-1]).tobytes()
        await self.session.run("begin", {"control": start, "stops": modules.no_stops().tobytes()})
        out: list[int] = []
        steps = OPTIONS.max_steps
        async for data in self.session.repeat(
            "decode", -(-count // steps), "chosen", {"steps": steps}
        ):
            out += struct.unpack(f"<{steps}i", data)
        return out[:count]


def _i32(values: Sequence[int]) -> bytes:
    return np.array(values, "<i4").tobytes()


#: variant → device, features it is compiled without, and whether with relaxed SIMD
VARIANTS: dict[str, tuple[str, set[str], bool]] = {
    "wasm": ("wasm", set(), False),
    "wasm-relaxed": ("wasm", set(), True),
    "webgpu": ("webgpu", set(), False),  # the kernels for CPUs, as the adapter here is one
    "webgpu-subgroups": ("webgpu", {CPU}, False),
    "webgpu-plain": ("webgpu", {CPU, SUBGROUPS}, False),
}
_MARKS = {name: () if name in ("wasm", "webgpu") else pytest.mark.slow for name in VARIANTS}


@pytest.fixture(scope="module", params=[pytest.param(v, marks=_MARKS[v]) for v in VARIANTS])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    path = answers.model_path()
    module = modules.build(path, OPTIONS)
    device, without, relaxed = VARIANTS[request.param]

    async def load() -> Session:
        backend = await choose(check_device(device), relaxed_simd=relaxed)
        info = backend.info
        features = info.features - without
        plan = compile_module(module, CompileOptions(info.target, features, info.max_binding))
        return await backend.load(plan, {modules.FILE: LocalFile(path)})

    with asyncio.Runner() as runner:
        session = runner.run(load())
        vocab = module.states["logits"].shape[1]
        assert isinstance(vocab, int)
        try:
            yield Engine(session, runner, vocab)
        finally:
            runner.run(session.dispose())


def _selection(engine: Engine, everything: bool) -> Sequence[int]:
    if everything and engine.session.info.backend != "wasm":
        return range(len(PROMPTS))
    return range(len(PROMPTS)) if engine.session.info.backend == "wasm" else QUICK


def _hold_scores(engine: Engine, selection: Sequence[int]) -> None:
    """NMSE of the kept rows, and every argmax where the reference is clear."""
    positions, excused = 0, list[str]()
    for answer in (answers.answers()[i] for i in selection):
        best, kept = list[int](), list[Array]()
        for at, chunk in engine.scores(answer.tokens):
            best += chunk.argmax(-1).tolist()
            kept += [chunk[row - at] for row in answer.rows if at <= row < at + len(chunk)]
        error = modules.nmse(np.stack(kept), answer.logits)
        wrong = np.flatnonzero(np.array(best) != answer.best)
        print(f"{answer.prompt.name}: {len(best)} positions, NMSE {error:.1e}, {len(wrong)} differ")
        assert error <= BOUND, answer.prompt.name
        for position in wrong.tolist():
            lead = answer.lead[position]
            assert lead <= CLEAR, f"{answer.prompt.name}, position {position}: lead {lead}"
            excused.append(f"{answer.prompt.name} {position} (lead {lead:.1e})")
        positions += len(best)
    print(f"{positions} positions, {len(excused)} excused: {', '.join(excused)}")
    assert len(excused) <= EXCUSED * positions


def _hold_continuations(engine: Engine, selection: Sequence[int]) -> None:
    """The reference's own tokens, up to a position where it is not clear."""
    for answer in (answers.answers()[i] for i in selection):
        got = engine.continuation(answer.tokens[: answer.prompt_length], answers.NEW)
        pairs = enumerate(zip(got, answer.continuation, strict=True), answer.prompt_length - 1)
        first = next((at for at, (a, b) in pairs if a != b), None)
        if first is not None:
            lead = answer.lead[first]
            print(f"{answer.prompt.name}: parts at position {first}, lead {lead:.1e}")
            assert lead <= CLEAR, answer.prompt.name


def test_scores(engine: Engine) -> None:
    """WebAssembly: all 20 prompts; WebGPU, on a CPU here: the short ones."""
    _hold_scores(engine, _selection(engine, everything=False))


def test_continuations(engine: Engine) -> None:
    _hold_continuations(engine, _selection(engine, everything=False))


def test_steps(engine: Engine) -> None:
    """The logits of decode steps, which have kernels of their own."""
    bound = BOUND_INT16 if engine.session.info.backend == "wasm" else BOUND
    for answer in (answers.answers()[i] for i in QUICK):
        got = engine.steps(answer.tokens[: answer.rows[-1] + 1])[answer.rows]
        error = modules.nmse(got, answer.logits)
        print(f"{answer.prompt.name}: NMSE {error:.1e} of {len(got)} steps")
        assert error <= bound, answer.prompt.name


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("engine", ["webgpu"], indirect=True)
def test_all_scores(engine: Engine) -> None:
    _hold_scores(engine, range(len(PROMPTS)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("engine", ["webgpu"], indirect=True)
def test_all_continuations(engine: Engine) -> None:
    _hold_continuations(engine, range(len(PROMPTS)))


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_all_on_swiftshader() -> None:
    """As above, on Chromium's software GPU: in a process of its own, as a driver can't be changed
    once it is loaded."""
    program = chromium.find()
    assert program is not None
    folders = (program.resolve().parent, Path("/usr/lib/chromium"))
    drivers = [f / "vk_swiftshader_icd.json" for f in folders]
    driver = next((d for d in drivers if d.is_file()), None)
    if driver is None:
        pytest.skip(f"no SwiftShader beside {program}")
    names = "webgpu and (test_all_scores or test_all_continuations)"
    command = [sys.executable, "-m", "pytest", "-s", "-m", "", "-k", names, __file__]
    done = subprocess.run(command, env={**os.environ, "VK_DRIVER_FILES": str(driver)}, check=False)
    assert done.returncode == 0
