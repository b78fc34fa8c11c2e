"""Convolutions, plain, transposed and of integers."""

from __future__ import annotations

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.operators.reduction import wide
from fanlight.importers.onnx.operators.windows import ATTRS, Windows, windows
from fanlight.importers.onnx.registry import op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.shapes import Size, binary


def convolve(x: Node, w: Node, over: Windows, groups: int) -> Node:
    """x [N, C, *S], w [M, C / groups, *K] → [N, M, *O]."""
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
def _conv(call: Call) -> Node:
    x, w, bias = call[0], call[1], call.get(2)
    groups = call.attr_int("group", 1)
    call.same(x.shape[1], binary("*", w.shape[1], groups), "channels")
    over = windows(call, x.shape[2:], kernel_of(call, w))
    kind = wide(x.dtype)
    made = convolve(cast(x, kind), cast(w, kind), over, groups)
    return cast(biased(made, None if bias is None else cast(bias, kind)), x.dtype)


@op("ConvInteger", 10, attrs=f"{ATTRS} group")
def _conv_integer(call: Call) -> Node:
    x, w = cast(call[0], dtypes.i32), cast(call[1], dtypes.i32)
    if call.get(2) is not None:
        x = do("sub", x, cast(build.reshape(call[2], ()), dtypes.i32))
    if call.get(3) is not None:
        zero = cast(call[3], dtypes.i32)
        shape = (zero.shape[0], *(1,) * (len(w.shape) - 1)) if zero.shape else ()
        w = do("sub", w, build.reshape(zero, shape))
    over = windows(call, x.shape[2:], kernel_of(call, w))
    return convolve(x, w, over, call.attr_int("group", 1))


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
