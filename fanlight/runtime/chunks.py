"""The bytes of a plan's weights, in chunks cut at units: what the executors of CPython feed from.

In: the plan and its files. Out: chunks in the order of the files, at most one of them held. Knows
nothing of devices. The twin in JavaScript is ``web/weights.js``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from fanlight.errors import PlanError, TruncatedError
from fanlight.plan import FileSource, InlineSource, Plan, Weight
from fanlight.runtime.session import File


@dataclass(frozen=True, slots=True)
class Chunk:
    """Units ``[first, first + count)`` of a weight."""

    weight: Weight
    first: int
    count: int
    data: bytes | bytearray | memoryview


def total_bytes(plan: Plan) -> int:
    """Bytes of all weights together."""
    return sum(w.source.length for w in plan.weights)


async def weight_chunks(
    plan: Plan, files: Mapping[str, File], limit: Callable[[Weight], int]
) -> AsyncIterator[Chunk]:
    """All chunks of all weights, each at most ``limit(weight)`` bytes.

    PlanError for a file that is missing or too small, TruncatedError for one that ends early.
    """
    for weight in sorted(plan.weights, key=_place):
        most = limit(weight) // weight.unit
        if most <= 0:
            raise PlanError(
                "the staging buffer is smaller than a unit",
                where=f"weight {weight.name}",
                got=limit(weight),
                wanted=weight.unit,
            )
        if isinstance(weight.source, InlineSource):
            s = weight.source
            pieces = _once(memoryview(plan.segments[s.segment])[s.offset : s.offset + s.length])
        else:
            pieces = _file(files, weight, weight.source).stream(
                weight.source.offset, weight.source.length
            )
        async for chunk in _cut(weight, pieces, most):
            yield chunk


def _place(weight: Weight) -> tuple[str, int]:
    source = weight.source
    return ("", 0) if isinstance(source, InlineSource) else (source.file, source.offset)


def _file(files: Mapping[str, File], weight: Weight, source: FileSource) -> File:
    file = files.get(source.file)
    if file is None:
        raise PlanError("a file of the plan was not given", got=source.file, wanted=sorted(files))
    end = source.offset + source.length
    if end > file.size:
        raise PlanError(
            "a weight lies outside its file",
            where=f"weight {weight.name}",
            got=end,
            wanted=file.size,
            hint="The file is not the one compiled.",
        )
    return file


async def _cut(
    weight: Weight, pieces: AsyncIterator[bytes | memoryview], most: int
) -> AsyncIterator[Chunk]:
    """``most``: units in a chunk."""
    unit, first = weight.unit, 0
    rest = bytearray()  # less than a chunk, or the part of a unit that a piece ended in
    async for piece in pieces:
        view = memoryview(piece)
        while len(rest) + len(view) >= unit:
            units = min(most, (len(rest) + len(view)) // unit)
            take = units * unit - len(rest)
            data = rest + view[:take] if rest else view[:take]
            rest, view = bytearray(), view[take:]
            yield Chunk(weight, first, units, data)
            first += units
        rest += view
    if first * unit != weight.source.length:
        raise TruncatedError(
            "the file ended early",
            where=f"weight {weight.name}",
            got=first * unit + len(rest),
            wanted=weight.source.length,
        )


async def _once(data: memoryview) -> AsyncIterator[bytes | memoryview]:
    yield data
