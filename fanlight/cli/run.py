"""``fanlight run TASK --model MODEL PROMPT``: the answer to stdout, all else to stderr."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from fanlight.cli.progress import Bars
from fanlight.errors import AbortedError
from fanlight.pipelines import TASKS, pipeline
from fanlight.runtime.backend import DEVICES

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def run(
    task: Annotated[str, typer.Argument(help=f"One of: {', '.join(TASKS)}.")],
    prompt: Annotated[str, typer.Argument(help="The message to answer.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A GGUF file: its path or URL.")],
    device: Annotated[str, typer.Option(help=f"One of: {', '.join(DEVICES)}.")] = "auto",
    browser: Annotated[bool, typer.Option("--browser", help="Run in a real Chromium.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 256,
    context: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of prompt and answer.")
    ] = None,
) -> None:
    """Run a model: stream its answer to the terminal."""
    options = {} if context is None else {"context": context}
    if browser:
        from fanlight.cli.browser import answer_in_browser as answer
    else:
        answer = answer_here
    work = answer(task, model, prompt, device, max_new_tokens, options)
    try:
        result = asyncio.run(work)
    except (KeyboardInterrupt, AbortedError):
        raise typer.Exit(INTERRUPTED) from None
    sys.stdout.write("\n")
    print(summary(result), file=sys.stderr)
    if result["finish_reason"] == "abort":
        raise typer.Exit(INTERRUPTED)


async def answer_here(
    task: str, model: str, prompt: str, device: str, limit: int, options: dict[str, Any]
) -> dict[str, Any]:
    """The result of an answer that runs in this process: the fields that :func:`summary` reads."""
    with Bars() as bars:
        made = await pipeline(task, model, device=device, progress=bars, **options)
    answer = made.stream(prompt, max_new_tokens=limit)
    try:
        with interrupting(answer.abort):
            async for piece in answer:
                show(piece)
    finally:
        await answer.aclose()
        await made.dispose()
    info = made.session.info
    return {
        "tokens": len(answer.tokens),
        "prompt_tokens": len(answer.prompt_tokens),
        "finish_reason": answer.finish_reason,
        "timings": answer.timings,
        "place": f"{info.backend}, {info.adapter}",
    }


def show(piece: str) -> None:
    """A piece of the answer."""
    sys.stdout.write(piece)
    sys.stdout.flush()


@contextmanager
def interrupting(abort: Callable[[], object]) -> Iterator[None]:
    """Inside, Ctrl-C calls ``abort`` on the event loop; the second one ends the program."""
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)

    def interrupted(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        loop.call_soon_threadsafe(abort)

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def summary(result: dict[str, Any]) -> str:
    """One line: how much, how fast, where."""
    ends = {"length": ", cut at the limit", "abort": ", stopped"}
    end = ends.get(result["finish_reason"], "")
    parts = [f"{result['prompt_tokens']} tokens read", f"{result['tokens']} written{end}"]
    timings = result["timings"]
    if "decode_tok_s" in timings:
        parts.append(f"{timings['decode_tok_s']:.1f} tokens/s")
    if "first_token_ms" in timings:
        parts.append(f"first after {timings['first_token_ms'] / 1e3:.2f} s")
    return " · ".join([*parts, result["place"]])
