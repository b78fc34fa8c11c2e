"""Fanlight in real Pyodide: a module worker, the page's policy, the standard library only."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fanlight.server.app import create_app
from fanlight.server.bundle import python_files
from fanlight.server.headers import Access
from fanlight.server.serving import serving

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page

pytestmark = pytest.mark.browser

WORKER = """
import { loadPyodide } from './vendor/pyodide/pyodide.mjs';
const indexURL = new URL('./vendor/pyodide/', import.meta.url).href;
const python = loadPyodide({ indexURL }).then(async (pyodide) => {
  const zip = await (await fetch('./vendor/fanlight.zip')).arrayBuffer();
  pyodide.unpackArchive(zip, 'zip', { extractDir: '/lib/fanlight' });
  pyodide.runPython("import sys; sys.path.insert(0, '/lib/fanlight')");
  return pyodide;
});
onmessage = async ({ data }) => {
  try {
    postMessage({ value: await (await python).runPythonAsync(data) });
  } catch (error) {
    postMessage({ error: String(error) });
  }
};
"""
RUN = """(code) => new Promise((resolve, reject) => {
  window.worker ??= new Worker('./test-python.js', { type: 'module' });
  window.worker.onmessage = ({ data }) => resolve(data);
  window.worker.onerror = ({ message }) => reject(new Error(message));
  window.worker.postMessage(code);
})"""


# A worker obeys the policy that its own file came with.
POLICY = {"content-security-policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'"}


class Python:
    """Python in the page's worker."""

    def __init__(self, page: Page, requests: list[Access]) -> None:
        self.page, self.requests = page, requests

    async def run(self, code: str) -> Any:
        """The value of the last expression, which must be JSON text."""
        reply = await self.page.evaluate(RUN, code)
        assert "error" not in reply, reply["error"]
        return json.loads(reply["value"])


@pytest.fixture(scope="module")
async def python(chromium: BrowserContext, smollm2_gguf: Path) -> AsyncIterator[Python]:
    requests: list[Access] = []
    models = {"smollm2.gguf": smollm2_gguf}
    with serving(create_app(models, on_access=requests.append)) as base:
        page = await chromium.new_page()
        page.on("console", lambda message: print("console:", message.text))
        headers = {"cross-origin-embedder-policy": "require-corp"}
        await page.route(
            "**/test-python.js",
            lambda route: route.fulfill(
                body=WORKER, content_type="text/javascript", headers=headers | POLICY
            ),
        )
        await page.goto(f"{base}/errors.js")
        yield Python(page, requests)
        await page.close()


def modules() -> list[str]:
    """All modules that the zip holds."""
    return [
        ".".join(("fanlight", *path.with_suffix("").parts)).removesuffix(".__init__")
        for path in python_files()
        if path.suffix == ".py"
    ]


async def test_every_module_imports(python: Python) -> None:
    code = f"""
import importlib, json, sys
for name in {modules()!r}:
    importlib.import_module(name)
tops = {{name.split(".")[0] for name in sys.modules}} - sys.stdlib_module_names
json.dumps([sys.platform, sorted(tops)])
"""
    platform, packages = await python.run(code)
    assert platform == "emscripten"
    pyodide = {"__main__", "_pyodide", "_pyodide_core", "js", "pyodide", "pyodide_js"}
    assert [p for p in packages if p not in pyodide and not p.startswith("_")] == ["fanlight"]


async def test_only_this_server_was_asked(python: Python) -> None:
    """The policy would have stopped anything else; this is what a start needs."""
    await python.run("'1'")
    asked = {entry.path for entry in python.requests}
    names = "pyodide.mjs pyodide.asm.mjs pyodide.asm.wasm pyodide-lock.json python_stdlib.zip"
    vendored = {f"/vendor/pyodide/{name}" for name in names.split()}
    assert asked - {"/favicon.ico"} == {"/errors.js", "/vendor/fanlight.zip", *vendored}


# The same code in both homes: `header` and `small` come from outside, `digests` is the result.
COMPILE = """
import hashlib, time
from fanlight import plan
from fanlight.archs import llama
from fanlight.compiler import CompileOptions, compile_module
from fanlight.formats import gguf
from fanlight.ir.graph import WeightSource

found = gguf.parse(header, file_size=size)
weights = {
    name: WeightSource(t.dtype, t.shape, "model", t.offset, t.length)
    for name, t in found.tensors.items()
}
config = llama.config_from_gguf(found.metadata, {n: w.shape for n, w in weights.items()})
digests = {}
for target, features in (("webgpu", {"subgroups"}), ("wasm", {"threads"})):
    started = time.perf_counter()
    module = llama.build(config, weights, {})
    made = plan.encode(compile_module(module, CompileOptions(target, frozenset(features))))
    took = (time.perf_counter() - started) * 1e3
    digests[target] = [hashlib.sha256(made).hexdigest(), len(made), took]
"""
HEADER = 4 << 20


def _ours(path: Path) -> dict[str, list[Any]]:
    """CPython's digests, lengths and times by target."""
    with path.open("rb") as file:
        names: dict[str, Any] = {"header": file.read(HEADER), "size": path.stat().st_size}
    exec(COMPILE, names)
    digests: dict[str, list[Any]] = names["digests"]
    return digests


async def test_a_real_model_compiles_to_the_same_plan(python: Python, smollm2_gguf: Path) -> None:
    """Byte for byte CPython's plans. The times are printed; the demo reports a free machine's."""
    fetch = f"""
import js, json
from pyodide.ffi import to_js
headers = {{"headers": {{"Range": "bytes=0-{HEADER - 1}"}}}}
options = to_js(headers, dict_converter=js.Object.fromEntries)
response = await js.fetch("/models/smollm2.gguf", options)
header = (await response.arrayBuffer()).to_bytes()
size = int(response.headers.get("content-range").split("/")[1])
"""
    theirs = await python.run(f"{fetch}\n{COMPILE}\njson.dumps(digests)")
    for target, (digest, length, took) in _ours(smollm2_gguf).items():
        print(f"{target}: {length} bytes, {theirs[target][2]:.0f} ms in Pyodide, {took:.0f} here")
        assert theirs[target][:2] == [digest, length]
