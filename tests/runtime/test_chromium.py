"""The browser launcher: what is found, what fails, and that WebGPU is there, in workers too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fanlight.errors import DeviceError, InputError
from fanlight.runtime import chromium as browser
from fanlight.server.app import create_app
from fanlight.server.serving import serving

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext

ADAPTER = """async () => {
  const adapter = await navigator.gpu?.requestAdapter();
  return adapter ? adapter.info.architecture : null;
}"""
# The page's policy forbids inline workers, so the worker is a file; its channel is not used.
IN_WORKER = """async () => {
  const worker = new Worker('/test-adapter.js', { type: 'module' });
  const reply = await new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = ({ message }) => reject(new Error(message));
  });
  worker.terminate();
  return reply;
}"""


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with serving(create_app()) as url:
        yield url


def test_unknown_webgpu_is_named() -> None:
    with pytest.raises(InputError, match="got fast, wanted hardware, swiftshader, none"):
        browser.flags("fast")  # type: ignore[arg-type]


def test_a_missing_program_is_not_found() -> None:
    assert browser.find("/no/such/chromium") is None


async def test_launching_a_missing_program_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="no Chromium found"):
        async with browser.launch(executable="/no/such/chromium"):
            pass


async def test_a_program_that_is_no_browser_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="did not start"):
        async with browser.launch(executable="/bin/false"):
            pass


@pytest.mark.browser
async def test_webgpu_on_swiftshader_in_page_and_worker(
    chromium: BrowserContext, base: str
) -> None:
    page = await chromium.new_page()
    try:
        script = f"postMessage(await ({ADAPTER})())"
        await page.route(
            "**/test-adapter.js",
            lambda route: route.fulfill(
                body=script,
                content_type="text/javascript",
                headers={"cross-origin-embedder-policy": "require-corp"},
            ),
        )
        await page.goto(f"{base}/errors.js")
        assert await page.evaluate("crossOriginIsolated") is True
        assert await page.evaluate(ADAPTER) == "swiftshader"
        assert await page.evaluate(IN_WORKER) == "swiftshader"
    finally:
        await page.close()


@pytest.mark.browser
async def test_no_webgpu_and_a_second_visit(base: str, tmp_path: Path) -> None:
    for visit in range(2):
        async with browser.launch(webgpu="none", profile=tmp_path / "profile") as context:
            page = context.pages[0]
            await page.goto(f"{base}/errors.js")
            assert await page.evaluate(ADAPTER) is None
            keys = await page.evaluate(
                "async () => { await caches.open('seen'); return caches.keys() }"
            )
            count = await page.evaluate(
                "() => localStorage.visits = Number(localStorage.visits || 0) + 1"
            )
            assert (keys, count) == (["seen"], visit + 1)
