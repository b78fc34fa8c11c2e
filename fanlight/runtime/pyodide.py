"""The executor's worker as Python in the page sees it: what the browser offers, files, sessions.

``web/python_worker.js`` registers the JavaScript module ``fanlight_js``; its ``executor`` is a
channel (``web/protocol.js``) to the executor's worker, whose requests are listed in
``web/executor_worker.js``. Small bytes cross: a header, the plan once, feeds and results. Weights
never come here.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any, Literal

from fanlight import plan as plans
from fanlight.errors import DeviceError, FanlightError, PlanError
from fanlight.kernels.target import CPU
from fanlight.plan import TIMESTAMPS, Plan
from fanlight.runtime.backend import Backend, BackendInfo
from fanlight.runtime.error_messages import FIELDS, from_message
from fanlight.runtime.session import (
    File,
    Held,
    KernelTime,
    Progress,
    ProgressCallback,
    Session,
    SessionInfo,
)

FEATURES = ("subgroups", "shader-f16", TIMESTAMPS)  # of WebGPU: those that plans may use
_CHUNK = 1 << 20
_MEMORY = 4 << 30  # bytes of WebAssembly's memory


async def backends(
    device: Literal["auto", "webgpu", "wasm"], *, relaxed_simd: bool = False
) -> list[Backend]:
    """Those for ``device``, best first; more than one where ``auto`` has a choice.

    Raises DeviceError."""
    executor = Executor()
    found = await executor.ask("probe", {"device": device})
    infos = offers(found.to_py(), device, relaxed_simd=relaxed_simd)
    return [_Backend(executor, info) for info in infos]


def offers(
    found: Mapping[str, Any],
    device: Literal["auto", "webgpu", "wasm"],
    *,
    relaxed_simd: bool = False,
) -> list[BackendInfo]:
    """As :func:`backends`. ``found``: the executor's reply to ``probe``. Raises DeviceError."""
    gpu = found["webgpu"]
    if device == "webgpu" and not gpu:
        raise DeviceError(
            "this browser offers no WebGPU",
            hint="Choose the device wasm, or turn on graphics acceleration in the browser's "
            "settings and reload.",
        )
    made: list[BackendInfo] = []
    if gpu and (device == "webgpu" or (device == "auto" and not gpu["fallback"])):
        features = frozenset(gpu["features"]) & frozenset(FEATURES)
        features |= {CPU} if gpu["fallback"] else set()
        binding = int(gpu["limits"]["maxStorageBufferBindingSize"])
        made.append(BackendInfo("webgpu", features, binding, str(gpu["name"])))
    if device != "webgpu":
        given = {
            "threads": found["threads"],
            "relaxed-simd": found["relaxed_simd"] and relaxed_simd,
        }
        names = frozenset(name for name, there in given.items() if there)
        made.append(BackendInfo("wasm", names, _MEMORY, "WebAssembly"))
    return made


async def open_model(model: str, progress: ProgressCallback | None = None) -> RemoteFile:
    """The file behind a URL, or a key that ``fanlight_js.opened`` knows. Raises StoreError."""
    executor = Executor()
    found = _bridge().opened.get(model) or await executor.ask(
        "open", {"source": model}, progress=progress, undo=lambda reply: {"file": reply.file}
    )
    return RemoteFile(executor, int(found.file), str(found.name), int(found.size))


async def open_bytes(data: bytes) -> RemoteFile:
    """A file of bytes that are here already; the executor gets them as a Blob."""
    executor = Executor()
    found = await executor.ask(
        "open", {"source": executor.blob(data)}, undo=lambda reply: {"file": reply.file}
    )
    return RemoteFile(executor, int(found.file), "the model's bytes", int(found.size))


class RemoteFile:
    """A file that the executor holds. ``handle`` is its number there."""

    def __init__(self, executor: Executor, handle: int, name: str, size: int) -> None:
        self.handle, self.name, self.size = handle, name, size
        self._executor = executor

    async def close(self) -> None:
        """Lets the executor forget the file. Safe to call twice."""
        await self._executor.ask("dispose", {"file": self.handle})

    async def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; fewer only at the end of the file."""
        span = {"offset": offset, "length": max(0, min(length, self.size - offset))}
        found = await self._executor.ask("read", {"file": self.handle, **span})
        return bytes(found.to_bytes())

    async def stream(self, offset: int, length: int) -> AsyncIterator[bytes]:
        """Through Python, so for small parts only: sessions stream their weights without it."""
        end = offset + length
        for start in range(offset, end, _CHUNK):
            yield await self.read(start, min(_CHUNK, end - start))


class Executor:
    """Requests to the executor's worker. Raises DeviceError where nobody registered one."""

    def __init__(self) -> None:
        self._channel: Any = _bridge().executor
        self._js: Any = importlib.import_module("js")
        self._ffi: Any = importlib.import_module("pyodide.ffi")

    async def ask(
        self,
        request: str,
        fields: Mapping[str, Any] | None = None,
        *,
        plan: bytes | None = None,
        progress: ProgressCallback | None = None,
        chunk: Callable[[bytes], object] | None = None,
        undo: Callable[[Any], Mapping[str, Any]] | None = None,
    ) -> Any:
        """The reply, a JavaScript value. ``plan`` is moved. Cancelling aborts the request and waits
        for its end; if it has succeeded all the same, what ``undo`` names is disposed of."""
        control, options = self._js.AbortController.new(), self._js.Object.new()
        options.signal = control.signal
        message = self._to_js(fields or {})
        if plan is not None:
            message.plan = self._ffi.to_js(plan).buffer
            options.transfer = self._ffi.to_js([message.plan])
        callbacks: dict[str, Any] = {}
        if progress is not None:
            callbacks["onProgress"] = lambda event: progress(_progress(event))
        if chunk is not None:
            callbacks["onChunk"] = lambda data: chunk(bytes(data.to_bytes()))
        proxies = {name: self._ffi.create_proxy(call) for name, call in callbacks.items()}
        for name, proxy in proxies.items():
            setattr(options, name, proxy)
        reply = asyncio.ensure_future(self._channel.request(request, message, options))
        try:
            # Not awaited itself: cancelling a promise's future would break the promise.
            await asyncio.wait([reply])
            return reply.result()
        except asyncio.CancelledError:
            control.abort()
            await asyncio.gather(reply, return_exceptions=True)
            if undo is not None and reply.exception() is None:
                await self.ask("dispose", undo(reply.result()))
            raise
        except self._ffi.JsException as error:
            raise _error(error) from None
        finally:
            for proxy in proxies.values():
                proxy.destroy()

    async def stream(self, request: str, fields: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """The chunks of a request. Closing the iterator aborts it and waits for its end."""
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        reply = asyncio.ensure_future(self.ask(request, fields, chunk=chunks.put_nowait))
        reply.add_done_callback(lambda _: chunks.put_nowait(None))
        try:
            while (chunk := await chunks.get()) is not None:
                yield chunk
            await reply
        finally:
            reply.cancel()
            await asyncio.gather(reply, return_exceptions=True)

    def blob(self, data: bytes) -> Any:
        """A JavaScript Blob of ``data``."""
        return self._js.Blob.new(self._ffi.to_js([self._ffi.to_js(data)]))

    def _to_js(self, fields: Mapping[str, Any]) -> Any:
        return self._ffi.to_js(fields, dict_converter=self._js.Object.fromEntries)


class _Backend:
    def __init__(self, executor: Executor, info: BackendInfo) -> None:
        self._executor, self.info = executor, info

    async def load(
        self, plan: Plan, files: Mapping[str, File], progress: ProgressCallback | None = None
    ) -> Session:
        handles = {}
        for name, file in files.items():
            if not isinstance(file, RemoteFile):
                raise PlanError(
                    "the executor can't read this file", where=name, got=type(file).__name__
                )
            handles[name] = file.handle
        reply = await self._executor.ask(
            "load",
            {"files": handles},
            plan=plans.encode(plan),
            progress=progress,
            undo=lambda reply: {"session": reply.session},
        )
        return RemoteSession(self._executor, int(reply.session), _info(reply.info))


class Kept:
    """What an earlier visit kept: ``notes`` (JSON) of the task, and ``encoder`` of its tokeniser,
    an object of ``web/text.js``. The executor is loading its plan already."""

    def __init__(self, loading: int, notes: str, encoder: Any) -> None:
        self.notes: dict[str, Any] = json.loads(notes)
        self.encoder, self._loading = encoder, loading

    async def session(self) -> Session:
        """The session, once it is loaded. Raises PlanError, StoreError, DeviceError."""
        executor = Executor()
        reply = await executor.ask("loaded", {"loading": self._loading})
        return RemoteSession(executor, int(reply.session), _info(reply.info))


def kept(model: str) -> Kept | None:
    """What the page has found of an earlier visit for a key that ``fanlight_js.opened`` knows."""
    found = _bridge().opened.get(model)
    if not found or found.kept.loading is None:
        return None
    return Kept(int(found.kept.loading), str(found.kept.notes), found.kept.encoder)


async def keep(model: str, session: Session, notes: Mapping[str, Any], encoder: Any) -> None:
    """Keeps a session's plan for later visits, with all that :class:`Kept` has; ``encoder``: the
    tokenizer's."""
    found = _bridge().opened.get(model)
    if found and found.kept.key is not None:
        assert isinstance(session, RemoteSession)
        await _bridge().keep(session.handle, found.kept.key, json.dumps(notes), encoder.js)


class RemoteSession:
    """See ``runtime/session.py``."""

    def __init__(self, executor: Executor, handle: int, info: SessionInfo) -> None:
        self._executor, self.handle, self.info = executor, handle, info

    async def run(
        self,
        program: str,
        feeds: Mapping[str, bytes | Held] | None = None,
        dims: Mapping[str, int] | None = None,
    ) -> None:
        await self._executor.ask("run", self._run_fields(program, feeds, dims))

    async def profile(
        self,
        program: str,
        feeds: Mapping[str, bytes | Held] | None = None,
        dims: Mapping[str, int] | None = None,
    ) -> list[KernelTime]:
        rows = await self._executor.ask("profile", self._run_fields(program, feeds, dims))
        return [KernelTime(r.kernel, int(r.dispatches), float(r.ms)) for r in rows]

    def _run_fields(
        self,
        program: str,
        feeds: Mapping[str, bytes | Held] | None,
        dims: Mapping[str, int] | None,
    ) -> dict[str, Any]:
        given = {n: v.name if isinstance(v, Held) else v for n, v in (feeds or {}).items()}
        fields = {"program": program, "feeds": given, "dims": dict(dims or {})}
        return {"session": self.handle, **fields}

    async def read(self, buffer: str, offset: int = 0, length: int | None = None) -> bytes:
        fields: dict[str, Any] = {"session": self.handle, "buffer": buffer, "offset": offset}
        if length is not None:
            fields["length"] = length
        return bytes((await self._executor.ask("readBuffer", fields)).to_bytes())

    async def hold(self, buffer: str, length: int) -> Held:
        fields = {"session": self.handle, "buffer": buffer, "length": length}
        return Held(str(await self._executor.ask("hold", fields)), length)

    async def release(self, held: Held) -> None:
        await self._executor.ask("release", {"session": self.handle, "held": held.name})

    async def dims(self) -> dict[str, int]:
        found = await self._executor.ask("dims", {"session": self.handle})
        return {str(name): int(value) for name, value in found.to_py().items()}

    def repeat(
        self, program: str, times: int, read: str, dims: Mapping[str, int] | None = None
    ) -> AsyncGenerator[bytes, None]:
        fields = {"program": program, "times": times, "read": read, "dims": dict(dims or {})}
        return self._executor.stream("repeat", {"session": self.handle, **fields})

    async def dispose(self) -> None:
        await self._executor.ask("dispose", {"session": self.handle})


def _bridge() -> Any:
    """The JavaScript module that Python's worker registers."""
    try:
        return importlib.import_module("fanlight_js")
    except ModuleNotFoundError as error:
        raise DeviceError(
            "this Python has no executor to run models on",
            hint="fanlight.js starts one beside its own Python: use that, or Fanlight's page. "
            "A Python that something else started can compile models, but not run them yet.",
        ) from error


def _progress(event: Any) -> Progress:
    return Progress(str(event.stage), int(event.done), int(event.total))


def _info(info: Any) -> SessionInfo:
    fields = info.to_py()
    return SessionInfo(**{name: fields[name] for name in SessionInfo.__slots__})


def _error(error: Any) -> FanlightError:
    """A JavaScript exception as ours; one of ``web/errors.js`` by its code."""
    message = str(error.message)
    known = {name: str(getattr(error, name, "")) for name in FIELDS}
    return from_message(known | {"message": message, "what": known["what"] or message})
