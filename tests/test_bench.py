"""The demo's measurements, on a page that does nothing but what the demo expects of a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from fanlight.bench import demo, quiet
from fanlight.bench.visit import Log, Visit, numbers, run
from fanlight.errors import DeviceError
from fanlight.server.headers import RecordAccess
from fanlight.server.serving import serving

pytestmark = pytest.mark.browser
MB = 1_000_000

PAGE = """<!doctype html><script>
const parameters = new URLSearchParams(location.search);
globalThis.fanlightReport = (async () => {
  if (parameters.get("auto") !== "1") return null;
  if (parameters.get("model") === "broken") {
    document.title = "Error";
    return { error: { code: "StoreError", message: "no such model" } };
  }
  if (parameters.has("rest")) {
    document.title = "Resting";
    await new Promise((done) => setTimeout(done, 6000));
  }
  const worker = new Worker("/worker.js");
  await new Promise((done) => { worker.onmessage = done; });
  performance.mark("fanlight:ready");
  document.title = "Ready";
  let reply = "";
  for (const piece of ["Paris", ", of ", "course."]) {
    await new Promise((done) => setTimeout(done, 120));
    dispatchEvent(new CustomEvent("fanlight:piece", { detail: piece }));
    reply += piece;
  }
  const adapter = parameters.get("device");
  const report = { adapter, reply, tokens: 3, resident_bytes: 20e6, ready_ms: 12.6 };
  if (parameters.has("report")) document.title = `Report ${JSON.stringify(report)}`;
  return report;
})();
</script>"""
WORKER = """
self.kept = new Uint8Array(120e6).fill(1);
setTimeout(() => postMessage("loaded"), 400);
"""


async def _page(request: Request) -> Response:
    return HTMLResponse(PAGE)


async def _module(request: Request) -> Response:
    return Response("export async function start() {}", media_type="text/javascript")


async def _worker(request: Request) -> Response:
    return Response(WORKER, media_type="text/javascript")


def _app(log: Log) -> Starlette:
    middleware = [Middleware(RecordAccess, record=log.add)]
    return Starlette(
        routes=[Route("/", _page), Route("/worker.js", _worker), Route("/fanlight.js", _module)],
        middleware=middleware,
    )


async def _visit(
    profile: Path, model: str = "fine", **changes: Any
) -> tuple[dict[str, Any], list[str]]:
    log, pieces = Log(), list[str]()
    with serving(_app(log)) as base:
        visit = Visit(base, model, "wasm", 1, profile, "capital?", "none", **changes)
        row, browser = await run(visit, log, pieces.append)
    assert "Chrom" in browser
    return row, pieces


async def test_a_run_is_measured(tmp_path: Path) -> None:
    row, pieces = await _visit(tmp_path)
    assert list(row) == [
        *("backend", "visit", "adapter", "reply", "tokens", "prefill_tok_s", "decode_tok_s"),
        *("first_token_ms", "ready_ms", "python_ms", "compile_ms", "download_ms", "upload_ms"),
        *("longest_task_ms", "mem_peak_mb", "heap_peak_mb", "network_bytes", "server_requests"),
    ]
    assert (row["reply"], row["tokens"], row["ready_ms"]) == ("Paris, of course.", 3, 13)
    assert "".join(pieces) == row["reply"] and len(pieces) > 1
    assert len(PAGE) + len(WORKER) <= row["network_bytes"] < len(PAGE) + len(WORKER) + 1000
    assert row["server_requests"] in (2, 3)  # the browser may ask for an icon
    assert 119 < row["heap_peak_mb"] < 130
    json.dumps(row)


def test_times_are_measured_unwatched(tmp_path: Path) -> None:
    with serving(_app(Log())) as base:
        report = quiet.report(f"{base}/?auto=1&device=wasm&report=1", tmp_path, "none", 60)
        with pytest.raises(DeviceError, match="page failed"):
            quiet.report(f"{base}/?auto=1&report=1&model=broken", tmp_path, "none", 60)
    assert report["adapter"] == "wasm"
    assert numbers(report)["ready_ms"] == 13


def test_memory_is_measured_unwatched(tmp_path: Path) -> None:
    with serving(_app(Log())) as base:
        cost = quiet.load_cost(f"{base}/?auto=1&rest=1", tmp_path, "none", 60)
        with pytest.raises(DeviceError, match="page failed"):
            quiet.load_cost(f"{base}/?auto=1&rest=1&model=broken", tmp_path, "none", 60)
    assert cost is not None
    assert 110 * MB < cost < 140 * MB  # 120 MB in a worker


async def test_what_goes_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no such model"):
        await _visit(tmp_path, "broken")
    with pytest.raises(DeviceError, match="too long"):
        await _visit(tmp_path, timeout=0.01)


def test_the_table_has_all_that_was_measured() -> None:
    numbers = {key: 1500 for _, key, _ in demo._COLUMNS}
    row = numbers | {"backend": "wasm", "visit": 2, "adapter": "a CPU", "mem_peak_mb": None}
    text = demo.table({"browser": "Chromium", "runs": [row]})
    assert "1.50" in text and "–" in text and "a CPU" in text
