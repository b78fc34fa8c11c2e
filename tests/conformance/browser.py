"""Runs cases in headless Chromium: on our executors, and on onnxruntime-web beside them.

``chromium-wasm``, ``chromium-webgpu``: plans are compiled in CPython (the page's Python is the
same, and slower), for what this browser offers, and run by the page's ``InferenceSession`` and its
executor's worker. ``ort-web-wasm``, ``ort-web-webgpu``: onnxruntime-web's own sessions. Its webgpu
leaves what it can't do to its CPU, 64-bit floats among it, and says nothing; a case counts as it
comes. WebGPU is SwiftShader.

What is ``unsupported`` on either side: no session can be made, as an operator, an opset or an
element type is unknown; or JavaScript has no tensors of an element type. A case that hangs, or
takes its worker or the GPU with it, has failed, and the others go on in a new browser. One that
fails with an error on a page that others ran on before is tried again on a new one, which decides.
"""

from __future__ import annotations

import asyncio
import base64
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from playwright.async_api import Error as BrowserError
from playwright.async_api import Page
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from fanlight import plan as plans
from fanlight.errors import InputError, UnsupportedError
from fanlight.importers.onnx import ValuesNeededError
from fanlight.inference.files import ModelFiles
from fanlight.inference.session import compile_for, description, import_onnx
from fanlight.inference.tensor import Tensor
from fanlight.runtime import chromium, pyodide
from fanlight.runtime.backend import BackendInfo
from fanlight.server.headers import AddHeaders
from fanlight.server.serving import serving
from tests.conformance.cases import Array, Case, cases
from tests.conformance.run import ERRORS, judged

ROOT = Path(__file__).resolve().parent.parent.parent
ORT = "node_modules/onnxruntime-web/dist"
BACKENDS = ("chromium-wasm", "chromium-webgpu", "ort-web-wasm", "ort-web-webgpu")
SCRIPT = "<script type=module src=/tests/conformance/page.js></script>"
PAGE = f"<!doctype html><title>cases</title>{SCRIPT}"
SECONDS = 60.0  # that a case may take
SHOW = 200  # cases between two lines of progress
#: what onnxruntime-web says where it has no code for an operator, an attribute, an opset or a type
UNKNOWN = (
    "Could not find an implementation for",
    "Failed to find kernel for",
    "!node_provider_type.empty() was false",  # no provider has a kernel
    "No Op registered for",
    "is not currently registered or supported",
    "Unrecognized attribute:",
    "unsupported data type:",
    "unsupported type:",
    "is not a registered function/op",
    "is under development and support for this is limited",
    "Unsupported model IR version",
    "Type Error: Type 'tensor(",
)


def app() -> Starlette:
    """The page, our JavaScript and onnxruntime-web's files; cross-origin isolated."""

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE)

    return Starlette(
        routes=[
            Route("/", page),
            Mount("/tests/conformance", StaticFiles(directory=ROOT / "tests/conformance")),
            Mount("/fanlight/web", StaticFiles(directory=ROOT / "fanlight/web")),
            Mount(f"/{ORT}", StaticFiles(directory=ROOT / ORT)),
        ],
        middleware=[Middleware(AddHeaders, isolated=True)],
    )


class Lab:
    """One page of one browser on one backend; async context manager. ``page``: the one now."""

    def __init__(self, base: str, backend: str) -> None:
        family, provider = backend.rsplit("-", 1)
        self._base, self._engine = base, "ort" if family == "ort-web" else "fanlight"
        self._provider: Literal["webgpu", "wasm"] = "webgpu" if provider == "webgpu" else "wasm"
        self._browser = AsyncExitStack()
        self.page: Page | None = None
        self._used = False
        self._info: BackendInfo | None = None

    async def __aenter__(self) -> Self:
        await self.fresh_browser()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._browser.aclose()

    async def outcome(self, case: Case) -> tuple[str, str]:
        """As ``run.outcome``."""
        try:
            fields = await self._fields(case)
        except UnsupportedError as error:
            return "unsupported", str(error)
        except ERRORS as error:
            return "failed", f"{type(error).__name__}: {error}"
        try:
            reply = await self._run(fields)
            if _failed(reply) and self._used:
                await self.fresh_page()
                reply = await self._run(fields)
        except (TimeoutError, BrowserError) as error:
            print(f"a new browser after {case.name}", file=sys.stderr, flush=True)
            await self.fresh_browser()
            return "failed", f"{type(error).__name__}: {str(error) or f'{SECONDS:.0f} s'}"
        self._used = True
        if "outputs" in reply:
            got = [_array(output) for output in reply["outputs"]]
            narrow = self._engine == "fanlight" and self._provider == "webgpu"
            return judged(case, got, narrow=narrow)
        if _failed(reply):
            await self.fresh_page()
        why = "{stage}: {code}: {message}".format_map(reply["error"])
        return ("failed" if _failed(reply) else "unsupported"), why

    async def _run(self, fields: dict[str, Any]) -> dict[str, Any]:
        assert self.page is not None
        running = self.page.evaluate("(fields) => engine.run(fields)", fields)
        reply: dict[str, Any] = await asyncio.wait_for(running, SECONDS)
        return reply

    async def _fields(self, case: Case) -> dict[str, Any]:
        model = case.model.SerializeToString()
        fields = {"model": _text(model)}
        if self._info is None:
            feeds = {name: _packed(x) for name, x in case.inputs.items()}
            return fields | {"feeds": feeds, "wanted": [o.name for o in case.model.graph.output]}
        plan = await _compiled(case, model, self._info)
        described = description(plan)
        feeds = {row["name"]: _packed(case.inputs[row["name"]]) for row in described["inputs"]}
        return fields | {
            "plan": _text(plans.encode(plan)),
            "described": described,
            "feeds": feeds,
        }

    async def fresh_page(self) -> None:
        if self.page is not None:
            await self.page.close()
        self.page, self._used = await self._context.new_page(), False
        await self.page.goto(self._base)
        await self.page.wait_for_function("() => globalThis.engines")
        found = await self.page.evaluate(
            "([name, provider]) => (globalThis.engine = engines[name](provider)).probe()",
            [self._engine, self._provider],
        )
        self._info = pyodide.offers(found, self._provider)[0] if found else None

    async def fresh_browser(self) -> None:
        await self._browser.aclose()
        self.page = None
        self._context = await self._browser.enter_async_context(chromium.launch())
        await self.fresh_page()


async def _compiled(
    case: Case, model: bytes, info: BackendInfo, names: tuple[str, ...] = ()
) -> plans.Plan:
    """``names``: inputs whose values are given while compiling, as sizes are made of them."""
    values = {name: case.inputs[name] for name in names}
    try:
        async with ModelFiles(model, None) as files:
            return compile_for(await import_onnx(files, {}, values), info)
    except ValuesNeededError as needed:
        if set(needed.names) <= set(names):
            raise
        return await _compiled(case, model, info, (*names, *needed.names))


def _failed(reply: dict[str, Any]) -> bool:
    """Whether it is an error that doesn't mean "unsupported"."""
    if "outputs" in reply:
        return False
    stage, code, message = (reply["error"][key] for key in ("stage", "code", "message"))
    unknown = any(text in message for text in UNKNOWN)
    return not (unknown or stage == "tensor" or code == "UnsupportedError")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _packed(array: Array) -> dict[str, Any]:
    try:
        tensor = Tensor(array)
    except InputError as error:
        raise UnsupportedError(error.what, got=error.got) from error
    return {"type": tensor.dtype, "dims": list(tensor.shape), "data": _text(bytes(tensor.data))}


def _array(packed: dict[str, Any]) -> Array:
    data = base64.b64decode(packed["data"])
    return np.asarray(Tensor(data, packed["type"], packed["dims"]))


def run(backend: str, names: list[str]) -> list[tuple[str, str, str]]:
    """(name, outcome, why) of each."""
    wanted = set(names)
    return asyncio.run(_run_all(backend, [case for case in cases() if case.name in wanted]))


async def _run_all(backend: str, found: list[Case]) -> list[tuple[str, str, str]]:
    done = []
    with serving(app()) as base:
        async with Lab(base, backend) as lab:
            for number, case in enumerate(found):
                if number % SHOW == 0:
                    print(f"{backend}: {number} of {len(found)}", file=sys.stderr, flush=True)
                done.append((case.name, *await lab.outcome(case)))
    return done
