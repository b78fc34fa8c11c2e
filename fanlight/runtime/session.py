"""The executor's interface, the same for all four: ``load(plan, files) → Session``.

Executors know nothing of models, tasks or formats; the plan is all they see. The JavaScript twins
are ``web/gpu.js`` and ``web/wasm.js``; in Pyodide ``runtime/pyodide.py`` speaks to them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


class File(Protocol):
    """A model file that can be streamed from any place."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def stream(self, offset: int, length: int) -> AsyncIterator[bytes | memoryview]:
        """Chunks of any size, in order, ``length`` bytes together. Raises StoreError."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """``stage`` is ``download``, ``compile``, ``load`` (weights to the device) or ``prefill``."""

    stage: str
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


@dataclass(slots=True)
class SessionInfo:
    """What the executor measured while loading, and its memory now. Times in ms, sizes in bytes.
    ``growths``: runs that needed more memory than those before."""

    backend: str
    adapter: str
    resident_bytes: int
    upload_ms: float = 0.0
    pipelines_ms: float = 0.0
    threads: int = 1
    growths: int = 0
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KernelTime:
    """What a kernel cost in a run. ``dispatches``: how often it ran; ``ms``: all of them
    together. Copies of buffers are a kernel named ``copy``."""

    kernel: str
    dispatches: int
    ms: float


@dataclass(frozen=True, slots=True)
class Held:
    """A buffer on the device that no run changes; ``name`` is good for ``read``."""

    name: str
    bytes: int


class Session(Protocol):
    """A loaded plan: weights resident, pipelines made. Calls are serialised by the session
    itself."""

    @property
    def info(self) -> SessionInfo: ...

    async def run(
        self,
        program: str,
        feeds: Mapping[str, bytes | Held] | None = None,
        dims: Mapping[str, int] | None = None,
    ) -> None:
        """Writes ``feeds`` (buffer name → content from its start; inputs and states), sets host
        ``dims``, runs. Buffers of free size get their memory first. Raises PlanError for unknown
        names, too many bytes, a dim above its maximum or a buffer larger than the device binds;
        DeviceError where memory is short."""
        ...

    async def profile(
        self,
        program: str,
        feeds: Mapping[str, bytes | Held] | None = None,
        dims: Mapping[str, int] | None = None,
    ) -> list[KernelTime]:
        """As ``run``, one step after the other, each timed; most costly first. Raises InputError
        where the plan was compiled without ``profile``."""
        ...

    async def read(self, buffer: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a buffer after all earlier runs. ``offset`` and ``length`` are multiples of
        4."""
        ...

    async def dims(self) -> dict[str, int]:
        """The host dims after all earlier runs, those that programs read back included."""
        ...

    async def hold(self, buffer: str, length: int) -> Held:
        """The first ``length`` bytes (a multiple of 4) of a buffer, copied on the device to one
        that later runs leave alone."""
        ...

    async def release(self, held: Held) -> None:
        """Gives a held buffer back. Safe to call twice."""
        ...

    def repeat(
        self, program: str, times: int, read: str, dims: Mapping[str, int] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Runs ``program`` up to ``times`` times and yields the content of buffer ``read`` after
        each, in order, read behind: the next run is submitted before the last one's bytes are back.
        Closing the iterator stops after the runs in flight."""
        ...

    async def dispose(self) -> None:
        """Gives all memory back. The session can't be used any more."""
        ...
