"""One visit of the page by a real Chromium, with everything that is measured about it.

In: a served model, a backend, a profile. Out: the run's row of the report, the answer's pieces as
they come. What is agreed with the page (``web/app.js``): the address's parameters ``model``,
``device``, ``prompt``, ``auto=1`` (start without a click) and ``hold=1`` (boot Python, wait for
``release()``), and ``window.fanlight``:

    phase       ``python``, ``held``, ``loading``, ``answering``, ``done`` or ``failed``
    answer      the text so far
    error       the message, once failed
    report      the numbers below, as far as they are known; times leave out the time of being held
    release()   ends the hold
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode

from fanlight.bench.memory import HeapSampler, PssSampler, megabytes
from fanlight.errors import DeviceError, FanlightError
from fanlight.runtime import chromium

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page

    from fanlight.server.headers import Access

Backend = Literal["webgpu", "wasm"]
BACKENDS: tuple[Backend, ...] = ("webgpu", "wasm")
_POLL_S = 0.05
_TIMES = ("first_token_ms", "ready_ms", "python_ms", "compile_ms", "download_ms", "upload_ms")
_RATES = ("prefill_tok_s", "decode_tok_s")
_STATE = """() => {
  if (!globalThis.fanlight) return null;
  const { phase, answer, error, report } = globalThis.fanlight;
  return { phase, answer, error, report };
}"""


@dataclass(frozen=True, slots=True)
class Visit:
    """What to do. ``profile``: a folder; a second visit is a restarted browser on the same one.
    ``answer`` False: done once everything is loaded."""

    base: str
    model: str
    backend: Backend
    number: int
    profile: Path
    prompt: str
    webgpu: chromium.WebGpu = "swiftshader"
    headed: bool = False
    answer: bool = True
    timeout: float = 1200.0


@dataclass(slots=True)
class Log:
    """What the server has sent; ``add`` is its ``on_access``."""

    sent: int = 0

    def add(self, access: Access) -> None:
        self.sent += access.sent


async def run(visit: Visit, log: Log, show: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The run's row of the report, and the browser's name. ``show`` gets the answer's pieces.

    Raises DeviceError when the page reports a failure or nothing happens for ``timeout`` seconds.
    """
    sent_before = log.sent
    sampler = PssSampler(visit.profile)
    async with _page(visit) as page, _timeout(visit.timeout):
        heap = await HeapSampler.attach(page)
        version = await _version(page)
        await page.goto(_address(visit))
        await _until(page, "held")
        idle = await asyncio.to_thread(sampler.settled)
        sampler.restart()
        await heap.start()
        with sampler.sampling():
            await page.evaluate("() => void globalThis.fanlight.release()")
            state = await _until(page, "answering")
        await heap.stop()
        if visit.answer:
            state = await _until(page, "done", show)
        sent = log.sent - sent_before
    return _row(visit, state, sent, sampler.peak, idle, heap.peak), version


def _row(
    visit: Visit,
    state: dict[str, Any],
    sent: int,
    peak: int | None,
    idle: int | None,
    heap: int,
) -> dict[str, Any]:
    """The issue's row, its keys in the issue's order."""
    report = state["report"]
    cost = None
    if peak is not None and idle is not None:
        cost = peak - idle - int(report["resident_bytes"])
    row = {
        "backend": visit.backend,
        "visit": visit.number,
        "adapter": report["adapter"],
        "reply": state["answer"],
        "tokens": report.get("tokens", 0),
    }
    row |= {key: _rounded(report.get(key), 2) for key in _RATES}
    row |= {key: _rounded(report.get(key), 0) for key in _TIMES}
    row |= {"mem_peak_mb": megabytes(cost), "heap_peak_mb": megabytes(heap), "network_bytes": sent}
    return row


def _rounded(value: float | None, digits: int) -> float | int | None:
    if value is None:
        return None
    return round(value, digits) if digits else round(value)


@asynccontextmanager
async def _page(visit: Visit) -> AsyncIterator[Page]:
    async with chromium.launch(
        webgpu=visit.webgpu, profile=visit.profile, headless=not visit.headed
    ) as context:
        yield await _first_page(context)


async def _first_page(context: BrowserContext) -> Page:
    return context.pages[0] if context.pages else await context.new_page()


async def _version(page: Page) -> str:
    devtools = await page.context.new_cdp_session(page)
    version: str = (await devtools.send("Browser.getVersion"))["product"]
    await devtools.detach()
    return version


def _address(visit: Visit) -> str:
    query = {"model": visit.model, "device": visit.backend, "prompt": visit.prompt}
    return f"{visit.base}/?{urlencode(query | {'auto': 1, 'hold': 1})}"


@asynccontextmanager
async def _timeout(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise DeviceError("the page took too long", wanted=f"at most {seconds:.0f} s") from error


PHASES = ("python", "held", "loading", "answering", "done")


async def _until(
    page: Page, phase: str, show: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """The page's state once it has reached ``phase``."""
    shown = 0
    while True:
        state = await page.evaluate(_STATE)
        if state is not None:
            if state["phase"] == "failed":
                raise DeviceError("the page failed", got=state["error"])
            if show is not None and len(state["answer"]) > shown:
                show(state["answer"][shown:])
                shown = len(state["answer"])
            if PHASES.index(state["phase"]) >= PHASES.index(phase):
                return dict(state)
        await asyncio.sleep(_POLL_S)


async def best_webgpu(base: str) -> chromium.WebGpu:
    """``hardware`` where Chromium finds a real GPU, else ``swiftshader``."""
    script = """async () => {
      const adapter = await navigator.gpu?.requestAdapter();
      return Boolean(adapter) && !adapter.info.isFallbackAdapter;
    }"""
    try:
        async with chromium.launch(webgpu="hardware") as context:
            page = await _first_page(context)
            await page.goto(f"{base}/plan.js")  # any page of the origin: WebGPU wants a secure one
            return "hardware" if await page.evaluate(script) else "swiftshader"
    except FanlightError:
        return "swiftshader"
