"""How many bytes the buffers of a loaded plan have and need, shared by the executors of CPython
(JavaScript's: ``web/buffer_sizes.js``).

In: a plan, and a run's dims. Out: bytes. Where the memory comes from is the executor's affair.
"""

from __future__ import annotations

from collections.abc import Mapping

from fanlight import shapes
from fanlight.plan import Buffer, Plan

_GROWTH = 5, 4  # memory that must grow, and has grown before, grows by a quarter at least


class BufferSizes:
    """``bytes``: of every buffer by name, those of free size as the last run's dims have them."""

    def __init__(self, plan: Plan, known: Mapping[str, int]) -> None:
        """``known``: dims that are fixed at load (threads)."""
        self.plan, self._known = plan, known
        self.free = plan.free_buffers()
        self.bytes = self._measure(plan.buffers, {})

    def update(self, values: Mapping[str, int]) -> None:
        """Sets ``bytes`` for a run with the host dims ``values``."""
        if self.free:
            self.bytes |= self._measure(self.free, values)

    def _measure(self, buffers: tuple[Buffer, ...], dims: Mapping[str, int]) -> dict[str, int]:
        values = self.plan.memory_values({**dims, **self._known})
        return {b.name: max(0, shapes.evaluate(b.bytes, values)) for b in buffers}


def grown(have: int, need: int, most: int) -> int:
    """Bytes to ask for where ``have`` must become at least ``need`` and ``most`` can be had: some
    more, so that a dim that goes up by one a run doesn't ask each time."""
    times, parts = _GROWTH
    return max(need, min(have * times // parts, most))
