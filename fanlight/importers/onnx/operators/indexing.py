"""Operators that read or write at places which tensors name."""

from __future__ import annotations

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.registry import op
from fanlight.ir import build
from fanlight.ir.build import axis_of, cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import Size, product


@op("Gather", attrs="axis")
def _gather(call: Call) -> Node:
    x, ids = call[0], call[1]
    rank, count = len(x.shape), len(ids.shape)
    axis = axis_of(call.attr_int("axis", 0), rank)
    known = call.known(1)
    if known is not None and count == 0 and isinstance(known[0], int):
        size = x.shape[axis]
        at = known[0] if known[0] >= 0 else size + known[0]
        return build.squeeze(build.part(x, axis, at, 1), [axis])
    out = rank - 1 + count
    places: list[Node] = []
    for i, size in enumerate(x.shape):
        if i < axis:
            places.append(build.along(i, out, size))
        elif i == axis:
            index = build.shifted(ids, size)
            places.append(build.reshape(index, (*ids.shape, *(1,) * (rank - 1 - axis))))
        else:
            places.append(build.along(i - 1 + count, out, size))
    return build.take(x, *places)


@op("GatherElements", 11, attrs="axis")
def _gather_elements(call: Call) -> Node:
    x, ids = call[0], call[1]
    rank = len(x.shape)
    axis = axis_of(call.attr_int("axis", 0), rank)
    places = [build.along(i, rank, s) for i, s in enumerate(ids.shape)]
    places[axis] = build.shifted(ids, x.shape[axis])
    return build.take(x, *places)


@op("GatherND", 11, attrs="batch_dims")
def _gather_nd(call: Call) -> Node:
    x, ids = call[0], call[1]
    batch = call.attr_int("batch_dims", 0)
    depth = ids.shape[-1]
    if not isinstance(depth, int):
        call.fail("a depth of indices that is free")
    rest = x.shape[batch + depth :]
    outer = ids.shape[:-1]
    rank = len(outer) + len(rest)
    places: list[Node] = [build.along(i, rank, x.shape[i]) for i in range(batch)]
    for i in range(depth):
        index = build.squeeze(build.part(ids, -1, i, 1), [-1])
        index = build.shifted(index, x.shape[batch + i])
        places.append(build.reshape(index, (*outer, *(1,) * len(rest))))
    places += [build.along(len(outer) + i, rank, s) for i, s in enumerate(rest)]
    return build.take(x, *places)


@op("ScatterElements", 11, attrs="axis reduction")
@op("Scatter", 9, 10, attrs="axis")
def _scatter_elements(call: Call) -> Node:
    x, ids, updates = call[0], call[1], call[2]
    rank = len(x.shape)
    axis = axis_of(call.attr_int("axis", 0), rank)
    places = [build.along(i, rank, s) for i, s in enumerate(ids.shape)]
    places[axis] = build.shifted(ids, x.shape[axis])
    flat = _flat(places, x.shape, ids.shape)
    return scatter(call, x, flat, updates, call.attr_string("reduction", "none"))


@op("ScatterND", 11, attrs="reduction")
def _scatter_nd(call: Call) -> Node:
    x, ids, updates = call[0], call[1], call[2]
    depth = ids.shape[-1]
    if not isinstance(depth, int):
        call.fail("a depth of indices that is free")
    rest, outer = x.shape[depth:], ids.shape[:-1]
    rank = len(outer) + len(rest)
    places = []
    for i in range(depth):
        index = build.squeeze(build.part(ids, -1, i, 1), [-1])
        index = build.shifted(index, x.shape[i])
        places.append(build.reshape(index, (*outer, *(1,) * len(rest))))
    places += [build.along(len(outer) + i, rank, s) for i, s in enumerate(rest)]
    flat = _flat(places, x.shape, (*outer, *rest))
    return scatter(call, x, flat, updates, call.attr_string("reduction", "none"))


def _flat(places: list[Node], shape: tuple[Size, ...], of: tuple[Size, ...]) -> Node:
    """Row-major places in ``shape``, expanded to ``of``."""
    total: Node | None = None
    for axis, place in enumerate(places):
        stride = build.size(product(shape[axis + 1 :]), dtypes.i32)
        part = do("mul", place, stride)
        total = part if total is None else apply("add", total, part)
    return build.expand(total if total is not None else build.scalar(0, dtypes.i32), of)


_KINDS = {"add": "sum", "mul": "prod", "max": "max", "min": "min"}


def scatter(call: Call, x: Node, flat: Node, updates: Node, reduction: str) -> Node:
    """``x`` with ``updates`` put at row-major places ``flat``; of several at one place the last
    counts, or all, by ``reduction``."""
    if reduction != "none" and reduction not in _KINDS:
        call.fail("a reduction", got=reduction)
    count = product(updates.shape)
    if count == 0:
        return x
    elements = product(x.shape)
    target = build.along(0, 2, elements)
    places = build.reshape(flat, (1, count))
    hit = do("eq", target, places)
    values = build.reshape(updates, (1, count))
    held = build.reshape(x, (elements,))
    if reduction == "none":
        number = build.where(hit, build.along(1, 2, count), -1)
        last = build.reduce("max", number, [1], keep=False)
        found = build.take(build.reshape(updates, (count,)), do("max", last, 0))
        return build.reshape(build.where(do("ge", last, 0), found, held), x.shape)
    kind = _KINDS[reduction]
    wide = _accumulator(x.dtype.name)
    values = cast(values, wide) if wide is not None else values
    start = cast(held, values.dtype)
    if reduction in ("add", "mul"):
        chosen = build.where(hit, values, 0 if reduction == "add" else 1)
        total = do(reduction, start, build.reduce(kind, chosen, [1], keep=False))
    else:
        other = build.reshape(start, (elements, 1))
        chosen = build.where(hit, values, other)
        total = build.reduce(kind, chosen, [1], keep=False)
        total = do(reduction, start, total)
    return build.reshape(cast(total, x.dtype), x.shape)


def _accumulator(name: str) -> dtypes.DType | None:
    return dtypes.f32 if name in ("f16", "bf16") else None


@op("OneHot", 9, attrs="axis")
def _one_hot(call: Call) -> Node:
    ids, values = call[0], call[2]
    depth = call.read_sizes(1)[0]
    rank = len(ids.shape) + 1
    axis = axis_of(call.attr_int("axis", -1), rank)
    whole = build.unsqueeze(cast(ids, dtypes.i32), [axis])
    count = build.size(depth, dtypes.i32)
    wrapped = build.where(do("lt", whole, 0), do("add", whole, count), whole)
    hit = do("eq", build.along(axis, rank, depth), wrapped)
    off, on = (build.reshape(build.part(values, 0, i, 1), ()) for i in (0, 1))
    return build.where(hit, on, off)


@op("TensorScatter", 24, attrs="axis mode")
def _tensor_scatter(call: Call) -> Node:
    """Writes rows into a cache: row b of ``update`` from place ``write_indices[b]`` on."""
    past, update = call[0], call[1]
    rank = len(past.shape)
    axis = axis_of(call.attr_int("axis", -2), rank)
    at = build.along(axis, rank, past.shape[axis])
    if call.get(2) is not None:
        start = build.reshape(cast(call[2], dtypes.i32), (past.shape[0], *(1,) * (rank - 1)))
        at = do("sub", at, start)
    if call.attr_string("mode", "linear") == "circular":
        size = build.size(past.shape[axis], dtypes.i32)
        at = do("mod", do("add", at, size), size)
    inside = do("and", do("ge", at, 0), do("lt", at, build.size(update.shape[axis], dtypes.i32)))
    places = [build.along(i, rank, s) for i, s in enumerate(past.shape)]
    places[axis] = build.clamp(at, update.shape[axis])
    return build.where(inside, build.take(update, *places), past)
