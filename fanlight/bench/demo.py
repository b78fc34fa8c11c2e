"""The whole chain: a real Chromium opens the page, loads the model, and answers in the terminal.

    python -m fanlight.bench.demo [--json] "What is the capital of France?"

For each backend two visits: the first with an empty profile, so that the model comes over the net;
the second after a restart of the browser on the same profile. With ``--json`` the last line
is the report:

    {"prompt", "browser", "runs": [{"backend", "visit", "adapter", "reply", "tokens",
      "prefill_tok_s", "decode_tok_s", "first_token_ms", "ready_ms", "python_ms", "compile_ms",
      "download_ms", "upload_ms", "longest_task_ms", "mem_peak_mb", "heap_peak_mb",
      "network_bytes", "server_requests"}]}

Each visit is made three times, on profiles of their own: for its times, by a browser that has come
to rest and that nobody watches (DevTools stops every worker before its start, which costs 0.2 to
0.3 s here); for its memory; and for what is seen by watching alone, heaps and network.

``ready_ms``: from navigation until the weights are resident, the pipelines made and the prompt
tokenised. ``longest_task_ms``: of the page's thread while it answers; 0 where all are below 50.
``mem_peak_mb``: peak PSS of the renderers and the GPU process while loading, less their PSS at rest
with Python booted, less the plan's resident bytes; with a KV cache of 256 tokens, since one that is
never touched would count as resident without being there. ``heap_peak_mb``: the largest heap of a
worker while loading, used heap and backing stores.
``network_bytes``: the larger of what the server has sent and what
DevTools saw page, workers and service worker fetch. ``server_requests``: lines of its access log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fanlight.archs import llama
from fanlight.bench import quiet
from fanlight.bench.memory import megabytes
from fanlight.bench.visit import BACKENDS, Backend, Log, Visit, address, best_webgpu, numbers, run
from fanlight.compiler import CompileOptions, compile_module
from fanlight.errors import FanlightError, InputError
from fanlight.formats import gguf
from fanlight.hub.download import cache_root
from fanlight.hub.files import LocalFile
from fanlight.kernels.target import CPU
from fanlight.plan import THREADS
from fanlight.tasks.text_generation import build_module

_CONTEXT = 256
PROMPT = "What is the capital of France?"
_COLUMNS = (
    ("backend", "backend", 8),
    ("visit", "visit", 5),
    ("ready s", "ready_ms", 8),
    ("python s", "python_ms", 8),
    ("compile s", "compile_ms", 9),
    ("download s", "download_ms", 10),
    ("upload s", "upload_ms", 8),
    ("first s", "first_token_ms", 8),
    ("prefill/s", "prefill_tok_s", 9),
    ("decode/s", "decode_tok_s", 8),
    ("mem MB", "mem_peak_mb", 7),
    ("heap MB", "heap_peak_mb", 7),
    ("net MB", "network_bytes", 7),
)


def default_model() -> Path:
    """SmolLM2's file in the cache folder. Raises InputError where set-up has not fetched it."""
    folder = cache_root().parent / "models" / "smollm2"
    found = sorted(folder.glob("*.gguf"))
    if not found:
        raise InputError("no model", where=str(folder), hint="Run scripts/setup, or give --model.")
    return found[0]


async def measure(
    model: Path,
    prompt: str,
    *,
    backends: tuple[Backend, ...] = BACKENDS,
    visits: int = 2,
    headed: bool = False,
    max_new_tokens: int = 256,
    context: int | None = None,
) -> dict[str, Any]:
    """The report; streams answers to the terminal as they come. Raises FanlightError."""
    from fanlight.server.app import create_app
    from fanlight.server.serving import serving

    log, browser, runs = Log(), "", list[dict[str, Any]]()
    with serving(create_app({model.name: model}, on_access=log.add)) as base:
        webgpu = await best_webgpu(base) if "webgpu" in backends else "swiftshader"
        for backend in backends:
            with _profile() as watched, _profile() as timed, _profile() as weighed:
                for number in range(1, visits + 1):
                    place = f"/models/{model.name}"
                    visit = Visit(base, place, backend, number, watched, prompt)
                    visit = replace(visit, webgpu=webgpu, headed=headed)
                    visit = replace(visit, max_new_tokens=max_new_tokens, context=context)
                    print(f"\n{backend}, visit {number}: ", end="", flush=True)
                    row, browser = await run(visit, log, _show)
                    row |= numbers(await _timed(replace(visit, profile=timed)))
                    cost = await _cost(model, replace(visit, profile=weighed))
                    runs.append(row | {"mem_peak_mb": megabytes(cost)})
    print()
    return {"prompt": prompt, "browser": browser, "runs": runs}


@contextmanager
def _profile() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(
        prefix="fanlight-profile-", ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


async def _timed(visit: Visit) -> dict[str, Any]:
    """The page's report of an unwatched visit."""
    where = address(visit, report=1)
    return await asyncio.to_thread(quiet.report, where, visit.profile, visit.webgpu, visit.timeout)


async def _cost(model: Path, visit: Visit) -> int | None:
    """Bytes that loading takes beyond the plan's own."""
    visit = replace(visit, prompt="", context=_CONTEXT)
    where = address(visit, rest=quiet.REST_S)
    cost = await asyncio.to_thread(
        quiet.load_cost, where, visit.profile, visit.webgpu, visit.timeout
    )
    return None if cost is None else cost - await _resident_bytes(model, visit.backend)


async def _resident_bytes(model: Path, backend: Backend) -> int:
    """Of the plan that the page makes, but for the threads' scratch, of two here."""
    file = LocalFile(model)
    try:
        header = await gguf.read_header(file.read, file.size)
        module = await build_module(file, header, llama.Options(context=_CONTEXT))
    finally:
        file.close()
    plan = compile_module(module, CompileOptions(backend, frozenset({CPU})))
    return plan.resident_bytes({THREADS: 2})


def _show(piece: str) -> None:
    print(piece, end="", flush=True)


def table(report: dict[str, Any]) -> str:
    """The report's numbers, one line a run."""
    lines = [f"{report['browser']}", "  ".join(title.rjust(width) for title, _, width in _COLUMNS)]
    for row in report["runs"]:
        cells = (_cell(key, row[key]).rjust(width) for _, key, width in _COLUMNS)
        lines.append("  ".join(cells) + f"  {row['adapter']}")
    return "\n".join(lines)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if key.endswith("_ms"):
        return f"{value / 1e3:.2f}"
    if key == "network_bytes":
        return f"{value / 1e6:.1f}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> int:
    """The command line above; the exit status."""
    parser = argparse.ArgumentParser(prog="demo", description="Asks the model in a real Chromium.")
    parser.add_argument("prompt", nargs="?", default=PROMPT)
    parser.add_argument("--json", action="store_true", help="the report as JSON, on the last line")
    parser.add_argument("--model", type=Path, help="a GGUF file (SmolLM2 by default)")
    parser.add_argument("--backend", choices=BACKENDS, help="both by default")
    parser.add_argument("--visits", type=int, default=2, help="of each backend (2)")
    parser.add_argument("--headed", action="store_true", help="show the browser")
    parser.add_argument("--context", type=int, help="tokens of the KV cache")
    given = parser.parse_args(arguments)
    backends = (given.backend,) if given.backend else BACKENDS
    try:
        model = given.model or default_model()
        made = measure(
            model,
            given.prompt,
            backends=backends,
            visits=given.visits,
            headed=given.headed,
            context=given.context,
        )
        report = asyncio.run(made)
    except FanlightError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report) if given.json else table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
