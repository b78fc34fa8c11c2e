"""Executor of wasm plans in CPython, on wasmtime, with one thread. In: a plan and its files. Out: a
session.

One memory holds everything, at offsets fixed at load but for buffers of free size, which lie behind
the others, where a run's dims put them; a run enters the module once and walks the program's steps
inside. The twin is ``web/wasm.js``. Knows nothing of models. Not here: plans that
were compiled for threads.
"""

from __future__ import annotations

import asyncio
import ctypes
import struct
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from fanlight.errors import AbortedError, DeviceError, MissingDependencyError, PlanError
from fanlight.plan import STAGING, THREADS, Buffer, Plan, WasmModule, Weight
from fanlight.runtime.arguments import Arguments
from fanlight.runtime.chunks import total_bytes, weight_chunks
from fanlight.runtime.session import File, Held, KernelTime, Progress, ProgressCallback, SessionInfo
from fanlight.runtime.sizes import BufferSizes
from fanlight.runtime.timing import Stopwatch

_PAGE = 65536
_MAX_PAGES = 65536
_ALIGN = 64
_CHUNK = 4 << 20


async def load(
    plan: Plan, files: Mapping[str, File], *, progress: ProgressCallback | None = None
) -> WasmSession:
    """A session with the weights resident. Raises PlanError, DeviceError, StoreError."""
    if plan.target != "wasm" or plan.wasm is None:
        raise PlanError("not a plan for wasm", got=plan.target)
    if plan.wasm.threads:
        raise PlanError("the plan was compiled for threads", hint="Compile without threads.")
    session = WasmSession(plan, plan.wasm)
    try:
        await session.start(files, progress or (lambda event: None))
    except BaseException:
        await session.dispose()
        raise
    return session


def _wasmtime() -> Any:
    try:
        import wasmtime
    except ImportError as error:
        raise MissingDependencyError(
            "wasmtime is not installed", hint="pip install 'fanlight[native]'"
        ) from error
    return wasmtime


async def _on_thread(function: Callable[..., None], *arguments: object) -> None:
    """Calls ``function`` on another thread, so that the loop goes on; a cancelled caller waits for
    its end, because it uses the memory."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:  # perhaps more than once
            cancelled = error
    if cancelled is not None:
        work.exception()  # taken, so that asyncio doesn't log it
        raise cancelled
    work.result()


class WasmSession:
    """See ``runtime/session.py``. Made by :func:`load`."""

    def __init__(self, plan: Plan, module: WasmModule) -> None:
        self.plan, self._module = plan, module
        self._sizes = BufferSizes(plan, {THREADS: 1})
        self._at = dict.fromkeys((b.name for b in plan.buffers), 0)  # addresses
        free = {b.name for b in self._sizes.free}
        fixed = tuple(b for b in plan.buffers if b.name not in free)
        self._fixed_end = self._lay_out(fixed, module.reserved)
        self._end = self._lay_out(self._sizes.free, self._fixed_end)
        self._arguments = Arguments(plan, self._sizes)
        host = [d for d in plan.dims if d.dim.kind == "host"]
        self._first = {
            d.dim.name: 1 if d.dim.name == THREADS else 0 if d.free else d.dim.max for d in host
        }
        self._dim_at = {d.dim.name: module.dims_at + 4 * i for i, d in enumerate(host)}
        self.info = SessionInfo("wasm", "wasmtime", self._end)
        self._held: dict[str, bytes] = {}  # by name; beside the module's memory
        self._lock = asyncio.Lock()
        self._store: Any = None
        self._stopwatch: Stopwatch | None = None  # of the run in progress

    # --- loading

    async def start(self, files: Mapping[str, File], progress: ProgressCallback) -> None:
        """Makes everything; :func:`load` calls it once."""
        started = time.perf_counter()
        await _on_thread(self._instantiate)
        progress(Progress("compile", 1, 1))
        self.info.pipelines_ms = (time.perf_counter() - started) * 1e3
        started = time.perf_counter()
        self._write_addresses()
        for name, value in self._first.items():
            self._set_dim(name, value)
        await self._upload(files, progress)
        self.info.upload_ms = (time.perf_counter() - started) * 1e3
        if "load" in self.plan.programs:
            await self.run("load")

    def _instantiate(self) -> None:
        wasmtime = _wasmtime()
        config = wasmtime.Config()
        config.wasm_relaxed_simd = True
        engine = wasmtime.Engine(config)
        self._store = wasmtime.Store(engine)
        pages = self._pages("Choose a smaller model or context, or the webgpu device.")
        try:
            kind = wasmtime.MemoryType(wasmtime.Limits(pages, _MAX_PAGES))
            self._memory = wasmtime.Memory(self._store, kind)
            module = wasmtime.Module(engine, self.plan.segments[self._module.segment])
            mark = wasmtime.FuncType([wasmtime.ValType.i32()], [])
            marks = [wasmtime.Func(self._store, mark, self._mark)] if self._module.timed else []
            instance = wasmtime.Instance(self._store, module, [*marks, self._memory])
        except wasmtime.WasmtimeError as error:
            raise DeviceError(
                "the module or its memory can't be made", got=f"{self._end} bytes; {error}"
            ) from error
        self._run = instance.exports(self._store)["run"]
        self._find_base()

    def _mark(self, kernel: int) -> None:
        if self._stopwatch is not None:
            self._stopwatch.mark(kernel)

    def _find_base(self) -> None:
        """Where the memory is; it moves when it grows."""
        address = ctypes.cast(self._memory.data_ptr(self._store), ctypes.c_void_p).value
        assert address is not None
        self._base = address

    def _pages(self, hint: str) -> int:
        """Pages that the layout needs. Raises DeviceError where WebAssembly has fewer."""
        pages = -(-self._end // _PAGE)
        if pages > _MAX_PAGES:
            raise DeviceError(
                "the plan needs more memory than WebAssembly has",
                got=f"{self._end} bytes",
                wanted="at most 4 GiB",
                hint=hint,
            )
        return pages

    def _lay_out(self, buffers: tuple[Buffer, ...], end: int) -> int:
        """Gives ``buffers`` their places from ``end`` on; returns their end."""
        for buffer in buffers:
            self._at[buffer.name] = at = -(-end // _ALIGN) * _ALIGN
            end = at + -(-self._sizes.bytes[buffer.name] // 4) * 4
        return end

    def _write_addresses(self) -> None:
        table = struct.pack(f"<{len(self._at)}I", *self._at.values())
        self._write(self._module.buffers_at, table)

    def _move(self) -> None:
        """Puts the buffers of free size where this run's sizes want them; their bytes are lost."""
        if not self._sizes.free:
            return
        before = self._end, dict(self._at)
        self._end = self._lay_out(self._sizes.free, self._fixed_end)
        try:
            pages = self._pages("Run with smaller inputs.")
            have = self._memory.size(self._store)
            if pages > have:
                most = min(_MAX_PAGES, have * 5 // 4)
                try:
                    self._memory.grow(self._store, max(pages, most) - have)
                except _wasmtime().WasmtimeError as error:
                    raise DeviceError(
                        "the memory for these inputs can't be had",
                        got=f"{self._end} bytes; {error}",
                        hint="Run with smaller inputs.",
                    ) from error
                self._find_base()
                self.info.growths += 1
                self.info.resident_bytes = max(pages, most) * _PAGE
        except DeviceError:
            self._end, self._at = before
            raise
        self._write_addresses()

    async def _upload(self, files: Mapping[str, File], progress: ProgressCallback) -> None:
        total, done = total_bytes(self.plan), 0
        entries = {id(w): f"load/{i}" for i, w in enumerate(self.plan.weights)}
        staging = self._sizes.bytes.get(STAGING, 0)

        def limit(weight: Weight) -> int:
            return staging if weight.steps else max(_CHUNK, weight.unit)

        async for chunk in weight_chunks(self.plan, files, limit):
            weight = chunk.weight
            if weight.steps:
                self._write(self._at[STAGING], bytes(chunk.data) + b"\0" * (-len(chunk.data) % 4))
                self._set_dim("unit_first", chunk.first)
                self._set_dim("unit_count", chunk.count)
                await self._enter(entries[id(weight)])
            else:
                offset = chunk.first * weight.unit
                if offset + len(chunk.data) > self._sizes.bytes[weight.buffer]:
                    raise PlanError("too many bytes", where=f"weight {weight.name}")
                self._write(self._at[weight.buffer] + offset, chunk.data)
            done += len(chunk.data)
            progress(Progress("load", done, total))

    # --- the session's calls

    async def run(
        self,
        program: str,
        feeds: Mapping[str, bytes | Held] | None = None,
        dims: Mapping[str, int] | None = None,
    ) -> None:
        """See ``Session.run``."""
        async with self._lock:
            self._begin(program, feeds or {}, dims or {})
            await self._enter(program)

    async def profile(
        self,
        program: str,
        feeds: Mapping[str, bytes | Held] | None = None,
        dims: Mapping[str, int] | None = None,
    ) -> list[KernelTime]:
        """See ``Session.profile``."""
        async with self._lock:
            self._begin(program, feeds or {}, dims or {})
            self._stopwatch = Stopwatch(self.plan)
            try:
                await self._enter(program)
                return self._stopwatch.times()
            finally:
                self._stopwatch = None

    async def read(self, buffer: str, offset: int = 0, length: int | None = None) -> bytes:
        """See ``Session.read``."""
        async with self._lock:
            self._check_alive()
            length = self._arguments.check_span(buffer, offset, length)
            if buffer in self._held:
                return self._held[buffer][offset : offset + length]
            return self._bytes(self._at[buffer] + offset, length)

    async def hold(self, buffer: str, length: int) -> Held:
        """See ``Session.hold``."""
        async with self._lock:
            self._check_alive()
            wanted = self._arguments.check_span(buffer, 0, length)
            held = Held(self._arguments.new_name(), wanted)
            self._held[held.name] = self._bytes(self._at[buffer], held.bytes)
            self._sizes.bytes[held.name] = held.bytes
            return held

    async def release(self, held: Held) -> None:
        """See ``Session.release``."""
        async with self._lock:
            self._held.pop(held.name, None)
            self._sizes.bytes.pop(held.name, None)

    async def dims(self) -> dict[str, int]:
        """See ``Session.dims``."""
        async with self._lock:
            self._check_alive()
            return self._dims()

    async def repeat(
        self, program: str, times: int, read: str, dims: Mapping[str, int] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """See ``Session.repeat``; other calls may come between two of its runs."""
        for _ in range(times):
            async with self._lock:
                self._begin(program, {}, dims or {})
                length = self._arguments.check_span(read, 0, None)
                await self._enter(program)
                data = self._bytes(self._at[read], length)
            yield data

    async def dispose(self) -> None:
        """See ``Session.dispose``."""
        async with self._lock:
            if self._store is not None:
                self._run = self._memory = None
                self._store.close()
                self._store = None
                self._held.clear()

    # --- inside

    def _begin(
        self, program: str, feeds: Mapping[str, bytes | Held], dims: Mapping[str, int]
    ) -> None:
        self._check_alive()
        self._arguments.check_run(program, dims)
        values = self._dims()
        try:
            self._sizes.update({**values, **dims})
            self._arguments.check_feeds(feeds)
            self._move()
        except BaseException:
            self._sizes.update(values)
            raise
        for name, value in dims.items():
            self._set_dim(name, value)
        for name, data in feeds.items():
            self._write(self._at[name], self._held[data.name] if isinstance(data, Held) else data)

    def _check_alive(self) -> None:
        if self._store is None:
            raise AbortedError("the session was disposed")

    async def _enter(self, entry: str) -> None:
        await _on_thread(self._call, self._module.entries.index(entry), entry)

    def _call(self, number: int, entry: str) -> None:
        wasmtime = _wasmtime()
        try:
            self._run(self._store, number, 0, 1)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            raise DeviceError(
                "the module stopped", where=f"program {entry}", got=error, hint="Load it again."
            ) from error

    def _set_dim(self, name: str, value: int) -> None:
        self._write(self._dim_at[name], struct.pack("<i", value))

    def _dims(self) -> dict[str, int]:
        """The host dims that callers know, as the module has them."""
        at = self._dim_at
        return {n: int.from_bytes(self._bytes(at[n], 4), "little") for n in self._arguments.dims}

    def _write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        raw = bytes(data)
        ctypes.memmove(self._base + address, raw, len(raw))

    def _bytes(self, address: int, length: int) -> bytes:
        return ctypes.string_at(self._base + address, length)
