"""The service worker on a plain static host: no network, isolation, updates under a live page."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, Playwright, expect

from fanlight.runtime import chromium
from fanlight.server.app import WEB
from fanlight.server.bundle import bundle_script, python_zip
from tests import gguf_files

pytestmark = pytest.mark.browser

ASK = "model=/models/tiny.gguf&device=wasm&auto=1&prompt=the+ocean&max_new_tokens=4"
WAIT_MS = 120_000


class Handler(SimpleHTTPRequestHandler):
    """A static host that knows no headers of ours; files must be asked for anew every time."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Site:
    """A copy of the page in a folder of its own, and the server, which can go away."""

    folder: Path
    server: ThreadingHTTPServer

    @property
    def app(self) -> Path:
        return self.folder / "app"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/app/"

    def publish(self) -> None:
        """Tells what the page's files are now."""
        (self.app / "vendor" / "bundle.js").unlink(missing_ok=True)  # a link to the checkout's
        (self.app / "vendor" / "bundle.js").write_bytes(bundle_script(python_zip(), self.app))

    def change(self, name: str, more: str) -> None:
        """A new version of one file."""
        text = (self.app / name).read_text() + more
        (self.app / name).unlink()
        (self.app / name).write_text(text)
        self.publish()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    shutil.copytree(WEB, tmp_path / "app", copy_function=os.symlink)
    (tmp_path / "models").mkdir()
    gguf_files.write(tmp_path / "models" / "tiny.gguf", gguf_files.Model())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site = Site(tmp_path, server)
    site.publish()
    yield site
    site.stop()


@pytest.fixture
def browser(playwright: Playwright, tmp_path: Path) -> Iterator[BrowserContext]:
    """A browser of the test's own: nothing is kept in it yet."""
    flags = chromium.flags("none", sandbox=os.geteuid() != 0)
    context = playwright.chromium.launch_persistent_context(
        tmp_path / "profile", executable_path=chromium.find(), headless=True, args=flags
    )
    context.set_default_timeout(WAIT_MS)
    yield context
    context.close()


def visit(browser: BrowserContext, url: str) -> Page:
    """A page that is loaded and, on its first visit, has been reloaded with isolation."""
    page = browser.new_page()
    page.on("console", lambda message: print("console:", message.text))
    page.goto(url)
    page.wait_for_function("() => crossOriginIsolated && window.fanlightKept")
    page.evaluate("() => fanlightKept")
    return page


def reply(page: Page) -> str:
    report = page.evaluate("() => fanlightReport")
    assert "error" not in report, report
    assert report["isolated"]
    text: str = report["reply"]
    return text


def colour(page: Page) -> str:
    """What the newest version of the style sheet says of the page's outline."""
    found: str = page.evaluate("() => getComputedStyle(document.body).outlineColor")
    return found


def test_isolation_then_no_network(site: Site, browser: BrowserContext) -> None:
    page = visit(browser, f"{site.url}?{ASK}")
    first = reply(page)
    threads = page.evaluate("() => fanlightReport.then(({ threads }) => threads)")
    assert threads > 1 or os.cpu_count() == 1
    page.close()
    site.stop()
    page = visit(browser, f"{site.url}?{ASK}")
    assert reply(page) == first
    report = page.evaluate("() => fanlightReport")
    assert (report["network_bytes"], report["compile_ms"]) == (0, 0)


def test_an_update_waits_for_the_page_to_close(site: Site, browser: BrowserContext) -> None:
    page = visit(browser, site.url)
    before = colour(page)
    site.change("app.css", "\nbody { outline-color: rgb(1, 2, 3); }\n")
    site.change("fanlight.js", "\nglobalThis.fanlightUpdated = true;\n")
    page.evaluate("""async () => {
      const registration = await navigator.serviceWorker.getRegistration();
      await registration.update();
      while (!registration.waiting) await new Promise((resolve) => setTimeout(resolve, 50));
    }""")
    # The page that runs goes on with its own version, also what it loads only now.
    text = page.evaluate("async () => (await fetch('app.css')).text()")
    assert "rgb(1, 2, 3)" not in text
    page.locator("#model").fill("/models/tiny.gguf")
    page.locator("#device").select_option("wasm")
    page.locator("#load-form button[type=submit]").click()
    expect(page.locator("#chat")).to_be_visible(timeout=WAIT_MS)
    assert colour(page) == before
    page.close()
    page = visit(browser, site.url)
    for _ in range(20):  # the new one takes over soon after the page has gone, not at once
        if colour(page) == "rgb(1, 2, 3)":
            break
        page.close()
        page = visit(browser, site.url)
    assert colour(page) == "rgb(1, 2, 3)"
    assert page.evaluate("() => fanlightUpdated")
    names = page.evaluate("async () => (await caches.keys()).filter((n) => /-app-/.test(n))")
    assert len(names) == 1
