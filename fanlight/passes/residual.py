"""A product added to a value of its own shape: one ``matmul_add``.

    r + matmul(x, w)   →   matmul_add(x, w, r)

Left alone: a product that is used elsewhere, is no product by a weight, or is broadcast.
"""

from __future__ import annotations

from fanlight.ir.graph import Graph, Node
from fanlight.ir.ops import apply
from fanlight.ir.rewrite import Build, New, Users, rewrite


def run(graph: Graph) -> Graph:
    users = Users.in_graph(graph)
    builds: dict[Node, Build] = {}
    for node in graph.nodes():
        if node.op != "add":
            continue
        for product, other in (node.inputs, node.inputs[::-1]):
            if _fits(product, other, users):
                builds[node] = _build(product, other)
                break
    return rewrite(graph, builds)


def _fits(product: Node, other: Node, users: Users) -> bool:
    by_weight = product.op == "matmul" and product.inputs[1].op == "weight"
    return by_weight and product.shape == other.shape and users.only(product) is not None


def _build(product: Node, other: Node) -> Build:
    def build(new: New) -> Node:
        return apply("matmul_add", *map(new, product.inputs), new(other))

    return build
