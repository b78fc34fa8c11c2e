"""text-generation: a GGUF language model answers a prompt or a conversation.

In: a string (one user message) or messages ``[{"role", "content"}, …]``. Out: a ``Generation``, an
async iterator over pieces of text. Greedy: the most likely token each time. Not here: sampling,
tools, batches, reuse of a conversation's KV cache.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fanlight import dtypes
from fanlight.archs import llama
from fanlight.compiler import CompileOptions, compile_module
from fanlight.errors import AbortedError, FormatError, InputError, UnsupportedError
from fanlight.formats import gguf
from fanlight.hub.files import ModelFile
from fanlight.ir.graph import Module, WeightSource
from fanlight.runtime.backend import Backend
from fanlight.runtime.session import Progress, ProgressCallback, Session
from fanlight.text.chat_template import render
from fanlight.text.gguf_tokenizer import (
    GgufTokenizer,
    tokenizer_from_gguf,
    tokenizer_from_notes,
)
from fanlight.text.tokenizer import StreamDecoder

if TYPE_CHECKING:
    from fanlight.runtime.pyodide import Kept

Messages = Sequence[Mapping[str, Any]]
_FILE = "model"
_SUBMIT_MS = 80.0  # aim of one decode submit, so that the device stays responsive


class TextGeneration:
    """A loaded model. Make one with ``await fanlight.pipeline("text-generation", model)``.

    ``timings``: ``header_ms``, ``compile_ms`` (graph → plan), ``tokenizer_ms``, ``load_ms``.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: GgufTokenizer,
        template: str,
        options: llama.Options,
        context: int,
        timings: dict[str, float],
    ) -> None:
        self.session, self.tokenizer = session, tokenizer
        self.template, self.options, self.context = template, options, context
        self.timings = timings
        self.turn = asyncio.Lock()

    @staticmethod
    def check_options(
        *, context: int | None = None, chunk: int = 128, kv_dtype: str = "f32"
    ) -> llama.Options:
        """The options of :meth:`create`. ``context``: most tokens of prompt and answer (the model's
        own, at most 4,096, if None); ``chunk``: tokens of one prefill run; ``kv_dtype``: f32 or
        f16.

        Raises InputError.
        """
        if kv_dtype not in ("f32", "f16"):
            raise InputError("unknown kv_dtype", got=kv_dtype, wanted="f32 or f16")
        if context is not None:
            _check_positive("context", context)
        _check_positive("chunk", chunk)
        return llama.Options(context=context, chunk=chunk, kv=dtypes.DTYPES[kv_dtype])

    @classmethod
    async def create(
        cls,
        file: ModelFile,
        backend: Backend,
        options: llama.Options,
        progress: ProgressCallback | None = None,
    ) -> TextGeneration:
        """Reads the header, compiles, loads.

        Raises FormatError, UnsupportedError, StoreError, DeviceError.
        """
        report = progress or (lambda event: None)
        clock = _Clock()
        header = await gguf.read_header(file.read, file.size)
        clock.lap("header_ms")
        report(Progress("compile", 0, 1))
        module = await build_module(file, header, options)
        info = backend.info
        target = CompileOptions(info.target, info.features, info.max_binding)
        plan = compile_module(module, target)
        clock.lap("compile_ms")
        report(Progress("compile", 1, 1))
        tokenizer = tokenizer_from_gguf(header.metadata)
        template = str(header.metadata.get("tokenizer.chat_template", ""))
        del header
        clock.lap("tokenizer_ms")
        session = await backend.load(plan, {_FILE: file}, progress)
        clock.lap("load_ms")
        size = module.device_dims[0].dim.max  # rounded up
        size = min(size, options.context or size)
        return cls(session, tokenizer, template, options, size, clock.laps)

    def notes(self) -> dict[str, Any]:
        """What :meth:`resume` needs beside session and encoder; JSON."""
        tokenizer = self.tokenizer.notes()
        return {"template": self.template, "context": self.context, "tokenizer": tokenizer}

    @classmethod
    async def resume(cls, kept: Kept, options: llama.Options) -> TextGeneration:
        """As :meth:`create` left it in an earlier visit. Raises PlanError, StoreError,
        DeviceError."""
        clock = _Clock()
        tokenizer = tokenizer_from_notes(kept.notes["tokenizer"], kept.encoder)
        clock.lap("tokenizer_ms")
        session = await kept.session()
        clock.lap("load_ms")
        laps = {"header_ms": 0.0, "compile_ms": 0.0} | clock.laps
        template, context = kept.notes["template"], kept.notes["context"]
        return cls(session, tokenizer, template, options, context, laps)

    def stream(self, prompt: str | Messages, *, max_new_tokens: int = 256) -> Generation:
        """Starts an answer of at most ``max_new_tokens`` tokens. Raises InputError, TemplateError.

        Answers of one pipeline wait for each other.
        """
        _check_positive("max_new_tokens", max_new_tokens)
        return Generation(self, self.encode(prompt), max_new_tokens)

    async def __call__(self, prompt: str | Messages, *, max_new_tokens: int = 256) -> Generation:
        """The finished answer; see :meth:`stream`."""
        generation = self.stream(prompt, max_new_tokens=max_new_tokens)
        async for _ in generation:
            pass
        return generation

    def encode(self, prompt: str | Messages) -> list[int]:
        """Token ids of the prompt, rendered by the model's chat template if it has one."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if self.template:
            tokens = self.tokenizer
            text = render(
                self.template,
                [dict(m) for m in messages],
                bos_token=tokens.bos_token,
                eos_token=tokens.eos_token,
            )
            ids = tokens.encode(text)
        elif isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt, add_special=True)
        else:
            raise InputError(
                "this model has no chat template", hint="Give the prompt as one string."
            )
        if not ids:
            raise InputError("the prompt is empty")
        if len(ids) >= self.context:
            raise InputError(
                "the prompt is too long", got=f"{len(ids)} tokens", wanted=f"< {self.context}"
            )
        return ids

    async def dispose(self) -> None:
        """Gives all memory back."""
        await self.session.dispose()


class Generation:
    """An answer in the making: iterate over it, once, or ``await`` the pipeline's call for the
    whole.

    Leaving the iteration early aborts the answer and lets the next one begin.
    ``text`` and ``tokens`` grow; ``finish_reason`` is ``""`` until the end, then ``stop``,
    ``length`` or ``abort``. ``timings`` (ms and tokens/s): ``prefill_ms``, ``prefill_tok_s``,
    ``first_token_ms``, ``decode_tok_s``.
    """

    def __init__(self, task: TextGeneration, prompt: list[int], limit: int) -> None:
        self.prompt_tokens = prompt
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason = ""
        self.timings: dict[str, float] = {}
        self._task, self._aborted = task, False
        self._limit = min(limit, task.context - len(prompt))
        self._run = self._answer()
        self._pull = asyncio.Lock()
        self._iterated = False

    def __aiter__(self) -> AsyncIterator[str]:
        if self._iterated:
            raise InputError(
                "an answer can be iterated over once", hint="Its .text has all that came."
            )
        self._iterated = True
        return _Pieces(self)

    def abort(self) -> None:
        """Ends the answer after the device's run in flight. Safe at any time, from the same
        loop."""
        self._aborted = True

    async def aclose(self) -> None:
        """Aborts and waits until the device is free."""
        self._aborted = True
        async with self._pull:  # a generator that is running can't be closed
            await self._run.aclose()
        self.finish_reason = self.finish_reason or "abort"

    async def pull(self) -> str:
        """For the iterator: the next piece. Raises StopAsyncIteration."""
        async with self._pull:
            return await anext(self._run)

    async def _answer(self) -> AsyncGenerator[str, None]:
        decoder = StreamDecoder(self._task.tokenizer)
        async with self._task.turn:
            start = time.perf_counter()
            first = last = 0.0
            chunks = self._decode()
            try:
                await self._prefill()
                if not self._aborted:
                    self._note_prefill(start)
                async for ids in chunks:
                    last = time.perf_counter()
                    if not first:
                        first = last
                        self.timings["first_token_ms"] = (first - start) * 1e3
                    piece = decoder.push(self._take(ids))
                    if last > first:
                        rate = (len(self.tokens) - 1) / (last - first)
                        self.timings["decode_tok_s"] = rate
                    self.text += piece
                    if piece:
                        yield piece
                    if self.finish_reason:
                        break
                if not self.finish_reason:
                    short = len(self.tokens) < self._limit
                    self.finish_reason = "abort" if self._aborted and short else "length"
            except AbortedError:  # the pipeline was disposed
                self.finish_reason = "abort"
                if not self._aborted:
                    raise
            finally:
                self.finish_reason = self.finish_reason or "abort"
                await chunks.aclose()
            rest = decoder.flush()
            self.text += rest
            if rest:
                yield rest

    def _ended(self) -> bool:
        return self._aborted or bool(self.finish_reason)

    def _note_prefill(self, start: float) -> None:
        seconds, count = time.perf_counter() - start, len(self.prompt_tokens) - 1
        self.timings["prefill_ms"] = seconds * 1e3
        if count:
            self.timings["prefill_tok_s"] = count / seconds

    def _take(self, ids: list[int]) -> list[int]:
        """The tokens to show; notes the end."""
        shown = []
        for token in ids:
            if token in self._task.tokenizer.eos_ids:
                self.finish_reason = "stop"
                break
            shown.append(token)
        self.tokens += shown
        return shown

    async def _prefill(self) -> None:
        """All prompt tokens but the last, which the first decode step takes."""
        session, chunk = self._task.session, self._task.options.chunk
        ids = self.prompt_tokens[:-1]
        for at in range(0, len(ids), chunk):
            if self._aborted:
                return
            part = ids[at : at + chunk]
            feeds = {"tokens": _i32(part), "control": _i32([at, *[0] * (llama.CONTROL - 1)])}
            await session.run("prefill", feeds, {"T": len(part)})
        stops = sorted(self._task.tokenizer.eos_ids)[: llama.MAX_STOPS]
        stops += [-1] * (llama.MAX_STOPS - len(stops))
        control = [len(ids), self.prompt_tokens[-1], *[0] * (llama.CONTROL - 2)]
        await session.run("begin", {"control": _i32(control), "stops": _i32(stops)})
        await session.read("control", 0, 4)  # a GPU is done with all of it only now

    async def _decode(self) -> AsyncGenerator[list[int], None]:
        """Lists of new tokens: one, then as many a run as fit into ``_SUBMIT_MS``."""
        session, left, steps = self._task.session, self._limit, 1
        while left > 0 and not self._ended():
            steps = min(steps, left)
            times = 1 if steps < self._task.options.max_steps else left // steps
            times = min(times, 8)
            began = time.perf_counter()
            runs = session.repeat("decode", times, "chosen", {"steps": steps})
            try:
                async for data in runs:
                    ids = [i for i in struct.unpack_from(f"<{steps}i", data) if i >= 0]
                    yield ids
                    if self._ended():
                        return
            finally:
                await runs.aclose()
            left -= steps * times
            each = (time.perf_counter() - began) * 1e3 / (steps * times)
            steps = max(1, min(self._task.options.max_steps, int(_SUBMIT_MS / max(each, 0.01))))


class _Pieces:
    """The iterator of a ``Generation``. A loop that is left early only drops it (``async for``
    knows no close): so dropping it aborts."""

    def __init__(self, generation: Generation) -> None:
        self._generation, self._loop = generation, asyncio.get_running_loop()
        self._over = False

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> str:
        try:
            return await self._generation.pull()
        except BaseException:
            self._over = True
            raise

    def __del__(self) -> None:
        if not self._over and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_close, self._generation)


def _close(generation: Generation) -> None:
    task = asyncio.ensure_future(generation.aclose())
    _closing.add(task)  # asyncio itself holds tasks weakly
    task.add_done_callback(_closing.discard)


_closing: set[asyncio.Future[None]] = set()


async def build_module(file: ModelFile, header: gguf.Gguf, options: llama.Options) -> Module:
    """The module of a GGUF file. Raises UnsupportedError for architectures that ``archs`` lacks."""
    weights = {
        name: WeightSource(t.dtype, t.shape, _FILE, t.offset, t.length)
        for name, t in header.tensors.items()
    }
    shapes = {name: w.shape for name, w in weights.items()}
    config = llama.config_from_gguf(header.metadata, shapes)
    small = {}
    for name in llama.small_tensors(weights):
        source = weights[name]
        if source.dtype is not dtypes.f32 or source.length > 1 << 16:
            raise UnsupportedError("tensor of an unexpected kind", where=name, got=source.dtype)
        small[name] = await file.read(source.offset, source.length)
        if len(small[name]) != source.length:
            raise FormatError("the file ends inside a tensor", where=name)
    return llama.build(config, weights, small, options)


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a positive whole number", got=repr(value))


class _Clock:
    """Laps in ms."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = (now - self._last) * 1e3
        self._last = now


def _i32(values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)
