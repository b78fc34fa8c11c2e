"""Which steps of a program need a barrier between them, on several threads.

Each thread walks all steps. A step is *shared* (each thread does its part of the elements) or
*repeated* (each thread does all of it, writing the same bytes: for what is cheaper than waiting).
A thread that meets nobody between two steps may run ahead of the others, so that

    shared write → read         needs a barrier; a repeated write doesn't: a thread has its own
    any read → write            needs one: another thread may still be reading
    any write → write           needs one

where both steps touch one buffer. Scratch memory that is laid out alike in both is no conflict.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fanlight.kernels.launch import WasmKernel
from fanlight.plan import Dispatch
from fanlight.shapes import Size

#: elements that every thread computes for itself rather than wait for the others
REPEATED = 2048


@dataclass(frozen=True, slots=True)
class Access:
    """What one step touches. ``scratch``: buffer → bytes of each thread."""

    reads: frozenset[str]
    writes: frozenset[str]
    scratch: tuple[tuple[str, int], ...] = ()
    repeated: bool = False


def access_of(step: Dispatch, kernel: WasmKernel, dims: frozenset[str]) -> Access:
    """Of a dispatch; ``dims``: the buffers whose device dims its arguments look at."""
    if kernel.writes is None:
        everything = frozenset(step.buffers)
        return Access(everything | dims, everything)
    buffers = step.buffers
    scratch = ((buffers[-1], kernel.scratch),) if kernel.scratch else ()
    writes = frozenset(buffers[i] for i in kernel.writes)
    last = len(buffers) - len(scratch)
    reads = frozenset(b for i, b in enumerate(buffers[:last]) if i not in kernel.writes) | dims
    repeated = _is_small(kernel.elements(step.args)) and not reads & writes and not scratch
    return Access(reads, writes, scratch, repeated)


def _is_small(elements: Size | None) -> bool:
    return isinstance(elements, int) and elements <= REPEATED


@dataclass(slots=True)
class Pending:
    """What was touched since the last barrier."""

    reads: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    repeated: set[str] = field(default_factory=set)
    scratch: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.reads or self.shared or self.repeated or self.scratch)

    def conflicts(self, step: Access) -> bool:
        """Whether ``step`` must wait for a barrier."""
        written = self.shared | self.repeated
        if step.reads & (self.shared | self.scratch.keys()):
            return True
        if step.writes & (self.reads | written | self.scratch.keys()):
            return True
        return any(
            name in self.reads | written or self.scratch.get(name, size) != size
            for name, size in step.scratch
        )

    def add(self, step: Access) -> None:
        self.reads |= step.reads
        (self.repeated if step.repeated else self.shared).update(step.writes)
        self.scratch.update(step.scratch)

    def clear(self) -> None:
        self.reads.clear()
        self.shared.clear()
        self.repeated.clear()
        self.scratch.clear()
