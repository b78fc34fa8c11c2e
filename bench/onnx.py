"""ONNX models on the CPU beside onnxruntime-web: the same files, Chromium and inputs, interleaved.

    scripts/bench onnx [--models minilm_q8_1x128,resnet50] [--threads 1,2] [--pairs 7] [--starts 3]

Models: ``onnx_models.py``. ``start_ms``: in a fresh page, from the file's bytes in memory to a
session that can run, with all that the engine fetches, compiles and starts for it (our Python among
it). ``create_ms``: the same once more in that page. ``run_ms``: bursts of half a second, in turns,
after some seconds of warming up; each burst is its median. Of each: least, median, most.
``first_ms``: the first run. ``first_peak_mb``: PSS of renderer and GPU process while a session is
made of the file's address and run, less that of a page at rest, in a browser of its own;
``peak_mb``: the same in the next visit, when the plan is kept. ``difference``: the greatest between
the two engines' outputs, beside the greatest output.

One thread is a page without cross-origin isolation, two are one with it. The last line is JSON:
``ratios`` (onnxruntime-web's median over ours: above 1 we are faster, or smaller) and ``figures``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from playwright.async_api import BrowserContext, Page
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from bench.onnx_models import MODELS, Model
from fanlight.bench import quiet
from fanlight.inference.tensor import Tensor
from fanlight.runtime import chromium
from fanlight.server.app import create_app
from fanlight.server.headers import AddHeaders
from fanlight.server.serving import serving

ROOT = Path(__file__).resolve().parent.parent
ORT = "node_modules/onnxruntime-web/dist"
ENGINES = ("fanlight", "ort")
PAGE = "<!doctype html><title>onnx</title><script type=module src=/bench/onnx_page.js></script>"
WARM_MS, BURST_MS, PAUSE_S = 2500, 500, 0.4  # threads spin for a while after a run
MEMORY_S = 120.0
Array = NDArray[Any]


def app(made: Mapping[str, Model], isolated: bool) -> Starlette:
    """The page, both engines' files, models and inputs."""

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE)

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        return Response(made[name][0], headers={"ETag": f'"{name}"'})

    async def feeds(request: Request) -> Response:
        given = made[request.path_params["name"]][1]
        return JSONResponse({name: _packed(array) for name, array in given.items()})

    return Starlette(
        routes=[
            Route("/bench.html", page),
            Route("/models/{name}", model),
            Route("/feeds/{name}", feeds),
            Mount("/bench", StaticFiles(directory=ROOT / "bench")),
            Mount(f"/{ORT}", StaticFiles(directory=ROOT / ORT)),
            Mount("/", create_app(isolated=isolated)),
        ],
        middleware=[Middleware(AddHeaders, isolated=isolated)],
    )


def _packed(array: Array) -> dict[str, Any]:
    tensor = Tensor(array)
    data = base64.b64encode(bytes(tensor.data)).decode()
    return {"type": tensor.dtype, "dims": list(tensor.shape), "data": data}


async def opened(context: BrowserContext, base: str, engine: str, threads: int) -> Page:
    """A fresh page with nothing but the engine's name."""
    page = await context.new_page()
    await page.goto(f"{base}/bench.html")
    await page.wait_for_function("() => globalThis.engines")
    await page.evaluate("([n, t]) => { globalThis.engine = engines[n](t); }", [engine, threads])
    return page


async def measure(
    base: str, name: str, threads: int, pairs: int, starts: int
) -> tuple[dict[str, dict[str, Any]], str]:
    """Figures of each engine, and the browser's version."""
    times: dict[str, dict[str, list[float]]] = {
        engine: {"start_ms": [], "create_ms": [], "first_ms": [], "run_ms": []}
        for engine in ENGINES
    }
    outputs: dict[str, list[Array]] = {}
    pages: dict[str, Page] = {}
    async with chromium.launch(webgpu="none") as context:
        for _ in range(starts):
            for engine in ENGINES:
                if engine in pages:
                    await pages[engine].close()
                page = pages[engine] = await opened(context, base, engine, threads)
                await asyncio.sleep(PAUSE_S)
                for kind in ("start_ms", "create_ms"):
                    took = await page.evaluate("(name) => engine.create(name)", name)
                    times[engine][kind].append(took)
        for engine, page in pages.items():
            times[engine]["first_ms"] += await page.evaluate("() => engine.burst(0)")
            await page.evaluate("(ms) => engine.burst(ms)", WARM_MS)
        for _ in range(pairs):
            for engine, page in pages.items():
                await page.bring_to_front()
                await asyncio.sleep(PAUSE_S)
                burst = await page.evaluate("(ms) => engine.burst(ms)", BURST_MS)
                times[engine]["run_ms"].append(statistics.median(burst))
        for engine, page in pages.items():
            outputs[engine] = [_array(o) for o in await page.evaluate("() => engine.outputs()")]
        version = context.browser.version if context.browser else "Chromium"
    found = {engine: {k: _spread(v) for k, v in kinds.items()} for engine, kinds in times.items()}
    both = [_as_long(*pair) for pair in zip(*(outputs[e] for e in ENGINES), strict=True)]
    found["difference"] = {
        "greatest": max(float(np.abs(a - b).max()) for a, b in both),
        "of_outputs_up_to": max(float(np.abs(a).max()) for a in outputs["ort"]),
    }
    return found, version


def _as_long(a: Array, b: Array) -> tuple[Array, Array]:
    """Both as far as the shorter goes: speech may differ in length."""
    if a.shape == b.shape:
        return a, b
    count = min(a.size, b.size)
    return a.ravel()[:count], b.ravel()[:count]


def _array(packed: dict[str, Any]) -> Array:
    return np.frombuffer(base64.b64decode(packed["data"]), "f4").reshape(packed["dims"])


def _spread(values: list[float]) -> list[float]:
    return [round(v, 2) for v in (min(values), statistics.median(values), max(values))]


def peaks_mb(base: str, engine: str, name: str, threads: int) -> dict[str, float | None]:
    """See above; None where the system has no ``/proc``."""
    address = f"{base}/bench.html?engine={engine}&model={name}&threads={threads}"
    found: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory(prefix="fanlight-", ignore_cleanup_errors=True) as profile:
        for visit in ("first_peak_mb", "peak_mb"):
            cost = quiet.load_cost(address, Path(profile), "none", MEMORY_S)
            found[visit] = None if cost is None else round(cost / 1e6, 1)
    return found


def main() -> int:
    """The command line above; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true")
    given = parser.parse_args()
    made = {name: MODELS[name]() for name in given.models.split(",")}
    figures: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    load, version = os.getloadavg()[0], ""
    for threads in map(int, given.threads.split(",")):
        with serving(app(made, isolated=threads > 1)) as base:
            for name in made:
                running = measure(base, name, threads, given.pairs, given.starts)
                found, version = asyncio.run(running)
                if not given.no_memory:
                    for engine in ENGINES:
                        found[engine] |= peaks_mb(base, engine, name, threads)
                key = f"{name}, {threads} threads"
                figures[key] = found
                ratios |= {f"{key}: {k}": v for k, v in _ratios(found).items()}
                print(key, json.dumps(found))
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    report = {
        "ratios": ratios,
        "figures": figures,
        "browser": version,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}",
        "commit": commit,
    }
    print(json.dumps(report))
    return 0


def _ratios(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    ours, theirs = (found[engine] for engine in ENGINES)
    out = {k: theirs[k][1] / ours[k][1] for k in ("start_ms", "create_ms", "first_ms", "run_ms")}
    for kind in ("first_peak_mb", "peak_mb"):
        if ours.get(kind) and theirs.get(kind):
            out[kind] = theirs[kind] / ours[kind]
    return {kind: round(value, 2) for kind, value in out.items()}


if __name__ == "__main__":
    sys.exit(main())
