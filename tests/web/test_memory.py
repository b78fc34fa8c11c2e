"""What loading a large file costs: a worker's heap never holds more than a few chunks of it."""

from __future__ import annotations

import base64
import random

import pytest
import wasmtime
from playwright.sync_api import Page

from fanlight.plan import Buffer, FileSource, Plan, Target, WasmModule, Weight, encode
from tests.web.heap import watch
from tests.web.origin import Origin, Served

pytestmark = pytest.mark.browser
MB = 1 << 20
SIZE, PARTS = 300 * MB, 10

DOWNLOAD = """async ({url}) => {
  const { file, size } = await executor.request('open', { source: url });
  const stats = await executor.request('wait', { file });
  await executor.request('read', { file, offset: size - 8, length: 8 });
  return stats;
}"""
LOAD = """async ({url, plan}) => {
  const { file } = await executor.request('open', { source: url });
  const fields = { plan: bytes(plan).buffer, files: { model: file } };
  const begin = performance.now();
  const { session, info } = await executor.request('load', fields);
  const ms = performance.now() - begin;
  const span = { session, buffer: 'w7', offset: 4096, length: 16 };
  return { ms, info, part: hex(await executor.request('readBuffer', span)) };
}"""


def plan(target: Target) -> str:
    """Weights that take the file as it is."""
    step = SIZE // PARTS
    module = bytes(wasmtime.wat2wasm('(module (import "env" "memory" (memory 1 65536)))'))
    weights = [
        Weight(f"w{i}", FileSource("model", i * step, step), 4, f"w{i}") for i in range(PARTS)
    ]
    made = Plan(
        target=target,
        dims=(),
        buffers=tuple(Buffer(w.name, "weight", step) for w in weights),
        weights=tuple(weights),
        kernels=(),
        programs={},
        segments=(module,) if target == "wasm" else (),
        wasm=WasmModule(0, False, 1024, 0, 64, ()) if target == "wasm" else None,
    )
    return base64.b64encode(encode(made)).decode()


@pytest.fixture
def large(origin: Origin) -> str:
    """The address of 300 MB."""
    if "large" not in origin.files:
        origin.files["large"] = Served(b"".join(random.Random(i).randbytes(MB) for i in range(300)))
    return f"{origin.base}/files/large"


def test_download(page: Page, large: str) -> None:
    seen = watch(page, DOWNLOAD, {"url": large})
    print(f"download: peak {seen.peak / MB:.1f} MB in {seen.samples} samples, {seen.result}")
    assert seen.samples > 3
    assert seen.peak < 48 * MB


@pytest.mark.parametrize("visit", [1, 2])
@pytest.mark.parametrize("target", ["webgpu", "wasm"])
def test_load(page: Page, origin: Origin, large: str, target: Target, visit: int) -> None:
    if visit == 1:
        page.evaluate("(url) => executor.request('remove', { url })", large)
    seen = watch(page, LOAD, {"url": large, "plan": plan(target)})
    name = f"{target}, visit {visit}"
    print(f"{name}: peak {seen.peak / MB:.1f} MB in {seen.samples} samples, {seen.result}")
    at = 7 * (SIZE // PARTS) + 4096
    assert seen.result["part"] == origin.files["large"].data[at : at + 16].hex()
    assert seen.samples > 3
    assert seen.peak < 48 * MB  # DevTools doesn't count a WebAssembly memory
