"""Sampling at places that tensors hold: grids, and the affine grids that lead to them; Col2Im."""

from __future__ import annotations

import itertools
import math

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.operators.reduction import wide
from fanlight.importers.onnx.registry import op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import Size, product

_CUBIC = -0.75


def _plain(place: Node, size: Size, aligned: bool) -> Node:
    """From -1 … 1 to places of an axis."""
    count = build.size(size, place.dtype)
    if aligned:
        return do("mul", do("add", place, 1.0), do("mul", do("sub", count, 1.0), 0.5))
    return do("mul", do("sub", do("mul", do("add", place, 1.0), count), 1.0), 0.5)


def _reflected(at: Node, size: Size, aligned: bool) -> Node:
    """Thrown back at the borders: the middles of the outer pixels, or their edges."""
    count = build.size(size, at.dtype)
    low = 0.0 if aligned else -0.5
    span = do("max", do("sub", count, 1.0) if aligned else count, 1e-9)
    moved = apply("abs", do("sub", at, low))
    turns = apply("floor", do("div", moved, span))
    rest = do("sub", moved, do("mul", turns, span))
    odd = do("ne", do("mod", turns, 2.0), 0.0)
    return do("add", build.where(odd, do("sub", span, rest), rest), low)


@op("GridSample", 16, attrs="align_corners mode padding_mode")
def _grid_sample(call: Call) -> Node:
    """x [N, C, *S], grid [N, *O, axes], the last axis first → [N, C, *O]."""
    x, grid = call[0], call[1]
    kind = wide(x.dtype)
    count = len(x.shape) - 2
    aligned = call.attr_bool("align_corners", False)
    padding = call.attr_string("padding_mode", "zeros")
    mode = call.attr_string("mode", "linear")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    places = []
    for i in range(count):
        place = build.squeeze(build.part(cast(grid, kind), -1, count - 1 - i, 1), [-1])
        places.append(build.unsqueeze(_plain(place, x.shape[2 + i], aligned), [1]))
    taps = []
    for i, at in enumerate(places):
        size = x.shape[2 + i]
        if mode == "cubic":
            taps.append(_cubic_taps(at))
            continue
        if padding == "border":
            last = do("sub", build.size(size, kind), 1.0)
            at = do("max", do("min", at, last), 0.0)
        elif padding == "reflection":
            at = _reflected(at, size, aligned)
        if mode == "nearest":
            taps.append([(apply("round", at), None)])
        elif mode == "linear":
            taps.append(linear_taps(at))
        else:
            call.fail("a mode", got=mode)
    return cast(gathered(cast(x, kind), taps, padding, aligned), x.dtype)


def linear_taps(at: Node) -> list[tuple[Node, Node | None]]:
    """Two neighbours and their weights."""
    base = apply("floor", at)
    part = do("sub", at, base)
    return [(base, do("sub", 1.0, part)), (do("add", base, 1.0), part)]


def _cubic_taps(at: Node) -> list[tuple[Node, Node | None]]:
    """Four neighbours and their weights (Keys 1981)."""
    base = apply("floor", at)
    t = do("sub", at, base)
    found: list[tuple[Node, Node | None]] = []
    for offset in (-1, 0, 1, 2):
        d = apply("abs", do("sub", t, float(offset)))
        if offset in (0, 1):
            inner = do("sub", do("mul", d, _CUBIC + 2), _CUBIC + 3)
            weight = do("add", do("mul", do("mul", inner, d), d), 1.0)
        else:
            inner = do("add", do("mul", do("sub", d, 5.0), d), 8.0)
            weight = do("mul", do("sub", do("mul", inner, d), 4.0), _CUBIC)
        found.append((do("add", base, float(offset)), weight))
    return found


def gathered(
    x: Node, taps: list[list[tuple[Node, Node | None]]], padding: str, aligned: bool
) -> Node:
    """The sum over all combinations of neighbours along the last axes of x."""
    rank = len(taps[0][0][0].shape)
    lead = len(x.shape) - len(taps)
    total: Node | None = None
    for corner in itertools.product(*taps):
        weight: Node | None = None
        inside: Node | None = None
        indices = [build.along(i, rank, x.shape[i]) for i in range(lead)]
        for i, (at, factor) in enumerate(corner):
            size = x.shape[lead + i]
            if padding == "reflection":
                at = _reflected(at, size, aligned)
                at = apply("round", at)
            place = cast(do("max", do("min", at, 2.0**30), -(2.0**30)), dtypes.i32)
            if padding == "zeros":
                here = do("and", do("ge", place, 0), do("lt", place, build.size(size, dtypes.i32)))
                inside = here if inside is None else do("and", inside, here)
            indices.append(build.clamp(place, size))
            if factor is not None:
                weight = factor if weight is None else do("mul", weight, factor)
        value = build.take(x, *indices)
        value = value if inside is None else build.where(inside, value, 0.0)
        value = value if weight is None else do("mul", value, weight)
        total = value if total is None else do("add", total, value)
    assert total is not None
    return total


@op("AffineGrid", 20, attrs="align_corners")
def _affine_grid(call: Call) -> Node:
    """theta [N, axes, axes + 1] and a size [N, C, *S] → [N, *S, axes]."""
    theta, sizes = call[0], call.sizes(1, "the size")
    spatial = sizes[2:]
    count = len(spatial)
    aligned = call.attr_bool("align_corners", False)
    lines = []
    for i, size in enumerate(spatial):
        steps = cast(build.along(i, count, size), theta.dtype)
        number = build.size(size, theta.dtype)
        if aligned:
            span = do("max", do("sub", number, 1.0), 1.0)
            line = do("sub", do("div", do("mul", steps, 2.0), span), 1.0)
        else:
            line = do("sub", do("div", do("add", do("mul", steps, 2.0), 1.0), number), 1.0)
        lines.append(build.expand(line, spatial))
    ones = build.full(1.0, theta.dtype, spatial)
    points = build.concat([build.unsqueeze(v, [count]) for v in (*reversed(lines), ones)], count)
    flat = build.reshape(points, (1, product(spatial), count + 1))
    made = apply("dot", flat, build.transpose(theta))
    return build.reshape(made, (theta.shape[0], *spatial, count))


@op("Col2Im", 18, attrs="dilations pads strides")
def _col2im(call: Call) -> Node:
    """Each place of the image sums the blocks that reach it."""
    x, image, block = call[0], call.ints(1, "the image"), call.ints(2, "the block")
    count = len(image)
    dilations = call.attr_ints("dilations", (1,) * count)
    strides = call.attr_ints("strides", (1,) * count)
    pads = call.attr_ints("pads", (0,) * (2 * count))
    steps = [
        (image[i] + pads[i] + pads[i + count] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1
        for i in range(count)
    ]
    n, channels = x.shape[0], x.shape[1] // math.prod(block)
    split = build.reshape(x, (n, channels, *block, *steps))
    rank = 2 + 2 * count
    inside: Node | None = None
    places: list[Node] = []
    kernel = []
    for i in range(count):
        k = build.along(2 + count + i, rank, block[i])
        reach = do(
            "sub",
            do("add", build.along(2 + i, rank, image[i]), pads[i]),
            do("mul", k, dilations[i]),
        )
        at = do("div", reach, strides[i])
        good = do("and", do("ge", reach, 0), do("lt", at, steps[i]))
        good = do("and", good, do("eq", do("mul", at, strides[i]), reach))
        inside = good if inside is None else do("and", inside, good)
        places.append(build.clamp(at, steps[i]))
        kernel.append(k)
    assert inside is not None
    outer = [build.along(0, rank, n), build.along(1, rank, channels)]
    values = build.where(inside, build.take(split, *outer, *kernel, *places), 0)
    return build.reduce("sum", values, range(2 + count, rank), keep=False)
