"""Operators whose results are as long as their inputs' values say: the run reads that back."""

from __future__ import annotations

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.loops import repeat
from fanlight.importers.onnx.registry import op
from fanlight.ir import build
from fanlight.ir.build import axis_of, cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import Size, binary, ceildiv, maximum, product

_GONE = -3.4e38  # the score of a box that is out
_RUN = 256  # elements that are summed up together


def running_count(mask: Node) -> Node:
    """bool [N] → i32 [N]: how many are true up to each place, that place included."""
    count = mask.shape[0]
    rows = ceildiv(count, _RUN)
    whole = build.pad(cast(mask, dtypes.i32), [0], [rows * _RUN - count])
    lines = build.reshape(whole, (rows, _RUN))
    inside = _running(lines, _RUN)
    before = _running(build.reduce("sum", lines, [1]), rows, axis=0, exclusive=True)
    return build.part(build.reshape(do("add", inside, before), (rows * _RUN,)), 0, 0, count)


def _running(x: Node, count: Size, axis: int = 1, exclusive: bool = False) -> Node:
    """Running sums along an axis of a matrix, each element added up anew."""
    rows = build.unsqueeze(x, [2])
    moved = build.transpose(rows, axis, 2)
    here, there = build.along(axis, 3, count), build.along(2, 3, count)
    chosen = build.where(do("lt" if exclusive else "le", there, here), moved, 0)
    return build.reduce("sum", chosen, [2], keep=False)


def places_of(call: Call, mask: Node) -> Node:
    """bool [N] → the places of the true elements in order, i32 [n]; n is read back."""
    size = mask.shape[0]
    if size == 0:
        return build.constant([], dtypes.i32)
    held = running_count(mask)
    last = do("sub", build.size(size, dtypes.i32), 1)
    total = build.take(held, build.reshape(do("max", last, 0), (1,)))
    total = build.where(do("gt", build.size(size, dtypes.i32), 0), total, 0)
    n = call.importer.read_size(build.reshape(total, ()), call.symbol())
    # place k is behind all elements up to which at most k are true: found by halving
    wanted = build.along(0, 1, n)
    at: Node = do("mul", wanted, 0)
    for bit in reversed(range(int(maximum(size)).bit_length())):
        further = do("add", at, 1 << bit)
        inside = do("le", further, build.size(size, dtypes.i32))
        seen = build.take(held, build.clamp(do("sub", further, 1), size))
        at = build.where(do("and", inside, do("le", seen, wanted)), further, at)
    return at


@op("NonZero", 9)
def _non_zero(call: Call) -> Node:
    x = call[0]
    if not x.shape:
        x = build.reshape(x, (1,))
    truth = x if x.dtype is dtypes.boolean else do("ne", x, 0)
    left = places_of(call, build.reshape(truth, (product(x.shape),)))
    rows = []
    for size in reversed(x.shape):
        extent = build.size(size, dtypes.i32)
        rows.append(build.unsqueeze(do("mod", left, extent), [0]))
        left = do("div", left, extent)
    return cast(build.concat(rows[::-1], 0), dtypes.i64)


@op("Compress", 9, attrs="axis")
def _compress(call: Call) -> Node:
    x, test = call[0], call[1]
    if "axis" in call.attributes:
        axis = axis_of(call.attr_int("axis"), len(x.shape))
    else:
        x, axis = build.reshape(x, (product(x.shape),)), 0
    places = places_of(call, test)
    rank = len(x.shape)
    index = build.reshape(places, (places.shape[0], *(1,) * (rank - 1 - axis)))
    return build.take_along(x, axis, index)


@op("Unique", 11, attrs="axis sorted")
def _unique(call: Call) -> tuple[Node, Node, Node, Node]:
    """Each row is compared with each other one: a row's number is how many different rows come
    before it."""
    x = call[0]
    if "axis" in call.attributes:
        axis = axis_of(call.attr_int("axis"), len(x.shape))
    else:
        x, axis = build.reshape(x, (product(x.shape),)), 0
    count = x.shape[axis]
    others = [i for i in range(len(x.shape)) if i != axis]
    width = product([x.shape[i] for i in others])
    rows = build.reshape(build.permute(x, [axis, *others]), (count, width))
    one, other = build.unsqueeze(rows, [1]), build.unsqueeze(rows, [0])  # [i, 1, w], [1, j, w]
    i, j = build.along(0, 2, count), build.along(1, 2, count)
    # the first column in which two rows differ, or none
    column = build.where(do("ne", one, other), build.along(2, 3, width), (1 << 31) - 1)
    differ = build.reduce("min", column, [2], keep=False)
    alike = do("eq", differ, (1 << 31) - 1)
    earliest = build.reduce("min", build.where(alike, j, (1 << 31) - 1), [1], keep=False)
    first = do("eq", earliest, build.along(0, 1, count))
    indices = places_of(call, first)  # in the order in which they come
    n = indices.shape[0]
    if call.attr_bool("sorted", True):
        at = build.clamp(differ, width)
        less = do("lt", build.take(rows, j, at), build.take(rows, i, at))
        before = do("and", build.unsqueeze(first, [0]), do("and", less, do("not", alike)))
        number = build.reduce("sum", cast(before, dtypes.i32), [1], keep=False)
        held = build.unsqueeze(build.take(number, indices), [0])
        slot = do("eq", held, build.along(0, 2, n))
        chosen = build.where(slot, build.unsqueeze(indices, [0]), -1)
        indices = build.reduce("max", chosen, [1], keep=False)
    else:
        number = do("sub", running_count(first), 1)
    inverse = build.take(number, earliest)
    hits = do("eq", build.unsqueeze(inverse, [0]), build.along(0, 2, n))
    counts = build.reduce("sum", cast(hits, dtypes.i32), [1], keep=False)
    index = build.reshape(indices, (n, *(1,) * (len(x.shape) - 1 - axis)))
    made = build.take_along(x, axis, index)
    indices, inverse, counts = (cast(value, dtypes.i64) for value in (indices, inverse, counts))
    return made, indices, inverse, counts


@op("NonMaxSuppression", 10, attrs="center_point_box")
def _non_max_suppression(call: Call) -> Node:
    """Turn by turn the best box that is left, of each class of each image; those that overlap it
    are out."""
    boxes, scores = cast(call[0], dtypes.f32), cast(call[1], dtypes.f32)
    batch, classes, count = scores.shape
    turns: Size = 0
    if call.get(2) is not None:
        turns = binary("min", call.read_sizes(2)[0], count)
    if turns == 0:
        return build.full(0, dtypes.i64, (0, 3))
    limit = build.scalar(0.0, dtypes.f32)
    if call.get(3) is not None:
        limit = build.reshape(call[3], ())
    if call.get(4) is not None:
        scores = build.where(do("gt", scores, build.reshape(call[4], ())), scores, _GONE)
    low, high = _corners(boxes, call.attr_bool("center_point_box", False))
    area = build.reduce("prod", do("sub", high, low), [2], keep=False)  # [B, N]
    number = build.along(2, 3, count)
    image = build.along(0, 2, batch)

    def turn(_: Node, states: list[Node]) -> tuple[list[Node], list[Node]]:
        left = states[0]  # [B, C, N]
        best = build.reduce("max", left, [2])
        at = build.where(do("eq", left, best), number, (1 << 31) - 1)
        chosen = build.reduce("min", at, [2], keep=False)  # [B, C]
        there = do("gt", build.squeeze(best, [2]), _GONE)
        here = build.clamp(chosen, count)
        shared: Node | None = None
        for axis in range(2):
            a, b = (
                build.unsqueeze(build.squeeze(build.part(x, 2, axis, 1), [2]), [1])
                for x in (low, high)
            )  # [B, 1, N]
            first, last = (
                build.unsqueeze(build.take(x, image, here, axis), [2]) for x in (low, high)
            )  # [B, C, 1]
            across = do("max", do("sub", do("min", last, b), do("max", first, a)), 0.0)
            shared = across if shared is None else apply("mul", shared, across)
        assert shared is not None
        own = build.unsqueeze(build.take(area, image, here), [2])
        union = do("sub", do("add", own, build.unsqueeze(area, [1])), shared)
        close = do("gt", shared, do("mul", union, limit))
        out = do("or", close, do("eq", number, build.unsqueeze(chosen, [2])))
        return [build.where(out, _GONE, left)], [build.where(there, chosen, -1)]

    _, found = repeat(call, turns, [scores], turn)
    order = build.permute(found, (1, 2, 0))  # [B, C, turns]
    flat = build.reshape(order, (product(order.shape),))
    places = places_of(call, do("ge", flat, 0))
    per_class = build.size(turns, dtypes.i32)
    kind = do("div", places, per_class)
    several = build.size(classes, dtypes.i32)
    columns = [do("div", kind, several), do("mod", kind, several), build.take(flat, places)]
    return cast(build.concat([build.unsqueeze(c, [1]) for c in columns], 1), dtypes.i64)


def _corners(boxes: Node, centred: bool) -> tuple[Node, Node]:
    """[B, N, 4] → the least and the greatest of both coordinates, [B, N, 2]."""
    one, other = build.part(boxes, 2, 0, 2), build.part(boxes, 2, 2, 2)
    if centred:
        half = do("mul", other, 0.5)
        return do("sub", one, half), do("add", one, half)
    return do("min", one, other), do("max", one, other)
