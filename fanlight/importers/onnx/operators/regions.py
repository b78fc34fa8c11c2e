"""Sampling at places that are computed: regions of interest, deformed kernels."""

from __future__ import annotations

import math

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.operators.convolution import biased, kernel_of
from fanlight.importers.onnx.operators.reduction import wide
from fanlight.importers.onnx.operators.sampling import gathered, linear_taps
from fanlight.importers.onnx.registry import op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import Size, binary, product


@op("DeformConv", 19, attrs="dilations group kernel_shape offset_group pads strides")
def _deform_conv(call: Call) -> Node:
    """x [N, C, *S], w [M, C / groups, *K], offsets [N, D * K * axes, *O] with D groups of
    channels, bias [M], mask [N, D * K, *O] → [N, M, *O]. Dai et al. (arXiv 1703.06211), Zhu et
    al. (arXiv 1811.11168); linear between elements, which are 0 outside."""
    x, w, offset, bias, mask = call[0], call[1], call[2], call.get(3), call.get(4)
    kind = wide(x.dtype)
    kernel = kernel_of(call, w)
    count, spots = len(kernel), math.prod(kernel)
    groups, ways = call.attr_int("group", 1), call.attr_int("offset_group", 1)
    strides = call.attr_ints("strides", (1,) * count)
    dilations = call.attr_ints("dilations", (1,) * count)
    pads = call.attr_ints("pads", (0,) * (2 * count))
    n, channels, *sizes = x.shape
    out = offset.shape[2:]
    call.same(offset.shape[1], ways * spots * count, "channels of the offsets")
    moved = build.reshape(cast(offset, kind), (n, ways, *kernel, count, *out))
    rank = 3 + 2 * count  # N, D, channels of a group, K, O
    taps = []
    for i in range(count):
        own = build.squeeze(build.part(moved, 2 + count, i, 1), [2 + count])
        there = do("mul", build.along(3 + i, rank, kernel[i]), dilations[i])
        here = do("mul", build.along(3 + count + i, rank, out[i]), strides[i])
        start = do("sub", do("add", here, there), pads[i])
        taps.append(linear_taps(do("add", build.unsqueeze(own, [2]), cast(start, kind))))
    each = binary("//", channels, ways)
    values = gathered(
        build.reshape(cast(x, kind), (n, ways, each, *sizes)), taps, "zeros", aligned=False
    )
    if mask is not None:
        factors = build.reshape(cast(mask, kind), (n, ways, 1, *kernel, *out))
        values = do("mul", values, factors)
    made = binary("//", w.shape[0], groups)
    depth = binary("*", w.shape[1], spots)
    columns = build.reshape(values, (n, groups, depth, product(out)))
    weights = build.reshape(cast(w, kind), (groups, made, depth))
    total = build.reshape(apply("dot", weights, columns), (n, w.shape[0], *out))
    return cast(biased(total, None if bias is None else cast(bias, kind)), x.dtype)


_ROI = "mode output_height output_width sampling_ratio spatial_scale"


@op("RoiAlign", 10, 15, attrs=_ROI)
def _roi_align_plain(call: Call) -> Node:
    return _aligned(call, half=False)


@op("RoiAlign", 16, attrs=f"{_ROI} coordinate_transformation_mode")
def _roi_align(call: Call) -> Node:
    mode = call.attr_string("coordinate_transformation_mode", "half_pixel")
    if mode not in ("half_pixel", "output_half_pixel"):
        call.fail("a mode of coordinates", got=mode)
    return _aligned(call, half=mode == "half_pixel")


def _aligned(call: Call, half: bool) -> Node:
    """x [N, C, H, W], regions [R, 4] (x, y, x, y), their batches [R] → [R, C, *O]. He et al. (arXiv
    1703.06870). A ``sampling_ratio`` of 0 is refused: the number of samples would follow from the
    regions, which are values of the run."""
    x, rois = call[0], call[1]
    kind = wide(x.dtype)
    mode = call.attr_string("mode", "avg")
    if mode not in ("avg", "max"):
        call.fail("a mode", got=mode)
    samples = call.attr_int("sampling_ratio", 0)
    if samples <= 0:
        call.fail("a sampling_ratio of 0", hint="Give the number of samples in the model.")
    scale = call.attr_float("spatial_scale", 1.0)
    out = (call.attr_int("output_height", 1), call.attr_int("output_width", 1))
    regions, rank = rois.shape[0], 6  # R, C, O, samples
    taps = []
    outside: Node | None = None
    for i, size in enumerate(x.shape[2:]):
        low, high = (
            build.reshape(
                do("sub", do("mul", cast(build.part(rois, 1, at, 1), kind), scale), 0.5 * half),
                (regions, *(1,) * (rank - 1)),
            )
            for at in (1 - i, 3 - i)
        )
        span = do("sub", high, low)
        span = span if half else do("max", span, 1.0)
        step = do("div", span, float(out[i]))
        cell = cast(build.along(2 + i, rank, out[i]), kind)
        sample = cast(build.along(4 + i, rank, samples), kind)
        within = do("div", do("add", sample, 0.5), float(samples))
        at = do("add", low, do("mul", step, do("add", cell, within)))
        count = build.size(size, kind)
        beyond = do("or", do("lt", at, -1.0), do("gt", at, count))
        outside = beyond if outside is None else do("or", outside, beyond)
        taps.append(_border_taps(at, size))
    assert outside is not None
    batch = build.reshape(cast(call[2], dtypes.i32), (regions, *(1,) * (rank - 1)))
    channel = build.along(1, rank, x.shape[1])
    products = [
        do("mul", build.take(cast(x, kind), batch, channel, y, z), do("mul", a, b))
        for y, a in taps[0]
        for z, b in taps[1]
    ]
    join = "add" if mode == "avg" else "max"
    total = products[0]
    for value in products[1:]:
        total = do(join, total, value)
    total = build.where(outside, 0.0, total)
    if mode == "avg":
        return cast(build.mean(total, [4, 5], keep=False), x.dtype)
    return cast(build.reduce("max", total, [4, 5], keep=False), x.dtype)


def _border_taps(at: Node, size: Size) -> list[tuple[Node, Node]]:
    """Two i32 neighbours, moved inside, and their weights."""
    last = do("sub", build.size(size, at.dtype), 1.0)
    inside = do("max", do("min", at, last), 0.0)
    base = apply("floor", inside)
    part = do("sub", inside, base)
    first = build.clamp(cast(base, dtypes.i32), size)
    return [(first, do("sub", 1.0, part)), (build.clamp(do("add", first, 1), size), part)]
