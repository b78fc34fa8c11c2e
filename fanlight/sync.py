"""The blocking twin: ``fanlight.sync.pipeline(...)`` and ``fanlight.sync.InferenceSession`` for
scripts and notebooks without ``await``.

CPython: one background thread runs the event loop of all of them. Pyodide: only where the
runtime can suspend Python (JavaScript Promise Integration); elsewhere SyncUnavailableError names
the form to await.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from fanlight.errors import SyncUnavailableError
from fanlight.inference import session as inference
from fanlight.inference.tensor import Tensor
from fanlight.pipelines import pipeline as pipeline_async
from fanlight.tasks.text_generation import Generation, Messages, TextGeneration

T = TypeVar("T")
_THREAD = "fanlight-sync"


def pipeline(task: str, model: str | Path, **options: Any) -> SyncTextGeneration:
    """As ``fanlight.pipeline``, blocking. Raises SyncUnavailableError where that is impossible."""
    return SyncTextGeneration(run(pipeline_async(task, model, **options)))


class InferenceSession:
    """Blocking calls of ``fanlight.InferenceSession`` (``.session``)."""

    def __init__(self, session: inference.InferenceSession) -> None:
        self.session = session
        self.inputs, self.outputs = session.inputs, session.outputs
        self.metadata = session.metadata

    @classmethod
    def create(cls, model: str | Path | bytes, **options: Any) -> InferenceSession:
        """As ``fanlight.InferenceSession.create``."""
        return cls(run(inference.InferenceSession.create(model, **options)))

    def run(
        self, feeds: Mapping[str, Any], fetches: Iterable[str] | Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """As ``fanlight.InferenceSession.run``."""
        return run(self.session.run(feeds, fetches))

    def dispose(self) -> None:
        """Gives all memory back."""
        run(self.session.dispose())


class SyncTextGeneration:
    """Blocking calls of a ``TextGeneration`` (``.task``)."""

    def __init__(self, task: TextGeneration) -> None:
        self.task = task

    def __call__(self, prompt: str | Messages, *, max_new_tokens: int = 256) -> Generation:
        """The finished answer."""
        return run(self.task(prompt, max_new_tokens=max_new_tokens))

    def stream(self, prompt: str | Messages, *, max_new_tokens: int = 256) -> Iterator[str]:
        """Pieces of the answer as they come. Closing the iterator aborts the answer. Raises as
        ``TextGeneration.stream``, at once."""
        return _pieces(self.task.stream(prompt, max_new_tokens=max_new_tokens))

    def dispose(self) -> None:
        """Gives all memory back."""
        run(self.task.dispose())


def _pieces(generation: Generation) -> Iterator[str]:
    pieces = run(_start(generation))
    try:
        while (piece := run(_next(pieces))) is not None:
            yield piece
    finally:
        run(generation.aclose())


async def _start(generation: Generation) -> AsyncIterator[str]:
    return aiter(generation)


async def _next(pieces: AsyncIterator[str]) -> str | None:
    return await anext(pieces, None)


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, waited for. Raises SyncUnavailableError where blocking is
    impossible."""
    if sys.platform == "emscripten":
        from pyodide.ffi import can_run_sync, run_sync  # type: ignore[import-not-found]

        if not can_run_sync():
            work.close()
            raise SyncUnavailableError(
                "this page can't block Python",
                hint='Use the form to await: await fanlight.pipeline("text-generation", model).',
            )
        return run_sync(work)  # type: ignore[no-any-return]
    loop = _loop()
    if threading.current_thread().name == _THREAD:
        work.close()
        raise SyncUnavailableError(
            "called from the loop of the sync pipelines", hint="Callbacks must not block."
        )
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except BaseException:  # e.g. KeyboardInterrupt, which the loop's thread doesn't see
        future.cancel()
        raise


_starting = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        return _started()


@cache
def _started() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=_THREAD, daemon=True).start()
    return loop
