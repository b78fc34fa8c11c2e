"""Signals: windows, Fourier transforms as products with a table, mel weights."""

from __future__ import annotations

import math

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.registry import op
from fanlight.ir import build
from fanlight.ir.build import axis_of, cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import Size

_MOST = 4096  # of a transform's length: its table is made while importing


def _window(name: str, *factors: float) -> None:
    """Sums of cosines."""

    @op(name, 17, attrs="output_datatype periodic")
    def function(call: Call) -> Node:
        size = call.ints(0, "the window's size")[0]
        span = size if call.attr_bool("periodic", True) else size - 1
        values = [
            sum(f * math.cos(2 * math.pi * k * i / span) for k, f in enumerate(factors))
            for i in range(size)
        ]
        return cast(
            build.constant(values, dtypes.f32), call.attr_dtype("output_datatype", dtypes.f32)
        )


_window("HannWindow", 0.5, -0.5)
_window("HammingWindow", 25 / 46, -21 / 46)
_window("BlackmanWindow", 0.42, -0.5, 0.08)


@op("DFT", 20, attrs="inverse onesided")
def _dft(call: Call) -> Node:
    axis = call.ints(2, "the axis")[0] if call.get(2) is not None else -2
    return _transformed(call, call[0], axis)


@op("DFT", 17, 19, attrs="axis inverse onesided")
def _dft_attribute(call: Call) -> Node:
    return _transformed(call, call[0], call.attr_int("axis", 1))


def _transformed(call: Call, x: Node, axis: int) -> Node:
    """x […, 1 or 2], real or complex, along ``axis``."""
    rank = len(x.shape)
    axis = axis_of(axis, rank)
    inverse, onesided = call.attr_bool("inverse", False), call.attr_bool("onesided", False)
    have = x.shape[axis]
    if not isinstance(have, int):
        call.fail("a transform of a free size")
    given = call.ints(1, "the length")[0] if call.get(1) is not None else None
    if inverse and onesided:  # the other half is the conjugate one
        length = given if given is not None else 2 * (have - 1)
        return _real_inverse(x, axis, have, length)
    length = have if given is None else given
    if length > _MOST:
        call.fail("a transform of this length", got=length)
    used = min(have, length)
    x = build.part(x, axis, 0, used)
    count = length // 2 + 1 if onesided else length
    sign = 1 if inverse else -1
    scale = 1 / length if inverse else 1.0
    real, imaginary = _tables(used, count, length, sign, scale, x)
    moved = build.transpose(x, axis, rank - 2) if axis != rank - 2 else x
    a = build.squeeze(build.part(moved, -1, 0, 1), [-1])
    re, im = (_along_last(a, t) for t in (real, imaginary))
    if x.shape[-1] == 2:
        b = build.squeeze(build.part(moved, -1, 1, 1), [-1])
        re, im = (
            do("sub", re, _along_last(b, imaginary)),
            do("add", im, _along_last(b, real)),
        )
    made = build.concat([build.unsqueeze(v, [len(v.shape)]) for v in (re, im)], -1)
    return build.transpose(made, axis, rank - 2) if axis != rank - 2 else made


def _tables(
    rows: int, count: int, length: int, sign: int, scale: float, x: Node
) -> tuple[Node, Node]:
    angles = [
        sign * 2 * math.pi * (i * k % length) / length for i in range(rows) for k in range(count)
    ]
    shape = (rows, count)
    kind = x.dtype
    real = build.constant([scale * math.cos(a) for a in angles], dtypes.f64, shape)
    imaginary = build.constant([scale * math.sin(a) for a in angles], dtypes.f64, shape)
    if kind is not dtypes.f64:
        real = build.constant([scale * math.cos(a) for a in angles], dtypes.f32, shape)
        imaginary = build.constant([scale * math.sin(a) for a in angles], dtypes.f32, shape)
    return cast(real, kind), cast(imaginary, kind)


def _along_last(x: Node, table: Node) -> Node:
    """[…, n] times [n, k]."""
    flat = build.unsqueeze(x, [0]) if len(x.shape) == 1 else x
    made = apply("dot", flat, table)
    return build.squeeze(made, [0]) if len(x.shape) == 1 else made


def _real_inverse(x: Node, axis: int, have: int, length: int) -> Node:
    """x […, 2] of one side → the real signal […, 1]."""
    rank = len(x.shape)
    moved = build.transpose(x, axis, rank - 2) if axis != rank - 2 else x
    a, b = (build.squeeze(build.part(moved, -1, i, 1), [-1]) for i in (0, 1))
    real: list[float] = []
    imaginary: list[float] = []
    for k in range(have):
        twice = 1 if k == 0 or 2 * k == length else 2
        for n in range(length):
            angle = 2 * math.pi * (k * n % length) / length
            real.append(twice * math.cos(angle) / length)
            imaginary.append(-twice * math.sin(angle) / length)
    tables = [
        cast(build.constant(t, dtypes.f32, (have, length)), x.dtype) for t in (real, imaginary)
    ]
    made = do("add", _along_last(a, tables[0]), _along_last(b, tables[1]))
    made = build.unsqueeze(made, [len(made.shape)])
    return build.transpose(made, axis, rank - 2) if axis != rank - 2 else made


@op("STFT", 17, attrs="onesided")
def _stft(call: Call) -> Node:
    """x [B, L, 1 or 2], or [B, L] as onnxruntime takes it, → [B, frames, bins, 2]."""
    x, window = call[0], call.get(2)
    x = build.unsqueeze(x, [2]) if len(x.shape) == 2 else x
    step = call.ints(1, "the step")[0]
    if call.get(3) is not None:
        length = call.ints(3, "the frame's length")[0]
    elif window is not None and isinstance(window.shape[0], int):
        length = window.shape[0]
    else:
        call.fail("a frame whose length is not known")
    if length > _MOST:
        call.fail("a transform of this length", got=length)
    frames: Size = (x.shape[1] - length) // step + 1
    rank = 4
    at = do("add", do("mul", build.along(1, rank, frames), step), build.along(2, rank, length))
    values = build.take(x, build.along(0, rank, x.shape[0]), at, build.along(3, rank, x.shape[2]))
    if window is not None:
        values = do("mul", values, build.reshape(window, (1, 1, length, 1)))
    count = length // 2 + 1 if call.attr_bool("onesided", True) else length
    real, imaginary = _tables(length, count, length, -1, 1.0, x)
    a = build.squeeze(build.part(values, -1, 0, 1), [-1])
    re, im = _along_last(a, real), _along_last(a, imaginary)
    if x.shape[2] == 2:
        b = build.squeeze(build.part(values, -1, 1, 1), [-1])
        re, im = (
            do("sub", re, _along_last(b, imaginary)),
            do("add", im, _along_last(b, real)),
        )
    return build.concat([build.unsqueeze(v, [3]) for v in (re, im)], -1)


@op("MelWeightMatrix", 17, attrs="output_datatype")
def _mel_weights(call: Call) -> Node:
    """Triangles between points that lie evenly on the mel scale."""
    bins, length, rate = (int(call.numbers(i, "sizes")[0]) for i in range(3))
    low, high = (float(call.numbers(i, "frequencies")[0]) for i in (3, 4))
    spectrum = length // 2 + 1
    first, last = (2595 * math.log10(1 + f / 700) for f in (low, high))
    points = [
        math.floor(
            (length + 1)
            * 700
            * (10 ** ((first + i * (last - first) / (bins + 2)) / 2595) - 1)
            / rate
        )
        for i in range(bins + 2)
    ]
    table = [[0.0] * bins for _ in range(spectrum)]
    for i in range(bins):
        left, middle, right = points[i : i + 3]
        if middle == left:
            table[middle][i] = 1.0
        for j in range(left, middle + 1 if middle > left else left):
            table[j][i] = (j - left) / (middle - left)
        for j in range(middle, right):
            if right > middle:
                table[j][i] = (right - j) / (right - middle)
    flat = [v for row in table for v in row]
    made = build.constant(flat, dtypes.f32, (spectrum, bins))
    return cast(made, call.attr_dtype("output_datatype", dtypes.f32))
