"""Plans of earlier visits: loaded without a compile, forgotten where they don't fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from fanlight.server.app import create_app
from fanlight.server.serving import serving
from tests import gguf_files

pytestmark = pytest.mark.browser

ANSWER = """async ({ options, model }) => {
  const { pipeline } = await import('/fanlight.js');
  const generator = await pipeline('text-generation', model, { device: 'wasm', ...options });
  const { tokens, text } = await generator('the ocean <s> and then 😀', { max_new_tokens: 8 });
  await generator.dispose();
  return { tokens, text, info: generator.info };
}"""
# Of all plans that are kept, the first bytes of each become others.
SPOIL = """async () => {
  const cache = await caches.open('fanlight-plans-v1');
  for (const request of await cache.keys()) {
    if (request.url.endsWith('/plan')) await cache.put(request, new Response('not a plan at all'));
  }
}"""
COUNT = """async () => {
  const cache = await caches.open('fanlight-plans-v1');
  const index = await (await cache.match('/.fanlight/plans/v1/index'))?.json();
  return Object.keys(index?.plans ?? {}).length;
}"""


@pytest.fixture
def page(context: BrowserContext, tmp_path: Path) -> Iterator[Page]:
    """Of an origin of its own, on which nothing is kept."""
    for name, vocabulary in (("a.gguf", 0), ("b.gguf", 1)):
        gguf_files.write(tmp_path / name, gguf_files.Model(seed=vocabulary))
    with serving(create_app(tmp_path)) as base:
        page = context.new_page()
        page.on("console", lambda message: print("console:", message.text))
        page.goto(f"{base}/icon.svg")
        yield page
        page.close()


def answer(page: Page, model: str = "/models/a.gguf", **options: Any) -> dict[str, Any]:
    """In a page loaded anew, as on a next visit."""
    page.reload()
    found: dict[str, Any] = page.evaluate(ANSWER, {"options": options, "model": model})
    return found


def compiled(found: dict[str, Any]) -> bool:
    return bool(found["info"]["timings"]["compile_ms"] > 0)


def kept(page: Page, count: int) -> None:
    """Waits until so many plans are kept: that happens behind an answer."""
    page.wait_for_function(f"async () => (await ({COUNT})()) === {count}")


def test_a_second_visit_answers_the_same_without_a_compile(page: Page) -> None:
    first = answer(page)
    assert compiled(first)
    kept(page, 1)
    second = answer(page)
    assert not compiled(second)
    assert (second["tokens"], second["text"]) == (first["tokens"], first["text"])
    assert second["info"]["context"] == first["info"]["context"]


def test_other_options_and_files_are_other_plans(page: Page) -> None:
    answer(page)
    kept(page, 1)
    assert compiled(answer(page, context=64))
    kept(page, 2)
    assert compiled(answer(page, "/models/b.gguf"))
    kept(page, 3)
    assert not compiled(answer(page, context=64))


def test_webgpu(page: Page) -> None:
    first = answer(page, device="webgpu")
    kept(page, 1)
    second = answer(page, device="webgpu")
    assert second["info"]["backend"] == "webgpu"
    assert not compiled(second)
    assert second["tokens"] == first["tokens"]


def test_a_spoilt_plan_is_made_again(page: Page) -> None:
    first = answer(page)
    kept(page, 1)
    page.evaluate(SPOIL)
    again = answer(page)
    assert compiled(again)
    assert again["tokens"] == first["tokens"]


def test_a_changed_file_is_compiled_again(page: Page, tmp_path: Path) -> None:
    answer(page)
    kept(page, 1)
    page.evaluate("async () => caches.delete('fanlight-store-v2')")  # or it would not be asked for
    gguf_files.write(tmp_path / "a.gguf", gguf_files.Model(seed=5))
    assert compiled(answer(page))
