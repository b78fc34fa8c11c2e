"""What a target's table returns for a node: kernels with their buffers, in order.

A ``WgslKernel``'s text declares no bindings: the linker (``codegen/wgsl/link.py``) writes them as
``b0, b1, …`` from ``bindings``, and one function ``dim_NAME() -> u32`` for each dim in ``dims``,
which reads the uniform (host) or the dim's state buffer (device). A ``WasmKernel``'s function takes
the buffers' addresses (i32 each), then ``args`` (i32 each), then ``tid`` and ``threads`` (i32), and
computes the share of thread ``tid``; ``emit`` writes its body. Kernels of equal ``name`` are one
kernel, so the name says everything that the code depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, Union

from fanlight.plan import Access
from fanlight.shapes import Dim, Size

if TYPE_CHECKING:
    from fanlight.codegen.wasm.encoder import Function


@dataclass(frozen=True, slots=True)
class Binding:
    """``type`` is the WGSL store type, e.g. ``array<vec4<u32>>``."""

    type: str
    access: Access


@dataclass(frozen=True, slots=True)
class WgslKernel:
    """``text``: helper functions and ``@compute @workgroup_size(…) fn main(…)``; no bindings, no
    enable."""

    name: str
    text: str
    bindings: tuple[Binding, ...]
    dims: tuple[Dim, ...] = ()
    features: tuple[str, ...] = ()


def _more(args: Sequence[Size]) -> None:
    return None


@dataclass(frozen=True, slots=True)
class WasmKernel:
    """``emit(function)`` fills a function of ``buffers + args + 2`` i32 parameters without a
    result.

    ``writes``: which buffers it writes, and reads no element of that it has not written itself;
    the others it only reads. None: it may do anything to all of them. ``scratch``: bytes that each
    thread has to itself in the last buffer, in the order of threads; 0 where there is none.
    ``elements(args)``: how many elements it computes, where each takes about as long as a few
    arithmetic operations; None where it is more.
    """

    name: str
    buffers: int
    args: int
    emit: Callable[[Function], None]
    writes: tuple[int, ...] | None = None
    scratch: int = 0
    elements: Callable[[Sequence[Size]], Size | None] = _more


@dataclass(frozen=True, slots=True)
class WgslLaunch:
    """``parameters``: numbers that differ between launches of one kernel; where there are any, the
    kernel's last binding is an ``array<u32>`` of them, beyond ``buffers``."""

    kernel: WgslKernel
    buffers: tuple[str, ...]
    grid: tuple[Size, Size, Size]
    parameters: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class WasmLaunch:
    kernel: WasmKernel
    buffers: tuple[str, ...]
    args: tuple[Size, ...] = ()


Launch: TypeAlias = Union[WgslLaunch, WasmLaunch]
