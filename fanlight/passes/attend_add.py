"""Attention whose values go into one product with a residual: one ``attend_add``.

    y = attend(…); after(y, k), after(y, v); matmul_add(y, w, r)
    →   z = attend_add(…, w, r); after(z, k), after(z, v); z

Left alone: values that are used elsewhere, and a residual that is made after the attention.
"""

from __future__ import annotations

from functools import cache

from fanlight.ir.graph import LEAVES, Graph, Node
from fanlight.ir.ops import apply
from fanlight.ir.rewrite import Build, New, Users, rewrite


def run(graph: Graph) -> Graph:
    users = Users.in_graph(graph)
    order = {node: number for number, node in enumerate(graph.nodes())}
    builds: dict[Node, Build] = {}
    for attend in order:
        if attend.op != "attend" or attend in users.kept:
            continue
        states = [node for node in users.of[attend] if node.op == "after"]
        others = [node for node in users.of[attend] if node.op != "after"]
        if len(others) != 1 or others[0].op != "matmul_add" or others[0].inputs[0] is not attend:
            continue
        residual = others[0].inputs[2]
        if residual.op in LEAVES or order[residual] < order[attend]:
            builds |= _builds(attend, others[0], states)
    return rewrite(graph, builds)


def _builds(attend: Node, product: Node, states: list[Node]) -> dict[Node, Build]:
    @cache
    def fused(new: New) -> Node:
        inputs = (*attend.inputs, *product.inputs[1:])
        return apply("attend_add", *map(new, inputs), **attend.attrs)

    def after(number: int) -> Build:
        return lambda new: apply("after", fused(new), input=number)

    return {product: fused, **{node: after(node.attrs["input"]) for node in states}}
