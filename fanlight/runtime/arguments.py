"""Checks of a session's arguments, shared by the executors of CPython (JavaScript's:
``web/session.js``)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from fanlight.errors import PlanError
from fanlight.plan import LOAD_DIMS, THREADS, Plan
from fanlight.runtime.session import Held
from fanlight.runtime.sizes import BufferSizes

_MOST = (1 << 31) - 1  # kernels have dims in 32 bits


class Arguments:
    """Knows what a caller of a loaded plan may name."""

    def __init__(self, plan: Plan, sizes: BufferSizes) -> None:
        self._sizes = sizes
        self._numbers = itertools.count()
        self.programs = plan.programs
        reserved = (*LOAD_DIMS, THREADS)
        self.dims = {
            d.dim.name: d.dim.max
            for d in plan.dims
            if d.dim.kind == "host" and d.dim.name not in reserved
        }
        self._bounded = {d.dim.name for d in plan.dims if d.bound is not None}
        self.feeds = {b.name for b in plan.buffers if b.kind in ("input", "state")}

    def check_run(self, program: str, dims: Mapping[str, int]) -> None:
        """Raises PlanError for unknown names and dims out of range."""
        if program not in self.programs:
            raise PlanError("no such program", got=program, wanted=sorted(self.programs))
        for name, value in dims.items():
            if name in self._bounded:
                raise PlanError("a dim that only the program sets", where=f"dim {name}", got=value)
            self.check_dim(name, value)

    def check_feeds(self, feeds: Mapping[str, bytes | Held]) -> None:
        """Raises PlanError for unknown names and too many bytes."""
        for name, data in feeds.items():
            if isinstance(data, Held) and data.name not in self._sizes.bytes:
                raise PlanError("the held buffer was released", got=data.name)
            if name not in self.feeds:
                raise PlanError("not an input or a state", got=name, wanted=sorted(self.feeds))
            most = self._sizes.bytes[name]
            size = data.bytes if isinstance(data, Held) else len(data)
            if size > most:
                raise PlanError("too many bytes", where=f"buffer {name}", got=size, wanted=most)

    def new_name(self) -> str:
        """For a held buffer: one that nothing has."""
        while (name := f"held.{next(self._numbers)}") in self._sizes.bytes:
            pass
        return name

    def check_dim(self, name: str, value: int) -> None:
        if name not in self.dims:
            raise PlanError("no such host dim", got=name, wanted=sorted(self.dims))
        most = min(self.dims[name], _MOST)
        if not 0 <= value <= most:
            wanted = f"0 to {most}"
            raise PlanError(
                "a dim outside its range", where=f"dim {name}", got=value, wanted=wanted
            )

    def check_span(self, buffer: str, offset: int, length: int | None) -> int:
        """The bytes to read."""
        size = self._sizes.bytes.get(buffer)
        if size is None:
            raise PlanError("no such buffer", got=buffer)
        wanted = size - offset if length is None else length
        if offset % 4 or (length or 0) % 4 or min(offset, wanted) < 0 or offset + wanted > size:
            raise PlanError(
                "read outside the buffer, or not at a multiple of 4",
                where=f"buffer {buffer}",
                got=f"{offset}, {length}",
                wanted=f"within {size} bytes",
            )
        return wanted
