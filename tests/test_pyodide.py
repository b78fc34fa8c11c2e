"""Fanlight in real Pyodide: a module worker, the page's policy, the standard library only."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
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
async def python(chromium: BrowserContext) -> AsyncIterator[Python]:
    requests: list[Access] = []
    with serving(create_app(on_access=requests.append)) as base:
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


# Room for: a model compiles here, in at most 2,000 ms.
