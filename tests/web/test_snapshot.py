"""Python's snapshots: made in a real Chromium, restored in another page; what if there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import snapshot
from playwright.sync_api import BrowserContext, Page, Route

from fanlight.server.app import WEB, create_app
from fanlight.server.serving import serving
from tests import gguf_files

pytestmark = pytest.mark.browser

# A Python worker of the page's own, with what its `boot` found.
BOOT = """async () => {
  const { Channel } = await import('/protocol.js');
  const python = new Channel(new Worker('/python_worker.js', { type: 'module' }));
  return python.request('status');
}"""
# fanlight is imported, its bytecode is the zip's, and it works: it compiles a model and answers.
ANSWER = """async () => {
  const { pipeline } = await import('/fanlight.js');
  const generator = await pipeline('text-generation', '/models/tiny.gguf', { device: 'wasm' });
  const { tokens } = await generator('the ocean', { max_new_tokens: 4 });
  await generator.dispose();
  return tokens.length;
}"""
WITHOUT_JSPI = "delete WebAssembly.Suspending; delete WebAssembly.promising;"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python")
    snapshot.fill(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    gguf_files.write(folder / "tiny.gguf", gguf_files.Model())
    with serving(create_app(folder)) as base:
        yield base


@contextmanager
def page(context: BrowserContext, base: str) -> Iterator[Page]:
    page = context.new_page()
    page.on("console", lambda message: print("console:", message.text))
    page.goto(f"{base}/icon.svg")
    yield page
    page.close()


def serve_files(page: Page, folder: Path, variant: str, damage: str = "") -> None:
    """The page is told of ``folder``'s files, whatever the checkout has; ``damage``: to one."""
    paths = {"zip": "fanlight.zip", "jspi": "jspi.gz", "plain": "plain.gz"}
    if damage == "absent":
        paths = {"zip": "fanlight.zip"}
    named = {kind: f"vendor/python/test/{name}" for kind, name in paths.items()}
    script = f"self.fanlightBundle = {{ version: 'test', python: {named}, files: {{}} }};"
    page.route("**/vendor/bundle.js", lambda route: answer(route, script.encode()))

    def file(route: Route) -> None:
        content = (folder / route.request.url.rpartition("/")[2]).read_bytes()
        if route.request.url.endswith(".gz"):
            assert variant in route.request.url
            if damage == "missing":
                route.abort()
                return
            content = content[: len(content) // 2] if damage == "cut" else content
        answer(route, content, "application/octet-stream")

    page.route("**/vendor/python/test/*", file)


def answer(route: Route, body: bytes, kind: str = "text/javascript") -> None:
    headers = {"cross-origin-embedder-policy": "require-corp"}
    route.fulfill(body=body, content_type=kind, headers=headers)


def boot(page: Page) -> dict[str, Any]:
    status: dict[str, Any] = page.evaluate(BOOT)
    return status


def test_what_was_made(made: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in made.iterdir()}
    assert sizes.keys() == {"fanlight.zip", "jspi.gz", "plain.gz"}
    assert max(sizes.values()) < 8 << 20


def test_it_is_restored_and_works(context: BrowserContext, base: str, made: Path) -> None:
    with page(context, base) as here:
        serve_files(here, made, "jspi")
        status = boot(here)
        assert status["snapshot"], status
        assert here.evaluate(ANSWER) == 4


def test_a_browser_without_jspi(context: BrowserContext, base: str, made: Path) -> None:
    with page(context, base) as here:
        serve_files(here, made, "plain")
        here.route("**/python_worker.js", without_jspi)
        status = boot(here)
        assert status["snapshot"], status
        assert here.evaluate(ANSWER) == 4


def without_jspi(route: Route) -> None:
    answer(route, f"{WITHOUT_JSPI}\n{(WEB / 'python_worker.js').read_text()}".encode())


@pytest.mark.parametrize("damage", ["absent", "missing", "cut"])
def test_python_starts_all_the_same(
    context: BrowserContext, base: str, made: Path, damage: str
) -> None:
    with page(context, base) as here:
        serve_files(here, made, "jspi", damage)
        status = boot(here)
        assert not status["snapshot"]
        assert here.evaluate(ANSWER) == 4
