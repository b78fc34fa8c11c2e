"""``fanlight run --browser``: the same answer from a real Chromium, by way of a loopback server.

In and out: as ``run.answer_here``. Knows the browser's side only as ``fanlight.js``.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanlight.cli.progress import Bars
from fanlight.cli.run import interrupting, show
from fanlight.errors import AbortedError, DeviceError, MissingDependencyError, StoreError
from fanlight.runtime import chromium
from fanlight.runtime.error_messages import from_message
from fanlight.runtime.session import Progress

if TYPE_CHECKING:
    from playwright.async_api import Page

# Runs in the page. `fanlightTell` is ours: it gets ["progress", event], ["loaded", null] and
# ["piece", text]. `fanlightStop` aborts the loading, then the answer.
SCRIPT = """async ({ task, model, device, prompt, limit, options }) => {
  const { pipeline } = await import(new URL('/fanlight.js', location.href).href);
  const tell = window.fanlightTell;
  const control = new AbortController();
  window.fanlightStop = () => control.abort();
  let told = Promise.resolve();
  try {
    const generator = await pipeline(task, model, {
      device, ...options, signal: control.signal,
      progress: (event) => void tell(['progress', event]),
    });
    await tell(['loaded', null]);
    const answer = generator(prompt, { max_new_tokens: limit });
    window.fanlightStop = () => answer.abort();
    for await (const piece of answer) told = tell(['piece', piece]);
    const result = await answer;
    await told;
    const { backend, adapter } = generator.info;
    const place = `${backend}, ${adapter}, in Chromium`;
    return { ...result, tokens: result.tokens.length, place };
  } catch (error) {
    const { code = 'FanlightError', what = String(error), where = '', hint = '', message } = error;
    return { error: { code, message: message ?? what, what, where, hint } };
  }
}"""


async def answer_in_browser(
    task: str, model: str, prompt: str, device: str, limit: int, options: dict[str, Any]
) -> dict[str, Any]:
    """As ``run.answer_here``."""
    try:
        from fanlight.server.app import create_app
        from fanlight.server.serving import serving
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"serving the page needs {error.name}", hint='Run: pip install "fanlight[browser]"'
        ) from error
    files, address = _place(model)
    fields = {
        "task": task,
        "model": address,
        "device": device,
        "prompt": prompt,
        "limit": limit,
        "options": options,
    }
    with Bars() as bars, serving(create_app(files)) as base:
        async with chromium.launch(webgpu="hardware") as context:
            page = await context.new_page()
            await page.expose_function("fanlightTell", _listener(bars))
            await page.goto(f"{base}/icon.svg")  # the origin, with nothing that runs by itself
            result = await _evaluate(page, fields)
    if "error" in result:
        raise from_message(result["error"])
    return result


def _place(model: str) -> tuple[dict[str, Path], str]:
    """What to serve, and the model's address in the page."""
    if model.startswith(("http://", "https://")):
        return {}, model
    path = Path(model).expanduser()
    if not path.is_file():
        raise StoreError("there is no such file", where=model, hint="Check the path.")
    return {path.name: path}, f"/models/{path.name}"


def _listener(bars: Bars) -> Any:
    def tell(message: list[Any]) -> None:
        kind, value = message
        if kind == "progress":
            bars(Progress(value["stage"], int(value["done"]), int(value["total"])))
        elif kind == "loaded":
            bars.stop()
        else:
            show(value)

    return tell


async def _evaluate(page: Page, fields: dict[str, Any]) -> dict[str, Any]:
    stopping: list[asyncio.Task[Any]] = []

    def stop() -> None:
        stopping.append(asyncio.create_task(page.evaluate("() => window.fanlightStop?.()")))

    from playwright.async_api import Error

    try:
        with interrupting(stop):
            result: dict[str, Any] = await page.evaluate(SCRIPT, fields)
    except Error as error:
        if stopping:  # a terminal's Ctrl-C reaches the browser, too
            raise AbortedError("aborted") from error
        raise DeviceError("the browser went away", got=error.message) from error
    finally:
        await asyncio.gather(*stopping, return_exceptions=True)
    return result
