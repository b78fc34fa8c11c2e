"""Which executor runs a plan here, and what it offers to the compiler.

CPython: wgpu or wasmtime. In the page (Pyodide): the executor's worker, through ``pyodide.py``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from fanlight.errors import DeviceError, InputError, MissingDependencyError
from fanlight.plan import Plan
from fanlight.runtime.session import File, ProgressCallback, Session

Device = Literal["auto", "webgpu", "wasm"]
DEVICES = ("auto", "webgpu", "wasm")


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """``features``: what the compiler may use; ``max_binding``: bytes of one storage binding."""

    target: Literal["webgpu", "wasm"]
    features: frozenset[str]
    max_binding: int
    adapter: str


class Backend(Protocol):
    @property
    def info(self) -> BackendInfo: ...

    async def load(
        self, plan: Plan, files: Mapping[str, File], progress: ProgressCallback | None = None
    ) -> Session:
        """Weights to the device, kernels ready. Raises DeviceError, StoreError, PlanError."""
        ...


def check_device(device: str) -> Device:
    """``device`` if it names one; InputError otherwise."""
    match device:
        case "auto" | "webgpu" | "wasm":
            return device
    raise InputError("unknown device", got=device, wanted=", ".join(DEVICES))


async def choose(device: str = "auto", *, relaxed_simd: bool = False) -> Backend:
    """The backend for ``device``. ``auto``: WebGPU on a real GPU that passes the known-answer test,
    else WebAssembly.

    ``relaxed_simd`` lets WebAssembly fuse multiplications and additions: faster, and no longer bit
    for bit the same on every machine.
    """
    wanted = check_device(device)
    if sys.platform == "emscripten":
        from fanlight.runtime import pyodide

        found = await pyodide.backends(wanted, relaxed_simd=relaxed_simd)
    else:
        found = _backends(wanted, relaxed_simd)
    best = found[0]
    return best if len(found) == 1 or await _trusted(best, found[-1]) else found[-1]


_verdicts: dict[BackendInfo, bool] = {}


async def _trusted(gpu: Backend, cpu: Backend) -> bool:
    """Whether the GPU's numbers are right; tested once."""
    from fanlight.runtime import known_answers

    if gpu.info not in _verdicts:
        error = await known_answers.error_of(gpu, cpu)
        _verdicts[gpu.info] = error <= known_answers.BOUND
        if error > known_answers.BOUND:
            text = f"{gpu.info.adapter} gives wrong numbers (NMSE {error:.1e}): WebAssembly is used"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
    return _verdicts[gpu.info]


def _backends(wanted: Device, relaxed_simd: bool) -> list[Backend]:
    """Best first; the last is sure to work. One only, unless ``auto`` has a choice."""
    if wanted == "wasm":
        return [_Wasm(relaxed_simd)]
    from fanlight.runtime import gpu

    try:
        found = gpu.probe()
    except (DeviceError, MissingDependencyError):
        if wanted == "webgpu":
            raise
        return [_Wasm(relaxed_simd)]
    if wanted == "auto" and found.fallback:
        return [_Wasm(relaxed_simd)]
    best = _Gpu(BackendInfo("webgpu", found.features, found.max_binding, found.adapter))
    return [best] if wanted == "webgpu" else [best, _Wasm(relaxed_simd)]


class _Gpu:
    """wgpu, on its own choice of adapter."""

    def __init__(self, info: BackendInfo) -> None:
        self.info = info

    async def load(
        self, plan: Plan, files: Mapping[str, File], progress: ProgressCallback | None = None
    ) -> Session:
        from fanlight.runtime import gpu

        return await gpu.load(plan, files, progress=progress)


class _Wasm:
    """wasmtime, one thread."""

    def __init__(self, relaxed_simd: bool) -> None:
        features = frozenset({"relaxed-simd"} if relaxed_simd else ())
        self.info = BackendInfo("wasm", features, 4 << 30, "wasmtime")

    async def load(
        self, plan: Plan, files: Mapping[str, File], progress: ProgressCallback | None = None
    ) -> Session:
        from fanlight.runtime import wasm

        return await wasm.load(plan, files, progress=progress)
