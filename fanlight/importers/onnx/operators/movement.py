"""Operators that move elements to places known from shapes alone, and those that make them."""

from __future__ import annotations

import math

from fanlight import dtypes
from fanlight.errors import FormatError
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.registry import MICROSOFT, op
from fanlight.ir import build
from fanlight.ir.build import axis_of, cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import Size, binary, dims_of, product


@op("Shape", attrs="start end")
def _shape(call: Call) -> Node:
    shape = call[0].shape
    start, end = call.attr_int("start", 0), call.attr_int("end", len(shape))
    return build.sizes(shape[slice(start, end)])


@op("Size")
def _size(call: Call) -> Node:
    return build.size(product(call[0].shape))


@op("Reshape", 5, attrs="allowzero")
def _reshape(call: Call) -> Node:
    x, allow = call[0], call.attr_bool("allowzero", False)
    shape: list[Size] = []
    for axis, size in enumerate(_shape_wanted(call, allow)):
        if size == 0 and not allow:
            if axis >= len(x.shape):
                raise FormatError("0 beyond the input's axes", where=call.where)
            size = x.shape[axis]
        shape.append(size)
    if -1 in shape:
        at = shape.index(-1)
        rest = product([s for i, s in enumerate(shape) if i != at])
        exact = rest != 0 and binary("%", product(x.shape), rest) == 0  # whatever the symbols are
        if not exact and any(dim.least == 0 for dim in dims_of(rest)):
            rest = binary("max", rest, 1)
        shape[at] = 0 if rest == 0 else binary("//", product(x.shape), rest)
    elif product(x.shape) != product(shape):
        call.same(product(x.shape), product(shape), "number of elements")
    return build.reshape(x, shape)


def _shape_wanted(call: Call, allow: bool) -> list[Size]:
    """The elements of a Reshape's shape. Those that only the run knows are read back, without the
    meaning that 0 and -1 have; one of them alone follows from the others, as -1 does."""
    x, known = call[0], call.known(1)
    if known is not None:
        return call.sizes(1, "the shape's elements")
    parts = call.parts(1)
    values = [call.importer.folder.values(part) for part in parts]
    unknown = [i for i, value in enumerate(values) if value is None]
    if len(unknown) == 1 and all(v is None or v[0] != -1 for v in values):
        return [-1 if v is None else v[0] for v in values]
    sizes = [cast(part, dtypes.i32) for part in parts]
    if not allow:
        for i in range(min(len(sizes), len(x.shape))):
            here = build.size(x.shape[i], dtypes.i32)
            sizes[i] = build.where(do("eq", sizes[i], 0), here, sizes[i])
    rest = build.scalar(-1, dtypes.i32)  # one is -1 itself, or none is asked for
    for size in sizes:
        rest = apply("mul", rest, size)
    inferred = do("div", build.size(product(x.shape), dtypes.i32), do("max", rest, 1))
    found: list[Size] = []
    asked = any(v is not None and v[0] == -1 for v in values)
    for i, size in enumerate(sizes):
        value = values[i]
        if value is not None or (i == unknown[-1] and not asked):
            found.append(-1 if value is None else value[0])
            continue
        whole = build.where(do("lt", size, 0), inferred, size)
        found.append(call.importer.read_size(whole, call.symbol(i)))
    return found


@op("Flatten", attrs="axis")
def _flatten(call: Call) -> Node:
    x = call[0]
    axis = call.attr_int("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    return build.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))


@op("Transpose", attrs="perm")
def _transpose(call: Call) -> Node:
    order = call.attr_ints("perm", tuple(reversed(range(len(call[0].shape)))))
    return build.permute(call[0], order)


@op("Squeeze", attrs="axes")
def _squeeze(call: Call) -> Node:
    x, axes = call[0], call.axes()
    if axes is None:
        axes = [i for i, s in enumerate(x.shape) if s == 1]
    for axis in axes:
        size = x.shape[axis_of(axis, len(x.shape))]
        if size != 1:
            call.same(size, 1, f"axis {axis}")
    return build.squeeze(x, axes)


@op("Unsqueeze", attrs="axes")
def _unsqueeze(call: Call) -> Node:
    return build.unsqueeze(call[0], call.axes() or [])


@op("Concat", 4, attrs="axis")
def _concat(call: Call) -> Node:
    parts = [x for x in call.inputs if x is not None]
    axis = axis_of(call.attr_int("axis"), len(parts[0].shape))
    for x in parts:
        for i, (a, b) in enumerate(zip(parts[0].shape, x.shape, strict=True)):
            if i != axis:
                call.same(a, b, f"axis {i}")
    some = [x for x in parts if x.shape[axis] != 0] or parts[:1]
    return build.concat(some, axis)


@op("Split", attrs="axis split num_outputs")
def _split(call: Call) -> tuple[Node, ...]:
    x = call[0]
    axis = axis_of(call.attr_int("axis", 0), len(x.shape))
    whole = x.shape[axis]
    counts: list[Size]
    if "split" in call.attributes:
        counts = list(call.attr_ints("split"))
    elif call.get(1) is not None:
        counts = call.sizes(1, "the parts' sizes")
    else:
        number = call.attr_int("num_outputs", len(call.node.outputs))
        each = binary("ceil/", whole, number) if isinstance(whole, int) else whole // number
        counts = [each] * (number - 1)
        counts.append(whole - each * (number - 1))
    start: Size = 0
    out = []
    for count in counts:
        out.append(build.part(x, axis, start, count))
        start = binary("+", start, count)
    return tuple(out)


@op("Slice", 10)
def _slice(call: Call) -> Node:
    starts, ends = call.parts(1), call.parts(2)
    axes = call.ints(3, "axes") if call.get(3) is not None else list(range(len(starts)))
    steps = call.ints(4, "steps") if call.get(4) is not None else [1] * len(starts)
    x = call[0]
    for i, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        axis = axis_of(axis, len(x.shape))
        start, end = (call.importer.folder.values(node[i]) for node in (starts, ends))
        if start is None or end is None:
            x = _slice_computed(call, x, axis, starts[i], ends[i], step, i)
        else:
            x = _slice_axis(call, x, axis, start[0], end[0], step)
    return x


def _slice_computed(
    call: Call, x: Node, axis: int, start: Node, end: Node, step: int, number: int
) -> Node:
    """Where ends come from the run: how many there are is read back."""
    if step == 0:
        raise FormatError("a step of 0", where=call.where)
    size = build.size(x.shape[axis], dtypes.i32)

    def inside(at: Node, low: int) -> Node:
        """From the end where negative; in ``0 … size`` forwards, ``-1 … size - 1`` backwards."""
        near = do("max", do("min", cast(at, dtypes.i64), (1 << 31) - 1), -(1 << 31))
        whole = cast(near, dtypes.i32)
        whole = build.where(do("lt", whole, 0), do("max", do("add", whole, size), low), whole)
        return do("min", whole, size if step > 0 else do("sub", size, 1))

    first, last = inside(start, 0), inside(end, 0 if step > 0 else -1)
    way = do("sub", last, first) if step > 0 else do("sub", first, last)
    count = do("div", do("max", do("add", way, abs(step) - 1), 0), abs(step))
    found = call.importer.read_size(count, call.symbol(number))
    at = build.along(axis, len(x.shape), found)
    return build.take_along(x, axis, do("add", do("mul", at, step), first))


@op("Slice", 1, 9, attrs="axes starts ends")
def _slice_attributes(call: Call) -> Node:
    starts = list(call.attr_ints("starts"))
    axes = list(call.attr_ints("axes", tuple(range(len(starts)))))
    ends = list(call.attr_ints("ends"))
    return _sliced(call, call[0], list(starts), list(ends), axes, [1] * len(starts))


def _sliced(
    call: Call,
    x: Node,
    starts: list[Size],
    ends: list[Size],
    axes: list[int],
    steps: list[int],
) -> Node:
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = _slice_axis(call, x, axis_of(axis, len(x.shape)), start, end, step)
    return x


def _slice_axis(call: Call, x: Node, axis: int, start: Size, end: Size, step: int) -> Node:
    size = x.shape[axis]
    if step == 0:
        raise FormatError("a step of 0", where=call.where)
    low, high = (0, size) if step > 0 else (-1, size - 1)
    first = bounded(start, size, 0, size if step > 0 else size - 1)
    last = bounded(end, size, low, high)
    if step > 0:
        count = binary("max", binary("ceil/", last - first, step), 0)
    else:
        count = binary("max", binary("ceil/", first - last, -step), 0)
    count = _settled(count)
    if step == 1:
        return build.part(x, axis, first, count)
    at = build.along(axis, len(x.shape), count)
    at = do("add", do("mul", at, step), build.size(first, dtypes.i32))
    return build.take_along(x, axis, at) if count != 0 else build.part(x, axis, 0, 0)


def bounded(at: Size, size: Size, low: Size, high: Size) -> Size:
    """A place as slices give it, negative ones from the end, moved into ``low … high``."""
    from fanlight.ir.fold import bounds

    if isinstance(at, int) and at < 0:
        at = max(at, -(1 << 62))
        at = low if at < -(1 << 31) else binary("+", size, at)
    if isinstance(at, int) and at >= (1 << 31) - 1:
        return high
    if bounds(binary("-", at, low))[0] < 0:
        at = binary("max", at, low) if bounds(binary("-", at, low))[1] > 0 else low
    if bounds(binary("-", high, at))[0] < 0:
        at = binary("min", at, high) if bounds(binary("-", high, at))[1] > 0 else high
    return at


def _settled(size: Size) -> Size:
    """``max(size, 0)`` without the maximum where the size can't be negative."""
    from fanlight.ir.fold import bounds
    from fanlight.shapes import Operation

    if isinstance(size, Operation) and size.op == "max" and size.b == 0 and bounds(size.a)[0] >= 0:
        return size.a
    return size


@op("Expand", 8)
def _expand(call: Call) -> Node:
    x, wanted = call[0], call.read_sizes(1)
    shape = call.importer.broadcast([x.shape, tuple(wanted)], call.where)
    return build.expand(x, shape)


@op("Tile", 6)
def _tile(call: Call) -> Node:
    x, repeats = call[0], call.read_sizes(1)
    if all(s == 1 or r == 1 for s, r in zip(x.shape, repeats, strict=True)):
        return build.expand(x, [binary("*", s, r) for s, r in zip(x.shape, repeats, strict=True)])
    inner = [part for s in x.shape for part in (1, s)]
    wide = [part for s, r in zip(x.shape, repeats, strict=True) for part in (r, s)]
    shape = [binary("*", s, r) for s, r in zip(x.shape, repeats, strict=True)]
    return build.reshape(build.expand(build.reshape(x, inner), wide), shape)


@op("Pad", 11, attrs="mode")
def _pad(call: Call) -> Node:
    x = call[0]
    rank = len(x.shape)
    widths = call.sizes(1, "the widths")
    axes = call.ints(3, "axes") if call.get(3) is not None else list(range(rank))
    value = call.get(2)
    fill: Node | int = 0 if value is None else build.reshape(value, ())
    return _padded(call, widths, axes, fill)


@op("Pad", 1, 10, attrs="mode pads value")
def _pad_attributes(call: Call) -> Node:
    fill = build.scalar(call.attr_float("value", 0.0), call[0].dtype)
    return _padded(call, list(call.attr_ints("pads")), list(range(len(call[0].shape))), fill)


def _padded(call: Call, widths: list[Size], axes: list[int], fill: Node | int) -> Node:
    x, mode = call[0], call.attr_string("mode", "constant")
    rank, count = len(x.shape), len(axes)
    before: list[Size] = [0] * rank
    after: list[Size] = [0] * rank
    for i, axis in enumerate(axes):
        before[axis_of(axis, rank)] = widths[i]
        after[axis_of(axis, rank)] = widths[i + count]
    if mode == "constant":
        return build.pad(x, before, after, fill)
    for axis in range(rank):
        low, high, size = before[axis], after[axis], x.shape[axis]
        if low == 0 and high == 0:
            continue
        at = build.along(axis, rank, low + size + high)
        at = do("sub", at, build.size(low, dtypes.i32))
        n = build.size(size, dtypes.i32)
        if mode == "reflect":
            period = do("max", do("mul", do("sub", n, 1), 2), 1)
            at = _wrapped(at, period)
            at = do("min", at, do("sub", period, at))
        elif mode == "wrap":
            at = _wrapped(at, n)
        elif mode != "edge":
            call.fail("a mode of padding", got=mode)
        x = build.take_along(x, axis, build.clamp(at, size))
    return x


def _wrapped(at: Node, period: Node) -> Node:
    """``at`` modulo ``period``, not negative."""
    return do("mod", do("add", do("mod", at, period), period), period)


@op("DepthToSpace", attrs="blocksize mode")
def _depth_to_space(call: Call) -> Node:
    x, b = call[0], call.attr_int("blocksize")
    n, c, h, w = x.shape
    depth = binary("//", c, b * b)
    if call.attr_string("mode", "DCR") == "DCR":
        x = build.reshape(x, (n, b, b, depth, h, w))
        x = build.permute(x, (0, 3, 4, 1, 5, 2))
    else:
        x = build.reshape(x, (n, depth, b, b, h, w))
        x = build.permute(x, (0, 1, 4, 2, 5, 3))
    return build.reshape(x, (n, depth, h * b, w * b))


@op("SpaceToDepth", attrs="blocksize mode")
def _space_to_depth(call: Call) -> Node:
    x, b = call[0], call.attr_int("blocksize")
    n, c, h, w = x.shape
    x = build.reshape(x, (n, c, h // b, b, w // b, b))
    depth_first = call.attr_string("mode", "DCR") == "DCR"
    x = build.permute(x, (0, 3, 5, 1, 2, 4) if depth_first else (0, 1, 3, 5, 2, 4))
    return build.reshape(x, (n, c * (b * b), h // b, w // b))


@op("Trilu", 14, attrs="upper")
@op("Trilu", domain=MICROSOFT, attrs="upper")
def _trilu(call: Call) -> Node:
    x, upper = call[0], call.attr_bool("upper", True)
    rank = len(x.shape)
    row = build.along(rank - 2, rank, x.shape[-2])
    column = build.along(rank - 1, rank, x.shape[-1])
    k: Node | int = 0
    if call.get(1) is not None:
        known = call.known(1)
        k = int(known[0]) if known and isinstance(known[0], int) else _number(call[1])
    edge = do("add", row, max(min(k, 1 << 30), -(1 << 30)) if isinstance(k, int) else k)
    inside = do("ge" if upper else "le", column, edge)
    return build.where(inside, x, False if x.dtype.kind == "bool" else 0)


def _number(x: Node) -> Node:
    return cast(build.reshape(x, ()), dtypes.i32)


@op("EyeLike", 9, attrs="dtype k")
def _eye_like(call: Call) -> Node:
    rows, columns = call[0].shape
    dtype = call.attr_dtype("dtype", call[0].dtype)
    row, column = build.along(0, 2, rows), build.along(1, 2, columns)
    return cast(do("eq", column, do("add", row, call.attr_int("k", 0))), dtype)


@op("Range", 11)
def _range(call: Call) -> Node:
    dtype = call[0].dtype
    known = [call.known(i) for i in range(3)]
    if None in known:
        return _range_computed(call)
    a, b, d = (values[0] for values in known if values is not None)
    if all(isinstance(v, (int, float)) for v in (a, b, d)):
        count: Size = max(0, math.ceil((b - a) / d))
    else:
        if not isinstance(d, int):
            call.fail("a range with a step that depends on the run")
        count = binary("ceil/", binary("-", b, a), d)
    steps = cast(apply("iota", size=count), dtype)
    scaled = do("mul", steps, build.reshape(call[2], ()))
    return do("add", scaled, build.reshape(call[0], ()))


def _range_computed(call: Call) -> Node:
    """How many numbers there are is read back."""
    kind = dtypes.f32 if call[0].dtype.name in ("f16", "bf16") else call[0].dtype
    a, b, d = (cast(build.reshape(call[i], ()), kind) for i in range(3))
    way = do("sub", b, a)
    if kind.kind == "float":
        count = cast(apply("ceil", do("div", way, d)), dtypes.i32)
    else:  # division drops what is left: one more where something is
        whole = do("div", way, d)
        more = do("lt", do("mul", whole, d), way)
        less = do("gt", do("mul", whole, d), way)
        up = build.where(do("gt", d, 0), more, less)
        count = do("add", cast(whole, dtypes.i32), cast(up, dtypes.i32))
    found = call.importer.read_size(do("max", count, 0), call.symbol())
    steps = cast(apply("iota", size=found), kind)
    return cast(do("add", do("mul", steps, d), a), call[0].dtype)


@op("ConstantOfShape", 9, attrs="value")
def _constant_of_shape(call: Call) -> Node:
    shape = call.read_sizes(0)
    tensor = call.attr_tensor("value")
    if tensor is None:
        return build.full(0.0, dtypes.f32, shape)
    value = build.reshape(call.importer.tensor(tensor, call.node.outputs[0]), ())
    return build.expand(value, shape)


@op("Constant", attrs="value value_int value_ints value_float value_floats sparse_value")
def _constant(call: Call) -> Node:
    tensor = call.attr_tensor("value")
    if tensor is not None:
        return call.importer.tensor(tensor, call.scope.prefix + call.node.outputs[0])
    if "value_int" in call.attributes:
        return build.scalar(call.attr_int("value_int"), dtypes.i64)
    if "value_ints" in call.attributes:
        return build.constant(call.attr_ints("value_ints"), dtypes.i64)
    if "value_float" in call.attributes:
        return build.scalar(call.attr_float("value_float"), dtypes.f32)
    if "value_floats" not in call.attributes:
        call.fail("a constant of this kind", got=", ".join(call.attributes))
    return build.constant(call.attr_floats("value_floats"), dtypes.f32)


@op("ReverseSequence", 10, attrs="batch_axis time_axis")
def _reverse_sequence(call: Call) -> Node:
    x, lengths = call[0], cast(call[1], dtypes.i32)
    batch, time = call.attr_int("batch_axis", 1), call.attr_int("time_axis", 0)
    rank = len(x.shape)
    row = build.along(time, rank, x.shape[time])
    of_batch = [x.shape[batch] if i == batch else 1 for i in range(rank)]
    length = build.reshape(lengths, of_batch)
    back = do("sub", do("sub", length, row), 1)
    places = [build.along(i, rank, s) for i, s in enumerate(x.shape)]
    places[time] = build.where(do("lt", row, length), back, row)
    return build.take(x, *places)


@op("CenterCropPad", 18, attrs="axes")
def _center_crop_pad(call: Call) -> Node:
    x = call[0]
    wanted = call.sizes(1, "the shape's elements")
    axes = [axis_of(a, len(x.shape)) for a in call.attr_ints("axes", tuple(range(len(x.shape))))]
    before, after = [0] * len(x.shape), [0] * len(x.shape)
    for axis, size in zip(axes, wanted, strict=True):
        have = x.shape[axis]
        if not isinstance(have, int) or not isinstance(size, int):
            call.fail("a crop of a free size")
        if size < have:
            x = build.part(x, axis, (have - size) // 2, size)
        else:
            before[axis] = (size - have) // 2
            after[axis] = size - have - before[axis]
    return build.pad(x, before, after)
