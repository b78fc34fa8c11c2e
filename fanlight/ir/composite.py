"""Composite ops, each defined by the plain ops that it stands for.

A definition gives an op's dtype, shape and meaning, and what a target without code for it runs
(``passes/plain.py``). Importers make ``dot``; passes make the others, fused ones, where a target
has code for them.

    dot         a […, M, K], b […, K, N] → their matrix products, as numpy.matmul: leading axes
                broadcast; of any one number type
    dot_stored  a f32 […, M, K], b as it is stored: f32, f16, bf16, i8 or u8, […, K, N] or, where
                ``turned``, […, N, K] → a @ (b - zero), f32
    dot_integer a [..., M, K] and b [..., K, N] of 8 bits, zero points za (one i32) and zb (one i32,
                or N) → (a - za) @ (b - zb), i32
    dot_shifted a […, M, C T] and b […, C, L], f32, or of 8 bits without leading axes and with zero
                points za and zb (one i32 each) → (a - za) @ (B - zb) […, M, count], f32 or i32,
                where row c T + t of B is row c of b, shifted by (t // across) down +
                (t % across) right elements: a convolution of stride 1
    project     x, g, w1 … wn → the products of rms_norm(x, g) with each w, side by side
    swiglu      x, g, w, u → silu(h @ wᵀ) * (h @ uᵀ), h = rms_norm(x, g)
    matmul_add  x, w, r → r + x @ wᵀ
    attend      a [T, (H + 2 Hk) D] (queries, keys, values), caches k and v, cos, sin and, where
                heads have norms, their weights for q and k → attention of the rotated queries over
                the caches, which it changes: rows start … start + T - 1 become the keys and values
    attend_add  the inputs of attend, then w and r → r + attend(…) @ wᵀ
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fanlight import dtypes
from fanlight.errors import GraphError
from fanlight.ir.graph import Node, type_text
from fanlight.ir.ops import apply, integers
from fanlight.shapes import Size, product


@dataclass(frozen=True, slots=True)
class Definition:
    """``changed``: number of an input that the op changes in place → its new value."""

    value: Node
    changed: Mapping[int, Node] = field(default_factory=dict)


def define(op: str, inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Definition:
    """What ``op`` stands for; raises GraphError where a rule of a plain op is broken."""
    return DEFINITIONS[op](inputs, attrs)


def _dot(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Definition:
    a, b = inputs
    if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[-1] != b.shape[-2] or a.dtype != b.dtype:
        got = f"{type_text(a.dtype, a.shape)} and {type_text(b.dtype, b.shape)}"
        raise GraphError("wants […, M, K] and […, K, N]", where="dot", got=got)
    rank = len(b.shape)
    turned = apply("permute", b, axes=(*range(rank - 2), rank - 1, rank - 2))
    left = apply("reshape", a, shape=(*a.shape[:-1], 1, a.shape[-1]))
    right = apply("reshape", turned, shape=(*b.shape[:-2], 1, b.shape[-1], b.shape[-2]))
    products = apply("mul", left, right)
    axis = len(products.shape) - 1
    return Definition(apply("reduce_sum", products, axes=(axis,), keep=False))


def _dot_stored(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Definition:
    a, b = inputs
    if a.dtype is not dtypes.f32 or b.dtype.name not in ("f32", "f16", "bf16", "i8", "u8"):
        got = f"{a.dtype} and {b.dtype}"
        raise GraphError("wants f32, and up to 32 bits", where="dot_stored", got=got)
    rank = len(b.shape)
    if attrs["turned"]:
        b = apply("permute", b, axes=(*range(rank - 2), rank - 1, rank - 2))
    if attrs["zero"]:
        b = apply("sub", apply("cast", b, to=dtypes.i32), integers([attrs["zero"]]))
    if b.dtype is not dtypes.f32:
        b = apply("cast", b, to=dtypes.f32)
    return Definition(apply("dot", a, b))


def _dot_integer(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Definition:
    a, b, za, zb = inputs
    for x, zero, most in ((a, za, 1), (b, zb, b.shape[-1] if b.shape else 1)):
        if x.dtype.name not in ("u8", "i8") or zero.shape not in ((1,), (most,)):
            got = f"{type_text(x.dtype, x.shape)}, {type_text(zero.dtype, zero.shape)}"
            raise GraphError("wants 8 bits and zero points", where="dot_integer", got=got)
    left, right = (
        apply("sub", apply("cast", x, to=dtypes.i32), zero) for x, zero in ((a, za), (b, zb))
    )
    return Definition(apply("dot", left, right))


def _dot_shifted(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Definition:
    a, b, *zeros = inputs
    taps, across, count = attrs["taps"], attrs["across"], attrs["count"]
    if b.dtype is not dtypes.f32 and (len(b.shape) != 2 or len(zeros) != 2):
        raise GraphError("wants zero points and no leading axes", where="dot_shifted")
    *lead, channels, _ = b.shape
    place = apply("reshape", apply("iota", size=taps), shape=(taps, 1))
    wide, tall = (
        integers([x]) if isinstance(x, int) else apply("size", size=x)
        for x in (attrs["right"], attrs["down"])
    )
    row = integers([across])
    down = apply("mul", apply("div", place, row), tall)
    shift = apply("add", down, apply("mul", apply("mod", place, row), wide))
    at = apply("add", apply("iota", size=count), shift)
    along = [
        apply("reshape", apply("iota", size=size), shape=(size, *(1,) * (len(lead) + 2 - axis)))
        for axis, size in enumerate((*lead, channels))
    ]
    shape = (*lead, product((channels, taps)), count)
    rows = apply("reshape", apply("take", b, *along, at), shape=shape)
    if not zeros:
        return Definition(apply("dot", a, rows))
    return _dot_integer((a, rows, *zeros), {})


def _project(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Definition:
    if len(inputs) < 3:
        raise GraphError("wants x, g and products", where="project", got=len(inputs))
    x, g, *weights = inputs
    h = apply("rms_norm", x, g, eps=attrs["eps"])
    products = [apply("matmul", h, w) for w in weights]
    return Definition(apply("concat", *products, axis=len(x.shape) - 1))


def _swiglu(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Definition:
    x, g, w, u = inputs
    h = apply("rms_norm", x, g, eps=attrs["eps"])
    return Definition(apply("mul", apply("silu", apply("matmul", h, w)), apply("matmul", h, u)))


def _matmul_add(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Definition:
    x, w, r = inputs
    y = apply("matmul", x, w)
    if r.shape != y.shape:
        raise GraphError("wants r of the product's shape", where="matmul_add", got=list(r.shape))
    return Definition(apply("add", r, y))


def _attend(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Definition:
    if len(inputs) not in (5, 7) or len(inputs[0].shape) != 2 or len(inputs[1].shape) != 3:
        raise GraphError("wants a [T, N], k, v, cos, sin (and two norms)", where="attend")
    a, k, v, cos, sin, *norms = inputs
    start = attrs["start"]
    rows, width = a.shape
    groups, depth = k.shape[1:]
    if not (isinstance(width, int) and isinstance(groups, int) and isinstance(depth, int)):
        raise GraphError("wants known sizes", where="attend")
    heads = width // depth - 2 * groups
    if width % depth or heads <= 0:
        raise GraphError("no whole number of heads", where="attend", got=width, wanted=depth)

    def part(first: int, count: int) -> Node:
        """``count`` heads from the head ``first``: [T, count, D]."""
        sizes: tuple[Size, ...] = (rows, count * depth)
        x = apply("slice", a, starts=(0, first * depth), sizes=sizes)
        return apply("reshape", x, shape=(rows, count, depth))

    def rotated(x: Node, number: int) -> Node:
        if norms:
            x = apply("rms_norm", x, norms[number], eps=attrs["eps"])
        return apply("rope", x, cos, sin, start=start, interleaved=attrs["interleaved"])

    q = rotated(part(0, heads), 0)
    new_k = apply("update", k, rotated(part(heads, groups), 1), start=start)
    new_v = apply("update", v, part(heads + groups, groups), start=start)
    value = apply("attention", q, new_k, new_v, start=start, scale=attrs["scale"])
    return Definition(value, {1: new_k, 2: new_v})


def _attend_add(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Definition:
    *attended, w, r = inputs
    meant = _attend(tuple(attended), attrs)
    return Definition(_matmul_add((meant.value, w, r), {}).value, meant.changed)


DEFINITIONS: dict[str, Callable[[tuple[Node, ...], Mapping[str, Any]], Definition]] = {
    "dot": _dot,
    "dot_stored": _dot_stored,
    "dot_integer": _dot_integer,
    "dot_shifted": _dot_shifted,
    "project": _project,
    "swiglu": _swiglu,
    "matmul_add": _matmul_add,
    "attend": _attend,
    "attend_add": _attend_add,
}
