"""Nodes of a graph in an order in which each comes behind those whose values it takes.

ONNX asks for that order, but published files break it, and onnxruntime loads them. In: nodes. Out:
the same nodes, moved only where they must be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fanlight.formats import onnx_model as onnx


def in_order(nodes: Sequence[onnx.Node]) -> list[onnx.Node]:
    """Nodes that wait for each other in a circle stay as they are, behind the others."""
    maker = {name: i for i, node in enumerate(nodes) for name in node.outputs if name}
    needs = [sorted({maker[name] for name in _taken(node) if name in maker}) for node in nodes]
    if all(n < i for i, wanted in enumerate(needs) for n in wanted):
        return list(nodes)
    order: list[int] = []
    state = [0] * len(nodes)  # 1: looked at, 2: in order
    for root in range(len(nodes)):
        stack = [root]
        while stack:
            at = stack[-1]
            waiting = [n for n in needs[at] if state[n] == 0] if state[at] == 0 else []
            if state[at] == 0:
                state[at] = 1
            if waiting:
                stack += reversed(waiting)
                continue
            stack.pop()
            if state[at] == 1:
                state[at] = 2
                order.append(at)
    return [nodes[i] for i in order]


def _taken(node: onnx.Node) -> Iterator[str]:
    """Names of values that a node takes, its subgraphs included."""
    yield from node.inputs
    for attribute in node.attributes.values():
        value = attribute.value
        for graph in value if isinstance(value, tuple) else (value,):
            if isinstance(graph, onnx.Graph):
                for inner in graph.nodes:
                    yield from _taken(inner)
                yield from (info.name for info in graph.outputs)
