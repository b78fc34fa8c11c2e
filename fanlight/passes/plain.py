"""Composite nodes that the target has no code for become the plain ops that they stand for.

    dot(a, b)   →   reduce_sum(mul(reshape(a), reshape(permute(b))))

Left alone: ops that change states in place; their makers ask the target first.
"""

from __future__ import annotations

from collections.abc import Callable

from fanlight.ir.composite import define
from fanlight.ir.graph import Graph, Node
from fanlight.ir.ops import OPS
from fanlight.ir.rewrite import Build, New, rewrite


def run(graph: Graph, runs: Callable[[Node], bool]) -> Graph:
    """``graph`` with no composite node that the target doesn't run (``runs``)."""
    wanting = [node for node in graph.nodes() if _wanting(node, runs)]
    if not wanting:
        return graph
    builds = {node: _build(node) for node in wanting}
    return run(rewrite(graph, builds), runs)


def _wanting(node: Node, runs: Callable[[Node], bool]) -> bool:
    op = OPS[node.op]
    return op.family == "composite" and not op.changes and not runs(node)


def _build(node: Node) -> Build:
    def build(new: New) -> Node:
        return define(node.op, tuple(map(new, node.inputs)), node.attrs).value

    return build
