"""The page in a real Chromium, the real model on WebAssembly: answers, stop, what goes wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import BrowserContext, Page, Playwright, expect
from starlette.types import ASGIApp, Receive, Scope, Send

from fanlight.runtime import chromium
from fanlight.server.app import create_app
from fanlight.server.serving import serving

pytestmark = pytest.mark.browser

QUESTION = "What is the capital of France?"
LOAD_MS = 120_000  # Python, download and compiler on a busy machine
VIOLATIONS = """
window.violations = [];
addEventListener('securitypolicyviolation', (event) => {
  violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


class CutDownloads:
    """An ASGI app around another: while ``cut``, ``/models/cut.gguf`` breaks off after ``size``
    bytes, and later connections bring nothing."""

    def __init__(self, app: ASGIApp, model: Path, size: int) -> None:
        self.app, self.model, self.size = app, model, size
        self.cut = True
        self.tries = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] != "/models/cut.gguf" or not self.cut:
            await self.app(scope, receive, send)
            return
        self.tries += 1
        with self.model.open("rb") as file:
            body = file.read(self.size) if self.tries == 1 else b""
        length = str(self.model.stat().st_size).encode()
        headers = [(b"content-length", length), (b"etag", b'"cut"')]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})


@dataclass
class Visit:
    """An open page and what it asked for and said."""

    page: Page
    base: str
    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def open(self, **query: str) -> None:
        self.page.goto(f"{self.base}/?{urlencode(query)}")

    def report(self) -> dict[str, Any]:
        """``window.fanlightReport``."""
        self.page.set_default_timeout(LOAD_MS)
        found: dict[str, Any] = self.page.evaluate("() => fanlightReport")
        return found

    def error(self) -> str:
        """What the page says went wrong, once it does."""
        box = self.page.locator("#error")
        expect(box).to_be_visible(timeout=LOAD_MS)
        return box.inner_text()


def visit(context: BrowserContext, base: str) -> Visit:
    page = context.new_page()
    found = Visit(page, base)
    page.on("request", lambda request: found.asked.append(request.url))
    page.on("console", lambda message: found.said.append(message.text))
    page.on("pageerror", lambda error: found.said.append(f"page error: {error}"))
    page.add_init_script(VIOLATIONS)
    return found


@contextmanager
def browser(playwright: Playwright, profile: Path, **options: Any) -> Iterator[BrowserContext]:
    """One without WebGPU, of its own."""
    program = chromium.find()
    assert program is not None
    flags = chromium.flags("none", sandbox=os.geteuid() != 0)
    context = playwright.chromium.launch_persistent_context(
        profile, executable_path=program, headless=True, args=flags, **options
    )
    yield context
    context.close()


@pytest.fixture(scope="module")
def base(smollm2_gguf: Path) -> Iterator[str]:
    with serving(create_app({"smollm2.gguf": smollm2_gguf})) as url:
        yield url


@pytest.fixture(scope="module")
def loaded(context: BrowserContext, base: str) -> Iterator[Visit]:
    """A page that was opened with a question."""
    found = visit(context, base)
    found.open(
        model="/models/smollm2.gguf", device="wasm", auto="1", prompt=QUESTION, context="512"
    )
    yield found
    found.page.close()


# --- what works


def test_the_page_answers(loaded: Visit) -> None:
    report = loaded.report()
    assert "Paris" in report.get("reply", ""), report
    assert report["prompt"] == QUESTION
    assert report["backend"] == "wasm"
    assert report["threads"] > 1
    assert report["finish_reason"] == "stop"
    times = "ready_ms python_ms compile_ms download_ms upload_ms first_token_ms done_ms".split()
    assert all(report[name] > 0 for name in times), report
    assert report["prefill_tok_s"] > 0
    assert report["decode_tok_s"] > 0
    assert report["network_bytes"] + report["cache_bytes"] > 90e6
    expect(loaded.page.locator("#log")).to_contain_text("Paris")
    expect(loaded.page.locator(".numbers")).to_contain_text("tokens/s")


def test_nothing_from_elsewhere_and_no_violations(loaded: Visit) -> None:
    loaded.report()
    elsewhere = [url for url in loaded.asked if not url.startswith((loaded.base, "blob:", "data:"))]
    assert not elsewhere
    assert loaded.page.evaluate("() => violations") == []
    assert loaded.said == []


def test_it_stops_and_goes_on(loaded: Visit) -> None:
    loaded.report()
    page = loaded.page
    page.fill("#prompt", "Write a long story about a dragon who learns to read.")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => document.querySelectorAll('.assistant')[1]?.textContent.length > 5"
    )
    page.click("#stop")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(".numbers").last).to_contain_text("stopped")
    expect(page.locator("#prompt")).to_be_focused()
    page.click("#clear")
    expect(page.locator("#log")).to_be_empty()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".assistant")).to_contain_text("Paris", timeout=30_000)
    expect(page.locator("#send")).to_be_visible()


def test_a_prompt_that_is_too_long(loaded: Visit) -> None:
    loaded.report()
    page = loaded.page
    page.fill("#prompt", "word " * 600)
    page.click("#send")
    assert "too long" in loaded.error()
    expect(page.locator("#prompt")).to_have_value(("word " * 600).strip())  # nothing typed is lost
    page.click("#clear")
    page.fill("#prompt", QUESTION)
    page.click("#send")
    expect(page.locator(".assistant")).to_contain_text("Paris", timeout=30_000)
    expect(page.locator("#error")).to_be_hidden()


def test_without_isolation_one_thread_answers(
    playwright: Playwright, smollm2_gguf: Path, tmp_path: Path
) -> None:
    """Where there are no service workers either; ``test_service_worker`` has the other case."""
    with (
        serving(create_app({"smollm2.gguf": smollm2_gguf}, isolated=False)) as base,
        browser(playwright, tmp_path, service_workers="block") as context,
    ):
        found = visit(context, base)
        found.open(model="/models/smollm2.gguf", device="wasm", auto="1", context="512")
        expect(found.page.locator("#chat")).to_be_visible(timeout=LOAD_MS)
        assert "1 thread" in found.page.locator("#summary").inner_text()
        assert "Cross-Origin-Opener-Policy" in found.page.locator("#status").inner_text()
        found.page.fill("#prompt", QUESTION)
        found.page.keyboard.press("Enter")
        expect(found.page.locator(".assistant")).to_contain_text("Paris", timeout=LOAD_MS)


# --- what goes wrong


def test_a_model_that_is_not_there(context: BrowserContext, base: str) -> None:
    found = visit(context, base)
    found.open(model="/models/nothing.gguf", auto="1")
    text = found.error()
    assert "not there" in text
    assert "404" in text
    assert "Check the address" in text
    expect(found.page.locator("#chooser")).to_be_visible()
    assert found.report()["error"]["code"] == "StoreError"
    found.page.close()


def test_a_lost_network(context: BrowserContext, smollm2_gguf: Path) -> None:
    app = create_app({"cut.gguf": smollm2_gguf})
    cut = CutDownloads(app, smollm2_gguf, 9 << 20)
    with serving(cut) as base:
        found = visit(context, base)
        found.open(model="/models/cut.gguf", device="wasm", auto="1", context="512")
        text = found.error()
        assert "network" in text
        assert "StoreError" in text
        assert cut.tries > 1
        cut.cut = False
        found.page.click("#retry")
        expect(found.page.locator("#chat")).to_be_visible(timeout=LOAD_MS)
        found.page.close()


def test_cancel_while_loading(context: BrowserContext, base: str) -> None:
    found = visit(context, base)
    found.open(model="/models/smollm2.gguf?fresh", device="wasm", auto="1")
    found.page.click("#cancel")
    expect(found.page.locator("#chooser")).to_be_visible()
    expect(found.page.locator("#error")).to_be_hidden()
    found.page.close()


def test_no_webgpu(playwright: Playwright, base: str, tmp_path: Path) -> None:
    with browser(playwright, tmp_path) as context:
        found = visit(context, base)
        found.open(model="/models/smollm2.gguf", device="webgpu", auto="1")
        text = found.error()
        assert "no WebGPU" in text
        assert "wasm" in text


# --- what is kept


def test_a_reload_goes_on(context: BrowserContext, base: str) -> None:
    found = visit(context, base)
    page = found.page
    found.open(model="/models/smollm2.gguf", device="wasm", context="512")
    page.click("text=Load model")
    expect(page.locator("#chat")).to_be_visible(timeout=LOAD_MS)
    page.fill("#prompt", QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".numbers")).to_contain_text("first after", timeout=LOAD_MS)
    found.open()  # no model in the address: it is remembered
    expect(page.locator("#log")).to_contain_text("Paris")
    expect(page.locator("#chat")).to_be_visible(timeout=LOAD_MS)
    page.click("#clear")
    page.click("#change")
    row = page.locator("#models li", has_text="smollm2.gguf").first
    expect(row).to_contain_text("kept here")
    found.open()
    expect(page.locator("#chat")).to_be_visible(timeout=LOAD_MS)
    expect(page.locator("#log")).to_be_empty()
    page.evaluate("() => localStorage.clear()")
    page.close()


def test_models_can_be_forgotten(context: BrowserContext, base: str) -> None:
    found = visit(context, base)
    page = found.page
    found.open()
    kept = "(async () => (await import('./fanlight.js')).kept.list())()"
    page.evaluate(
        """async (model) => {
          const { pipeline } = await import('./fanlight.js');
          const made = await pipeline('text-generation', model, { device: 'wasm', context: 64 });
          await made.stats();
          await made.dispose();
        }""",
        "/models/smollm2.gguf?forget",
    )
    assert any(e["url"].endswith("?forget") and e["complete"] for e in page.evaluate(kept))
    found.open()
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#forget-all")
    expect(page.locator("#models")).to_contain_text("on this server")
    expect(page.locator("#models")).not_to_contain_text("here")
    assert page.evaluate(kept) == []
    page.close()


def test_a_dropped_file_is_loaded(context: BrowserContext, base: str) -> None:
    found = visit(context, base)
    page = found.page
    found.open(device="wasm")
    page.evaluate(
        """() => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File(['not a model'], 'wrong.gguf'));
          const options = { dataTransfer, bubbles: true, cancelable: true };
          document.body.dispatchEvent(new DragEvent('drop', options));
        }"""
    )
    assert "wrong.gguf" in found.error() or "GGUF" in found.error()
    page.close()


# --- how it is made


def test_phone_width(context: BrowserContext, base: str) -> None:
    found = visit(context, base)
    found.page.set_viewport_size({"width": 320, "height": 640})
    found.open()
    assert found.page.evaluate("() => document.documentElement.scrollWidth") <= 320
    found.page.close()


def test_keyboard_reaches_everything(context: BrowserContext, base: str) -> None:
    found = visit(context, base)
    found.open(model="/models/smollm2.gguf")
    expect(found.page.locator("#models")).to_be_visible()
    reached = []
    for _ in range(8):
        found.page.keyboard.press("Tab")
        reached.append(found.page.evaluate("() => document.activeElement.textContent.trim()[0]"))
    found.page.close()
    assert reached[0] == "s"  # the model that the server offers
    assert [letter for letter in reached if letter in ("L", "O", "D")] == ["L", "O", "D"]
