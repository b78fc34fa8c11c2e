"""Sizes that decide speed and not results, in one place, to be tuned on a device.

Chosen for an H100 (132 multiprocessors, 2.9 TB/s): some 2 MB must be in flight, so every product of
a decode step starts hundreds of workgroups that each issue all their loads at once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vector:
    """A product by one row of x. A workgroup makes ``rows`` rows of the result, halved while there
    would be fewer than ``groups`` workgroups; its threads, ``least`` to ``most``, go along the rows
    together in about ``steps`` steps, ``unroll`` at a time. ``wide``: a lane reads whole blocks
    where it could read single words. ``bits``: see ``pieces.functions``."""

    rows: int
    groups: int
    least: int
    most: int
    steps: int
    unroll: int
    wide: bool
    bits: bool

    def share(self, rows: int, spans: int, ways: int, memory: int) -> tuple[int, int]:
        """Threads, and rows of a workgroup, for ``rows`` rows of ``spans`` spans. ``ways``: sums of
        a row, for each of which each thread takes a word of ``memory`` bytes at most."""
        threads = self.least
        while threads < self.most and threads * self.steps < spans:
            threads *= 2
        each = self.rows
        while each > 1 and (
            rows < each * self.groups or 4 * (each * ways + 1) * (threads + 8) > memory
        ):
            each //= 2
        return threads, each


@dataclass(frozen=True, slots=True)
class Decode:
    """Attention of one row. Positions are split among at most ``splits`` workgroups of ``threads``
    threads, each with ``chunk`` positions or more, for up to ``together`` (at most 4) heads that
    share keys. A lane reads ``ahead`` quads of values before their scores are known. ``fold``: the
    product that follows combines the splits, in each of its workgroups; otherwise a dispatch does.
    """

    splits: int
    chunk: int
    threads: int
    together: int
    ahead: int
    fold: bool


PRODUCT = Vector(rows=4, groups=256, least=32, most=256, steps=2, unroll=4, wide=False, bits=False)
GATED = Vector(rows=2, groups=256, least=32, most=256, steps=2, unroll=4, wide=False, bits=False)
#: the product that combines splits: few workgroups, since each reads all splits
COMBINING = Vector(
    rows=8, groups=128, least=32, most=256, steps=1, unroll=4, wide=False, bits=False
)
DECODE = Decode(splits=8, chunk=128, threads=128, together=4, ahead=8, fold=True)
