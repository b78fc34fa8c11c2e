"""rms_norm → products: one ``project``.

    h = rms_norm(x, g); y1 = matmul(h, w1); …        →   p = project(x, g, w1, …); y1 = slice(p); …

Left alone: a norm with a user that isn't a product of it by a weight, or that is an output.
"""

from __future__ import annotations

from functools import cache

from fanlight.ir.graph import Graph, Node
from fanlight.ir.ops import apply
from fanlight.ir.rewrite import Build, New, Users, rewrite
from fanlight.shapes import Size


def run(graph: Graph) -> Graph:
    users = Users.in_graph(graph)
    builds: dict[Node, Build] = {}
    for norm in graph.nodes():
        if norm.op == "rms_norm" and norm not in users.kept:
            products = list(dict.fromkeys(users.of[norm]))
            if products and all(_is_product(node, norm) for node in products):
                builds |= _builds(norm, products)
    return rewrite(graph, builds)


def _is_product(node: Node, norm: Node) -> bool:
    known = isinstance(node.shape[-1], int)
    return (
        node.op == "matmul" and node.inputs[0] is norm and node.inputs[1].op == "weight" and known
    )


def weight_of(part: Node) -> Node | None:
    """The weight of the product that ``part``, a slice of a project, is all of; else None."""
    project = part.inputs[0] if part.op == "slice" else part
    if project.op != "project" or project is part:
        return None
    first: Size = 0
    for weight in project.inputs[2:]:
        starts = (*(0 for _ in part.shape[:-1]), first)
        if part.attrs["starts"] == starts and part.shape == (
            *project.shape[:-1],
            weight.shape[0],
        ):
            return weight
        first = first + weight.shape[0]
    return None


def _builds(norm: Node, products: list[Node]) -> dict[Node, Build]:
    @cache
    def fused(new: New) -> Node:
        x, g = map(new, norm.inputs)
        return apply("project", x, g, *(p.inputs[1] for p in products), eps=norm.attrs["eps"])

    def part(product: Node, first: Size) -> Build:
        def build(new: New) -> Node:
            whole = fused(new)
            if whole.shape == product.shape:
                return whole
            starts = (*(0 for _ in product.shape[:-1]), first)
            return apply("slice", whole, starts=starts, sizes=product.shape)

        return build

    out: dict[Node, Build] = {}
    first: Size = 0
    for product in products:
        out[product] = part(product, first)
        first = first + product.shape[-1]
    return out
