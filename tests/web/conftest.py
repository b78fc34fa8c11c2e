"""Fixtures for tests in Chromium: an origin, a persistent profile, a page with an executor."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, Playwright, sync_playwright

from fanlight.runtime import chromium
from tests.web.origin import Origin

# Every test's page has `executor`, a channel to a fresh executor worker, and these helpers.
START = """async () => {
  const { Channel } = await import('/fanlight/web/protocol.js');
  window.connect = () => new Channel(
    new Worker('/fanlight/web/executor_worker.js', { type: 'module', name: 'executor' }));
  window.executor = window.connect();
  window.bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  window.hex = (array) => Array.from(array, (b) => b.toString(16).padStart(2, '0')).join('');
  window.outcome = (promise) => promise.then(
    (value) => ({ value }), ({ code, message }) => ({ code, message }));
}"""


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    server = Origin()
    yield server
    server.close()


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as driver:
        yield driver


@pytest.fixture(scope="session")
def context(
    playwright: Playwright, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrowserContext]:
    """One browser for all tests; a persistent profile, as incognito ones have a small quota."""
    program = chromium.find()
    if program is None:
        pytest.skip("no Chromium here")
    flags = chromium.flags("swiftshader", sandbox=os.geteuid() != 0)
    browser = playwright.chromium.launch_persistent_context(
        tmp_path_factory.mktemp("profile"), executable_path=program, headless=True, args=flags
    )
    yield browser
    browser.close()


def start(context: BrowserContext, url: str) -> Page:
    """A page with an executor."""
    page = context.new_page()
    page.on("console", lambda message: print("console:", message.text))
    page.on("pageerror", lambda error: print("page error:", error))
    page.goto(url)
    page.evaluate(START)
    return page


@pytest.fixture
def page(context: BrowserContext, origin: Origin) -> Iterator[Page]:
    """An isolated page."""
    page = start(context, f"{origin.base}/page")
    yield page
    page.close()


@pytest.fixture
def plain_page(context: BrowserContext, origin: Origin) -> Iterator[Page]:
    """A page without cross-origin isolation."""
    page = start(context, f"{origin.base}/plain")
    yield page
    page.close()
