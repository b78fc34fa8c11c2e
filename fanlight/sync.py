"""The blocking twin: ``fanlight.sync.pipeline(...)`` for scripts and notebooks without ``await``.

CPython: one background thread runs the event loop of all sync pipelines. Pyodide: only where the
runtime can suspend Python (JavaScript Promise Integration); elsewhere SyncUnavailableError names
the form to await.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Coroutine, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from fanlight.errors import SyncUnavailableError
from fanlight.pipelines import pipeline as pipeline_async
from fanlight.tasks.text_generation import Generation, Messages, TextGeneration

T = TypeVar("T")


def pipeline(task: str, model: str | Path, **options: Any) -> SyncTextGeneration:
    """As ``fanlight.pipeline``, blocking. Raises SyncUnavailableError where that is impossible."""
    return SyncTextGeneration(run(pipeline_async(task, model, **options)))


class SyncTextGeneration:
    """Blocking calls of a ``TextGeneration`` (``.task``)."""

    def __init__(self, task: TextGeneration) -> None:
        self.task = task

    def __call__(self, prompt: str | Messages, *, max_new_tokens: int = 256) -> Generation:
        """The finished answer."""
        return run(self.task(prompt, max_new_tokens=max_new_tokens))

    def stream(self, prompt: str | Messages, *, max_new_tokens: int = 256) -> Iterator[str]:
        """Pieces of the answer as they come. Closing the iterator aborts the answer."""
        generation = self.task.stream(prompt, max_new_tokens=max_new_tokens)
        pieces = generation.__aiter__()
        try:
            while (piece := run(_next(pieces))) is not None:
                yield piece
        finally:
            run(generation.aclose())

    def dispose(self) -> None:
        """Gives all memory back."""
        run(self.task.dispose())


async def _next(pieces: Any) -> str | None:
    try:
        return str(await anext(pieces))
    except StopAsyncIteration:
        return None


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
    return asyncio.run_coroutine_threadsafe(work, _loop()).result()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="fanlight-sync", daemon=True).start()
    return loop
