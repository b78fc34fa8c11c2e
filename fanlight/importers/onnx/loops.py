"""Loops that stay loops: a body that runs as often as a size says (``stages.py``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fanlight import dtypes
from fanlight.errors import UnsupportedError
from fanlight.importers.onnx.stages import Region
from fanlight.ir import build, ops
from fanlight.ir.build import cast
from fanlight.ir.graph import Node, StateSpec
from fanlight.ir.ops import apply
from fanlight.shapes import Dim, Size, maximum

if TYPE_CHECKING:
    from fanlight.importers.onnx.call import Call

#: (the turn's number, i32 without axes; states) → new states, and values that are collected
Body = Callable[[Node, list[Node]], tuple[Sequence[Node], Sequence[Node]]]
UNROLLED = 16  # turns: fewer are written out, which changes nothing but the number of kernels
_NARROW = {"f16": dtypes.f32, "bf16": dtypes.f32, "bool": dtypes.i32}
_NARROW |= dict.fromkeys(("i8", "u8", "i16", "u16"), dtypes.i32)


def repeat(call: Call, count: Size, states: Sequence[Node], body: Body) -> list[Node]:
    """The states after ``count`` turns, whose shapes and dtypes no turn changes, then what was
    collected, each with an axis of ``count`` in front. Raises UnsupportedError inside another loop,
    and where shapes change."""
    importer = call.importer
    if importer.looping:
        raise UnsupportedError("a loop inside a loop")
    name = f"loop{len(importer.regions)}"
    turn_state = f"{name}.turn"
    turn = Dim(turn_state, "device", max(1, int(maximum(count))))
    region = Region(name, count, turn)

    def state(label: str, like: Node, first: Node | None) -> Node:
        """A state's node inside the body."""
        region.shapes[label] = StateSpec(like.dtype, like.shape)
        if first is not None:
            region.first[label] = first
        region.inner.add(made := ops.state(label, like.dtype, like.shape))
        return made

    zero = build.constant([0], dtypes.i32)
    counter = state(turn_state, zero, zero)
    inner = [state(f"{name}.{i}", x, x) for i, x in enumerate(states)]
    importer.looping = True
    try:
        new, collected = body(build.reshape(counter, ()), inner)
    finally:
        importer.looping = False
    results = []
    for i, (before, after) in enumerate(zip(states, new, strict=True)):
        if before.shape != after.shape or before.dtype is not after.dtype:
            raise UnsupportedError("a loop that changes the shape of what it carries")
        region.next[f"{name}.{i}"] = after
        results.append(ops.state(f"{name}.{i}", before.dtype, before.shape))
    for i, value in enumerate(collected):
        label = f"{name}.out{i}"
        row = build.unsqueeze(cast(value, _NARROW.get(value.dtype.name, value.dtype)), [0])
        whole = build.full(0, row.dtype, (count, *value.shape))
        region.next[label] = apply("update", state(label, whole, whole), row, start=turn)
        results.append(cast(ops.state(label, whole.dtype, whole.shape), value.dtype))
    region.next[turn_state] = build.op("add", counter, 1)
    importer.regions.append(region)
    return results


def sequence(
    call: Call, count: Size, states: Sequence[Node], step: Body, backward: bool = False
) -> tuple[list[Node], list[Node]]:
    """The states after steps 0 to ``count - 1`` (``backward``: from the last to the first), and
    what was collected, in the order of the steps' numbers. Short sequences are unrolled."""
    held = list(states)
    if isinstance(count, int) and count <= UNROLLED:
        rows: list[list[Node]] = []
        for turn in reversed(range(count)) if backward else range(count):
            new, made = step(build.scalar(turn, dtypes.i32), held)
            held = list(new)
            rows.append([build.unsqueeze(x, [0]) for x in made])
        rows = rows[::-1] if backward else rows
        return held, [build.concat(parts, 0) for parts in zip(*rows, strict=True)]
    last = build.op("sub", build.size(count, dtypes.i32), 1)

    def turn_of(number: Node, inner: list[Node]) -> tuple[Sequence[Node], Sequence[Node]]:
        return step(build.op("sub", last, number) if backward else number, inner)

    found = repeat(call, count, held, turn_of)
    ends, collected = found[: len(held)], found[len(held) :]
    if backward:
        collected = [
            build.take_along(
                x,
                0,
                build.op("sub", last, build.along(0, len(x.shape), count)),
            )
            for x in collected
        ]
    return ends, collected
