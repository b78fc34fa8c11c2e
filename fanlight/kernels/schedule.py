"""Puts launches that don't wait for each other side by side, for targets whose barriers are dear.

In: launches in an order that is right. Out: one that is right too, by depth: a launch's depth is
one more than the largest of those that it depends on (they write what it touches, or read what it
writes), launches of equal depth keep their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fanlight.kernels.launch import Launch, WasmLaunch
from fanlight.shapes import dims_of


def by_depth(launches: Sequence[Launch], dims: Mapping[str, str]) -> list[Launch]:
    """``launches`` by depth; ``dims``: device dim → the buffer that it is read from."""
    written: dict[str, int] = {}
    read: dict[str, int] = {}
    depths = []
    for launch in launches:
        assert isinstance(launch, WasmLaunch)
        reads, writes = _touched(launch, dims)
        before = [written.get(name, 0) for name in reads | writes]
        before += [read.get(name, 0) for name in writes]
        depth = 1 + max(before, default=0)
        for name in reads:
            read[name] = max(read.get(name, 0), depth)
        for name in writes:
            written[name] = depth
        depths.append(depth)
    order = sorted(range(len(launches)), key=lambda i: depths[i])
    return [launches[i] for i in order]


def _touched(launch: WasmLaunch, dims: Mapping[str, str]) -> tuple[set[str], set[str]]:
    """What a launch reads and what it writes; scratch memory counts as read, being its own."""
    looked_at = {dims[d.name] for size in launch.args for d in dims_of(size) if d.name in dims}
    names = set(launch.buffers)
    writes = launch.kernel.writes
    written = names if writes is None else {launch.buffers[i] for i in writes}
    return (names - written) | looked_at | (names if writes is None else set()), written
