"""Chat on the CPU beside wllama: the same GGUF, Chromium and prompts, interleaved.

    scripts/bench chat [--model FILE] [--threads 1,2] [--pairs 5] [--relaxed] [--only fanlight]

Each engine has a page of its own in one Chromium, and takes turns; every prompt is another, so that
no cache helps. Tokens a second, medians: ``prefill`` up to the first new token, ``decode`` after
it. wllama's are its own timings, without its JavaScript; ours are the worker's clock. The last line
is JSON: ``ratios`` (ours over wllama's) and ``figures``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import models
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from fanlight import plan as plans
from fanlight.archs import llama
from fanlight.compiler import CompileOptions, compile_module
from fanlight.formats import gguf
from fanlight.runtime import chromium
from fanlight.server.headers import ISOLATION
from fanlight.server.serving import serving
from fanlight.text.gguf_tokenizer import tokenizer_from_gguf
from tests import modules

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ("fanlight", "wllama")
KINDS = ("prefill", "decode")
PROMPT_TOKENS, GENERATE = 125, 129
WORDS = """the of and a to in is you that it he was for on are as with his they at be this have from
or one had by word but not what all were we when your can said there use an each which she do how
their if will up other about out many then them these so some her would make like him into time has
look two more write go see number no way could people my than first water been call who oil its now
find long down day did get come made may part over new sound take only little work know place year
live me back give most very after thing our just name good sentence man think say great""".split()
PAGE = "<!doctype html><title>chat</title><script type=module src=/bench/chat_page.js></script>"


def prompts(path: Path, count: int) -> list[dict[str, Any]]:
    """``count`` prompts of about ``PROMPT_TOKENS`` tokens, each as text and as ids."""
    with path.open("rb") as file:
        header = gguf.parse(file.read(64 << 20), file_size=path.stat().st_size)
    tokenizer = tokenizer_from_gguf(header.metadata)
    out = []
    for i in range(count):
        words = (WORDS[3 * i :] + WORDS[: 3 * i])[: PROMPT_TOKENS - 4]
        text = f"Run {i}: {' '.join(words)}"
        out.append({"text": text, "ids": tokenizer.encode(text), "generate": GENERATE})
    return out


def compiled(path: Path, relaxed: bool) -> bytes:
    """The plan that the page runs."""
    module = modules.build(path, llama.Options(context=512))
    features = {"threads"} | ({"relaxed-simd"} if relaxed else set())
    return plans.encode(compile_module(module, CompileOptions("wasm", frozenset(features))))


def app(model: Path, plan: bytes) -> Starlette:
    """The page, both engines' files, the model and the plan; cross-origin isolated."""

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE, headers=ISOLATION)

    async def plan_file(request: Request) -> Response:
        return Response(plan, headers=ISOLATION)

    async def model_file(request: Request) -> Response:
        return FileResponse(model, headers=ISOLATION)

    class Files(StaticFiles):
        def file_response(self, *args: Any, **options: Any) -> Response:
            response = super().file_response(*args, **options)
            response.headers.update(ISOLATION)
            return response

    return Starlette(
        routes=[
            Route("/", page),
            Route("/plan", plan_file),
            Route("/model.gguf", model_file),
            Mount("/bench", Files(directory=ROOT / "bench")),
            Mount("/fanlight", Files(directory=ROOT / "fanlight")),
            Mount("/wllama", Files(directory=ROOT / "node_modules/@wllama/wllama/esm")),
        ]
    )


async def measure(
    base: str, engines: list[str], threads: int, pairs: int, given: list[dict[str, Any]]
) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """Runs of each engine, ``pairs`` after a first one, and the browser's version."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    async with chromium.launch(webgpu="none") as context:
        pages = {}
        for name in engines:
            pages[name] = await context.new_page()
            await pages[name].goto(base)
            await pages[name].wait_for_function("() => globalThis.engines")
            options = {"plan": "/plan", "threads": threads}
            await pages[name].evaluate(
                "([name, options]) => (globalThis.engine = engines[name]()).load(options)",
                [name, options],
            )
        version = context.browser.version if context.browser else "Chromium"
        for number, prompt in enumerate(given[: pairs + 1]):
            for name in engines:
                run = await pages[name].evaluate("(prompt) => engine.run(prompt)", prompt)
                runs[name].append(run)
                text = f"  {run['prefill']:8.1f} prefill {run['decode']:7.1f} decode"
                print(f"{threads} threads  {name:9}{text}{'' if number else '  (first)'}")
    return runs, version


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians and ranges of one number of threads; the first run, of code that the browser has not
    optimised yet, stands apart."""
    out: dict[str, Any] = {}
    for name, rows in runs.items():
        out[name] = {"prompt_tokens": rows[0]["prompt_tokens"]}
        for kind in KINDS:
            values = [row[kind] for row in rows[1:]]
            median, low, high = statistics.median(values), min(values), max(values)
            out[name][kind] = [round(v, 2) for v in (low, median, high)]
            out[name][f"{kind}_first"] = round(rows[0][kind], 2)
    return out


def main() -> int:
    """The command line above; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="GGUF file; SmolLM2-135M if none")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--relaxed", action="store_true", help="with relaxed SIMD")
    parser.add_argument("--only", choices=ENGINES)
    given = parser.parse_args()
    model = given.model or models.fetch("smollm2")
    engines = [given.only] if given.only else list(ENGINES)
    texts = prompts(model, given.pairs + 1)
    figures: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    load, version = os.getloadavg()[0], ""
    with serving(app(model, compiled(model, given.relaxed))) as base:
        for threads in map(int, given.threads.split(",")):
            runs, version = asyncio.run(measure(base, engines, threads, given.pairs, texts))
            found = figures[f"{threads} threads"] = summary(runs)
            if len(engines) == 2:
                for kind in KINDS:
                    ours, theirs = (found[name][kind][1] for name in ENGINES)
                    ratios[f"{kind}_{threads}"] = round(ours / theirs, 2)
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    report = {
        "ratios": ratios,
        "figures": figures,
        "units": "tokens a second: [least, median, most]",
        "model": model.name,
        "relaxed_simd": given.relaxed,
        "browser": version,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}",
        "commit": commit,
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
