"""``pipeline`` and its blocking twin in CPython: small random models, every way to begin, to end
and to misuse an answer."""

from __future__ import annotations

import asyncio
import gc
import os
import struct
import sys
import threading
import types
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fanlight
from fanlight import dtypes, sync
from fanlight.archs import llama
from fanlight.compiler import CompileOptions, compile_module
from fanlight.errors import (
    AbortedError,
    FormatError,
    InputError,
    StoreError,
    SyncUnavailableError,
    UnsupportedError,
)
from fanlight.hub.files import LocalFile
from fanlight.runtime.backend import choose
from fanlight.runtime.session import Progress
from fanlight.tasks.text_generation import Generation, TextGeneration
from tests import gguf_files, modules

MODEL = gguf_files.Model(context=512)
PROMPTS = ["Where?", "Why is the sky blue and the sea so, too?"]
F16 = 1e-5  # NMSE of the logits, f16 cache against f32; measured: 2.4e-7
RELAXED = 1e-9  # relaxed SIMD against plain; measured: 3e-13


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never stops on its own with the prompts here."""
    path = tmp_path_factory.mktemp("models") / "random.gguf"
    gguf_files.write(path, MODEL)
    return path


@pytest.fixture
async def made(path: Path) -> AsyncIterator[TextGeneration]:
    pipeline = await load(path)
    yield pipeline
    await pipeline.dispose()


async def load(path: Path, **options: Any) -> TextGeneration:
    return await fanlight.pipeline("text-generation", path, **{"device": "wasm"} | options)


async def fresh_tokens(path: Path, prompt: str, count: int, **options: Any) -> list[int]:
    """What a pipeline that has done nothing else answers."""
    pipeline = await load(path, **options)
    try:
        return (await pipeline(prompt, max_new_tokens=count)).tokens
    finally:
        await pipeline.dispose()


# --- answers


@pytest.mark.parametrize("device", ["wasm", "webgpu"])
async def test_pieces_joined_are_the_text(path: Path, device: str) -> None:
    pipeline = await load(path, device=device)
    answer = pipeline.stream(PROMPTS[0], max_new_tokens=40)
    assert answer.finish_reason == "" and answer.text == ""
    pieces = [piece async for piece in answer]
    assert len(pieces) > 1 and all(pieces)
    assert "".join(pieces) == answer.text == pipeline.tokenizer.decode(answer.tokens)
    assert answer.finish_reason == "length" and len(answer.tokens) == 40
    assert pipeline.session.info.backend == device
    assert {"prefill_ms", "prefill_tok_s", "first_token_ms", "decode_tok_s"} == set(answer.timings)
    again = await pipeline(PROMPTS[0], max_new_tokens=40)
    assert again.tokens == answer.tokens
    assert again.tokens == await fresh_tokens(path, PROMPTS[0], 40)
    await pipeline.dispose()


async def test_messages_and_a_string_are_one(made: TextGeneration) -> None:
    messages = [{"role": "user", "content": PROMPTS[0]}]
    assert made.encode(messages) == made.encode(PROMPTS[0])


@pytest.mark.parametrize("at", [0, 1, 5, 20])
async def test_stop_token(made: TextGeneration, at: int) -> None:
    """The token that the model is known to choose becomes a stop token: it ends the answer and
    isn't shown; the next answer is whole again."""
    whole = (await made(PROMPTS[0], max_new_tokens=40)).tokens
    stop = whole[at]
    first = whole.index(stop)
    usual = made.tokenizer
    made.tokenizer = _Stopping(usual, stop)  # type: ignore[assignment]  # all that an answer asks
    answer = await made(PROMPTS[0], max_new_tokens=40)
    assert answer.finish_reason == "stop" and answer.tokens == whole[:first]
    made.tokenizer = usual
    assert (await made(PROMPTS[0], max_new_tokens=40)).tokens == whole


class _Stopping:
    """Another tokenizer with one more stop token."""

    def __init__(self, tokenizer: Any, stop: int) -> None:
        self._tokenizer, self.eos_ids = tokenizer, tokenizer.eos_ids | {stop}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize("chunk", [7, 128])
async def test_chunks_of_the_prompt_do_not_matter(path: Path, chunk: int) -> None:
    prompt = "A long one. " * 12
    one = await fresh_tokens(path, prompt, 30, chunk=1)
    assert await fresh_tokens(path, prompt, 30, chunk=chunk) == one


async def test_two_at_once_wait_for_each_other(made: TextGeneration) -> None:
    alone = [(await made(p, max_new_tokens=30)).tokens for p in PROMPTS]
    both = await asyncio.gather(*(made(p, max_new_tokens=30) for p in PROMPTS))
    assert [g.tokens for g in both] == alone


async def test_a_waiting_answer_can_be_aborted(made: TextGeneration) -> None:
    first, second = (made.stream(PROMPTS[0], max_new_tokens=50) for _ in range(2))
    works = [asyncio.create_task(_collect(answer)) for answer in (first, second)]
    await asyncio.sleep(0)
    second.abort()
    await asyncio.gather(*works)
    assert (first.finish_reason, len(first.tokens)) == ("length", 50)
    assert (second.finish_reason, second.tokens) == ("abort", [])


# --- ends before the end


async def test_abort_in_the_middle(made: TextGeneration) -> None:
    whole = (await made(PROMPTS[0], max_new_tokens=100)).tokens
    answer = made.stream(PROMPTS[0], max_new_tokens=100)
    async for _ in answer:
        answer.abort()
    assert answer.finish_reason == "abort"
    assert 0 < len(answer.tokens) < 100 and answer.tokens == whole[: len(answer.tokens)]
    assert answer.text == made.tokenizer.decode(answer.tokens)
    assert (await made(PROMPTS[0], max_new_tokens=100)).tokens == whole


async def test_abort_before_the_beginning_and_after_the_end(made: TextGeneration) -> None:
    answer = made.stream(PROMPTS[0], max_new_tokens=3)
    answer.abort()
    assert [p async for p in answer] == []
    assert answer.finish_reason == "abort" and answer.tokens == []
    answer = await made(PROMPTS[0], max_new_tokens=3)
    answer.abort()
    await answer.aclose()
    assert answer.finish_reason == "length"


async def test_leaving_the_loop_frees_the_turn(made: TextGeneration) -> None:
    whole = (await made(PROMPTS[1], max_new_tokens=20)).tokens
    answer = made.stream(PROMPTS[0], max_new_tokens=400)
    async for _ in answer:
        break
    async with asyncio.timeout(10):
        assert (await made(PROMPTS[1], max_new_tokens=20)).tokens == whole
    assert answer.finish_reason == "abort"
    with pytest.raises(InputError, match="once"):
        aiter(answer)
    async for _ in made.stream(PROMPTS[0], max_new_tokens=400):  # held by nobody
        break
    async with asyncio.timeout(10):
        assert (await made(PROMPTS[1], max_new_tokens=20)).tokens == whole


async def test_aclose(made: TextGeneration) -> None:
    """Before the first piece, between two, and while another task waits for one."""
    answer = made.stream(PROMPTS[0])
    await answer.aclose()
    assert answer.finish_reason == "abort"
    answer = made.stream(PROMPTS[0])
    pieces = aiter(answer)
    await anext(pieces)
    await answer.aclose()
    assert answer.finish_reason == "abort" and await anext(pieces, None) is None
    answer = made.stream(PROMPTS[0])
    work = asyncio.create_task(_collect(answer))
    await asyncio.sleep(0)
    await answer.aclose()
    await work
    assert answer.finish_reason == "abort"
    assert not made.turn.locked()


async def _collect(
    answer: Generation, enough: int = 0, reached: asyncio.Event | None = None
) -> list[str]:
    """All pieces. ``reached`` is set while waiting for the piece after ``enough``."""
    got: list[str] = []
    pieces = aiter(answer)
    while True:
        if reached is not None and len(got) == enough:
            reached.set()
        piece = await anext(pieces, None)
        if piece is None:
            return got
        got.append(piece)


async def test_cancelling_an_answer(made: TextGeneration) -> None:
    whole = (await made(PROMPTS[0], max_new_tokens=50)).tokens
    for pieces in range(3):
        answer, some = made.stream(PROMPTS[0], max_new_tokens=400), asyncio.Event()
        work = asyncio.create_task(_collect(answer, pieces, some))
        await some.wait()
        await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert answer.finish_reason == "abort"
    assert (await made(PROMPTS[0], max_new_tokens=50)).tokens == whole


# --- the context


@pytest.mark.parametrize("device", ["wasm", "webgpu"])
@pytest.mark.parametrize("context", [64, 100])
async def test_until_the_context_is_full(path: Path, device: str, context: int) -> None:
    """The position never passes the end: what lies behind the caches in memory stays as it was, so
    that a later answer is a fresh pipeline's."""
    pipeline = await load(path, device=device, context=context)
    assert pipeline.context == context
    for _ in range(2):
        answer = await pipeline(PROMPTS[0], max_new_tokens=10_000)
        assert answer.finish_reason == "length"
        assert len(answer.prompt_tokens) + len(answer.tokens) == context
        position, *_ = struct.unpack("<i", await pipeline.session.read("control", 0, 4))
        assert position < context
    fresh = await fresh_tokens(path, PROMPTS[1], 10, device=device, context=context)
    assert (await pipeline(PROMPTS[1], max_new_tokens=10)).tokens == fresh
    await pipeline.dispose()


async def test_a_prompt_that_just_fits(path: Path) -> None:
    pipeline = await load(path, context=64, chunk=16)
    empty = len(pipeline.encode(""))
    answer = await pipeline("z" * (63 - empty), max_new_tokens=5)
    assert len(answer.tokens) == 1 and answer.finish_reason == "length"
    with pytest.raises(InputError, match=r"too long.*64 tokens, wanted < 64"):
        pipeline.stream("z" * (64 - empty))
    await pipeline.dispose()


# --- misuse


async def test_inputs_are_checked(made: TextGeneration) -> None:
    for bad in (0, -1, 1.5, "7", True, None):
        with pytest.raises(InputError, match="max_new_tokens must be"):
            made.stream(PROMPTS[0], max_new_tokens=bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="too long"):
        made.stream("long " * 2000)
    made.template = ""
    with pytest.raises(InputError, match="empty"):
        made.stream("")
    with pytest.raises(InputError, match="no chat template"):
        made.stream([{"role": "user", "content": "Hello"}])
    assert (await made("Hello", max_new_tokens=2)).finish_reason == "length"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "no-task"}, r"unknown task \(got no-task, wanted text-generation\)"),
        ({"device": "tpu"}, r"unknown device.*auto, webgpu, wasm"),
        ({"kv_dtype": "f64"}, r"unknown kv_dtype.*f32 or f16"),
        ({"temperature": 1}, r"unknown option.*temperature.*context, chunk, kv_dtype"),
        ({"context": 0}, "context must be"),
        ({"context": 1.5}, "context must be"),
        ({"chunk": -1}, "chunk must be"),
    ],
)
async def test_options_are_checked_before_the_file(options: dict[str, Any], message: str) -> None:
    given = {"task": "text-generation", "model": "no such file", "device": "wasm"} | options
    with pytest.raises(InputError, match=message):
        await fanlight.pipeline(**given)


async def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        await load(tmp_path / "none.gguf")
    path = tmp_path / "text.gguf"
    path.write_text("Hello, this is no model. " * 10)
    with pytest.raises(FormatError, match=r"(?i)magic|gguf"):
        await load(path)


async def test_models_that_can_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.gguf"
    gguf_files.write(other, replace(MODEL, arch="mamba"))
    with pytest.raises(UnsupportedError, match=r"unknown architecture.*mamba"):
        await load(other)
    shapes = gguf_files.tensor_shapes(MODEL)
    del shapes["blk.1.ffn_up.weight"]
    with monkeypatch.context() as patch:
        patch.setattr(gguf_files, "tensor_shapes", lambda model: shapes)
        gguf_files.write(other, MODEL)
    with pytest.raises(FormatError, match=r"blk\.1\.ffn_up\.weight: missing tensor"):
        await load(other)
    gguf_files.write(other, MODEL)
    os.truncate(other, 50_000)
    with pytest.raises(FormatError):
        await load(other)


# --- loading and leaving


@pytest.mark.parametrize("device", ["wasm", "webgpu"])
async def test_progress(path: Path, device: str) -> None:
    events: list[Progress] = []
    pipeline = await load(path, device=device, progress=events.append)
    await pipeline.dispose()
    assert {e.stage for e in events} == {"compile", "load"}
    assert all(0 <= e.done <= e.total for e in events)
    for stage in ("compile", "load"):
        last = [e for e in events if e.stage == stage][-1]
        assert last.done == last.total > 0
    loads = [e.done for e in events if e.stage == "load"]
    assert loads == sorted(loads)


@pytest.mark.parametrize("device", ["wasm", "webgpu"])
async def test_cancelling_the_load(path: Path, device: str) -> None:
    """At one event after the other; every later load still works, and no file stays open."""
    before, at = _open_files(path), 0
    while (pipeline := await _load_or_cancel(path, device, at)) is None:
        at += 4 if device == "wasm" else 8
    assert at > 8
    assert (await pipeline(PROMPTS[0], max_new_tokens=3)).finish_reason == "length"
    await pipeline.dispose()
    del pipeline
    gc.collect()
    assert _open_files(path) == before


async def _load_or_cancel(path: Path, device: str, at: int) -> TextGeneration | None:
    """Cancels at the progress event of number ``at``; None if there was one."""
    seen = 0

    def progress(event: Progress) -> None:
        nonlocal seen
        if seen == at:
            work.cancel()
        seen += 1

    work = asyncio.create_task(load(path, device=device, progress=progress))
    try:
        return await work
    except asyncio.CancelledError:
        return None


def _open_files(path: Path) -> int:
    """Descriptors of this process that are ``path``; 0 where the system can't say."""
    folder = Path("/proc/self/fd")
    links = list(folder.iterdir()) if folder.exists() else []
    return sum(link.exists() and link.samefile(path) for link in links)


@pytest.mark.parametrize("device", ["wasm", "webgpu"])
async def test_disposed(path: Path, device: str) -> None:
    pipeline = await load(path, device=device)
    await pipeline.dispose()
    await pipeline.dispose()
    answer = pipeline.stream(PROMPTS[0])
    with pytest.raises(AbortedError, match="disposed"):
        await _collect(answer)
    assert answer.finish_reason == "abort"


@pytest.mark.parametrize("aborts", [False, True])
@pytest.mark.parametrize("device", ["wasm", "webgpu"])
async def test_disposed_in_the_middle(path: Path, device: str, aborts: bool) -> None:
    """An answer that was aborted too ends as usual."""
    pipeline = await load(path, device=device)
    answer = pipeline.stream(PROMPTS[0], max_new_tokens=400)
    pieces = aiter(answer)
    await anext(pieces)
    work = asyncio.create_task(_rest(pieces))
    await asyncio.sleep(0)
    if aborts:
        answer.abort()
    await pipeline.dispose()
    if aborts:
        await work
    else:
        with pytest.raises(AbortedError, match="disposed"):
            await work
    assert answer.finish_reason == "abort"


async def _rest(pieces: AsyncIterator[str]) -> None:
    async for _ in pieces:
        pass


# --- numbers


async def _scores(path: Path, kv: str = "f32", relaxed: bool = False) -> NDArray[Any]:
    """Logits of 100 positions, [100, vocab]."""
    options = llama.Options(context=128, chunk=32, scores=True, kv=dtypes.DTYPES[kv])
    backend = await choose("wasm", relaxed_simd=relaxed)
    info = backend.info
    plan = compile_module(
        modules.build(path, options), CompileOptions(info.target, info.features, info.max_binding)
    )
    session = await backend.load(plan, {modules.FILE: LocalFile(path)})
    tokens = [int(t) for t in np.random.default_rng(5).integers(0, MODEL.vocab, 100)]
    rows = []
    for at, part in modules.chunks(tokens, 32):
        feeds = {"tokens": np.array(part, "<i4").tobytes()}
        feeds["control"] = modules.control(at).tobytes()
        await session.run("score", feeds, {"T": len(part)})
        data = await session.read("scores", 0, 4 * MODEL.vocab * len(part))
        rows.append(np.frombuffer(data, "<f4").reshape(-1, MODEL.vocab))
    await session.dispose()
    return np.concatenate(rows)


async def test_f16_cache_and_relaxed_simd(path: Path) -> None:
    plain = await _scores(path)
    half, relaxed = await _scores(path, kv="f16"), await _scores(path, relaxed=True)
    errors = modules.nmse(half, plain), modules.nmse(relaxed, plain)
    print(f"NMSE: f16 cache {errors[0]:.1e}, relaxed SIMD {errors[1]:.1e}")
    assert 0 < errors[0] <= F16
    assert errors[1] <= RELAXED


@pytest.mark.parametrize("options", [{"kv_dtype": "f16"}, {"relaxed_simd": True}])
async def test_their_pipelines_answer(path: Path, options: dict[str, Any]) -> None:
    pipeline = await load(path, **options)
    answer = await pipeline(PROMPTS[0], max_new_tokens=20)
    assert answer.finish_reason == "length" and len(answer.tokens) == 20
    await pipeline.dispose()


# --- the blocking twin


@pytest.fixture
def blocking(path: Path) -> Any:
    made = sync.pipeline("text-generation", path, device="wasm")
    yield made
    made.dispose()


def test_sync_call_and_stream(blocking: sync.SyncTextGeneration) -> None:
    answer = blocking(PROMPTS[0], max_new_tokens=30)
    assert answer.finish_reason == "length" and len(answer.tokens) == 30
    assert "".join(blocking.stream(PROMPTS[0], max_new_tokens=30)) == answer.text
    with pytest.raises(InputError, match="max_new_tokens"):
        blocking.stream(PROMPTS[0], max_new_tokens=0)  # at once, not at the first piece


def test_sync_early_close_aborts(blocking: sync.SyncTextGeneration) -> None:
    whole = blocking(PROMPTS[1], max_new_tokens=10).tokens
    for leave in (True, False):
        pieces = blocking.stream(PROMPTS[0], max_new_tokens=400)
        next(pieces)
        if leave:
            pieces.close()  # type: ignore[attr-defined]
        else:
            del pieces
        assert not blocking.task.turn.locked()
        assert blocking(PROMPTS[1], max_new_tokens=10).tokens == whole


def test_sync_from_threads(blocking: sync.SyncTextGeneration) -> None:
    whole, got = blocking(PROMPTS[1], max_new_tokens=10).tokens, list[list[int]]()
    threads = [
        threading.Thread(target=lambda: got.append(blocking(PROMPTS[1], max_new_tokens=10).tokens))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert got == [whole] * 3


def test_sync_interrupted(
    blocking: sync.SyncTextGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches the caller's thread only; the answer must end all the same."""
    usual = asyncio.run_coroutine_threadsafe

    def interrupted(*arguments: Any) -> Any:
        future = usual(*arguments)

        def result() -> None:
            raise KeyboardInterrupt

        future.result = result  # type: ignore[method-assign, assignment]
        return future

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            blocking(PROMPTS[0], max_new_tokens=400)
    assert len(blocking(PROMPTS[1], max_new_tokens=10).tokens) == 10


def test_sync_from_its_own_callbacks(path: Path) -> None:
    """Would wait for itself."""

    def progress(event: Progress) -> None:
        sync.pipeline("text-generation", path)

    with pytest.raises(SyncUnavailableError, match="must not block"):
        sync.pipeline("text-generation", path, device="wasm", progress=progress)


@pytest.mark.parametrize("able", [False, True])
def test_sync_in_pyodide(monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    def run_sync(work: Any) -> Any:
        with pytest.raises(StopIteration) as stop:
            work.send(None)
        return stop.value.value

    ffi: Any = types.ModuleType("pyodide.ffi")
    ffi.can_run_sync, ffi.run_sync = lambda: able, run_sync
    monkeypatch.setitem(sys.modules, "pyodide", types.ModuleType("pyodide"))
    monkeypatch.setitem(sys.modules, "pyodide.ffi", ffi)
    monkeypatch.setattr(sys, "platform", "emscripten")

    async def work() -> int:
        return 7

    if able:
        assert sync.run(work()) == 7
    else:
        with pytest.raises(SyncUnavailableError, match=r"await fanlight\.pipeline"):
            sync.run(work())
        with pytest.raises(SyncUnavailableError, match=r"await fanlight\.pipeline"):
            sync.pipeline("text-generation", "model.gguf")
