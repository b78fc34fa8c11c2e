"""Resize and Upsample: one axis after the other, by a table of places and weights.

The tables are made while importing. Of axes whose sizes only the run knows, places are computed
there, as exact quotients of integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.registry import op
from fanlight.ir import build
from fanlight.ir.build import axis_of, cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.shapes import Size, binary

Mapping = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class _Axis:
    """``at``: output place → place in the input, which has ``size`` places."""

    size: int
    out: int
    scale: float
    at: Mapping


def _mapping(mode: str, size: int, out: int, scale: float, roi: tuple[float, float]) -> Mapping:
    start, end = roi
    if mode == "align_corners":
        whole = scale * size
        return lambda i: i * (size - 1) / (whole - 1) if out > 1 else 0.0
    if mode == "asymmetric":
        return lambda i: i / scale
    if mode == "pytorch_half_pixel":
        return lambda i: (i + 0.5) / scale - 0.5 if out > 1 else 0.0
    if mode == "half_pixel_symmetric":
        offset = size / 2 * (1 - out / (scale * size))
        return lambda i: offset + (i + 0.5) / scale - 0.5
    if mode == "tf_crop_and_resize":
        if out > 1:
            step = (end - start) * (size - 1) / (out - 1)
            return lambda i: start * (size - 1) + i * step
        return lambda i: 0.5 * (start + end) * (size - 1)
    return lambda i: (i + 0.5) / scale - 0.5


_NEAREST: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda x: math.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: math.floor(x + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}


def _cubic(a: float) -> Callable[[float], float]:
    """Keys, Cubic convolution interpolation (1981)."""

    def weight(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return ((a + 2) * t - (a + 3)) * t * t + 1
        return ((t - 5) * t + 8) * a * t - 4 * a if t < 2 else 0.0

    return weight


def _triangle(t: float) -> float:
    return max(0.0, 1 - abs(t))


def _table(
    axis: _Axis, weight: Callable[[float], float], reach: int, antialias: bool, exclude: bool
) -> tuple[list[int], list[float], int]:
    """Places and weights [out, taps], flat, and how many taps."""
    narrow = min(axis.scale, 1.0) if antialias else 1.0
    first = math.floor(-reach / narrow) + 1
    taps = 2 - 2 * first if antialias else 2 * reach
    first = first if antialias else 1 - reach
    places: list[int] = []
    weights: list[float] = []
    for i in range(axis.out):
        x = axis.at(i)
        base = math.floor(x)
        some = [base + first + k for k in range(taps)]
        found = [weight((j - x) * narrow) for j in some]
        if exclude:
            found = [w if 0 <= j < axis.size else 0.0 for w, j in zip(found, some, strict=True)]
        if exclude or antialias:
            total = sum(found) or 1.0
            found = [w / total for w in found]
        places += [min(max(j, 0), axis.size - 1) for j in some]
        weights += found
    return places, weights, taps


def _along(call: Call, x: Node, number: int, axis: _Axis, mode: str) -> Node:
    rank = len(x.shape)
    behind = (1,) * (rank - 1 - number)
    if mode == "nearest":
        rule = _NEAREST.get(call.attr_string("nearest_mode", "round_prefer_floor"))
        if rule is None:
            call.fail("a way to round", got=call.attr_string("nearest_mode"))
        near = [min(max(rule(axis.at(i)), 0), axis.size - 1) for i in range(axis.out)]
        made = build.take_along(x, number, build.constant(near, dtypes.i32, (axis.out, *behind)))
    else:
        if mode == "cubic":
            weight, reach = _cubic(call.attr_float("cubic_coeff_a", -0.75)), 2
        elif mode == "linear":
            weight, reach = _triangle, 1
        else:
            call.fail("a mode", got=mode)
        places, weights, taps = _table(
            axis,
            weight,
            reach,
            call.attr_bool("antialias", False) and axis.scale < 1,
            call.attr_bool("exclude_outside", False),
        )
        shape = (axis.out, *behind, taps)
        index = build.constant(places, dtypes.i32, shape)
        indices = [build.along(i, rank + 1, s) for i, s in enumerate(x.shape)]
        indices[number] = index
        values = build.take(x, *indices)
        scaled = do("mul", values, cast(build.constant(weights, dtypes.f32, shape), x.dtype))
        made = build.reduce("sum", scaled, [rank], keep=False)
    if call.attr_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        inside = [0 <= axis.at(i) <= axis.size - 1 for i in range(axis.out)]
        test = build.constant(inside, dtypes.boolean, (axis.out, *behind))
        made = build.where(test, made, call.attr_float("extrapolation_value", 0.0))
    return made


@dataclass(frozen=True, slots=True)
class _FreeAxis:
    """Output place i lies at the input's (i ``step`` + ``first``) / ``whole``."""

    size: Size
    out: Size
    step: Size
    first: Size
    whole: Size


def _free_axis(call: Call, transform: str, size: Size, out: Size, p: Size, q: Size) -> _FreeAxis:
    """For a scale of p / q."""
    if transform == "asymmetric":
        return _FreeAxis(size, out, q, 0, p)
    if transform == "align_corners":
        return _FreeAxis(size, out, size - 1, 0, binary("max", out - 1, 1))
    if transform not in ("half_pixel", "pytorch_half_pixel"):
        call.fail("a size that is free is resized", got=transform)
    return _FreeAxis(size, out, 2 * q, q - p, 2 * p)


def _ratio(scale: Fraction) -> tuple[int, int]:
    """A scale as exporters meant it, before it was rounded to 32 bits."""
    return scale.limit_denominator(4096).as_integer_ratio()


def _along_free(call: Call, x: Node, number: int, axis: _FreeAxis, mode: str, rule: str) -> Node:
    """``nearest``, by a ``rule`` to round, and ``linear``."""
    rank = len(x.shape)
    step, first, whole = (build.size(v, dtypes.i32) for v in (axis.step, axis.first, axis.whole))
    place = do("add", do("mul", build.along(number, rank, axis.out), step), do("add", first, whole))
    base = do("sub", do("div", place, whole), 1)  # first is more than -whole
    rest = do("mod", place, whole)
    if mode == "linear":
        weight = do("div", cast(rest, x.dtype), cast(whole, x.dtype))
        low, high = (
            build.take_along(x, number, build.clamp(at, axis.size))
            for at in (base, do("add", base, 1))
        )
        return do("add", low, do("mul", do("sub", high, low), weight))
    double = do("mul", rest, 2)
    tests = {
        "floor": None,
        "ceil": do("gt", rest, 0),
        "round_prefer_floor": do("gt", double, whole),
        "round_prefer_ceil": do("ge", double, whole),
    }
    if mode != "nearest" or rule not in tests:
        call.fail("a size that is free is resized", got=f"{mode}, {rule}")
    up = tests[rule]
    near = base if up is None else do("add", base, cast(up, dtypes.i32))
    return build.take_along(x, number, build.clamp(near, axis.size))


_ATTRS = """antialias axes coordinate_transformation_mode cubic_coeff_a exclude_outside
extrapolation_value keep_aspect_ratio_policy mode nearest_mode"""


@op("Resize", 11, attrs=_ATTRS)
def _resize(call: Call) -> Node:
    return _resized(call, roi_at=1, scales_at=2, sizes_at=3)


@op("Resize", 10, 10, attrs="mode")
@op("Upsample", 9, 9, attrs="mode")
def _resize_plain(call: Call) -> Node:
    return _resized(call, roi_at=None, scales_at=1, sizes_at=None, old=True)


@op("Upsample", 7, 8, attrs="mode scales")
def _upsample(call: Call) -> Node:
    return _resized(call, roi_at=None, scales_at=None, sizes_at=None, old=True)


def _resized(
    call: Call,
    *,
    roi_at: int | None,
    scales_at: int | None,
    sizes_at: int | None,
    old: bool = False,
) -> Node:
    x = call[0]
    rank = len(x.shape)
    axes = [axis_of(a, rank) for a in call.attr_ints("axes", tuple(range(rank)))]
    shape = [x.shape[a] for a in axes]
    scales, outs = _wanted(call, shape, scales_at, sizes_at)
    transform = call.attr_string("coordinate_transformation_mode", "half_pixel")
    transform = "asymmetric" if old else transform
    roi = [0.0] * len(axes) + [1.0] * len(axes)
    if roi_at is not None and transform == "tf_crop_and_resize":
        roi = [float(v) for v in call.numbers(roi_at, "the region")]
    mode = call.attr_string("mode", "nearest")
    kind = dtypes.f32 if x.dtype.kind != "float" or x.dtype.bytes < 4 else x.dtype
    made = x if mode == "nearest" else cast(x, kind)
    for i, axis in enumerate(axes):
        size, out, scale = shape[i], outs[i], scales[i]
        region = (roi[i], roi[i + len(axes)])
        if size == out and scale == 1 and region == (0.0, 1.0):
            continue
        if not isinstance(size, int) or not isinstance(out, int):
            p, q = (out, size) if scale is None else _ratio(scale)
            free = _free_axis(call, transform, size, out, p, q)
            rule = call.attr_string("nearest_mode", "round_prefer_floor")
            made = _along_free(call, made, axis, free, mode, "floor" if old else rule)
            continue
        factor = float(Fraction(out, size) if scale is None else scale)
        found = _Axis(size, out, factor, _mapping(transform, size, out, factor, region))
        if old and mode == "nearest":
            floor = [min(int(i / factor), size - 1) for i in range(out)]
            behind = (1,) * (rank - 1 - axis)
            made = build.take_along(made, axis, build.constant(floor, dtypes.i32, (out, *behind)))
        else:
            made = _along(call, made, axis, found, mode)
    if x.dtype.kind != "float" and made.dtype is not x.dtype:
        made = do("round", made)
    return cast(made, x.dtype)


def _wanted(
    call: Call, shape: Sequence[Size], scales_at: int | None, sizes_at: int | None
) -> tuple[list[Fraction | None], list[Size]]:
    """Scale and size of each axis; no scale where it is the quotient of the sizes."""
    if sizes_at is not None and call.get(sizes_at) is not None and call[sizes_at].shape != (0,):
        outs = call.sizes(sizes_at, "the sizes")
        policy = call.attr_string("keep_aspect_ratio_policy", "stretch")
        if policy == "stretch":
            same = [Fraction(1) if a == b else None for a, b in zip(shape, outs, strict=True)]
            return [*same], [*outs]
        known = [s for s in (*shape, *outs) if isinstance(s, int)]
        if len(known) < 2 * len(shape):
            call.fail("a size that is free is resized", got=policy)
        ratios = [Fraction(b, a) for a, b in zip(known, known[len(shape) :], strict=False)]
        one = min(ratios) if policy == "not_larger" else max(ratios)
        return [one] * len(shape), [
            math.floor(one * a + Fraction(1, 2)) for a in known[: len(shape)]
        ]
    if scales_at is None:
        numbers: Sequence[Any] = call.attr_floats("scales")
    else:
        numbers = call.numbers(scales_at, "the scales")
    scales = [Fraction(float(v)) for v in numbers]
    outs = []
    for size, scale in zip(shape, scales, strict=True):
        if isinstance(size, int):
            outs.append(math.floor(size * float(scale)))
        else:
            p, q = _ratio(scale)
            outs.append(binary("//", size * p, q))
    return [*scales], [*outs]
