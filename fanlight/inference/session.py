"""``InferenceSession``: any ONNX model, tensors in and tensors out, the same in CPython and in the
page.

The model is compiled once, for the device; dims that the model leaves free come from the tensors of
each run, and no shader is compiled again for other ones. Not here: training, sequences, maps and
strings as values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fanlight import shapes
from fanlight.compiler import CompileOptions, compile_module
from fanlight.errors import AbortedError, DeviceError, InputError, UnsupportedError
from fanlight.inference.device_tensor import ON_DEVICE, DeviceTensor
from fanlight.inference.files import ModelFiles
from fanlight.inference.signature import TensorInfo, signature_of
from fanlight.inference.tensor import Tensor, as_tensor, dtype_of, nbytes
from fanlight.ir.graph import Module
from fanlight.plan import LOAD_DIMS, THREADS, TIMESTAMPS, FileSource, Plan
from fanlight.runtime.backend import BackendInfo, Device, choose
from fanlight.runtime.session import (
    File,
    Held,
    KernelTime,
    ProgressCallback,
    Session,
    SessionInfo,
)
from fanlight.runtime.timing import added

PROVIDERS = ("webgpu", "wasm")
_RESERVED = (*LOAD_DIMS, THREADS)
MAX_DIM = 1 << 20  # of a dim that the model leaves free

_Run = Callable[[str, Mapping[str, "bytes | Held"], Mapping[str, int]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Options:
    """What :meth:`InferenceSession.create` was asked for, checked."""

    providers: tuple[Device, ...]
    overrides: Mapping[str, int]
    relaxed_simd: bool
    profile: bool = False


def check_options(
    execution_providers: Sequence[str] = PROVIDERS,
    free_dimension_overrides: Mapping[str, int] | None = None,
    relaxed_simd: bool = True,
    profile: bool = False,
) -> Options:
    """Raises InputError for providers that there are not, or sizes that are none."""
    overrides = dict(free_dimension_overrides or {})
    for name, size in overrides.items():
        if type(size) is not int or size < 0:
            raise InputError("not a size", where=f"free dimension {name}", got=repr(size))
    names = tuple(execution_providers)
    if not names or isinstance(execution_providers, str) or set(names) - set(PROVIDERS):
        wanted = " or ".join(PROVIDERS)
        raise InputError("unknown execution providers", got=execution_providers, wanted=wanted)
    # webgpu where it is a real GPU that gives right numbers, else the next one
    providers: tuple[Device, ...] = ("wasm",)
    if names == ("webgpu",):
        providers = ("webgpu",)
    elif names[0] == "webgpu":
        providers = ("auto", "wasm")
    return Options(providers, overrides, relaxed_simd, profile)


class InferenceSession:
    """A loaded model. Make one with ``await fanlight.InferenceSession.create(model)``.

    ``inputs``, ``outputs``: names, element types and shapes, in the model's order. ``metadata``:
    what the model says of itself. ``info``: the executor's.
    """

    def __init__(self, session: Session, plan: Plan) -> None:
        self._session, self._plan = session, plan
        self._signature = signature_of(plan)
        self._buffers = {b.name: b for b in plan.buffers}
        self._bounded = any(spec.bound is not None for spec in plan.dims)
        self._stages = stages_of(plan)
        self._turn = asyncio.Lock()
        self._disposed = False
        self.inputs, self.outputs = self._signature.inputs, self._signature.outputs
        self.metadata: Mapping[str, Any] = plan.metadata.get("model", {})

    @classmethod
    async def create(
        cls,
        model: str | Path | bytes | bytearray | memoryview,
        *,
        execution_providers: Sequence[str] = PROVIDERS,
        free_dimension_overrides: Mapping[str, int] | None = None,
        input_values: Mapping[str, Any] | None = None,
        relaxed_simd: bool = True,
        profile: bool = False,
        progress: ProgressCallback | None = None,
    ) -> InferenceSession:
        """A session for ``model``: a path (CPython), a URL or the file's bytes. External data lie
        beside it.

        ``execution_providers``: ``webgpu`` and ``wasm``, the preferred one first; webgpu is passed
        over where it is no real GPU, or lacks something that the model needs, and wasm follows.
        ``free_dimension_overrides``: symbol → size, fixed while compiling. ``input_values``: input
        → tensor, for inputs that sizes or axes are made of; ``run`` doesn't take them any more.
        ``relaxed_simd``: WebAssembly may fuse multiplications and additions, and so round once
        where others round twice; without, results are the same bit for bit on every machine.
        ``profile``: for :meth:`profile`; on WebAssembly all runs are a little slower then.
        Raises StoreError, FormatError, UnsupportedError (all unknown operators at once),
        InputError, DeviceError. Cancelling the call aborts it.
        """
        options = check_options(
            execution_providers, free_dimension_overrides, relaxed_simd, profile
        )
        made: InferenceSession | None = None
        try:
            async with ModelFiles(model, progress) as files:
                module = await import_onnx(files, options.overrides, input_values)
                weights = await files.all_of(module)
                made = await cls.from_module(module, weights, options, progress)
        except BaseException:  # an abort that comes while the files are closed
            if made is not None:
                await made.dispose()
            raise
        return made

    @classmethod
    async def from_module(
        cls,
        module: Module,
        files: Mapping[str, File],
        options: Options,
        progress: ProgressCallback | None = None,
    ) -> InferenceSession:
        """A session for a module that was made elsewhere; ``files``: those of its weights."""
        failed: dict[str, UnsupportedError] = {}
        for device in options.providers:
            backend = await choose(device, relaxed_simd=options.relaxed_simd)
            if backend.info.target in failed:
                continue
            try:
                plan = compile_for(module, backend.info, options.profile)
                signature_of(plan)  # complains before anything is loaded
            except UnsupportedError as error:
                failed[backend.info.target] = error
                continue
            return cls(await backend.load(plan, files, progress), plan)
        raise next(iter(failed.values()))

    @property
    def info(self) -> SessionInfo:
        """Times in ms and sizes in bytes, of the executor."""
        return self._session.info

    async def run(
        self,
        feeds: Mapping[str, Any],
        fetches: Iterable[str] | Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The outputs by name, Tensors. ``feeds``: input → array, buffer, Tensor or DeviceTensor of
        this session. ``fetches``: the names of the outputs that are wanted, all if None; a mapping
        may give the memory (a writable buffer of the right size) that an output goes to, None, or
        ``"device"``: that output stays there, as a DeviceTensor.

        Raises InputError that names the input, what came and what was wanted; DeviceError where
        memory is short. Cancelling the call aborts it; the session can be used again.
        """
        wanted = self._fetches(fetches)
        used, dims = self._given(feeds)
        async with self._turn:
            self._check_alive()
            await self._run_stages(self._session.run, used, dims)
            if self._bounded:
                dims |= await self._session.dims()
            reads = [
                self._read(self._signature.output(name), dims, isinstance(target, str))
                for name, target in wanted.items()
            ]
            results: dict[str, Any] = dict(zip(wanted, await asyncio.gather(*reads), strict=True))
        for name, target in wanted.items():
            if target is not None and not isinstance(target, str):
                results[name] = _write(name, results[name], target)
        return results

    async def profile(self, feeds: Mapping[str, Any], *, runs: int = 5) -> list[KernelTime]:
        """What each kernel costs in a run, the most costly first: the mean of ``runs`` runs, after
        one that warms up. Steps that ``run`` overlaps come one after the other here.

        Browsers round a GPU's times to 0.1 ms, so that short kernels need more runs. Raises as
        ``run``, and InputError where the session was made without ``profile``.
        """
        if type(runs) is not int or runs < 1:
            raise InputError("not a number of runs", got=repr(runs))
        used, dims = self._given(feeds)
        rows: list[KernelTime] = []

        async def timed(
            program: str, feeds: Mapping[str, bytes | Held], dims: Mapping[str, int]
        ) -> None:
            rows.extend(await self._session.profile(program, feeds, dims))

        async with self._turn:
            self._check_alive()
            for number in range(1 + runs):
                if number == 1:
                    rows.clear()
                await self._run_stages(timed, used, dict(dims))
        return added(runs, rows)

    def _given(self, feeds: Mapping[str, Any]) -> tuple[dict[str, bytes | Held], dict[str, int]]:
        """What a run's inputs hold, by buffer, and the dims they show. Raises InputError."""
        for name, value in feeds.items():
            if isinstance(value, DeviceTensor) and value.session is not self._session:
                raise InputError("a tensor of another session", where=f"input {name}", got=value)
        tensors = {name: self._tensor(name, value) for name, value in feeds.items()}
        dims = self._signature.dims(tensors)
        used = {
            info.buffer: _content(tensors[info.name])
            for info in self.inputs
            if info.buffer in self._buffers
        }
        return used, dims

    def _check_alive(self) -> None:
        if self._disposed:
            raise AbortedError("the session was disposed")

    async def _run_stages(
        self, run: _Run, feeds: Mapping[str, bytes | Held], dims: dict[str, int]
    ) -> None:
        """Runs one program after the other; adds to ``dims`` the sizes that the model computes."""
        maxima = {spec.dim.name: spec.dim.max for spec in self._plan.dims}
        for stage in self._stages:
            known = {name: size for name, size in dims.items() if name in maxima}
            await run(stage["program"], feeds, known)
            feeds = {}
            for name, buffer in stage["reads"].items():
                data = await self._session.read(buffer, 0, 4)
                dims[name] = int.from_bytes(data, "little", signed=True)
                if not 0 <= dims[name] <= maxima[name]:
                    wanted = f"0 to {maxima[name]}"
                    where = f"size {name}"
                    raise InputError(
                        "the model made a size that can't be",
                        where=where,
                        got=dims[name],
                        wanted=wanted,
                    )

    @property
    def external(self) -> list[str]:
        """Names of the files beside the model's own that have weights."""
        sources = [w.source for w in self._plan.weights]
        return sorted({s.file for s in sources if isinstance(s, FileSource)} - {""})

    def described(self) -> dict[str, Any]:
        """As JSON values, for a page that runs the executor's session ``handle`` itself."""
        from fanlight.runtime import pyodide

        assert isinstance(self._session, pyodide.RemoteSession)
        return {"handle": self._session.handle, **description(self._plan)}

    async def dispose(self) -> None:
        """Gives all memory back, after the run in progress. The session can't be used any more."""
        async with self._turn:
            self._disposed = True
            await self._session.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.dispose()

    # --- inside

    def _tensor(self, name: str, value: Any) -> Tensor | DeviceTensor:
        if isinstance(value, DeviceTensor):
            return value
        try:
            return as_tensor(value)
        except InputError as error:
            raise InputError(
                error.what, where=f"input {name}", got=error.got, wanted=error.wanted
            ) from error

    def _fetches(self, fetches: Iterable[str] | Mapping[str, Any] | None) -> dict[str, Any]:
        if isinstance(fetches, str):
            raise InputError("fetches are a list of names", got=fetches)
        wanted = [info.name for info in self.outputs] if fetches is None else list(fetches)
        for name in wanted:
            self._signature.output(name)
        given = fetches if isinstance(fetches, Mapping) else {}
        for name, target in given.items():
            if isinstance(target, str) and target != ON_DEVICE:
                where, wanted_here = f"output {name}", f"a buffer, None or {ON_DEVICE!r}"
                raise InputError("no place", where=where, got=target, wanted=wanted_here)
        return {name: given.get(name) for name in wanted}

    async def _read(
        self, info: TensorInfo, dims: Mapping[str, int], stays: bool
    ) -> Tensor | DeviceTensor:
        shape = tuple(shapes.evaluate(size, dims) for size in info.sizes)
        size = nbytes(dtype_of(info.dtype), shape)
        if stays:
            held = await self._session.hold(info.buffer, -(-size // 4) * 4)
            return DeviceTensor(self._session, held, info.dtype, shape)
        data = await self._session.read(info.buffer, 0, -(-size // 4) * 4) if size else b""
        return Tensor(memoryview(data)[:size], info.dtype, shape)


def _content(tensor: Tensor | DeviceTensor) -> bytes | Held:
    return tensor.held if isinstance(tensor, DeviceTensor) else bytes(tensor.data)


def stages_of(plan: Plan) -> list[dict[str, Any]]:
    """The programs of a run in order, each with the outputs to read sizes from: dim → name."""
    stages: list[dict[str, Any]] = plan.metadata.get("stages", [{"program": "main", "reads": {}}])
    return stages


def description(plan: Plan) -> dict[str, Any]:
    """What ``web/inference.js`` has to know of an ONNX model's plan to run it, as JSON values."""
    signature = signature_of(plan)
    buffers = {buffer.name for buffer in plan.buffers}

    def row(info: TensorInfo) -> dict[str, Any]:
        sizes = [shapes.to_json(size) for size in info.sizes]
        buffer = info.buffer if info.buffer in buffers else None
        fields = {"name": info.name, "type": info.dtype, "shape": list(info.shape)}
        return {**fields, "sizes": sizes, "buffer": buffer}

    dims = [spec.dim for spec in plan.dims if spec.dim.kind == "host"]
    return {
        "inputs": [row(info) for info in signature.inputs],
        "outputs": [row(info) for info in signature.outputs],
        "maxima": {dim.name: dim.max for dim in dims if dim.name not in _RESERVED},
        "bounded": any(spec.bound is not None for spec in plan.dims),
        "stages": stages_of(plan),
        "metadata": dict(plan.metadata.get("model", {})),
    }


def compile_for(module: Module, info: BackendInfo, profile: bool = False) -> Plan:
    """The plan of an imported model for a device. Raises UnsupportedError, GraphError; DeviceError
    for a ``profile`` where the GPU tells no times."""
    if profile and info.target == "webgpu" and TIMESTAMPS not in info.features:
        hint = "Profile with the execution provider wasm, or in another browser."
        raise DeviceError("this GPU offers no timestamps", where=info.adapter, hint=hint)
    options = CompileOptions(info.target, info.features, info.max_binding, profile=profile)
    return compile_module(module, options)


async def import_onnx(
    files: ModelFiles, overrides: Mapping[str, int], input_values: Mapping[str, Any] | None = None
) -> Module:
    """The module of an ONNX file, all of its symbols free."""
    from fanlight.formats.onnx import read_model
    from fanlight.importers.onnx import Value, import_model

    model = await read_model(files.main.read, files.main.size)
    tensors = {name: as_tensor(value) for name, value in (input_values or {}).items()}
    values = {name: Value(x.shape, bytes(x.data)) for name, x in tensors.items()}
    module = await import_model(
        model, read=files.read, overrides=overrides, max_dim=MAX_DIM, values=values
    )
    for dim in module.dims:
        module.free.setdefault(dim.name, None)
    return module


def _write(name: str, tensor: Tensor, target: Any) -> Tensor:
    """``tensor`` in the caller's memory."""
    where = f"output {name}"
    view = memoryview(target)
    if view.readonly or not view.c_contiguous:
        raise InputError("memory that can't be written as a whole", where=where)
    if view.nbytes != tensor.nbytes:
        got, wanted = f"{view.nbytes} bytes", f"{tensor.nbytes} for {tensor}"
        raise InputError("memory of another size", where=where, got=got, wanted=wanted)
    if tensor.nbytes:
        view.cast("B")[:] = tensor.data
    return Tensor(view.cast("B") if view.nbytes else b"", tensor.dtype, tensor.shape)
