"""Work for many threads where a value has few elements.

    reduce_K(x, axes a, b)   →   reduce_K(reduce_K(x, b), a)             long, of few results
    reduce_K(x, axis a)      →   the same of x reshaped to [parts, rest]
    dot(a, b)                →   reduce_sum(dot(a's columns in parts, b's rows in parts))
    dot_shifted(a, b)        →   the same with parts of b's channels

A thread reduces the elements of a place one behind the other, and so does a tile of a product
along K: with few places most of the GPU would wait for them. Sums are added in another order, which
costs no accuracy: shorter sums round less. Measured on an H100: docs/design.md.
"""

from __future__ import annotations

from functools import partial

from fanlight import dtypes
from fanlight.ir.graph import Graph, Node
from fanlight.ir.ops import apply
from fanlight.ir.rewrite import Build, New, rewrite
from fanlight.shapes import Size, maximum, product

FEW = 4096  # results of a reduction that are too few to have a team of threads each
LONG = 4096  # elements that go into one of them, from which on two steps are faster
TILES = 256  # of a product; fewer leave multiprocessors idle
TEAM = 64  # elements that are worth the threads of a team
DEEP = 512  # length of K from which on it is worth it
MOST_PARTS = 16


def run(graph: Graph, products: bool = True) -> Graph:
    """``graph`` with the patterns above replaced, wherever they are worth it; without
    ``products`` reductions alone, which a few threads share out as well."""
    builds: dict[Node, Build] = {}
    for node in graph.nodes():
        if node.op.startswith("reduce_"):
            build = _reduction(node)
        elif products and node.op in ("dot", "dot_shifted"):
            build = _product(node)
        else:
            continue
        if build is not None:
            builds[node] = build
    return rewrite(graph, builds) if builds else graph


# --- reductions


def _reduction(node: Node) -> Build | None:
    shape, keep = node.inputs[0].shape, node.attrs["keep"]
    axes = [a for a in node.attrs["axes"] if shape[a] != 1]
    length = maximum(product([shape[a] for a in axes]))
    if maximum(product(node.shape)) > FEW or length < LONG:
        return None
    if len(axes) == 1:
        parts = _divisor(shape[axes[0]])
        return partial(_in_parts, node, axes[0], parts) if parts > 1 else None
    first, last = max(axes), max(axes)  # axes side by side, enough for a team of threads
    while maximum(product(shape[first : last + 1])) < TEAM and first - 1 in axes[1:]:
        first -= 1

    def build(new: New) -> Node:
        x = new(node.inputs[0])
        flat = (*shape[:first], product(shape[first : last + 1]), *shape[last + 1 :])
        inner = apply(node.op, apply("reshape", x, shape=flat), axes=(first,), keep=False)
        ones = (1,) * (last + 1 - first)
        kept = apply("reshape", inner, shape=(*shape[:first], *ones, *shape[last + 1 :]))
        rest = tuple(a for a in node.attrs["axes"] if not first <= a <= last)
        outer = apply(node.op, kept, axes=rest, keep=True)
        again = _reduction(outer)
        outer = outer if again is None else again(lambda made: made)
        return outer if keep else apply("reshape", outer, shape=node.shape)

    return build


def _divisor(size: Size) -> int:
    """Of a known size, near its root: what it is split by; else 1."""
    if not isinstance(size, int):
        return 1
    root = int(size**0.5)
    return next((d for d in range(root, max(root // 4, 1), -1) if size % d == 0), 1)


def _in_parts(node: Node, axis: int, parts: int, new: New) -> Node:
    x = new(node.inputs[0])
    length = x.shape[axis]
    assert isinstance(length, int)
    shape = (*x.shape[:axis], parts, length // parts, *x.shape[axis + 1 :])
    inner = apply(node.op, apply("reshape", x, shape=shape), axes=(axis + 1,), keep=True)
    outer = apply(node.op, inner, axes=(axis, axis + 1), keep=False)
    return apply("reshape", outer, shape=node.shape)


# --- products


def _product(node: Node) -> Build | None:
    a, b = node.inputs[:2]
    m, n, k = node.shape[-2], node.shape[-1], a.shape[-1]
    sizes = (*node.shape, k)
    if node.dtype is not dtypes.f32 or not all(isinstance(s, int) for s in sizes):
        return None
    if product(node.shape[:-2]) != 1 or len(b.shape) < 2 or product(b.shape[:-2]) != 1:
        return None
    assert isinstance(m, int) and isinstance(n, int) and isinstance(k, int)
    rows = b.shape[-2]  # of K itself, or the channels that it has so many taps of
    assert isinstance(rows, int)
    tiles = -(-m // 32) * -(-n // 64)
    wanted = min(MOST_PARTS, TILES // tiles, k // (DEEP // 2))
    if k < DEEP or wanted < 2:
        return None
    parts = next((p for p in range(wanted, 1, -1) if rows % p == 0), 1)
    return partial(_product_in_parts, node, parts) if parts > 1 else None


def _product_in_parts(node: Node, parts: int, new: New) -> Node:
    a, b = (new(x) for x in node.inputs)
    m, k = node.shape[-2], a.shape[-1]
    rows, length = b.shape[-2:]
    assert isinstance(k, int) and isinstance(rows, int)
    left = apply("reshape", a, shape=(m, parts, k // parts))
    left = apply("permute", left, axes=(1, 0, 2))
    right = apply("reshape", b, shape=(parts, rows // parts, length))
    sums = apply(node.op, left, right, **node.attrs)
    total = apply("reduce_sum", sums, axes=(0,), keep=False)
    return apply("reshape", total, shape=node.shape)
