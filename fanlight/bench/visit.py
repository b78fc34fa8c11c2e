"""One visit of the page by a real Chromium, with everything that is measured about it.

In: a served model, a backend, a profile. Out: the run's row of the report, the answer's pieces as
they come. The page (``web/app.js``) gives its marks, its events and ``fanlightReport``; memory and
network are measured from outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode

from fanlight.bench.memory import HeapSampler, megabytes
from fanlight.bench.traffic import Traffic
from fanlight.errors import DeviceError, FanlightError
from fanlight.runtime import chromium

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page

    from fanlight.server.headers import Access

Backend = Literal["webgpu", "wasm"]
BACKENDS: tuple[Backend, ...] = ("webgpu", "wasm")
_TIMES = (
    *("first_token_ms", "ready_ms", "python_ms", "compile_ms", "download_ms", "upload_ms"),
    "longest_task_ms",
)
_RATES = ("prefill_tok_s", "decode_tok_s")
_LISTEN = """
addEventListener('fanlight:piece', ({ detail }) => fanlightPiece(detail));
new PerformanceObserver((list) => {
  if (list.getEntriesByName('fanlight:ready').length) fanlightReady();
}).observe({ type: 'mark', buffered: true });
"""
_REPORT = "() => globalThis.fanlightReport"
_KEPT = "() => globalThis.fanlightKept"


@dataclass(frozen=True, slots=True)
class Visit:
    """What to do. ``profile``: a folder; a second visit is a restarted browser on the same one.
    ``max_new_tokens``: of the answer.
    ``context``: tokens of the KV cache, the page's own choice if None."""

    base: str
    model: str
    backend: Backend
    number: int
    profile: Path
    prompt: str
    webgpu: chromium.WebGpu = "swiftshader"
    headed: bool = False
    max_new_tokens: int = 256
    context: int | None = None
    timeout: float = 1200.0


@dataclass(slots=True)
class Log:
    """Requests that the server has answered, and bytes of bodies; ``add`` is its ``on_access``."""

    sent: int = 0
    requests: int = 0

    def add(self, access: Access) -> None:
        self.sent += access.sent
        self.requests += 1


async def run(visit: Visit, log: Log, show: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The run's row of the report, and the browser's name. ``show`` gets the answer's pieces.

    Raises DeviceError when the page reports a failure or takes longer than ``timeout`` seconds.
    """
    sent_before, asked_before = log.sent, log.requests
    async with _page(visit.webgpu, visit.profile, visit.headed) as page, _timeout(visit.timeout):
        ready = asyncio.Event()
        await page.expose_function("fanlightPiece", lambda piece: show(piece))
        await page.expose_function("fanlightReady", lambda: ready.set())
        await page.add_init_script(_LISTEN)
        version = await _version(page)
        heap = await HeapSampler.attach(page)
        traffic = await Traffic.attach(page)
        await page.goto(address(visit))
        await heap.start()
        reporting = asyncio.ensure_future(page.evaluate(_REPORT))
        loading = asyncio.ensure_future(ready.wait())
        await asyncio.wait((loading, reporting), return_when=asyncio.FIRST_COMPLETED)
        loading.cancel()
        await heap.stop()
        report = await reporting
        if "error" in report:
            error = report["error"]
            raise DeviceError("the page failed", got=f"{error['code']}: {error['message']}")
        await page.evaluate(_KEPT)  # the next visit is one without network
        network = max(traffic.bytes, log.sent - sent_before)
        asked = log.requests - asked_before
    return _row(visit, report, network, asked, heap.peak), version


async def best_webgpu(base: str) -> chromium.WebGpu:
    """``hardware`` where Chromium finds a real GPU, else ``swiftshader``."""
    script = """async () => {
      const adapter = await navigator.gpu?.requestAdapter();
      return Boolean(adapter) && !adapter.info.isFallbackAdapter;
    }"""
    try:
        async with chromium.launch(webgpu="hardware") as context:
            page = await _first_page(context)
            await page.goto(base)  # WebGPU wants a secure origin
            return "hardware" if await page.evaluate(script) else "swiftshader"
    except FanlightError:
        return "swiftshader"


def numbers(report: dict[str, Any]) -> dict[str, Any]:
    """What the page itself reports of a visit, by the names of the demo's report."""
    found = {key: report[key] for key in ("adapter", "reply", "tokens")}
    found |= {key: _rounded(report.get(key), 2) for key in _RATES}
    return found | {key: _rounded(report.get(key), 0) for key in _TIMES}


def _row(
    visit: Visit, report: dict[str, Any], network: int, asked: int, heap: int
) -> dict[str, Any]:
    """All of the report's numbers, in its order, but ``mem_peak_mb``."""
    row = {"backend": visit.backend, "visit": visit.number} | numbers(report)
    row |= {"mem_peak_mb": None, "heap_peak_mb": megabytes(heap)}
    return row | {"network_bytes": network, "server_requests": asked}


def _rounded(value: float | None, digits: int) -> float | int | None:
    if value is None:
        return None
    return round(value, digits) if digits else round(value)


def address(visit: Visit, **more: int) -> str:
    """The page's address; ``more``: parameters of it."""
    query = {
        "model": visit.model,
        "device": visit.backend,
        "prompt": visit.prompt,
        "max_new_tokens": visit.max_new_tokens,
        "auto": 1,
    }
    if visit.context is not None:
        query["context"] = visit.context
    return f"{visit.base}/?{urlencode(query | more)}"


@asynccontextmanager
async def _page(webgpu: chromium.WebGpu, profile: Path, headed: bool) -> AsyncIterator[Page]:
    async with chromium.launch(webgpu=webgpu, profile=profile, headless=not headed) as context:
        yield await _first_page(context)


async def _first_page(context: BrowserContext) -> Page:
    return context.pages[0] if context.pages else await context.new_page()


async def _version(page: Page) -> str:
    devtools = await page.context.new_cdp_session(page)
    version: str = (await devtools.send("Browser.getVersion"))["product"]
    await devtools.detach()
    return version


@asynccontextmanager
async def _timeout(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise DeviceError("the page took too long", wanted=f"at most {seconds:.0f} s") from error
