"""Executor of webgpu plans in CPython, on wgpu. In: a plan and its files. Out: a session.

All that can be made at load is made at load: buffers, pipelines, bind groups. A run writes the
uniform if a dim changed and replays the steps; consecutive dispatches share one pass. Buffers of
free size grow, and only then are bind groups made anew. The twin is ``web/gpu.js``. Knows nothing
of models.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from fanlight import shapes
from fanlight.errors import AbortedError, DeviceError, PlanError
from fanlight.plan import (
    LOAD_DIMS,
    STAGING,
    Branch,
    Call,
    Copy,
    Dispatch,
    Loop,
    Plan,
    Read,
    Step,
    Weight,
)
from fanlight.runtime.arguments import Arguments
from fanlight.runtime.chunks import total_bytes, weight_chunks
from fanlight.runtime.gpu_device import (
    FEATURES,
    Probe,
    adapter_name,
    device_errors,
    features_of,
    find_adapter,
    import_wgpu,
    own_names,
    probe,
)
from fanlight.runtime.gpu_parts import GpuParts
from fanlight.runtime.session import File, Held, KernelTime, Progress, ProgressCallback, SessionInfo
from fanlight.runtime.sizes import BufferSizes
from fanlight.runtime.timing import Stopwatch
from fanlight.shapes import Size

_IN_FLIGHT = 2
_WINDOW = 8 << 20  # bytes written to the queue before the earlier ones must have been taken
_CHUNK = 4 << 20
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


async def load(
    plan: Plan,
    files: Mapping[str, File],
    *,
    adapter: str | None = None,
    progress: ProgressCallback | None = None,
) -> GpuSession:
    """A session with all weights resident and the program ``load`` run.

    PlanError, DeviceError, StoreError or MissingDependencyError: then nothing is left behind.
    """
    if plan.target != "webgpu":
        raise PlanError("not a plan for webgpu", got=plan.target)
    found = find_adapter(adapter)
    wanted = {*plan.features, *(f for k in plan.kernels for f in k.features)}
    missing = wanted - features_of(found)
    if missing:
        raise PlanError(
            "the device lacks features that the plan needs",
            got=", ".join(sorted(missing)),
            hint="Compile again for this device.",
        )
    with device_errors("the GPU gave no device"):
        device = found.request_device_sync(
            required_features=own_names(wanted), required_limits=dict(found.limits)
        )
    session = GpuSession(plan, device, adapter_name(found))
    try:
        await session.load(files, progress or _silent)
    except BaseException:
        await session.dispose()
        raise
    return session


def _silent(progress: Progress) -> None:
    pass


class GpuSession:
    """See ``runtime/session.py``. Made by :func:`load`."""

    def __init__(self, plan: Plan, device: Any, adapter: str) -> None:
        self.plan, self._device = plan, device
        self._queue = device.queue
        self._flags = import_wgpu().BufferUsage
        self.info = SessionInfo("webgpu", adapter, plan.resident_bytes())
        host = [d for d in plan.dims if d.dim.kind == "host"]
        self._values = {d.dim.name: 0 if d.free else d.dim.max for d in host}  # in the plan's order
        self._sizes = BufferSizes(plan, {})
        self._arguments = Arguments(plan, self._sizes)
        self._most_groups = int(device.limits["max-compute-workgroups-per-dimension"])
        self._parts = GpuParts(plan, device, self._sizes)
        self._stale = True  # the uniform holds other values
        self._encoder: Any = None
        self._pass: Any = None
        self._set = -1  # pipeline that is set in the pass
        self._in_flight: list[Any] = []
        self._spare: list[Any] = []  # buffers to read back through
        self._lock = asyncio.Lock()
        self._disposed = False
        self._stopwatch: Stopwatch | None = None  # of a profile in progress

    # --- loading

    async def load(self, files: Mapping[str, File], progress: ProgressCallback) -> None:
        """For :func:`load` alone: memory, pipelines, bindings, weights, the program ``load``."""
        with device_errors("the GPU could not hold the plan's buffers"):
            self._parts.allocate()
        started = time.perf_counter()
        for kernel in self.plan.kernels:
            self._parts.make_pipeline(kernel)
        progress(Progress("compile", len(self.plan.kernels), len(self.plan.kernels)))
        self.info.pipelines_ms = (time.perf_counter() - started) * 1e3
        with device_errors("the plan's bindings were refused"):
            self._parts.prepare()
        started = time.perf_counter()
        with device_errors("the weights could not be written"):
            await self._upload(files, progress)
        self.info.upload_ms = (time.perf_counter() - started) * 1e3
        if "load" in self.plan.programs:
            await self.run("load")

    async def _upload(self, files: Mapping[str, File], progress: ProgressCallback) -> None:
        total, done, unsent = total_bytes(self.plan), 0, 0
        staging = self._sizes.bytes.get(STAGING, 0)

        def limit(weight: Weight) -> int:
            return staging if weight.steps else max(_CHUNK, weight.unit)

        async for chunk in weight_chunks(self.plan, files, limit):
            weight = chunk.weight
            if weight.steps:
                self._write(STAGING, 0, chunk.data)
                for name, value in zip(LOAD_DIMS, (chunk.first, chunk.count), strict=True):
                    self._set_dim(name, value)
                await self._play(weight.steps)
                self._submit()
            else:
                self._write(weight.buffer, chunk.first * weight.unit, chunk.data)
            done += len(chunk.data)
            unsent += len(chunk.data)
            progress(Progress("load", done, total))
            if unsent >= _WINDOW:
                await self._idle()
                unsent = 0
        await self._idle()

    # --- the session's calls

    async def run(
        self,
        program: str,
        feeds: Mapping[str, bytes | Held] | None = None,
        dims: Mapping[str, int] | None = None,
    ) -> None:
        """See ``Session.run``. Returns when the work is submitted, at most one submit before it
        unfinished."""
        async with self._turn():
            steps = self._begin(program, feeds or {}, dims or {})
            await self._play(steps)
            await self._room(_IN_FLIGHT - 1)
            self._submit()

    async def profile(
        self,
        program: str,
        feeds: Mapping[str, bytes | Held] | None = None,
        dims: Mapping[str, int] | None = None,
    ) -> list[KernelTime]:
        """See ``Session.profile``. Each dispatch is submitted and waited for by itself: wgpu has
        timestamps, but does not say in what unit. So some 0.1 ms of waiting are in each."""
        async with self._turn():
            steps = self._begin(program, feeds or {}, dims or {})
            await self._idle()
            self._stopwatch = Stopwatch(self.plan)
            try:
                await self._play(steps)
                return self._stopwatch.times()
            finally:
                self._stopwatch = None

    async def read(self, buffer: str, offset: int = 0, length: int | None = None) -> bytes:
        """See ``Session.read``."""
        async with self._turn():
            return await self._take(*self._start_read(buffer, offset, length))

    async def hold(self, buffer: str, length: int) -> Held:
        """See ``Session.hold``."""
        async with self._turn():
            wanted = self._arguments.check_span(buffer, 0, length)
            held = Held(self._arguments.new_name(), wanted)
            self._parts.buffers[held.name] = self._parts.make_buffer(held.name, held.bytes)
            self._sizes.bytes[held.name] = held.bytes
            self._copy_bytes(buffer, 0, held.name, 0, held.bytes)
            self._submit()
            return held

    async def release(self, held: Held) -> None:
        """See ``Session.release``."""
        async with self._lock:
            if self._sizes.bytes.pop(held.name, None) is not None and not self._disposed:
                self._parts.buffers.pop(held.name).destroy()

    async def dims(self) -> dict[str, int]:
        """See ``Session.dims``."""
        async with self._turn():
            return {name: self._values[name] for name in self._arguments.dims}

    async def repeat(
        self, program: str, times: int, read: str, dims: Mapping[str, int] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """See ``Session.repeat``. Other calls may come between two of its runs."""
        behind: list[tuple[Any, Any, int]] = []
        try:
            for _ in range(times):
                async with self._turn():
                    await self._play(self._begin(program, {}, dims or {}))
                    behind.append(self._start_read(read, 0, None))
                if len(behind) == _IN_FLIGHT:
                    async with self._turn():
                        data = await self._take(*behind.pop(0))
                    yield data
            while behind:
                async with self._turn():
                    data = await self._take(*behind.pop(0))
                yield data
        finally:
            for entry in behind:
                if not self._disposed:
                    await self._take(*entry)

    async def dispose(self) -> None:
        """See ``Session.dispose``."""
        async with self._lock:  # the device isn't taken from under a call
            if self._disposed:
                return
            self._disposed = True
            self._pass = self._encoder = None
            with suppress(DeviceError), device_errors("the device is gone"):
                await self._room(0)
            fences = [fence for fence, _, _ in self._in_flight]
            for buffer in (*self._spare, *fences):
                buffer.destroy()
            self._parts.destroy()
            self._device.destroy()

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None, None]:
        """One call at a time; what a failed one had half encoded is dropped."""
        async with self._lock:
            if self._disposed:
                raise AbortedError("the session was disposed")
            try:
                with device_errors("the GPU refused the work"):
                    yield
            except BaseException:
                self._pass = self._encoder = None
                raise

    def _begin(
        self, program: str, feeds: Mapping[str, bytes | Held], dims: Mapping[str, int]
    ) -> tuple[Step, ...]:
        """Checks everything, then applies it."""
        self._arguments.check_run(program, dims)
        try:
            self._sizes.update({**self._values, **dims})
            self._arguments.check_feeds(feeds)
            if self._parts.grow():
                self.info.growths += 1
                self.info.resident_bytes = self._parts.resident_bytes()
        except BaseException:
            self._sizes.update(self._values)
            raise
        for name, value in dims.items():
            self._set_dim(name, value)
        for name, data in feeds.items():
            if isinstance(data, Held):
                self._copy_bytes(data.name, 0, name, 0, data.bytes)
            else:
                self._write(name, 0, data)
        return self.plan.programs[program]

    # --- the steps

    async def _play(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            match step:
                case Dispatch():
                    self._dispatch(step)
                    await self._time(step.kernel)
                case Copy():
                    self._copy(step)
                    await self._time(-1)
                case Read():
                    data = await self._take(*self._start_read(step.buffer, step.offset, 4))
                    (value,) = struct.unpack("<i", data)
                    self._arguments.check_dim(step.dim, value)
                    self._set_dim(step.dim, value)
                case Branch():
                    holds = _COMPARE[step.compare](self._size(step.a), self._size(step.b))
                    await self._play(step.then if holds else step.otherwise)
                case Loop():
                    for _ in range(self._size(step.count)):
                        await self._play(step.body)
                case Call():
                    await self._play(self.plan.programs[step.program])

    def _dispatch(self, step: Dispatch) -> None:
        x, y, z = (self._size(g) for g in step.grid)
        if min(x, y, z) <= 0:
            return
        if max(x, y, z) > self._most_groups:
            raise PlanError(
                "more workgroups than this device has on an axis",
                where=f"kernel {self.plan.kernels[step.kernel].name}",
                got=f"{x} × {y} × {z}",
                wanted=f"at most {self._most_groups}",
                hint="Run with smaller inputs.",
            )
        prepared = self._parts.prepared[id(step)]
        if self._pass is None:
            self._pass = self._commands().begin_compute_pass()
            self._set = -1
        if self._set != prepared.pipeline:
            self._pass.set_pipeline(self._parts.pipelines[prepared.pipeline])
            self._set = prepared.pipeline
        self._pass.set_bind_group(0, prepared.group)
        self._pass.dispatch_workgroups(x, y, z)

    async def _time(self, kernel: int) -> None:
        """Behind a step, where a profile is wanted."""
        if self._stopwatch is not None:
            self._submit()
            await self._room(0)
            self._stopwatch.mark(kernel)

    def _copy(self, step: Copy) -> None:
        source, target = self._size(step.source_offset), self._size(step.target_offset)
        self._copy_bytes(step.source, source, step.target, target, self._size(step.bytes))

    def _copy_bytes(self, source: str, start: int, target: str, at: int, size: int) -> None:
        if size <= 0:
            return
        self._end_pass()
        buffers = self._parts.buffers
        self._commands().copy_buffer_to_buffer(buffers[source], start, buffers[target], at, size)

    def _size(self, size: Size) -> int:
        return size if isinstance(size, int) else shapes.evaluate(size, self._values)

    # --- the queue

    def _commands(self) -> Any:
        if self._encoder is None:
            if self._stale:
                values = [*self._values.values()]
                values += [0] * (-len(values) % 4)
                if values:
                    self._queue.write_buffer(
                        self._parts.uniform, 0, struct.pack(f"<{len(values)}I", *values)
                    )
                self._stale = False
            self._encoder = self._device.create_command_encoder()
        return self._encoder

    def _set_dim(self, name: str, value: int) -> None:
        """What is encoded so far is submitted with the old value first."""
        if name in self._values and self._values[name] != value:
            self._submit()
            self._values[name] = value
            self._stale = True

    def _end_pass(self) -> None:
        if self._pass is not None:
            self._pass.end()
            self._pass = None

    def _submit(self) -> None:
        """Submits what is encoded, with a word to read back that tells when it is done (wgpu 0.32
        can't say it otherwise: ``on_submitted_work_done_async`` raises TypeError)."""
        if self._encoder is not None:
            fence = self._spare_of(4)
            self._end_pass()
            self._encoder.copy_buffer_to_buffer(self._parts.uniform, 0, fence, 0, 4)
            self._finish()
            self._in_flight.append((fence, fence.map_async(import_wgpu().MapMode.READ, 0, 4), 4))

    def _finish(self) -> None:
        self._end_pass()
        commands = self._encoder.finish()
        self._encoder = None
        self._queue.submit([commands])

    async def _room(self, most: int) -> None:
        """Waits until at most ``most`` submits are unfinished."""
        while len(self._in_flight) > most:
            await self._take(*self._in_flight.pop(0))

    async def _idle(self) -> None:
        self._commands()  # an empty submit takes the writes
        self._submit()
        await self._room(0)

    def _write(self, name: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        """In order with what is encoded; padded to 4 bytes."""
        if not len(data):
            return
        most = self._sizes.bytes[name]
        if offset + len(data) > most:
            got = offset + len(data)
            raise PlanError("too many bytes", where=f"buffer {name}", got=got, wanted=most)
        self._submit()
        if len(data) % 4:
            data = bytes(data) + b"\0" * (-len(data) % 4)
        self._queue.write_buffer(self._parts.buffers[name], offset, data)

    def _start_read(self, name: str, offset: int, length: int | None) -> tuple[Any, Any, int]:
        """Submits what is encoded and a copy of the bytes. Returns buffer, promise and length."""
        wanted = self._arguments.check_span(name, offset, length)
        size = max(4, -(-wanted // 4) * 4)
        back = self._spare_of(size)
        self._end_pass()
        self._commands().copy_buffer_to_buffer(self._parts.buffers[name], offset, back, 0, size)
        self._finish()
        return back, back.map_async(import_wgpu().MapMode.READ, 0, size), wanted

    def _spare_of(self, size: int) -> Any:
        """A buffer to read back through, of at least ``size`` bytes; kept for the next time."""
        for i, buffer in enumerate(self._spare):
            if buffer.size >= size:
                return self._spare.pop(i)
        u = self._flags
        return self._device.create_buffer(size=max(size, 256), usage=u.MAP_READ | u.COPY_DST)

    async def _take(self, back: Any, promise: Any, length: int) -> bytes:
        await promise
        data = bytes(back.read_mapped(0, max(4, -(-length // 4) * 4)))[:length]
        back.unmap()
        self._spare.append(back)
        return data


__all__ = ["FEATURES", "GpuSession", "Probe", "load", "probe"]
