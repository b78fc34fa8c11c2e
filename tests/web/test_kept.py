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
from tests.inference import onnx_models

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
    onnx_models.write(tmp_path / "small.onnx")
    (tmp_path / "parts").mkdir()
    onnx_models.write(tmp_path / "parts" / "outside.onnx", external=True)
    with serving(create_app(tmp_path)) as base:
        page = context.new_page()
        page.on("console", lambda message: print("console:", message.text))
        page.goto(f"{base}/icon.svg")
        yield page
        page.close()


# An ONNX model's sums, of its URL or its bytes; `changed` adds one byte to its documentation.
RUN = """async ({ model, asBytes, options, changed }) => {
  const { InferenceSession } = await import('/fanlight.js');
  let source = model;
  if (asBytes) source = await (await fetch(model)).arrayBuffer();
  const text = [0x32, 0x01, changed]; // doc_string
  if (changed) source = new Uint8Array([...new Uint8Array(source), ...text]);
  const wanted = { executionProviders: ['wasm'], ...options };
  const session = await InferenceSession.create(source, wanted);
  const floats = (length, f) => Float32Array.from({ length }, (_, i) => f(i));
  const x = { data: floats(2 * 48, Math.sin), dims: [1, 2, 48] };
  const bias = { data: floats(40, Number), dims: [1, 1, 40] };
  const { joined } = await session.run({ x, bias });
  const found = { data: Array.from(joined.data), dims: joined.dims, inputs: session.inputs };
  await session.dispose();
  return found;
}"""


def run(page: Page, **given: Any) -> tuple[dict[str, Any], bool]:
    """What the model gives in a page loaded anew, and whether Python was started for it."""
    page.reload()
    asked = {"model": "/models/small.onnx", "asBytes": False, "options": {}, "changed": 0}
    found: dict[str, Any] = page.evaluate(RUN, asked | given)
    return found, any("python_worker" in worker.url for worker in page.workers)


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


@pytest.mark.parametrize("as_bytes", [False, True], ids=["url", "bytes"])
def test_sessions_start_without_python(page: Page, as_bytes: bool) -> None:
    first, python = run(page, asBytes=as_bytes)
    assert python
    kept(page, 1)
    second, python = run(page, asBytes=as_bytes)
    assert not python
    assert second == first
    _, python = run(page, asBytes=as_bytes, options={"freeDimensionOverrides": {"seq": 2}})
    assert python
    kept(page, 2)


def test_bytes_are_known_by_their_content(page: Page) -> None:
    run(page, asBytes=True, changed=65)
    kept(page, 1)
    assert run(page, asBytes=True, changed=66)[1]
    kept(page, 2)
    assert not run(page, asBytes=True, changed=65)[1]


def test_a_spoilt_plan_of_a_session_is_made_again(page: Page) -> None:
    first, _ = run(page)
    kept(page, 1)
    page.evaluate(SPOIL)
    assert run(page) == (first, True)


def test_models_of_several_files_are_compiled_each_time(page: Page) -> None:
    first, _ = run(page, model="/models/parts/outside.onnx")
    assert run(page, model="/models/parts/outside.onnx") == (first, True)
    kept(page, 0)
