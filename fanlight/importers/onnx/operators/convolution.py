"""Convolutions, plain, transposed and of integers."""

from __future__ import annotations

import math

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.operators.reduction import wide
from fanlight.importers.onnx.operators.windows import ATTRS, Windows, windows
from fanlight.importers.onnx.registry import op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import Size, binary, product


def convolve(x: Node, w: Node, over: Windows, groups: int) -> Node:
    """x [N, C, *S], w [M, C / groups, *K] → [N, M, *O]. In f32 a product of matrices where that is
    fast: with x itself, with shifted rows of it, or with the windows' elements put together."""
    if x.dtype is not dtypes.f32:
        return _nested(x, w, over, groups)
    each = binary("//", x.shape[1], groups)
    if each == 1 and w.shape[0] == groups and over.few():
        return _by_channel(x, w, over)
    if set(over.strides) != {1} or len(over.kernel) > 2:
        return _by_windows(x, w, over, groups)
    return _by_shifts(x, w, over, groups)


def _grouped(w: Node, groups: int) -> Node:
    """w as [M, C of a group and K], one for each group where there are many."""
    m, inner = w.shape[0], product(w.shape[1:])
    return build.reshape(w, (m, inner) if groups == 1 else (groups, binary("//", m, groups), inner))


def _ahead(x: Node, groups: int) -> tuple[Size, ...]:
    """Leading axes of x as :func:`_grouped` wants them."""
    n, channels = x.shape[:2]
    return (n, channels) if groups == 1 else (n, groups, binary("//", channels, groups))


def _by_shifts(x: Node, w: Node, over: Windows, groups: int) -> Node:
    """Windows that move one by one: each tap is a shift of the padded image, whose rows lie one
    behind the other. Places at the end of a row, where the kernel would reach into the next one,
    are made and dropped."""
    n, m, taps = x.shape[0], w.shape[0], math.prod(over.kernel)
    if taps == 1 and not any(over.padded(i) for i in range(len(over.kernel))):
        made = apply("dot", _grouped(w, groups), _flat(x, groups))
        return build.reshape(made, (n, m, *over.out))
    two = len(over.kernel) == 2
    after = list(over.after)
    if two and over.kernel[1] > 1:  # the last row's shifts reach behind it
        after[0] = after[0] + 1
    padded = build.pad(x, (0, 0, *over.before), (0, 0, *after), 0.0)
    wide, right = padded.shape[-1], over.dilations[-1]
    flat = _flat(padded, groups)
    count = binary("*", over.out[0], wide) if two else over.out[-1]
    made = apply(
        "dot_shifted", _grouped(w, groups), flat, taps=taps, across=over.kernel[-1],
        down=binary("*", over.dilations[0], wide) if two else 0, right=right, count=count,
    )  # fmt: skip
    if not two:
        return build.reshape(made, (n, m, *over.out))
    rows = build.reshape(made, (n, m, over.out[0], wide))
    return build.part(rows, 3, 0, over.out[1])


def _flat(x: Node, groups: int) -> Node:
    return build.reshape(x, (*_ahead(x, groups), product(x.shape[2:])))


def _by_windows(x: Node, w: Node, over: Windows, groups: int) -> Node:
    """The windows' elements as a matrix [C of a group and K, O]."""
    count = len(over.kernel)
    n, m = x.shape[0], w.shape[0]
    ahead = _ahead(x, groups)
    rank = len(ahead) + 2 * count
    places, inside = over.places(rank, len(ahead) + count, len(ahead))
    image = build.reshape(x, (*ahead, *x.shape[2:]))
    along = [build.along(i, rank, size) for i, size in enumerate(ahead)]
    values = build.take(image, *along, *places)
    if inside is not None:
        values = build.where(inside, values, 0.0)
    shape = (*ahead[:-1], product((ahead[-1], *over.kernel)), product(over.out))
    made = apply("dot", _grouped(w, groups), build.reshape(values, shape))
    return build.reshape(made, (n, m, *over.out))


def _by_channel(x: Node, w: Node, over: Windows) -> Node:
    """Each channel by itself: the taps' sum, written out."""
    total: Node | None = None
    for tap, values in over.taps(x, 0.0):
        factor = w
        for i, k in enumerate(tap):
            factor = build.part(factor, 2 + i, k, 1)
        factor = build.reshape(factor, (w.shape[0], *(1,) * len(tap)))
        part = do("mul", values, factor)
        total = part if total is None else do("add", total, part)
    assert total is not None
    return total


def _nested(x: Node, w: Node, over: Windows, groups: int) -> Node:
    """A sum over windows in one kernel, for any dtype."""
    count = len(over.kernel)
    n, channels = x.shape[:2]
    m = w.shape[0]
    each, made = binary("//", channels, groups), binary("//", m, groups)
    rank = 3 + count + 1 + count  # N, groups, M of a group, O | C of a group, K
    inner = 3 + count
    places, inside = over.places(rank, 3, inner + 1)
    grouped = build.reshape(x, (n, groups, each, *x.shape[2:]))
    values = build.take(
        grouped,
        build.along(0, rank, n),
        build.along(1, rank, groups),
        build.along(inner, rank, each),
        *places,
    )
    if inside is not None:
        values = build.where(inside, values, 0)
    weights = build.reshape(w, (groups, made, *(1,) * count, each, *w.shape[2:]))
    products = do("mul", values, weights)
    total = build.reduce("sum", products, range(inner, rank), keep=False)
    return build.reshape(total, (n, m, *over.out))


def biased(x: Node, bias: Node | None) -> Node:
    """Plus a number for each channel."""
    if bias is None:
        return x
    return do("add", x, build.reshape(bias, (bias.shape[0], *(1,) * (len(x.shape) - 2))))


def kernel_of(call: Call, w: Node) -> list[int]:
    """The kernel's spatial sizes."""
    found = w.shape[2:]
    if not all(isinstance(s, int) for s in found):
        call.fail("a kernel of a free size")
    return [int(str(s)) for s in found]


@op("Conv", attrs=f"{ATTRS} group")
def conv(call: Call) -> Node:
    """x [N, C, *S], w [O, C / groups, *K], a bias [O]."""
    x, w, bias = call[0], call[1], call.get(2)
    groups = call.attr_int("group", 1)
    call.same(x.shape[1], binary("*", w.shape[1], groups), "channels")
    over = windows(call, x.shape[2:], kernel_of(call, w))
    kind = wide(x.dtype)
    made = convolve(cast(x, kind), cast(w, kind), over, groups)
    return cast(biased(made, None if bias is None else cast(bias, kind)), x.dtype)


@op("ConvInteger", 10, attrs=f"{ATTRS} group")
def _conv_integer(call: Call) -> Node:
    return convolve_integers(call, call[0], call.get(2), call[1], call.get(3))


def convolve_integers(call: Call, x: Node, zx: Node | None, w: Node, zw: Node | None) -> Node:
    """Of 8-bit integers less their zero points, i32; ``zw``: one, or one for each output channel.
    One image without groups is a product: with shifted rows, or where the kernel goes in steps
    with the windows' elements put together."""
    over = windows(call, x.shape[2:], kernel_of(call, w))
    groups = call.attr_int("group", 1)
    one_point = zw is None or product(zw.shape) == 1
    if x.shape[0] == 1 and groups == 1 and one_point:
        steps = set(over.strides) != {1} or len(over.kernel) > 2
        return (_gathered if steps else _shifted)(x, zx, w, zw, over)
    x, w = cast(x, dtypes.i32), cast(w, dtypes.i32)
    if zx is not None:
        x = do("sub", x, cast(build.reshape(zx, ()), dtypes.i32))
    if zw is not None:
        zero = cast(zw, dtypes.i32)
        shape = () if one_point else (zero.shape[0], *(1,) * (len(w.shape) - 1))
        w = do("sub", w, build.reshape(zero, shape))
    return convolve(x, w, over, groups)


def _points(zw: Node | None, zx: Node | None) -> list[Node]:
    zero = build.constant([0], dtypes.i32)
    return [zero if z is None else build.reshape(cast(z, dtypes.i32), (1,)) for z in (zw, zx)]


def _gathered(x: Node, zx: Node | None, w: Node, zw: Node | None, over: Windows) -> Node:
    count, channels, m = len(over.kernel), x.shape[1], w.shape[0]
    rank = 1 + 2 * count  # channels, the kernel's axes, the result's
    places, inside = over.places(rank, 1 + count, 1)
    image = build.reshape(x, (channels, *x.shape[2:]))
    values = build.take(image, build.along(0, rank, channels), *places)
    if inside is not None:
        fill = 0 if zx is None else build.reshape(zx, ())
        values = build.where(inside, values, fill)
    flat = (product((channels, *over.kernel)), product(over.out))
    rows = build.reshape(w, (m, product(w.shape[1:])))
    made = apply("dot_integer", rows, build.reshape(values, flat), *_points(zw, zx))
    return build.reshape(made, (1, m, *over.out))


def _shifted(x: Node, zx: Node | None, w: Node, zw: Node | None, over: Windows) -> Node:
    """Of an image whose padded rows lie one behind the other, each tap is a shift. Places at the
    end of a row, where the kernel would reach into the next one, are made and dropped."""
    two = len(over.kernel) == 2
    fill = build.scalar(0, x.dtype) if zx is None else build.reshape(zx, ())
    padded = build.pad(x, (0, 0, *over.before), (0, 0, *over.after), fill)
    wide = padded.shape[-1]
    channels, m = padded.shape[1], w.shape[0]
    right = over.dilations[-1]
    down = binary("*", over.dilations[0], wide) if two else 0
    flat = build.reshape(padded, (channels, product(padded.shape[2:])))
    count = over.out[-1]
    if two:
        flat = build.pad(flat, (0, 0), (0, right * (over.kernel[-1] - 1)), fill)
        count = binary("*", over.out[0], wide)
    made = apply(
        "dot_shifted", build.reshape(w, (m, product(w.shape[1:]))), flat, *_points(zw, zx),
        taps=math.prod(over.kernel), across=over.kernel[-1], down=down, right=right, count=count,
    )  # fmt: skip
    if two:
        made = build.part(build.reshape(made, (m, over.out[0], wide)), 2, 0, over.out[1])
    return build.reshape(made, (1, m, *over.out))


@op("ConvTranspose", attrs=f"{ATTRS} group output_padding output_shape")
def _conv_transpose(call: Call) -> Node:
    """Each output gathers the inputs that reach it: i * stride + k * dilation = o + pad."""
    x, w, bias = call[0], call[1], call.get(2)
    kernel = kernel_of(call, w)
    count, groups = len(kernel), call.attr_int("group", 1)
    kind = wide(x.dtype)
    strides = call.attr_ints("strides", (1,) * count)
    dilations = call.attr_ints("dilations", (1,) * count)
    before, out = _transposed_sizes(call, x.shape[2:], kernel, strides, dilations)
    if kind is dtypes.f32 and (set(strides) == {1} or set(dilations) == {1}):
        over = Windows(
            x.shape[2:], tuple(kernel), strides, dilations, tuple(before), (), tuple(out)
        )
        phases = _by_phases(cast(x, kind), cast(w, kind), over, groups)
        return cast(biased(phases, None if bias is None else cast(bias, kind)), x.dtype)
    n, channels, made = x.shape[0], x.shape[1], w.shape[1]
    each = binary("//", channels, groups)
    rank = 3 + count + 1 + count
    inner = 3 + count
    places: list[Node] = []
    inside: Node | None = None
    for i, size in enumerate(x.shape[2:]):
        here = build.along(3 + i, rank, out[i])
        there = build.along(inner + 1 + i, rank, kernel[i])
        reach = do("sub", here, do("mul", there, dilations[i]))
        reach = do("add", reach, build.size(before[i], dtypes.i32))
        at = do("div", reach, strides[i])
        good = do("and", do("ge", reach, 0), do("lt", at, build.size(size, dtypes.i32)))
        if strides[i] > 1:
            good = do("and", good, do("eq", do("mul", at, strides[i]), reach))
        inside = good if inside is None else do("and", inside, good)
        places.append(build.clamp(at, size))
    assert inside is not None
    grouped = build.reshape(cast(x, kind), (n, groups, each, *x.shape[2:]))
    values = build.take(
        grouped,
        build.along(0, rank, n),
        build.along(1, rank, groups),
        build.along(inner, rank, each),
        *places,
    )
    # w [C, M / groups, *K] → [groups, M of a group, 1 …, C of a group, *K]
    weights = build.reshape(cast(w, kind), (groups, each, made, *kernel))
    weights = build.transpose(weights, 1, 2)
    weights = build.reshape(weights, (groups, made, *(1,) * count, each, *kernel))
    products = do("mul", build.where(inside, values, 0), weights)
    total = build.reduce("sum", products, range(inner, rank), keep=False)
    whole = build.reshape(total, (n, binary("*", made, groups), *out))
    return cast(biased(whole, None if bias is None else cast(bias, kind)), x.dtype)


def _by_phases(x: Node, w: Node, over: Windows, groups: int) -> Node:
    """A transposed convolution as a plain one, with an output for each phase of the strides: place
    j s + r of the whole takes the taps r, r + s, … of x at j, j - 1, …"""
    count = len(over.kernel)
    n, channels = x.shape[:2]
    each, made = binary("//", channels, groups), w.shape[1]
    taps = [-(-k // s) for k, s in zip(over.kernel, over.strides, strict=True)]
    extra = [t * s - k for t, s, k in zip(taps, over.strides, over.kernel, strict=True)]
    w = build.pad(w, (0,) * (2 + count), (0, 0, *extra), 0.0)
    parts = [size for pair in zip(taps, over.strides, strict=True) for size in pair]
    w = build.reshape(w, (groups, each, made, *parts))
    tap_axes = [3 + 2 * i for i in range(count)]
    for axis, size in zip(tap_axes, taps, strict=True):  # the last first
        w = build.take_along(
            w,
            axis,
            build.constant(
                [*range(size)][::-1], dtypes.i32, (size, *(1,) * (len(w.shape) - 1 - axis))
            ),
        )
    w = build.permute(w, (0, 2, *(axis + 1 for axis in tap_axes), 1, *tap_axes))
    rows = product((groups, made, *over.strides))
    w = build.reshape(w, (rows, each, *taps))
    around = tuple((t - 1) * d for t, d in zip(taps, over.dilations, strict=True))
    whole = tuple(size + a for size, a in zip(over.sizes, around, strict=True))
    ones = (1,) * count
    plain = Windows(over.sizes, tuple(taps), ones, over.dilations, around, around, whole)
    y = convolve(x, w, plain, groups)
    m = binary("*", made, groups)
    y = build.reshape(y, (n, m, *over.strides, *whole))
    y = build.permute(y, (0, 1, *(axis for i in range(count) for axis in (2 + count + i, 2 + i))))
    full = [binary("*", size, s) for size, s in zip(whole, over.strides, strict=True)]
    y = build.reshape(y, (n, m, *full))
    behind = [
        binary("-", binary("+", out, before), size)
        for out, before, size in zip(over.out, over.before, full, strict=True)
    ]
    cut = [binary("-", 0, before) for before in over.before]
    return build.pad(y, (0, 0, *cut), (0, 0, *behind), 0.0)


def _transposed_sizes(
    call: Call,
    sizes: tuple[Size, ...],
    kernel: list[int],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[list[Size], list[Size]]:
    """Padding in front, and the output's sizes."""
    count = len(kernel)
    pads = call.attr_ints("pads", (0,) * (2 * count))
    extra = call.attr_ints("output_padding", (0,) * count)
    mode = call.attr_string("auto_pad", "NOTSET")
    wanted = call.attr_ints("output_shape", ())[-count:]
    before: list[Size] = []
    out: list[Size] = []
    for i, size in enumerate(sizes):
        full = (size - 1) * strides[i] + extra[i] + (kernel[i] - 1) * dilations[i] + 1
        if wanted or mode in ("SAME_UPPER", "SAME_LOWER"):
            made: Size = wanted[i] if wanted else binary("*", size, strides[i])
            total = binary("max", full - made, 0)
            half = binary("//", total, 2)
            before.append(
                total - half if mode == "SAME_LOWER" or (wanted and mode != "SAME_UPPER") else half
            )
            out.append(made)
        else:
            before.append(pads[i])
            out.append(full - pads[i] - pads[i + count])
    return before, out
