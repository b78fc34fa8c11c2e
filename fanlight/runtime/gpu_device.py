"""A WebGPU device in CPython, on wgpu: adapters, what they offer, wgpu's errors as ours.

wgpu is imported when first asked for. Knows nothing of plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fanlight.errors import DeviceError, FanlightError, MissingDependencyError
from fanlight.kernels.target import CPU
from fanlight.plan import TIMESTAMPS

FEATURES = ("subgroups", "shader-f16", TIMESTAMPS)


@dataclass(frozen=True, slots=True)
class Probe:
    """A device as the compiler asks about it. ``max_binding``: bytes of one storage binding.
    ``fallback``: a CPU that plays a GPU."""

    adapter: str
    features: frozenset[str]
    max_binding: int
    fallback: bool


def probe(adapter: str | None = None) -> Probe:
    """What the adapter offers; ``adapter`` is a part of its name, None for the fastest.

    Raises MissingDependencyError without wgpu, DeviceError where there is no such adapter.
    """
    found = find_adapter(adapter)
    fallback = found.info["adapter_type"] == "CPU"
    features = {f for f in FEATURES if f in features_of(found)}
    return Probe(
        adapter_name(found),
        frozenset(features | {CPU} if fallback else features),
        int(found.limits["max-storage-buffer-binding-size"]),
        fallback,
    )


def import_wgpu() -> Any:
    try:
        import wgpu  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError(
            "WebGPU in CPython needs wgpu", hint="pip install 'fanlight[native]'"
        ) from error
    return wgpu


def find_adapter(name: str | None) -> Any:
    wgpu = import_wgpu()
    if name is None:
        with device_errors("there is no WebGPU adapter"):
            return wgpu.gpu.request_adapter_sync(power_preference="high-performance")
    found = wgpu.gpu.enumerate_adapters_sync()
    for adapter in found:
        if name.lower() in f"{adapter_name(adapter)} {adapter.info['backend_type']}".lower():
            return adapter
    raise DeviceError("no such adapter", got=name, wanted=[adapter_name(a) for a in found])


def adapter_name(adapter: Any) -> str:
    return str(adapter.info["device"]) or "unnamed adapter"


_OWN_NAMES = {"subgroups": "subgroup"}  # the plan's name → wgpu's


def features_of(adapter: Any) -> set[str]:
    """Names as the plan spells them."""
    plan_names = {own: name for name, own in _OWN_NAMES.items()}
    return {plan_names.get(f, f) for f in adapter.features}


def own_names(features: Iterable[str]) -> list[str]:
    """The plan's names of features as wgpu spells them."""
    return sorted(_OWN_NAMES.get(f, f) for f in features)


@contextmanager
def device_errors(what: str) -> Iterator[None]:
    """wgpu's own errors (validation, out of memory, device lost) become DeviceError."""
    wgpu = import_wgpu()
    try:
        yield
    except FanlightError:
        raise
    except (wgpu.GPUError, RuntimeError) as error:
        raise DeviceError(what, got=str(error).strip()) from error
