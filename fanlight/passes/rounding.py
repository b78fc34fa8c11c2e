"""A value that is rounded, bounded and rounded again is rounded once.

    cast16(max(cast32(cast16(x)), c))   →   cast16(max(x, c))           c a number of 16 bits

Rounding keeps order, so that bounds of the narrower dtype can be taken before it: the bits are the
same, and a value less is stored. Graphs in f16 have this behind each convolution.
"""

from __future__ import annotations

import struct

from fanlight import dtypes
from fanlight.ir.graph import Graph, Node
from fanlight.ir.ops import apply
from fanlight.ir.rewrite import Build, New, Users, rewrite
from fanlight.shapes import product


def run(graph: Graph) -> Graph:
    """``graph`` with the pattern above replaced."""
    users = Users.in_graph(graph)
    builds: dict[Node, Build] = {}
    for node in graph.nodes():
        wide = _wide(node, users)
        if wide is not None:
            builds[node] = _bounded(node, wide)
    return rewrite(graph, builds) if builds else graph


def _wide(node: Node, users: Users) -> Node | None:
    """x of the pattern whose bound is ``node``."""
    if node.op not in ("max", "min") or node.dtype is not dtypes.f32 or node in users.kept:
        return None
    if not users.of[node] or not all(_narrows(user) for user in users.of[node]):
        return None
    again, bound = node.inputs
    if not _is_half(bound) or again.op != "cast" or users.only(again) is None:
        return None
    rounded = again.inputs[0]
    if not _narrows(rounded) or users.only(rounded) is None:
        return None
    return rounded.inputs[0]


def _bounded(node: Node, wide: Node) -> Build:
    def build(new: New) -> Node:
        return apply(node.op, new(wide), new(node.inputs[1]))

    return build


def _narrows(node: Node) -> bool:
    return node.op == "cast" and node.dtype is dtypes.f16 and node.inputs[0].dtype is dtypes.f32


def _is_half(node: Node) -> bool:
    """One number that f16 has."""
    if node.op != "constant" or product(node.shape) != 1 or node.dtype is not dtypes.f32:
        return False
    (value,) = struct.unpack("<f", node.attrs["data"])
    try:
        return bool(struct.unpack("<e", struct.pack("<e", value))[0] == value)
    except OverflowError:
        return False
