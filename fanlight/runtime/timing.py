"""Times of a run's kernels, added up. The JavaScript twin is ``web/timing.js``."""

from __future__ import annotations

import time
from collections.abc import Iterable

from fanlight.errors import InputError
from fanlight.plan import Plan
from fanlight.runtime.session import KernelTime


class Stopwatch:
    """Begins with its making; each ``mark`` takes the time since the last one."""

    def __init__(self, plan: Plan) -> None:
        """Raises InputError where the plan's kernels can't be timed."""
        if not plan.timed:
            raise InputError(
                "the session was not made for profiling", hint="Create it with profile=True."
            )
        self._kernels = plan.kernels
        self._times: dict[int, list[float]] = {}
        self._last = time.perf_counter()

    def mark(self, kernel: int) -> None:
        """``kernel``: what has just ended, by its number; -1: a copy."""
        now = time.perf_counter()
        self._times.setdefault(kernel, []).append((now - self._last) * 1e3)
        self._last = time.perf_counter()

    def times(self) -> list[KernelTime]:
        """The most costly first."""
        names = {-1: "copy"} | {i: kernel.name for i, kernel in enumerate(self._kernels)}
        rows = [KernelTime(names[i], len(all_), sum(all_)) for i, all_ in self._times.items()]
        return sorted(rows, key=lambda row: -row.ms)


def added(runs: int, rows: Iterable[KernelTime]) -> list[KernelTime]:
    """Equal kernels of several runs as one row each, a run's share; the most costly first."""
    sums: dict[str, list[float]] = {}
    for row in rows:
        entry = sums.setdefault(row.kernel, [0, 0.0])
        entry[0] += row.dispatches
        entry[1] += row.ms
    shares = [KernelTime(k, round(n / runs), ms / runs) for k, (n, ms) in sums.items()]
    return sorted(shares, key=lambda row: -row.ms)
